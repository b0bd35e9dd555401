// How well a model predicts a file: score MODEL FILE
//
// Prints bits per byte and the mean patch length, then how the first patches were cut.
#include <blt.h>
#include <stdio.h>
#include <stdlib.h>

// The bytes of a file; NULL if it cannot be read.
static char *read_file(const char *path, size_t *n_bytes)
{
    FILE *file = fopen(path, "rb");
    char *bytes = NULL;
    size_t capacity = 0;
    *n_bytes = 0;
    while (file && !ferror(file) && !feof(file)) {
        if (*n_bytes == capacity) {
            capacity = capacity ? 2 * capacity : 1 << 16;
            char *larger = realloc(bytes, capacity);
            if (!larger)
                break;
            bytes = larger;
        }
        *n_bytes += fread(bytes + *n_bytes, 1, capacity - *n_bytes, file);
    }
    if (!file || !feof(file) || ferror(file)) {
        perror(path);
        free(bytes);
        bytes = NULL;
    }
    if (file)
        fclose(file);
    return bytes;
}

// What the pieces of the file add up to.
struct total {
    double bits;
    size_t n_bytes, n_patches;
};

// Scores a piece in an empty session and adds to the total; shows the patches of the first piece.
static blt_status score(blt_session *session, const char *text, size_t n_bytes, struct total *total)
{
    double bits = 0;
    size_t n_starts = 0;
    blt_status status = blt_session_score(session, text, n_bytes, &bits);
    if (status == BLT_OK)
        status = blt_session_patch_starts(session, 0, NULL, 0, &n_starts);
    if (status != BLT_OK)
        return status;
    size_t *starts = calloc(n_starts, sizeof *starts);
    if (starts && total->n_bytes == 0) {
        status = blt_session_patch_starts(session, 0, starts, n_starts, &n_starts);
        // Position 0 is the begin-of-sequence id, position 1 the first byte.
        for (size_t i = 1; status == BLT_OK && i + 1 < n_starts && starts[i] < 80; i++)
            printf("%.*s|", (int)(starts[i + 1] - starts[i]), text + starts[i] - 1);
        printf("\n");
    }
    free(starts);
    total->bits += bits;
    total->n_bytes += n_bytes;
    total->n_patches += n_starts - 1;
    return status;
}

int main(int argc, char **argv)
{
    blt_model *model = NULL;
    blt_session *session = NULL;
    size_t n_bytes;
    if (argc != 3) {
        fprintf(stderr, "usage: score MODEL FILE\n");
        return 2;
    }
    char *text = read_file(argv[2], &n_bytes);
    if (!text)
        return 1;

    struct total total = {0, 0, 0};
    uint64_t context = 0;
    blt_status status = blt_model_open(argv[1], NULL, NULL, NULL, &model);
    if (status == BLT_OK)
        status = blt_session_new(model, NULL, &session);
    if (status == BLT_OK)
        status = blt_session_info(session, BLT_SESSION_MAX_BYTES, &context);
    // What is longer than the context is scored in pieces that know nothing of each other.
    while (status == BLT_OK && total.n_bytes < n_bytes) {
        size_t left = n_bytes - total.n_bytes;
        size_t n = left < context - 1 ? left : (size_t)context - 1;
        status = blt_session_reset(session);
        if (status == BLT_OK)
            status = score(session, text + total.n_bytes, n, &total);
    }
    if (status == BLT_OK && n_bytes > 0)
        printf("%.4f bits per byte, %zu bytes, %.2f bytes per patch\n",
               total.bits / (double)n_bytes, n_bytes, (double)n_bytes / (double)total.n_patches);
    if (status != BLT_OK)
        fprintf(stderr, "score: %s\n", blt_last_error());
    blt_session_free(session);
    blt_model_free(model);
    free(text);
    return status != BLT_OK;
}
