// Everything a caller can do wrong, and what must come of it: misuse MODEL OTHER NATIVE FOLDER
//
// MODEL and OTHER are two models, NATIVE a native file, FOLDER a place for files. Every function is
// called with NULL and with wrong numbers; each must give its documented status, a message, and
// leave outputs alone.
#include <blt.h>
#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static int n_failed = 0;

#define CHECK(condition) check(condition, #condition, __LINE__)

static void check(int ok, const char *what, int line)
{
    if (!ok) {
        fprintf(stderr, "misuse.c:%d: %s; last error: %s\n", line, what, blt_last_error());
        n_failed++;
    }
}

// The call must give this status and a message that holds `part`.
#define EXPECT(call, status, part) expect(call, status, part, #call, __LINE__)

static void expect(blt_status found, blt_status status, const char *part, const char *call, int line)
{
    if (found != status || (status != BLT_OK && !strstr(blt_last_error(), part))) {
        fprintf(stderr, "misuse.c:%d: %s: expected %s \"%s\", found %s \"%s\"\n", line, call,
                blt_status_name(status), part, blt_status_name(found), blt_last_error());
        n_failed++;
    }
}

#define ARGUMENT(call, name) EXPECT(call, BLT_ERROR_ARGUMENT, name)
#define OK(call) EXPECT(call, BLT_OK, "")

static blt_model *model, *other;
static const char *model_path, *native_path, *folder;

static const char *path_in_folder(const char *name)
{
    static char path[4096];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    return path;
}

static blt_session *new_session(void)
{
    blt_session *session = NULL;
    OK(blt_session_new(model, NULL, &session));
    if (!session)
        exit(1);
    return session;
}

static uint64_t length(const blt_session *session)
{
    uint64_t n = 0;
    OK(blt_session_info(session, BLT_SESSION_LENGTH, &n));
    return n;
}

// ---- callbacks

struct sink {
    char bytes[4096];
    size_t n, stop_after;
    blt_session *session;
    blt_status inner;
};

static int collect(void *user, const uint8_t *bytes, size_t n)
{
    struct sink *sink = user;
    if (n == 0 || sink->n + n > sizeof sink->bytes)
        return 1;
    memcpy(sink->bytes + sink->n, bytes, n);
    sink->n += n;
    return sink->stop_after && sink->n >= sink->stop_after;
}

static int call_back_in(void *user, const uint8_t *bytes, size_t n)
{
    struct sink *sink = user;
    (void)bytes, (void)n;
    sink->inner = blt_session_feed(sink->session, "x", 1);
    return 1;
}

static int cancel_inside(void *user, const uint8_t *bytes, size_t n)
{
    struct sink *sink = user;
    if (sink->n == 5)
        sink->inner = blt_session_cancel(sink->session);
    return collect(user, bytes, n);
}

static int count_progress(void *user, uint64_t n_done, uint64_t n_total)
{
    int *n_calls = user;
    CHECK(n_done <= n_total);
    ++*n_calls;
    return 0;
}

static int abort_progress(void *user, uint64_t n_done, uint64_t n_total)
{
    int *n_calls = user;
    (void)n_done, (void)n_total;
    return ++*n_calls == 2;
}

// ---- the tests

static void names(void)
{
    CHECK(strcmp(blt_status_name(BLT_OK), "BLT_OK") == 0);
    CHECK(strcmp(blt_status_name(BLT_ERROR_BUSY), "BLT_ERROR_BUSY") == 0);
    CHECK(strcmp(blt_status_name(-1), "unknown status") == 0);
    CHECK(strcmp(blt_status_name(1 << 30), "unknown status") == 0);
    CHECK(blt_abi_version() == BLT_ABI_VERSION);
    CHECK(strchr(blt_version(), '.') != NULL);
    CHECK(blt_last_error()[0] == 0);
}

static void frees(void)
{
    blt_options_free(NULL);
    blt_model_free(NULL);
    blt_session_free(NULL);
}

