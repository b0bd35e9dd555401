// Rotary positions on interleaved pairs, and the entry of keys and values into their ring.
#include "common.cuh"

DEVICE void rotate(const float *from, float *to, float cos, float sin) {
    float a = from[0], b = from[1];
    to[0] = a * cos - b * sin;
    to[1] = a * sin + b * cos;
}

// One block per row: q (n, q_dim) is turned in place, k (n, kv_dim) into row (first + i) % capacity of
// k_ring, v likewise as it is. cos and sin: (n, half), half of a head.
KERNEL(rope_append)
(float *q, const float *k, const float *v, const float *cos, const float *sin, float *k_ring, float *v_ring,
 unsigned q_dim, unsigned kv_dim, unsigned half, unsigned first, unsigned capacity) {
    size_t row = blockIdx.x, to = (first + blockIdx.x) % capacity;
    q += row * q_dim, k += row * kv_dim, v += row * kv_dim, cos += row * half, sin += row * half;
    k_ring += to * kv_dim, v_ring += to * kv_dim;
    for (unsigned i = threadIdx.x; i < q_dim / 2; i += blockDim.x) rotate(q + 2 * i, q + 2 * i, cos[i % half], sin[i % half]);
    for (unsigned i = threadIdx.x; i < kv_dim / 2; i += blockDim.x) rotate(k + 2 * i, k_ring + 2 * i, cos[i % half], sin[i % half]);
    for (unsigned i = threadIdx.x; i < kv_dim; i += blockDim.x) v_ring[i] = v[i];
}

// One block per row: row i of x (n, dim) to row (first + i) % capacity of the ring.
KERNEL(append)(const float *x, float *ring, unsigned dim, unsigned first, unsigned capacity) {
    const float *from = x + (size_t)blockIdx.x * dim;
    float *to = ring + (size_t)((first + blockIdx.x) % capacity) * dim;
    for (unsigned i = threadIdx.x; i < dim; i += blockDim.x) to[i] = from[i];
}
