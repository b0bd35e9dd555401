// libblt for C++17: blt.h with owners, exceptions and ranges. Header only.
//
//     blt::Model model("model.safetensors");
//     blt::Session session(model, blt::Options().seed(7));
//     session.feed("Once upon a time");
//     for (char byte : session.bytes(200))
//         std::cout.put(byte);
//
// The rules are those of blt.h. Every failed call throws blt::Error; exceptions out of callbacks
// pass through the library unharmed.
#ifndef BLT_HPP
#define BLT_HPP

#include <blt.h>

#include <cstddef>
#include <cstdint>
#include <exception>
#include <functional>
#include <iterator>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace blt {

// A failed call.
class Error : public std::runtime_error {
public:
    Error(blt_status status, const std::string &what) : std::runtime_error(what), status_(status) {}
    blt_status status() const noexcept { return status_; }

private:
    blt_status status_;
};

namespace detail {

inline void check(blt_status status)
{
    if (status != BLT_OK)
        throw Error(status, blt_last_error());
}

struct Free {
    void operator()(blt_model *handle) const noexcept { blt_model_free(handle); }
    void operator()(blt_session *handle) const noexcept { blt_session_free(handle); }
    void operator()(blt_options *handle) const noexcept { blt_options_free(handle); }
};

template <class T> using Handle = std::unique_ptr<T, Free>;

// What a make function puts into its last argument.
template <class T, class... Params, class... Args>
Handle<T> make(blt_status (*function)(Params...), Args... args)
{
    T *handle = nullptr;
    check(function(args..., &handle));
    return Handle<T>(handle);
}

// What a function copies out after it has been asked how much there is.
template <class T, class Function> std::vector<T> copy(Function function)
{
    std::size_t n = 0;
    check(function(nullptr, 0, &n));
    std::vector<T> values(n);
    if (n > 0)
        check(function(values.data(), values.size(), &n));
    return values;
}

// A C++ function as a C callback. An exception is kept until the C call has returned.
template <class Function> struct Callback {
    Function &function;
    std::exception_ptr exception;

    template <class... Args> int call(Args... args) noexcept
    {
        try {
            return function(args...) ? 0 : 1;
        } catch (...) {
            exception = std::current_exception();
            return 1;
        }
    }

    void finish(blt_status status)
    {
        if (exception)
            std::rethrow_exception(exception);
        check(status);
    }
};

} // namespace detail

// Settings; each returns the options, so that they can be chained. See blt_option.
class Options {
public:
    Options() : handle_(detail::make<blt_options>(blt_options_new)) {}

    Options &set(blt_option option, std::uint64_t value)
    {
        detail::check(blt_options_set_int(handle_.get(), option, value));
        return *this;
    }
    Options &set_real(blt_option option, double value)
    {
        detail::check(blt_options_set_real(handle_.get(), option, value));
        return *this;
    }
    Options &set_text(blt_option option, std::string_view text)
    {
        detail::check(blt_options_set_text(handle_.get(), option, text.data(), text.size()));
        return *this;
    }

    Options &threads(std::uint64_t n) { return set(BLT_OPTION_THREADS, n); }
    Options &preload(bool on = true) { return set(BLT_OPTION_PRELOAD, on); }
    Options &profile(std::string_view name) { return set_text(BLT_OPTION_PROFILE, name); }
    Options &tokenizer(std::string_view path) { return set_text(BLT_OPTION_TOKENIZER, path); }
    Options &load(std::string_view how) { return set_text(BLT_OPTION_LOAD, how); }
    Options &max_bytes(std::uint64_t n) { return set(BLT_OPTION_MAX_BYTES, n); }
    Options &slide_keep(std::uint64_t n) { return set(BLT_OPTION_SLIDE_KEEP, n); }
    Options &kv(std::string_view type) { return set_text(BLT_OPTION_KV, type); }
    Options &temperature(double value) { return set_real(BLT_OPTION_TEMPERATURE, value); }
    Options &seed(std::uint64_t value) { return set(BLT_OPTION_SEED, value); }
    Options &stop(std::string_view text) { return set_text(BLT_OPTION_STOP, text); }
    Options &draft(std::uint64_t n) { return set(BLT_OPTION_DRAFT, n); }