static void options(void)
{
    blt_options *o = NULL;
    ARGUMENT(blt_options_new(NULL), "out");
    OK(blt_options_new(&o));
    ARGUMENT(blt_options_set_int(NULL, BLT_OPTION_SEED, 1), "options");
    ARGUMENT(blt_options_set_real(NULL, BLT_OPTION_TOP_P, 1), "options");
    ARGUMENT(blt_options_set_text(NULL, BLT_OPTION_STOP, "x", 1), "options");
    ARGUMENT(blt_options_set_int(o, BLT_OPTION_DRAFT, 65), "BLT_OPTION_DRAFT: expected at most 64, found 65");
    ARGUMENT(blt_options_set_int(o, 0, 1), "expected a blt_option, found 0");
    ARGUMENT(blt_options_set_real(o, -7, 1), "expected a blt_option");
    ARGUMENT(blt_options_set_text(o, 9999, "x", 1), "expected a blt_option");
    ARGUMENT(blt_options_set_int(o, BLT_OPTION_TOP_P, 1), "BLT_OPTION_TOP_P");
    ARGUMENT(blt_options_set_real(o, BLT_OPTION_SEED, 1), "BLT_OPTION_SEED");
    ARGUMENT(blt_options_set_text(o, BLT_OPTION_SEED, "1", 1), "BLT_OPTION_SEED");
    ARGUMENT(blt_options_set_int(o, BLT_OPTION_PRELOAD, 2), "expected 0 or 1, found 2");
    ARGUMENT(blt_options_set_real(o, BLT_OPTION_TEMPERATURE, -1), "temperature");
    ARGUMENT(blt_options_set_real(o, BLT_OPTION_TOP_P, 1.5), "top_p");
    ARGUMENT(blt_options_set_real(o, BLT_OPTION_MIN_P, -0.5), "min_p");
    ARGUMENT(blt_options_set_real(o, BLT_OPTION_REPEAT_PENALTY, 0), "repeat_penalty");
    ARGUMENT(blt_options_set_real(o, BLT_OPTION_THRESHOLD, (double)NAN), "finite");
    ARGUMENT(blt_options_set_real(o, BLT_OPTION_THRESHOLD, 1e300), "finite");
    ARGUMENT(blt_options_set_text(o, BLT_OPTION_STOP, NULL, 3), "text: expected 3 bytes, found NULL");
    ARGUMENT(blt_options_set_text(o, BLT_OPTION_STOP, "x", (size_t)-1), "text");
    ARGUMENT(blt_options_set_text(o, BLT_OPTION_PATCHING, "words", 5), "\"words\"");
    ARGUMENT(blt_options_set_text(o, BLT_OPTION_ISA, "z80", 3), "\"z80\"");
    OK(blt_options_set_text(o, BLT_OPTION_STOP, NULL, 0));
    OK(blt_options_set_int(o, BLT_OPTION_SEED, UINT64_MAX));

    // Settings that are refused where they are used.
    blt_session *s = (blt_session *)&n_failed;
    OK(blt_options_set_int(o, BLT_OPTION_MAX_BYTES, 0));
    ARGUMENT(blt_session_new(model, o, &s), "max_bytes");
    OK(blt_options_set_int(o, BLT_OPTION_MAX_BYTES, 16));
    OK(blt_options_set_int(o, BLT_OPTION_PATCH_SIZE, 0));
    EXPECT(blt_session_new(model, o, &s), BLT_ERROR_CONFIG, "patch_size");
    blt_model *m = (blt_model *)&n_failed;
    OK(blt_options_set_int(o, BLT_OPTION_THREADS, 0));
    ARGUMENT(blt_model_open(model_path, o, NULL, NULL, &m), "threads");
    CHECK(s == (blt_session *)&n_failed && m == (blt_model *)&n_failed);
    blt_options_free(o);
}

static char *read_file(const char *path, size_t *n)
{
    FILE *file = fopen(path, "rb");
    if (!file || fseek(file, 0, SEEK_END))
        exit(1);
    *n = (size_t)ftell(file);
    rewind(file);
    char *bytes = malloc(*n ? *n : 1);
    if (!bytes || fread(bytes, 1, *n, file) != *n)
        exit(1);
    fclose(file);
    return bytes;
}

