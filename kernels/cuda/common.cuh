// What all kernels share: the words that differ between a GPU and the emulation on the host, and
// sums across a block.
//
// A kernel compiles with nvcc, and as plain C++ with emulate/simt.hh, which runs the threads of a
// block as fibers. It therefore keeps to: __shared__ arrays of fixed size, __syncthreads(), the warp
// functions here, and `Mma` for the tensor cores.
#pragma once

#ifdef __CUDACC_RTC__
// Of the headers of a host this compiler has only what it does with them.
typedef signed char int8_t;
typedef unsigned char uint8_t;
typedef unsigned short uint16_t;
typedef unsigned int uint32_t;
#define INFINITY __int_as_float(0x7f800000)
#else
#include <math.h>
#include <stdint.h>
#endif

#ifdef __CUDACC__
#include <cuda_fp16.h>
#include <mma.h>
#define KERNEL(name) extern "C" __global__ void name
#define DEVICE __device__ __forceinline__

DEVICE float bits_float(uint32_t bits) { return __uint_as_float(bits); }
DEVICE uint32_t float_bits(float x) { return __float_as_uint(x); }
DEVICE float half_float(uint16_t bits) { return __half2float(__ushort_as_half(bits)); }
DEVICE float warp_xor(float x, int mask) { return __shfl_xor_sync(~0u, x, mask); }
// x of all threads of the warp, combined.
template <class Op>
DEVICE float warp_reduce(float x, Op op) {
    for (int mask = 16; mask > 0; mask /= 2) x = op(x, warp_xor(x, mask));
    return x;
}
#else
#include "emulate/simt.hh"
#endif

constexpr unsigned WARP = 32;
// Threads of the kernels that work on one row with a block.
constexpr unsigned ROW_THREADS = 256;

DEVICE float warp_sum(float x) {
    return warp_reduce(x, [](float a, float b) { return a + b; });
}

DEVICE float warp_max(float x) {
    return warp_reduce(x, [](float a, float b) { return fmaxf(a, b); });
}

// The sum over the block, to all threads. The block is whole warps, at most 1024 threads; all call.
DEVICE float block_sum(float x) {
    __shared__ float parts[WARP];
    x = warp_sum(x);
    __syncthreads();  // the array may still be read for the sum before
    if (threadIdx.x % WARP == 0) parts[threadIdx.x / WARP] = x;
    __syncthreads();
    float sum = 0;
    for (unsigned i = 0; i < blockDim.x / WARP; i++) sum += parts[i];
    return sum;
}

// The maximum over the block, as block_sum.
DEVICE float block_max(float x) {
    __shared__ float parts[WARP];
    x = warp_max(x);
    __syncthreads();
    if (threadIdx.x % WARP == 0) parts[threadIdx.x / WARP] = x;
    __syncthreads();
    float max = parts[0];
    for (unsigned i = 1; i < blockDim.x / WARP; i++) max = fmaxf(max, parts[i]);
    return max;
}