    const blt_options *get() const noexcept { return handle_.get(); }

private:
    detail::Handle<blt_options> handle_;
};

// A model. Any number of threads may use it at once.
class Model {
public:
    // Is told how many of how many bytes of weights have been read; false ends the opening.
    using Progress = std::function<bool(std::uint64_t n_done, std::uint64_t n_total)>;

    explicit Model(const std::string &path, const Options &options = Options(),
                   Progress progress = nullptr)
    {
        open(progress, [&](blt_progress function, void *user, blt_model **out) {
            return blt_model_open(path.c_str(), options.get(), function, user, out);
        });
    }

    // A native model file in memory, which must stay as it is, unless BLT_OPTION_COPY is set.
    static Model from_memory(std::string_view bytes, const Options &options = Options(),
                             Progress progress = nullptr)
    {
        Model model;
        model.open(progress, [&](blt_progress function, void *user, blt_model **out) {
            return blt_model_open_memory(bytes.data(), bytes.size(), options.get(), function, user,
                                         out);
        });
        return model;
    }

    std::uint64_t info(blt_model_key key) const
    {
        std::uint64_t value = 0;
        detail::check(blt_model_info(handle_.get(), key, &value));
        return value;
    }

    const blt_model *get() const noexcept { return handle_.get(); }

private:
    Model() = default;

    template <class Open> void open(Progress &progress, Open open_with)
    {
        using Callback = detail::Callback<Progress>;
        Callback callback{progress, nullptr};
        blt_progress function = nullptr;
        if (progress)
            function = [](void *user, std::uint64_t n_done, std::uint64_t n_total) {
                return static_cast<Callback *>(user)->call(n_done, n_total);
            };
        blt_model *handle = nullptr;
        blt_status status = open_with(function, &callback, &handle);
        handle_.reset(handle);
        callback.finish(status);
    }

    detail::Handle<blt_model> handle_;
};

class Session;

// The bytes with which a model continues; made by Session::bytes. Each is chosen when it is needed.
class Bytes {
public:
    class iterator {
    public:
        using iterator_category = std::input_iterator_tag;
        using value_type = char;
        using difference_type = std::ptrdiff_t;
        using pointer = const char *;
        using reference = char;

        iterator() = default;
        explicit iterator(Bytes *bytes) : bytes_(bytes) { ++*this; }
        char operator*() const noexcept { return byte_; }
        iterator &operator++()
        {
            std::optional<char> next = bytes_->next();
            if (next)
                byte_ = *next;
            else
                bytes_ = nullptr;
            return *this;
        }
        void operator++(int) { ++*this; }
        bool operator==(const iterator &other) const noexcept { return bytes_ == other.bytes_; }
        bool operator!=(const iterator &other) const noexcept { return bytes_ != other.bytes_; }

    private:
        Bytes *bytes_ = nullptr;
        char byte_ = 0;
    };

    iterator begin() { return iterator(this); }
    iterator end() { return iterator(); }

private:
    friend class Session;
    Bytes(Session &session, std::size_t max_bytes) : session_(&session), left_(max_bytes) {}
    inline std::optional<char> next();

    Session *session_;
    std::size_t left_;
};

// One conversation. Used by one thread at a time; only cancel() may be called from others.
class Session {
public:
    explicit Session(const Model &model, const Options &options = Options())
        : handle_(detail::make<blt_session>(blt_session_new, model.get(), options.get()))
    {
    }

    static Session load(const Model &model, const std::string &path,
                        const Options &options = Options())
    {
        return Session(detail::make<blt_session>(blt_session_load, model.get(), options.get(),
                                                 path.c_str()));
    }
    static Session load_memory(const Model &model, std::string_view state,
                               const Options &options = Options())
    {
        return Session(detail::make<blt_session>(blt_session_load_memory, model.get(),
                                                 options.get(),
                                                 static_cast<const void *>(state.data()),
                                                 state.size()));
    }

    // A second session that has read the same bytes and goes on its own way.
    Session fork() const
    {
        return Session(detail::make<blt_session>(
            blt_session_clone, static_cast<const blt_session *>(handle_.get())));
    }

    void feed(std::string_view bytes)
    {
        detail::check(blt_session_feed(handle_.get(), bytes.data(), bytes.size()));
    }