static void models(void)
{
    blt_model *m = NULL;
    uint64_t value = 77;
    int n_calls = 0;
    ARGUMENT(blt_model_open(NULL, NULL, NULL, NULL, &m), "model_path");
    ARGUMENT(blt_model_open("", NULL, NULL, NULL, &m), "model_path");
    ARGUMENT(blt_model_open(model_path, NULL, NULL, NULL, NULL), "out");
    EXPECT(blt_model_open("/no/such/model", NULL, NULL, NULL, &m), BLT_ERROR_IO, "/no/such/model");
    CHECK(m == NULL);
    EXPECT(blt_model_open(model_path, NULL, abort_progress, &n_calls, &m), BLT_ERROR_CANCELLED, "cancel");
    CHECK(m == NULL && n_calls == 2);
    n_calls = 0;
    OK(blt_model_open(model_path, NULL, count_progress, &n_calls, &m));
    CHECK(m != NULL && n_calls >= 2);
    blt_model_free(m);

    ARGUMENT(blt_model_info(NULL, BLT_MODEL_PARAMETERS, &value), "model");
    ARGUMENT(blt_model_info(model, BLT_MODEL_PARAMETERS, NULL), "out");
    ARGUMENT(blt_model_info(model, 0, &value), "key");
    CHECK(value == 77);
    for (int key = BLT_MODEL_PARAMETERS; key <= BLT_MODEL_FINGERPRINT; key++)
        OK(blt_model_info(model, key, &value));

    size_t n;
    char *bytes = read_file(native_path, &n);
    m = NULL;
    ARGUMENT(blt_model_open_memory(NULL, 5, NULL, NULL, NULL, &m), "model");
    ARGUMENT(blt_model_open_memory(bytes, n, NULL, NULL, NULL, NULL), "out");
    ARGUMENT(blt_model_open_memory(bytes, (size_t)-1, NULL, NULL, NULL, &m), "model");
    EXPECT(blt_model_open_memory(NULL, 0, NULL, NULL, NULL, &m), BLT_ERROR_FORMAT, "memory");
    EXPECT(blt_model_open_memory("not a model", 11, NULL, NULL, NULL, &m), BLT_ERROR_FORMAT, "memory");
    EXPECT(blt_model_open_memory(bytes, n / 2, NULL, NULL, NULL, &m), BLT_ERROR_FORMAT, "memory");
    EXPECT(blt_model_open_memory(bytes, n, NULL, abort_progress, (n_calls = 0, &n_calls), &m),
           BLT_ERROR_CANCELLED, "cancel");
    CHECK(m == NULL);
    blt_options *o = NULL;
    OK(blt_options_new(&o));
    OK(blt_options_set_int(o, BLT_OPTION_PRELOAD, 1));
    OK(blt_options_set_int(o, BLT_OPTION_COPY, 1));
    OK(blt_model_open_memory(bytes, n, o, count_progress, &n_calls, &m));
    memset(bytes, 0, n); // copied
    blt_session *s = NULL;
    OK(blt_session_new(m, o, &s));
    blt_model_free(m); // the session keeps it
    OK(blt_session_feed(s, "abc", 3));
    blt_session_free(s);
    blt_options_free(o);
    free(bytes);
}

