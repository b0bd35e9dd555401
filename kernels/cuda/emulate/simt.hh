// Kernels on the host: the threads of a block are fibers that change places at barriers and warp
// functions only. Blocks run one after the other, so shared memory is a static array.
//
// A warp whose threads wait at different kinds of barriers ends the program: on a GPU it would hang.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstring>

#define KERNEL(name) static void name
#define DEVICE inline
#define __shared__ static
#define __align__(n) __attribute__((aligned(n)))

struct Place {
    unsigned x, y, z;
};
struct uint4 {
    unsigned x, y, z, w;
};
struct float4 {
    float x, y, z, w;
};

// Of the running thread; set by the scheduler.
extern Place threadIdx, blockIdx, blockDim, gridDim;

void __syncthreads();
// Waits until all threads of the warp are here.
void warp_wait();
// One place per thread, for exchanges within a warp.
extern float lanes[1024];

inline float warp_xor(float x, int mask) {
    unsigned t = threadIdx.x;
    lanes[t] = x;
    warp_wait();
    float other = lanes[t ^ (unsigned)mask];
    warp_wait();
    return other;
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
