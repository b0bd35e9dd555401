// Kernels on the host: the threads of a block are fibers that change places at barriers and warp
// functions only. A block runs on one thread of the host, and blocks one after the other, so shared
// memory is a static array of that thread.
//
// A warp whose threads wait at different kinds of barriers ends the program: on a GPU it would hang.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstring>

#define KERNEL(name) static void name
#define BOUNDED(threads, blocks)
#define DEVICE inline
#define UNROLL
#define __shared__ static thread_local
#define __align__(n) __attribute__((aligned(n)))

struct Place {
    unsigned x, y, z;
};
// Aligned as on a GPU, which faults where an address is not; the build checks it.
struct alignas(16) uint4 {
    unsigned x, y, z, w;
};
struct alignas(8) float2 {
    float x, y;
};
struct alignas(16) float4 {
    float x, y, z, w;
};

// Of the running thread; set by the scheduler.
extern thread_local Place threadIdx, blockIdx, blockDim, gridDim;

void __syncthreads();
// Blocks run one after the other.
inline void __threadfence() {}
inline unsigned atomicInc(unsigned *at, unsigned last) {
    unsigned before = *at;
    *at = before >= last ? 0 : before + 1;
    return before;
}
// Waits until all threads of the warp are here.
void warp_wait();
// Places for the values that the threads of a warp exchange. Two sets, used in turn, so that one wait
// per exchange suffices: who writes a set again has passed the wait of the other, so all have read.
struct Exchange {
    float values[2][1024];
    unsigned char set[1024];
};
extern thread_local Exchange *exchange;

// Shows x to the other threads of the warp; theirs are at the result, by thread of the block.
inline const float *warp_show(float x) {
    unsigned t = threadIdx.x;
    float *values = exchange->values[exchange->set[t] ^= 1];
    values[t] = x;
    warp_wait();
    return values;
}

inline float warp_xor(float x, int mask) {
    unsigned other = threadIdx.x ^ (unsigned)mask;
    return warp_show(x)[other];
}

// In the order in which a GPU combines them, but with one wait.
template <class Op>
inline float warp_reduce(float x, Op op) {
    float values[32];
    unsigned first = threadIdx.x / 32 * 32;
    memcpy(values, warp_show(x) + first, sizeof values);
    for (int n = 16; n > 0; n /= 2)
        for (int i = 0; i < n; i++) values[i] = op(values[i], values[i + n]);
    return values[0];
}

inline float bits_float(uint32_t bits) {
    float x;
    memcpy(&x, &bits, 4);
    return x;
}
inline uint32_t float_bits(float x) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    return bits;
}
inline float half_float(uint16_t bits) {
    _Float16 x;
    memcpy(&x, &bits, 2);
    return (float)x;
}
inline uint16_t float_half(float x) {
    _Float16 half = (_Float16)x;
    uint16_t bits;
    memcpy(&bits, &half, 2);
    return bits;
}
inline uint32_t with_byte(uint32_t x, uint32_t bytes, unsigned i) { return (x & ~255u) | (bytes >> 8 * i & 255); }
inline unsigned opaque(unsigned x) { return x; }