static void sessions(void)
{
    blt_session *s = NULL, *c = (blt_session *)&n_failed;
    uint64_t value = 77;
    int byte = 77;
    double bits = 77;
    size_t n = 77, room[4];
    float out[BLT_N_LOGITS] = {77};
    blt_finish reason = (blt_finish)77;
    struct sink sink = {{0}, 0, 0, NULL, BLT_OK};

    ARGUMENT(blt_session_new(NULL, NULL, &s), "model");
    ARGUMENT(blt_session_new(model, NULL, NULL), "out");
    ARGUMENT(blt_session_clone(NULL, &s), "session");
    ARGUMENT(blt_session_reset(NULL), "session");
    ARGUMENT(blt_session_set_sampling(NULL, NULL), "session");
    ARGUMENT(blt_session_feed(NULL, "x", 1), "session");
    ARGUMENT(blt_session_next_byte(NULL, &byte), "session");
    ARGUMENT(blt_session_generate(NULL, 1, collect, &sink, &reason), "session");
    ARGUMENT(blt_session_logits(NULL, out, 1, &n), "session");
    ARGUMENT(blt_session_entropies(NULL, 0, out, 1, &n), "session");
    ARGUMENT(blt_session_patch_starts(NULL, 0, room, 1, &n), "session");
    ARGUMENT(blt_session_score(NULL, "x", 1, &bits), "session");
    ARGUMENT(blt_session_rewind(NULL, 0), "session");
    ARGUMENT(blt_session_info(NULL, BLT_SESSION_LENGTH, &value), "session");
    ARGUMENT(blt_session_cancel(NULL), "session");
    ARGUMENT(blt_session_save(NULL, "x"), "session");
    ARGUMENT(blt_session_save_memory(NULL, NULL, 0, &n), "session");
    ARGUMENT(blt_session_load(NULL, NULL, "x", &c), "model");
    ARGUMENT(blt_session_load(model, NULL, NULL, &c), "state_path");
    ARGUMENT(blt_session_load(model, NULL, "x", NULL), "out");
    ARGUMENT(blt_session_load_memory(NULL, NULL, "x", 1, &c), "model");
    ARGUMENT(blt_session_load_memory(model, NULL, NULL, 1, &c), "state");
    ARGUMENT(blt_session_load_memory(model, NULL, "x", 1, NULL), "out");
    CHECK(s == NULL);

    s = new_session();
    ARGUMENT(blt_session_clone(s, NULL), "out");
    ARGUMENT(blt_session_feed(s, NULL, 1), "bytes: expected 1 bytes, found NULL");
    ARGUMENT(blt_session_feed(s, "x", (size_t)-1), "bytes");
    ARGUMENT(blt_session_score(s, NULL, 1, &bits), "bytes");
    ARGUMENT(blt_session_score(s, "x", 1, NULL), "bits");
    ARGUMENT(blt_session_next_byte(s, NULL), "out");
    ARGUMENT(blt_session_generate(s, 1, NULL, NULL, &reason), "write");
    ARGUMENT(blt_session_info(s, 0, &value), "key");
    ARGUMENT(blt_session_info(s, BLT_SESSION_LENGTH, NULL), "out");
    ARGUMENT(blt_session_save(s, NULL), "state_path");
    ARGUMENT(blt_session_save_memory(s, NULL, 0, NULL), "n");
    CHECK(length(s) == 0);
    OK(blt_session_feed(s, NULL, 0));
    OK(blt_session_logits(s, out, BLT_N_LOGITS, &n));
    OK(blt_session_reset(s));
    OK(blt_session_logits(s, NULL, 0, &n));
    CHECK(n == 0);

    OK(blt_session_feed(s, "hello", 5));
    CHECK(length(s) == 6);
    ARGUMENT(blt_session_rewind(s, 7), "found 7");
    n = 77;
    out[0] = 77;
    ARGUMENT(blt_session_logits(s, NULL, 5, &n), "out");
    ARGUMENT(blt_session_logits(s, out, BLT_N_LOGITS, NULL), "n");
    EXPECT(blt_session_logits(s, out, BLT_N_LOGITS - 1, &n), BLT_ERROR_BUFFER, "expected room for 260");
    EXPECT(blt_session_entropies(s, 0, out, 5, &n), BLT_ERROR_BUFFER, "expected room for 6");
    EXPECT(blt_session_patch_starts(s, 0, room, 1, &n), BLT_ERROR_BUFFER, "expected room");
    ARGUMENT(blt_session_entropies(s, 7, out, 5, &n), "first");
    ARGUMENT(blt_session_patch_starts(s, 99, room, 4, &n), "first");
    EXPECT(blt_session_save_memory(s, (uint8_t *)out, 8, &n), BLT_ERROR_BUFFER, "expected room");
    CHECK(n == 77 && out[0] == 77 && byte == 77 && bits == 77 && value == 77 && (int)reason == 77);
    CHECK(c == (blt_session *)&n_failed);
    OK(blt_session_entropies(s, 6, NULL, 0, &n));
    CHECK(n == 0);
    CHECK(length(s) == 6);

    // A context that is too small.
    blt_options *o = NULL;
    blt_session *tight = NULL;
    OK(blt_options_new(&o));
    OK(blt_options_set_int(o, BLT_OPTION_MAX_BYTES, 4));
    OK(blt_session_new(model, o, &tight));
    EXPECT(blt_session_feed(tight, "12345", 5), BLT_ERROR_CONTEXT_FULL, "at most 4 bytes");
    OK(blt_session_feed(tight, "123", 3));
    EXPECT(blt_session_generate(tight, 5, collect, &sink, &reason), BLT_ERROR_CONTEXT_FULL, "context");
    blt_session_free(tight);
    blt_options_free(o);

    // Messages stay until the next failure.
    ARGUMENT(blt_session_rewind(s, 100), "found 100");
    OK(blt_session_feed(s, "x", 1));
    CHECK(strstr(blt_last_error(), "found 100") != NULL);
    blt_session_free(s);
}

