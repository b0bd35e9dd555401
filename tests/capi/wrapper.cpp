// The C++ wrapper: owners, exceptions, ranges. wrapper MODEL NATIVE FOLDER
#include <blt.hpp>

#include <fstream>
#include <iostream>
#include <iterator>
#include <string>
#include <thread>
#include <type_traits>

static_assert(std::is_nothrow_move_constructible_v<blt::Session>);
static_assert(std::is_nothrow_move_assignable_v<blt::Model>);
static_assert(!std::is_copy_constructible_v<blt::Session>, "a fork says so");

static int n_failed = 0;

#define CHECK(condition)                                                                           \
    do {                                                                                           \
        if (!(condition)) {                                                                        \
            std::cerr << "wrapper.cpp:" << __LINE__ << ": " << #condition << '\n';                 \
            n_failed++;                                                                            \
        }                                                                                          \
    } while (0)

template <class Function> static blt_status status_of(Function function)
{
    try {
        function();
    } catch (const blt::Error &error) {
        CHECK(*error.what() != 0);
        return error.status();
    }
    return BLT_OK;
}

static void exceptions(const std::string &path)
{
    CHECK(status_of([] { blt::Model("/no/such/model"); }) == BLT_ERROR_IO);
    CHECK(status_of([] { blt::Options().temperature(-1); }) == BLT_ERROR_ARGUMENT);
    auto refuse = [](std::uint64_t, std::uint64_t) { return false; };
    CHECK(status_of([&] { blt::Model(path, blt::Options(), refuse); }) == BLT_ERROR_CANCELLED);

    // Exceptions out of callbacks come through whole.
    struct Mine {};
    blt::Session session{blt::Model(path)};
    session.feed("abc");
    try {
        session.generate(10, [](std::string_view) -> bool { throw Mine(); });
        CHECK(!"no exception");
    } catch (const Mine &) {
    }
    CHECK(session.size() == 5);
    try {
        blt::Model(path, blt::Options(), [](std::uint64_t, std::uint64_t) -> bool { throw Mine(); });
        CHECK(!"no exception");
    } catch (const Mine &) {
    }
}

static void ways_to_the_same_bytes(const std::string &path, const std::string &native,
                                   const std::string &folder)
{
    blt::Options options;
    options.seed(5).set(BLT_OPTION_IGNORE_EOS, 1);
    blt::Model model(path, options);
    blt::Session start(model, options);
    start.feed("The sun");

    std::string text = start.fork().generate(30);
    CHECK(text.size() == 30);
    blt::Session one = start.fork(), two = start.fork();
    std::string bytes;
    for (char byte : one.bytes(30))
        bytes += byte;
    CHECK(bytes == text);
    CHECK(one.size() == start.size() + 30);
    while (two.size() < start.size() + 30)
        CHECK(two.next_byte().has_value());
    CHECK(two.logits() == one.logits());
    CHECK(two.patch_starts() == one.patch_starts());

    start.save(folder + "/wrapper");
    CHECK(blt::Session::load(model, folder + "/wrapper", options).generate(30) == text);
    CHECK(blt::Session::load_memory(model, start.save_memory(), options).generate(30) == text);

    std::ifstream file(native, std::ios::binary);
    std::string in_memory{std::istreambuf_iterator<char>(file), {}};
    blt::Model same = blt::Model::from_memory(in_memory);
    CHECK(same.info(BLT_MODEL_FINGERPRINT) == model.info(BLT_MODEL_FINGERPRINT));
    CHECK(blt::Session::load_memory(same, start.save_memory(), options).generate(30) == text);

    blt::Session scored(model);
    CHECK(scored.score("The sun") > 0);
    CHECK(scored.logits() == start.logits());
    CHECK(scored.entropies(3).size() == scored.size() - 3);
    scored.rewind(0);
    CHECK(scored.logits().empty());
}

static void cancelling(const std::string &path)
{
    blt::Model model(path);
    blt::Session session(model);
    std::thread other([&] { session.cancel(); });
    other.join();
    CHECK(status_of([&] { session.feed("x"); }) == BLT_ERROR_CANCELLED);
    CHECK(session.size() == 0);
}

int main(int argc, char **argv)
{
    if (argc != 4)
        return 2;
    exceptions(argv[1]);
    ways_to_the_same_bytes(argv[1], argv[2], argv[3]);
    cancelling(argv[1]);
    return n_failed != 0;
}
