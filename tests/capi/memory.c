/*
 * Memory that runs out is a status: the process goes on, the session is as it was, and goes on too once there is memory.
 *     memory MODEL
 */
#include <blt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#define CHECK(condition) \
    do { \
        if (!(condition)) { \
            fprintf(stderr, "%s:%d: %s (%s)\n", __FILE__, __LINE__, #condition, blt_last_error()); \
            exit(1); \
        } \
    } while (0)

static size_t address_space(void)
{
    unsigned long pages = 0;
    FILE *f = fopen("/proc/self/statm", "r");
    CHECK(f && fscanf(f, "%lu", &pages) == 1);
    fclose(f);
    return pages * (size_t)sysconf(_SC_PAGESIZE);
}

static void limit(rlim_t bytes)
{
    struct rlimit l;
    CHECK(getrlimit(RLIMIT_AS, &l) == 0);
    l.rlim_cur = bytes;
    CHECK(setrlimit(RLIMIT_AS, &l) == 0);
}

static uint64_t length(const blt_session *session)
{
    uint64_t n = 0;
    CHECK(blt_session_info(session, BLT_SESSION_LENGTH, &n) == BLT_OK);
    return n;
}

static float logits[2][BLT_N_LOGITS];

int main(int argc, char **argv)
{
    static const char piece[] = "sixteen bytes of text. ";
    const size_t n_piece = sizeof piece - 1;
    blt_model *model = NULL, *other = NULL;
    blt_session *session = NULL, *clone = NULL, *whole = NULL;
    size_t i, n_fed = 0, n, n_refused = 0;
    char *much = malloc(1 << 20);

    CHECK(argc == 2 && much);
    memset(much, 'a', 1 << 20);
    CHECK(blt_model_open(argv[1], NULL, NULL, NULL, &model) == BLT_OK);
    CHECK(blt_session_new(model, NULL, &session) == BLT_OK);
    CHECK(blt_session_feed(session, piece, n_piece) == BLT_OK);
    n_fed = 1;
    /* What is too long is refused before it is copied. */
    CHECK(blt_session_feed(session, much, (size_t)1 << 20) == BLT_ERROR_CONTEXT_FULL);
    /* A pass of many bytes needs more than there is. */
    limit(address_space());
    CHECK(blt_session_feed(session, much, 512) == BLT_ERROR_MEMORY);
    CHECK(strstr(blt_last_error(), "memory: ") && length(session) == n_piece + 1);
    limit(RLIM_INFINITY);
    free(much);
    for (i = 0; i < 40; i++) {
        const uint64_t before = length(session);
        blt_status status;
        limit(address_space() + (i % 8) * (1 << 19));
        status = blt_session_feed(session, piece, n_piece);
        CHECK(status == BLT_OK || status == BLT_ERROR_MEMORY);
        if (status == BLT_OK)
            n_fed++;
        else {
            n_refused++;
            CHECK(length(session) == before);
        }
        status = blt_session_clone(session, &clone);
        CHECK(status == BLT_OK || status == BLT_ERROR_MEMORY);
        if (status == BLT_OK) {
            status = blt_session_feed(clone, piece, n_piece);
            CHECK(status == BLT_OK || status == BLT_ERROR_MEMORY);
            blt_session_free(clone);
        }
        status = blt_model_open(argv[1], NULL, NULL, NULL, &other);
        CHECK(status == BLT_ERROR_MEMORY);
        limit(RLIM_INFINITY);
    }
    CHECK(blt_session_feed(session, piece, n_piece) == BLT_OK);
    n_fed++;
    CHECK(blt_session_new(model, NULL, &whole) == BLT_OK);
    for (i = 0; i < n_fed; i++)
        CHECK(blt_session_feed(whole, piece, n_piece) == BLT_OK);
    CHECK(blt_session_logits(session, logits[0], BLT_N_LOGITS, &n) == BLT_OK);
    CHECK(blt_session_logits(whole, logits[1], BLT_N_LOGITS, &n) == BLT_OK);
    CHECK(memcmp(logits[0], logits[1], sizeof logits[0]) == 0);
    blt_session_free(session);
    blt_session_free(whole);
    blt_model_free(model);
    printf("%zu calls refused, %zu pieces read\n", n_refused, n_fed);
    return 0;
}