static void callbacks(void)
{
    blt_session *s = new_session();
    blt_session *fork = NULL;
    blt_finish reason = (blt_finish)77;
    struct sink sink = {{0}, 0, 3, s, BLT_OK};
    OK(blt_session_feed(s, "One day", 7));
    OK(blt_session_clone(s, &fork));

    // A callback that stops: the session has read what was handed out, no more.
    OK(blt_session_generate(s, 50, collect, &sink, &reason));
    CHECK(reason == BLT_FINISH_CALLBACK && sink.n == 3 && length(s) == 11);
    CHECK(length(fork) == 8);

    // One that calls back in.
    OK(blt_session_generate(s, 50, call_back_in, &sink, NULL));
    CHECK(sink.inner == BLT_ERROR_BUSY && length(s) == 12);

    // The random numbers continue: in one call or in pieces, the same bytes.
    struct sink pieces = {{0}, 0, 0, NULL, BLT_OK}, whole = pieces;
    blt_options *o = NULL;
    OK(blt_options_new(&o));
    OK(blt_options_set_int(o, BLT_OPTION_SEED, 42));
    OK(blt_options_set_int(o, BLT_OPTION_IGNORE_EOS, 1));
    OK(blt_session_set_sampling(fork, o));
    blt_session *again = NULL;
    OK(blt_session_clone(fork, &again));
    OK(blt_session_generate(fork, 24, collect, &whole, &reason));
    CHECK(reason == BLT_FINISH_MAX_BYTES && whole.n == 24);
    OK(blt_session_generate(again, 10, collect, &pieces, NULL));
    OK(blt_session_generate(again, 7, collect, &pieces, NULL));
    for (int i = 0; i < 7; i++) {
        int byte = -2;
        OK(blt_session_next_byte(again, &byte));
        pieces.bytes[pieces.n++] = (char)byte;
    }
    CHECK(memcmp(whole.bytes, pieces.bytes, 24) == 0);
    CHECK(length(again) == length(fork));

    // Drafts change nothing, in one go or byte by byte, and what is known of them is dropped in time.
    for (uint64_t draft = 0; draft <= 12; draft += 6) {
        OK(blt_options_set_int(o, BLT_OPTION_DRAFT, draft));
        OK(blt_session_rewind(again, 8));
        OK(blt_session_set_sampling(again, o));
        pieces.n = 0;
        OK(blt_session_generate(again, 9, collect, &pieces, NULL));
        for (int i = 0; i < 15; i++) {
            int byte = -2;
            OK(blt_session_next_byte(again, &byte));
            pieces.bytes[pieces.n++] = (char)byte;
            CHECK(length(again) == (uint64_t)(8 + pieces.n));
        }
        CHECK(memcmp(whole.bytes, pieces.bytes, 24) == 0);
        OK(blt_session_feed(again, "x", 1));
        CHECK(length(again) == 8 + 24 + 1);
    }
    OK(blt_session_rewind(again, length(fork)));

    // A stop text is not handed out.
    OK(blt_session_rewind(again, 8));
    OK(blt_options_set_text(o, BLT_OPTION_STOP, whole.bytes + 10, 2));
    OK(blt_session_set_sampling(again, o));
    pieces.n = 0;
    OK(blt_session_generate(again, 24, collect, &pieces, &reason));
    CHECK(reason == BLT_FINISH_STOP && pieces.n <= 10);
    CHECK(memcmp(whole.bytes, pieces.bytes, pieces.n) == 0);
    CHECK(length(again) == 8 + pieces.n + 2);
    blt_options_free(o);
    blt_session_free(again);
    blt_session_free(fork);
    blt_session_free(s);
}

