// A libcublasLt.so.12 without a GPU: the few functions that src/cuda/cublaslt.rs calls, for one kind of product in
// plain loops. Column-major matrices, D (m, n) = alpha op(A) op(B) + beta C, sums in f32.
//
// It is stricter than the library where that shows mistakes: what it does not know it refuses, an algorithm is good
// for the types, shapes and strides it was asked for and no others, every matrix begins where an allocation does (the
// library takes multiples of 256 bytes for granted unless told) and ends within it, and the workspace is overwritten.
//
// Variables of the environment make it fail:
//
//     BLT_EMULATED_CUBLASLT_VERSION   its version (120001)
//     BLT_EMULATED_CUBLASLT_CREATE    the status that starting it gives
//     BLT_EMULATED_CUBLASLT_MATMUL    the status that products give
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <algorithm>
#include <vector>

#include "device.hh"

namespace {

enum Status { SUCCESS = 0, INVALID_VALUE = 7, EXECUTION_FAILED = 13, NOT_SUPPORTED = 15 };
enum Type { R_32F = 0, R_16F = 2, R_16BF = 14 };
enum { COMPUTE_32F = 68, DESC_TRANSA = 3, DESC_TRANSB = 4, PREF_MAX_WORKSPACE_BYTES = 1 };

struct Desc {
    int compute, scale, transposed[2];
};
struct Layout {
    int type;
    uint64_t rows, cols;
    int64_t stride;
};
struct Preference {
    uint64_t workspace;
};
// What an algorithm was asked for; 64 bytes in the library.
struct Algo {
    uint64_t key, workspace, unused[6];
};
struct Result {
    Algo algo;
    size_t workspace;
    int state;
    float waves;
    int reserved[4];
};

size_t size_of(int type) { return type == R_32F ? 4 : 2; }

float value(int type, const char *at) {
    uint32_t bits = 0;
    memcpy(&bits, at, size_of(type));
    float x;
    if (type == R_16F) {
        _Float16 half;
        memcpy(&half, &bits, 2);
        return (float)half;
    }
    if (type == R_16BF) bits <<= 16;
    memcpy(&x, &bits, 4);
    return x;
}

// Values of op(matrix), row by row if its inner side is `inner`.
std::vector<float> values(const Layout &l, size_t address, size_t outer, size_t inner, bool outer_is_column) {
    std::vector<float> out(outer * inner);
    for (size_t o = 0; o < outer; o++)
        for (size_t i = 0; i < inner; i++) {
            size_t at = outer_is_column ? o * l.stride + i : i * l.stride + o;
            out[o * inner + i] = value(l.type, (const char *)address + at * size_of(l.type));
        }
    return out;
}

int refused(const char *why) {
    fprintf(stderr, "emulated cuBLASLt: %s\n", why);
    return NOT_SUPPORTED;
}

int check(const Desc &d, const Layout &a, const Layout &b, const Layout &c, const Layout &out) {
    if (d.compute != COMPUTE_32F || d.scale != R_32F) return refused("sums not in f32");
    if (a.type != b.type || (a.type != R_16F && a.type != R_16BF)) return refused("factors of these types");
    if (c.type != R_32F || out.type != R_32F) return refused("results not in f32");
    for (const Layout *l : {&a, &b, &c, &out})
        if (l->rows == 0 || l->cols == 0 || l->stride < (int64_t)l->rows) return refused("columns that overlap");
    uint64_t m = d.transposed[0] ? a.cols : a.rows, k = d.transposed[0] ? a.rows : a.cols;
    uint64_t k_of_b = d.transposed[1] ? b.cols : b.rows, n = d.transposed[1] ? b.rows : b.cols;
    if (k != k_of_b || out.rows != m || out.cols != n || c.rows != m || c.cols != n) return refused("shapes");
    return SUCCESS;
}

uint64_t key_of(const Desc &d, std::initializer_list<Layout> layouts) {
    uint64_t key = 14695981039346656037u;
    auto add = [&](uint64_t x) { key = (key ^ x) * 1099511628211u; };
    for (int t : d.transposed) add(t);
    for (const Layout &l : layouts) add(l.type), add(l.rows), add(l.cols), add(l.stride);
    return key;
}

bool lies_well(const Layout &l, size_t address) {
    return begins(address) && inside(address, ((l.cols - 1) * l.stride + l.rows) * size_of(l.type));
}

}  // namespace

