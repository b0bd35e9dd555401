// Rotary positions on interleaved pairs, and rows on their way into and out of a sequence's memory.
#include "common.cuh"

// Fused where it says so: the same bits in every kernel that turns.
DEVICE void rotate(const float *from, float *to, float cos, float sin) {
    float a = from[0], b = from[1];
    to[0] = fmaf(a, cos, -b * sin);
    to[1] = fmaf(a, sin, b * cos);
}

// Enters two columns of a key, turned.
DEVICE void keep_rotated(const Row &row, size_t at, const float *from, float cos, float sin) {
    float turned[2];
    rotate(from, turned, cos, sin);
    keep(row, at, turned[0]), keep(row, at + 1, turned[1]);
}

// One block per row. qkv: queries (q_dim), key and value (kv_dim each) of each row. Queries are turned in
// place, the key goes turned to side `side` of the memory, the value as it is to the next. angles (n, 2 *
// half): cosines, then sines, of half a head.
KERNEL(rope_append)
(float *qkv, const Row *rows, const float *angles, unsigned side, unsigned q_dim, unsigned kv_dim, unsigned half) {
    Row row = rows[blockIdx.x];
    float *q = qkv + blockIdx.x * (size_t)(q_dim + 2 * kv_dim), *k = q + q_dim, *v = k + kv_dim;
    const float *cos = angles + blockIdx.x * (size_t)(2 * half), *sin = cos + half;
    size_t k_at = ((size_t)side * row.capacity + row.position % row.capacity) * kv_dim;
    size_t v_at = k_at + (size_t)row.capacity * kv_dim;
    for (unsigned i = threadIdx.x; i < q_dim / 2; i += blockDim.x) rotate(q + 2 * i, q + 2 * i, cos[i % half], sin[i % half]);
    for (unsigned i = threadIdx.x; i < kv_dim / 2; i += blockDim.x) keep_rotated(row, k_at + 2 * i, k + 2 * i, cos[i % half], sin[i % half]);
    for (unsigned i = threadIdx.x; i < kv_dim; i += blockDim.x) keep(row, v_at + i, v[i]);
}

// One block per row: `sides` pieces of `dim` of row i of x go to the sides from `side` on.
KERNEL(put_rows)(const float *x, const Row *rows, unsigned side, unsigned sides, unsigned dim) {
    Row row = rows[blockIdx.x];
    for (unsigned i = threadIdx.x; i < sides * dim; i += blockDim.x) {
        size_t at = (size_t)(side + i / dim) * row.capacity + row.position % row.capacity;
        keep(row, at * dim + i % dim, x[(size_t)blockIdx.x * sides * dim + i]);
    }
}

// One block per row: row i of x (n, dim) from side `side`.
KERNEL(take_rows)(float *x, const Row *rows, unsigned side, unsigned dim) {
    Row row = rows[blockIdx.x];
    size_t at = (size_t)side * row.capacity + row.position % row.capacity;
    for (unsigned i = threadIdx.x; i < dim; i += blockDim.x) x[(size_t)blockIdx.x * dim + i] = kept(row, at * dim + i);
}

// One block per row: row i of x (n, dim) = elementwise maximum of the positions it sees in side `side`.
KERNEL(max_rows)(float *x, const Row *rows, unsigned side, unsigned dim) {
    Row row = rows[blockIdx.x];
    size_t first = (size_t)side * row.capacity;
    for (unsigned i = threadIdx.x; i < dim; i += blockDim.x) {
        float max = -INFINITY;
        for (unsigned p = row.from; p < row.to; p++) max = fmaxf(max, kept(row, (first + p % row.capacity) * dim + i));
        x[(size_t)blockIdx.x * dim + i] = max;
    }
}