// ---- threads

struct job {
    blt_session *session;
    const char *prompt;
    struct sink sink;
    blt_status status;
};

static void *run_job(void *user)
{
    struct job *job = user;
    job->status = blt_session_feed(job->session, job->prompt, strlen(job->prompt));
    if (job->status == BLT_OK)
        job->status = blt_session_generate(job->session, 40, collect, &job->sink, NULL);
    return NULL;
}

// A thread that asks again at once may keep every other from running at all: valgrind runs one at a
// time, and what decides which is up to the machine.
static void wait_a_little(void)
{
    nanosleep(&(struct timespec){0, 200000}, NULL);
}

static void *run_long(void *user)
{
    struct job *job = user;
    job->status = BLT_OK;
    // Until it is cancelled. It is busy if the other thread is just looking.
    while (job->status == BLT_OK || job->status == BLT_ERROR_BUSY) {
        job->sink.n = 0;
        job->status = blt_session_generate(job->session, 100, collect, &job->sink, NULL);
        if (job->status == BLT_OK)
            job->status = blt_session_rewind(job->session, 1);
        else if (job->status == BLT_ERROR_BUSY)
            wait_a_little();
    }
    return NULL;
}

static void threads(void)
{
    // Two threads, two sessions, one model: each the same as alone.
    struct job alone = {new_session(), "The cat", {{0}, 0, 0, NULL, BLT_OK}, BLT_OK};
    struct job jobs[2] = {alone, alone};
    pthread_t thread[2];
    for (int i = 0; i < 2; i++) {
        jobs[i].session = new_session();
        CHECK(pthread_create(&thread[i], NULL, run_job, &jobs[i]) == 0);
    }
    run_job(&alone);
    for (int i = 0; i < 2; i++) {
        CHECK(pthread_join(thread[i], NULL) == 0);
        CHECK(jobs[i].status == BLT_OK && jobs[i].sink.n == alone.sink.n);
        CHECK(memcmp(jobs[i].sink.bytes, alone.sink.bytes, alone.sink.n) == 0);
        blt_session_free(jobs[i].session);
    }
    blt_session_free(alone.session);

    // Two threads, one session: each call is done or refused, never mixed.
    struct job same = {new_session(), "ab", {{0}, 0, 0, NULL, BLT_OK}, BLT_OK};
    struct job also = same;
    CHECK(pthread_create(&thread[0], NULL, run_job, &same) == 0);
    run_job(&also);
    CHECK(pthread_join(thread[0], NULL) == 0);
    CHECK(same.status == BLT_OK || same.status == BLT_ERROR_BUSY);
    CHECK(also.status == BLT_OK || also.status == BLT_ERROR_BUSY);
    CHECK(same.status == BLT_OK || also.status == BLT_OK);
    blt_session_free(same.session);

    // Cancelled in mid-generation, from another thread.
    struct job lengthy = {new_session(), "", {{0}, 0, 0, NULL, BLT_OK}, BLT_OK};
    CHECK(pthread_create(&thread[0], NULL, run_long, &lengthy) == 0);
    blt_status status = BLT_OK;
    uint64_t n;
    while (status == BLT_OK) { // until it is in the middle of a call
        wait_a_little();
        status = blt_session_info(lengthy.session, BLT_SESSION_LENGTH, &n);
    }
    CHECK(status == BLT_ERROR_BUSY);
    OK(blt_session_cancel(lengthy.session));
    CHECK(pthread_join(thread[0], NULL) == 0);
    CHECK(lengthy.status == BLT_ERROR_CANCELLED);
    blt_session_free(lengthy.session);

    // Cancelled from its own callback: what was handed out has been read, and it continues.
    blt_session *s = new_session();
    struct sink sink = {{0}, 0, 0, s, BLT_OK};
    blt_options *o = NULL;
    OK(blt_options_new(&o));
    OK(blt_options_set_int(o, BLT_OPTION_IGNORE_EOS, 1));
    OK(blt_session_set_sampling(s, o));
    blt_options_free(o);
    OK(blt_session_feed(s, "abc", 3));
    EXPECT(blt_session_generate(s, 50, cancel_inside, &sink, NULL), BLT_ERROR_CANCELLED, "cancelled");
    CHECK(sink.n == 6 && length(s) == 10);
    OK(blt_session_generate(s, 5, collect, &sink, NULL));
    CHECK(length(s) == 15);

    // With no call running, the next one is stopped, once; a reset withdraws it.
    OK(blt_session_cancel(s));
    EXPECT(blt_session_feed(s, "x", 1), BLT_ERROR_CANCELLED, "cancelled");
    CHECK(length(s) == 15);
    OK(blt_session_feed(s, "x", 1));
    OK(blt_session_cancel(s));
    OK(blt_session_reset(s));
    OK(blt_session_feed(s, "x", 1));
    blt_session_free(s);
}

