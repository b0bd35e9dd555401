// What all kernels share: the words that differ between a GPU and the emulation on the host, and
// sums across a block.
//
// A kernel compiles with nvcc, and as plain C++ with emulate/simt.hh, which runs the threads of a
// block as fibers. It therefore keeps to: __shared__ arrays of fixed size, __syncthreads(), the warp
// functions here, and `mma` for the tensor cores.
#pragma once

#ifdef __CUDACC_RTC__
// Of the headers of a host this compiler has only what it does with them.
typedef signed char int8_t;
typedef unsigned char uint8_t;
typedef unsigned short uint16_t;
typedef unsigned int uint32_t;
typedef unsigned long long uint64_t;
#define INFINITY __int_as_float(0x7f800000)
#else
#include <math.h>
#include <stdint.h>
#endif

#ifdef __CUDACC__
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#define KERNEL(name) extern "C" __global__ void name
// Of a kernel: its threads, and how many blocks of it an SM should have registers for.
#define BOUNDED(threads, blocks) __launch_bounds__(threads, blocks)
#define DEVICE __device__ __forceinline__
#define UNROLL _Pragma("unroll")

DEVICE float bits_float(uint32_t bits) { return __uint_as_float(bits); }
DEVICE uint32_t float_bits(float x) { return __float_as_uint(x); }
DEVICE float half_float(uint16_t bits) { return __half2float(__ushort_as_half(bits)); }
DEVICE uint16_t float_half(float x) { return __half_as_ushort(__float2half_rn(x)); }
// x with byte i of `bytes` as its last.
DEVICE uint32_t with_byte(uint32_t x, uint32_t bytes, unsigned i) { return __byte_perm(bytes, x, 0x7650 + i); }
// x, of which nothing is known here: what is made of it is not kept in registers from before.
DEVICE unsigned opaque(unsigned x) {
    asm volatile("" : "+r"(x));
    return x;
}
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

// Products and sums that are not fused, for results that are the CPU's bit for bit.
#ifdef __CUDACC__
DEVICE double mul(double a, double b) { return __dmul_rn(a, b); }
DEVICE double add(double a, double b) { return __dadd_rn(a, b); }
DEVICE double bits_double(uint64_t bits) { return __longlong_as_double((long long)bits); }
DEVICE uint64_t double_bits(double x) { return (uint64_t)__double_as_longlong(x); }
#else
DEVICE double mul(double a, double b) { return a * b; }
DEVICE double add(double a, double b) { return a + b; }
DEVICE double bits_double(uint64_t bits) {
    double x;
    memcpy(&x, &bits, 8);
    return x;
}
DEVICE uint64_t double_bits(double x) {
    uint64_t bits;
    memcpy(&bits, &x, 8);
    return bits;
}
#endif

// Where a row of a pass stands: its sequence's memory in a stack of layers, and what it sees there. The
// memory is one ring of `capacity` rows per layer and plane (keys, values); position p lies in row
// p % capacity of each. It holds floats, or half floats if `is_half`. The same structure in
// src/cuda/ring.rs.
struct Row {
    void *memory;
    unsigned capacity, position, from, to, is_half, unused;
};

// A value of a row's memory.
DEVICE float load_value(const Row &row, size_t at) {
    return row.is_half ? half_float(((const uint16_t *)row.memory)[at]) : ((const float *)row.memory)[at];
}

// Enters a value, rounded to the nearest half float (to the even one between two) if they are such.
DEVICE void store_value(const Row &row, size_t at, float x) {
    if (row.is_half)
        ((uint16_t *)row.memory)[at] = float_half(x);
    else
        ((float *)row.memory)[at] = x;
}

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
