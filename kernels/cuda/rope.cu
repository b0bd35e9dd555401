// Rotary positions on interleaved pairs, and rows on their way into and out of a sequence's memory.
#include "common.cuh"

// Fused where it says so: the same bits in every kernel that turns.
DEVICE void rotate(const float *from, float *to, float cos, float sin) {
    float a = from[0], b = from[1];
    to[0] = fmaf(a, cos, -b * sin);
    to[1] = fmaf(a, sin, b * cos);
}

// Enters two columns of a key, rotated.
DEVICE void store_rotated(const Row &row, size_t at, const float *from, float cos, float sin) {
    float rotated[2];
    rotate(from, rotated, cos, sin);
    store_value(row, at, rotated[0]), store_value(row, at + 1, rotated[1]);
}

// One block per row. qkv: queries (q_dim), key and value (kv_dim each) of each row. Queries are rotated in
// place, the key goes rotated to plane `plane` of the memory, the value as it is to the next. angles (n, 2 *
// half): cosines, then sines, of half a head.
KERNEL(rope_append)
(float *qkv, const Row *rows, const float *angles, unsigned plane, unsigned q_dim, unsigned kv_dim, unsigned half) {
    Row row = rows[blockIdx.x];
    float *q = qkv + blockIdx.x * (size_t)(q_dim + 2 * kv_dim), *k = q + q_dim, *v = k + kv_dim;
    const float *cos = angles + blockIdx.x * (size_t)(2 * half), *sin = cos + half;
    size_t k_at = ((size_t)plane * row.capacity + row.position % row.capacity) * kv_dim;
    size_t v_at = k_at + (size_t)row.capacity * kv_dim;
    for (unsigned i = threadIdx.x; i < q_dim / 2; i += blockDim.x) rotate(q + 2 * i, q + 2 * i, cos[i % half], sin[i % half]);
    for (unsigned i = threadIdx.x; i < kv_dim / 2; i += blockDim.x) store_rotated(row, k_at + 2 * i, k + 2 * i, cos[i % half], sin[i % half]);
    for (unsigned i = threadIdx.x; i < kv_dim; i += blockDim.x) store_value(row, v_at + i, v[i]);
}

// One block per row: `planes` pieces of `dim` of row i of x go to the planes from `plane` on.
KERNEL(scatter)(const float *x, const Row *rows, unsigned plane, unsigned planes, unsigned dim) {
    Row row = rows[blockIdx.x];
    for (unsigned i = threadIdx.x; i < planes * dim; i += blockDim.x) {
        size_t at = (size_t)(plane + i / dim) * row.capacity + row.position % row.capacity;
        store_value(row, at * dim + i % dim, x[(size_t)blockIdx.x * planes * dim + i]);
    }
}

// One block per row: row i of x (n, dim) from plane `plane`.
KERNEL(gather)(float *x, const Row *rows, unsigned plane, unsigned dim) {
    Row row = rows[blockIdx.x];
    size_t at = (size_t)plane * row.capacity + row.position % row.capacity;
    for (unsigned i = threadIdx.x; i < dim; i += blockDim.x) x[(size_t)blockIdx.x * dim + i] = load_value(row, at * dim + i);
}

// One block per row: row i of x (n, dim) = elementwise maximum of the positions it sees in plane `plane`.
KERNEL(max_pool)(float *x, const Row *rows, unsigned plane, unsigned dim) {
    Row row = rows[blockIdx.x];
    size_t first = (size_t)plane * row.capacity;
    for (unsigned i = threadIdx.x; i < dim; i += blockDim.x) {
        float max = -INFINITY;
        for (unsigned p = row.from; p < row.to; p++) max = fmaxf(max, load_value(row, (first + p % row.capacity) * dim + i));
        x[(size_t)blockIdx.x * dim + i] = max;
    }
}