static void states(void)
{
    blt_session *s = new_session(), *loaded = NULL;
    OK(blt_session_feed(s, "It was a dark night.", 20));
    size_t n = 0, n_logits;
    OK(blt_session_save_memory(s, NULL, 0, &n));
    uint8_t *state = malloc(n);
    if (!state)
        exit(1);
    OK(blt_session_save_memory(s, state, n, &n));
    OK(blt_session_load_memory(model, NULL, state, n, &loaded));
    float a[BLT_N_LOGITS], b[BLT_N_LOGITS];
    OK(blt_session_logits(s, a, BLT_N_LOGITS, &n_logits));
    OK(blt_session_logits(loaded, b, BLT_N_LOGITS, &n_logits));
    CHECK(n_logits == BLT_N_LOGITS && memcmp(a, b, sizeof a) == 0);
    blt_session_free(loaded);
    loaded = NULL;

    OK(blt_session_save(s, path_in_folder("state")));
    OK(blt_session_load(model, NULL, path_in_folder("state"), &loaded));
    CHECK(length(loaded) == 21);
    blt_session_free(loaded);
    loaded = NULL;
    EXPECT(blt_session_save(s, "/no/such/folder/state"), BLT_ERROR_IO, "/no/such/folder");
    EXPECT(blt_session_load(model, NULL, "/no/such/file", &loaded), BLT_ERROR_IO, "/no/such/file");
    EXPECT(blt_session_load(model, NULL, folder, &loaded), BLT_ERROR_FORMAT, "regular file");

    EXPECT(blt_session_load(other, NULL, path_in_folder("state"), &loaded), BLT_ERROR_FORMAT,
           "found one of another");
    EXPECT(blt_session_load_memory(other, NULL, state, n, &loaded), BLT_ERROR_FORMAT,
           "found one of another");
    EXPECT(blt_session_load_memory(model, NULL, state, n - 1, &loaded), BLT_ERROR_FORMAT, "cut short");
    EXPECT(blt_session_load_memory(model, NULL, state, n / 2, &loaded), BLT_ERROR_FORMAT, "cut short");
    EXPECT(blt_session_load_memory(model, NULL, state, 3, &loaded), BLT_ERROR_FORMAT, "expected 8");
    EXPECT(blt_session_load_memory(model, NULL, NULL, 0, &loaded), BLT_ERROR_FORMAT, "expected 8");
    state[n / 2] ^= 1;
    EXPECT(blt_session_load_memory(model, NULL, state, n, &loaded), BLT_ERROR_FORMAT, "damaged");
    CHECK(loaded == NULL);
    free(state);
    blt_session_free(s);
}

int main(int argc, char **argv)
{
    if (argc != 5) {
        fprintf(stderr, "usage: misuse MODEL OTHER NATIVE FOLDER\n");
        return 2;
    }
    model_path = argv[1];
    native_path = argv[3];
    folder = argv[4];
    names();
    frees();
    OK(blt_model_open(model_path, NULL, NULL, NULL, &model));
    OK(blt_model_open(argv[2], NULL, NULL, NULL, &other));
    if (n_failed)
        return 1;
    options();
    models();
    sessions();
    callbacks();
    threads();
    states();
    blt_model_free(other);
    blt_model_free(model);
    if (n_failed)
        fprintf(stderr, "misuse: %d checks failed\n", n_failed);
    return n_failed != 0;
}