extern "C" {
size_t cublasLtGetVersion() { return setting("BLT_EMULATED_CUBLASLT_VERSION", 120001); }
int cublasLtCreate(void **handle) {
    static int one;
    return *handle = &one, (int)setting("BLT_EMULATED_CUBLASLT_CREATE", SUCCESS);
}
int cublasLtDestroy(void *) { return SUCCESS; }

int cublasLtMatmulDescCreate(Desc **desc, int compute, int scale) {
    return *desc = new Desc{compute, scale, {0, 0}}, SUCCESS;
}
int cublasLtMatmulDescDestroy(Desc *desc) { return delete desc, SUCCESS; }
int cublasLtMatmulDescSetAttribute(Desc *desc, int attribute, const void *value, size_t n_bytes) {
    int transposed;
    if ((attribute != DESC_TRANSA && attribute != DESC_TRANSB) || n_bytes != sizeof transposed) return INVALID_VALUE;
    memcpy(&transposed, value, sizeof transposed);
    if (transposed != 0 && transposed != 1) return INVALID_VALUE;
    return desc->transposed[attribute - DESC_TRANSA] = transposed, SUCCESS;
}

int cublasLtMatrixLayoutCreate(Layout **layout, int type, uint64_t rows, uint64_t cols, int64_t stride) {
    return *layout = new Layout{type, rows, cols, stride}, SUCCESS;
}
int cublasLtMatrixLayoutDestroy(Layout *layout) { return delete layout, SUCCESS; }

int cublasLtMatmulPreferenceCreate(Preference **preference) { return *preference = new Preference{0}, SUCCESS; }
int cublasLtMatmulPreferenceDestroy(Preference *preference) { return delete preference, SUCCESS; }
int cublasLtMatmulPreferenceSetAttribute(Preference *preference, int attribute, const void *value, size_t n_bytes) {
    if (attribute != PREF_MAX_WORKSPACE_BYTES || n_bytes != 8) return INVALID_VALUE;
    return memcpy(&preference->workspace, value, 8), SUCCESS;
}

int cublasLtMatmulAlgoGetHeuristic(void *, Desc *desc, Layout *a, Layout *b, Layout *c, Layout *d,
                                   Preference *preference, int wanted, Result *results, int *found) {
    *found = 0;
    if (wanted < 1) return INVALID_VALUE;
    if (int status = check(*desc, *a, *b, *c, *d)) return status;
    uint64_t workspace = std::min<uint64_t>(preference->workspace, 1 << 16);
    results[0] = Result{{key_of(*desc, {*a, *b, *c, *d}), workspace, {}}, workspace, SUCCESS, 1, {}};
    return *found = 1, SUCCESS;
}

int cublasLtMatmul(void *, Desc *desc, const float *alpha, size_t a, Layout *a_layout, size_t b, Layout *b_layout,
                   const float *beta, size_t c, Layout *c_layout, size_t d, Layout *d_layout, const Algo *algo,
                   size_t workspace, size_t workspace_bytes, void *stream) {
    if (int status = setting("BLT_EMULATED_CUBLASLT_MATMUL", SUCCESS)) return status;
    const Layout la = *a_layout, lb = *b_layout, lc = *c_layout, ld = *d_layout;
    if (int status = check(*desc, la, lb, lc, ld)) return status;
    if (algo->key != key_of(*desc, {la, lb, lc, ld})) return refused("an algorithm for another product");
    if (!lies_well(la, a) || !lies_well(lb, b) || !lies_well(lc, c) || !lies_well(ld, d)) return INVALID_VALUE;
    size_t used = algo->workspace;
    if (used > workspace_bytes || !begins(workspace) || !inside(workspace, workspace_bytes)) return INVALID_VALUE;
    bool a_is_transposed = desc->transposed[0], b_is_transposed = desc->transposed[1];
    int error = enqueue(stream, [=, alpha = *alpha, beta = *beta] {
        memset((void *)workspace, 0xff, used);
        size_t m = ld.rows, n = ld.cols, k = a_is_transposed ? la.rows : la.cols;
        std::vector<float> rows = values(la, a, m, k, a_is_transposed);
        std::vector<float> columns = values(lb, b, n, k, !b_is_transposed);
        for (size_t j = 0; j < n; j++)
            for (size_t i = 0; i < m; i++) {
                // In eight sums, as no two algorithms have one order.
                float sums[8] = {};
                for (size_t l = 0; l < k; l++) sums[l % 8] += rows[i * k + l] * columns[j * k + l];
                float sum = 0;
                for (float part : sums) sum += part;
                sum *= alpha;
                // C is not read unless it counts.
                if (beta != 0) sum += beta * ((const float *)c)[j * lc.stride + i];
                ((float *)d)[j * ld.stride + i] = sum;
            }
        return 0;
    });
    return error == 0 ? SUCCESS : EXECUTION_FAILED;
}
}