    // The next byte, already read; none at the end of the text.
    std::optional<char> next_byte()
    {
        int byte = BLT_END;
        detail::check(blt_session_next_byte(handle_.get(), &byte));
        return byte == BLT_END ? std::nullopt : std::optional<char>(static_cast<char>(byte));
    }

    // At most max_bytes bytes, to be read in a range-based for; BLT_OPTION_STOP plays no part.
    Bytes bytes(std::size_t max_bytes) { return Bytes(*this, max_bytes); }

    // Hands bytes to write (a std::string_view; false ends) and says why it ended.
    template <class Write> blt_finish generate(std::size_t max_bytes, Write &&write)
    {
        auto pass = [&](const std::uint8_t *bytes, std::size_t n) -> bool {
            return write(std::string_view(reinterpret_cast<const char *>(bytes), n));
        };
        using Callback = detail::Callback<decltype(pass)>;
        Callback callback{pass, nullptr};
        blt_write function = [](void *user, const std::uint8_t *bytes, std::size_t n) {
            return static_cast<Callback *>(user)->call(bytes, n);
        };
        blt_finish reason = BLT_FINISH_MAX_BYTES;
        callback.finish(
            blt_session_generate(handle_.get(), max_bytes, function, &callback, &reason));
        return reason;
    }

    // At most max_bytes bytes.
    std::string generate(std::size_t max_bytes)
    {
        std::string text;
        generate(max_bytes, [&](std::string_view bytes) {
            text += bytes;
            return true;
        });
        return text;
    }

    // Reads bytes; the sum of -log2 of their probabilities.
    double score(std::string_view bytes)
    {
        double bits = 0;
        detail::check(blt_session_score(handle_.get(), bytes.data(), bytes.size(), &bits));
        return bits;
    }

    std::vector<float> logits() const
    {
        return detail::copy<float>([&](float *out, std::size_t capacity, std::size_t *n) {
            return blt_session_logits(handle_.get(), out, capacity, n);
        });
    }
    std::vector<float> entropies(std::size_t first = 0) const
    {
        return detail::copy<float>([&](float *out, std::size_t capacity, std::size_t *n) {
            return blt_session_entropies(handle_.get(), first, out, capacity, n);
        });
    }
    std::vector<std::size_t> patch_starts(std::size_t first = 0) const
    {
        return detail::copy<std::size_t>(
            [&](std::size_t *out, std::size_t capacity, std::size_t *n) {
                return blt_session_patch_starts(handle_.get(), first, out, capacity, n);
            });
    }

    std::uint64_t info(blt_session_key key) const
    {
        std::uint64_t value = 0;
        detail::check(blt_session_info(handle_.get(), key, &value));
        return value;
    }
    // Positions read: bytes, and the begin-of-sequence id before them.
    std::size_t size() const { return static_cast<std::size_t>(info(BLT_SESSION_LENGTH)); }

    void rewind(std::size_t n_positions)
    {
        detail::check(blt_session_rewind(handle_.get(), n_positions));
    }
    void reset() { detail::check(blt_session_reset(handle_.get())); }
    void set_sampling(const Options &options)
    {
        detail::check(blt_session_set_sampling(handle_.get(), options.get()));
    }

    void save(const std::string &path) const
    {
        detail::check(blt_session_save(handle_.get(), path.c_str()));
    }
    std::string save_memory() const
    {
        std::vector<std::uint8_t> state = detail::copy<std::uint8_t>(
            [&](std::uint8_t *out, std::size_t capacity, std::size_t *n) {
                return blt_session_save_memory(handle_.get(), out, capacity, n);
            });
        return std::string(state.begin(), state.end());
    }

    // From any thread: the call that is running, or the next one, throws BLT_ERROR_CANCELLED.
    void cancel() const { detail::check(blt_session_cancel(handle_.get())); }

    blt_session *get() const noexcept { return handle_.get(); }

private:
    explicit Session(detail::Handle<blt_session> handle) : handle_(std::move(handle)) {}

    detail::Handle<blt_session> handle_;
};

inline std::optional<char> Bytes::next()
{
    if (left_ == 0)
        return std::nullopt;
    left_ -= 1;
    return session_->next_byte();
}

} // namespace blt

#endif // BLT_HPP
