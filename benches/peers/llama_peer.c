/* Times llama.cpp for benches/peers/run.py: llama_peer THREADS
 *
 * Each line of standard input is answered with seconds:
 *     prompt MODEL N            reading N tokens at once
 *     generate MODEL DEPTH N    one token of N, one by one after DEPTH
 * MODEL is a GGUF file. A model stays open. Tokens are arbitrary.
 */
#include <llama.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { MOST_MODELS = 16, MOST_TOKENS = 4096 };

static struct {
    char path[1024];
    struct llama_context *context;
} opened[MOST_MODELS];

static void fail(const char *what, const char *which) {
    fprintf(stderr, "llama_peer: %s: %s\n", what, which);
    exit(1);
}

static void say_nothing(enum ggml_log_level level, const char *text, void *data) {
    (void)level, (void)text, (void)data;
}

static struct llama_context *context_of(const char *path, int threads) {
    int i = 0;
    for (; i < MOST_MODELS && opened[i].context; i++) {
        if (!strcmp(opened[i].path, path)) return opened[i].context;
    }
    if (i == MOST_MODELS) fail("too many models", path);
    struct llama_model *model = llama_model_load_from_file(path, llama_model_default_params());
    if (!model) fail("cannot be opened", path);
    struct llama_context_params params = llama_context_default_params();
    params.n_ctx = MOST_TOKENS;
    params.n_batch = MOST_TOKENS;
    params.n_threads = params.n_threads_batch = threads;
    opened[i].context = llama_init_from_model(model, params);
    if (!opened[i].context) fail("no context for", path);
    snprintf(opened[i].path, sizeof opened[i].path, "%s", path);
    return opened[i].context;
}

static void read_tokens(struct llama_context *context, int n) {
    static llama_token tokens[MOST_TOKENS];
    for (int i = 0; i < n; i++) tokens[i] = (i * 37 + 11) % 256;
    if (n > 0 && llama_decode(context, llama_batch_get_one(tokens, n))) fail("decoding", "failed");
    llama_synchronize(context);
}

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

int main(int argc, char **argv) {
    int threads = argc > 1 ? atoi(argv[1]) : 1;
    llama_log_set(say_nothing, NULL);
    llama_backend_init();
    char line[1200], what[16], path[1024];
    while (fgets(line, sizeof line, stdin)) {
        int a = 0, b = 0;
        if (sscanf(line, "%15s %1023s %d %d", what, path, &a, &b) < 3) fail("not understood", line);
        int generate = !strcmp(what, "generate");
        if (a < 0 || b < 0 || a + b > MOST_TOKENS || (generate ? b : a) == 0) fail("numbers", line);
        struct llama_context *context = context_of(path, threads);
        read_tokens(context, generate ? 1 : a); /* the first pass after others have run is slow */
        llama_memory_clear(llama_get_memory(context), 1);
        if (generate) read_tokens(context, a);
        double start = now();
        if (generate) {
            for (int i = 0; i < b; i++) read_tokens(context, 1);
        } else {
            read_tokens(context, a);
        }
        printf("%.9f\n", (now() - start) / (generate ? b : 1));
        fflush(stdout);
    }
    return 0;
}
