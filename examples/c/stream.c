// Continues a prompt: stream MODEL PROMPT [N_BYTES [SEED]]
#include <blt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int print(void *user, const uint8_t *bytes, size_t n_bytes)
{
    (void)user;
    return fwrite(bytes, 1, n_bytes, stdout) != n_bytes || fflush(stdout) != 0;
}

int main(int argc, char **argv)
{
    blt_options *options = NULL;
    blt_model *model = NULL;
    blt_session *session = NULL;
    if (argc < 3) {
        fprintf(stderr, "usage: stream MODEL PROMPT [N_BYTES [SEED]]\n");
        return 2;
    }
    size_t n_bytes = argc > 3 ? strtoull(argv[3], NULL, 10) : 200;
    uint64_t seed = argc > 4 ? strtoull(argv[4], NULL, 10) : 0;

    blt_status status = blt_options_new(&options);
    if (status == BLT_OK)
        status = blt_options_set_int(options, BLT_OPTION_SEED, seed);
    if (status == BLT_OK)
        status = blt_model_open(argv[1], options, NULL, NULL, &model);
    if (status == BLT_OK)
        status = blt_session_new(model, options, &session);
    if (status == BLT_OK)
        status = blt_session_feed(session, argv[2], strlen(argv[2]));
    if (status == BLT_OK)
        status = blt_session_generate(session, n_bytes, print, NULL, NULL);
    if (status != BLT_OK)
        fprintf(stderr, "stream: %s\n", blt_last_error());
    blt_session_free(session), blt_model_free(model), blt_options_free(options);
    return status != BLT_OK;
}
