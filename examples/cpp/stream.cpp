// Continues a prompt twice, from one reading of it: stream MODEL PROMPT [N_BYTES [SEED]]
#include <blt.hpp>

#include <exception>
#include <iostream>
#include <string>

int main(int argc, char **argv)
{
    if (argc < 3) {
        std::cerr << "usage: stream MODEL PROMPT [N_BYTES [SEED]]\n";
        return 2;
    }
    try {
        std::size_t n_bytes = argc > 3 ? std::stoul(argv[3]) : 200;
        blt::Options options;
        options.seed(argc > 4 ? std::stoull(argv[4]) : 0);
        blt::Model model(argv[1], options);
        blt::Session session(model, options);
        session.feed(argv[2]);
        blt::Session other = session.fork();

        for (char byte : session.bytes(n_bytes))
            std::cout.put(byte).flush();
        std::cout << '\n';
        other.set_sampling(blt::Options().temperature(0));
        other.generate(n_bytes, [](std::string_view bytes) {
            return static_cast<bool>(std::cout << bytes << std::flush);
        });
        std::cout << '\n';
    } catch (const std::exception &error) {
        std::cerr << "stream: " << error.what() << '\n';
        return 1;
    }
}
