// Products of 16 x 16 tiles of bfloat16 in shared memory, summed in f32: the tensor cores, or on the
// host their meaning.
#pragma once

#include "common.cuh"

#ifdef __CUDACC__
using Bf16Bits = __nv_bfloat16;
DEVICE Bf16Bits bf16_bits(float x) { return __float2bfloat16_rn(x); }
DEVICE float bf16_value(Bf16Bits x) { return __bfloat162float(x); }

struct TileA {
    nvcuda::wmma::fragment<nvcuda::wmma::matrix_a, 16, 16, 16, Bf16Bits, nvcuda::wmma::row_major> f;
    DEVICE void load(const Bf16Bits *p, unsigned ld) { nvcuda::wmma::load_matrix_sync(f, p, ld); }
};

struct TileB {
    nvcuda::wmma::fragment<nvcuda::wmma::matrix_b, 16, 16, 16, Bf16Bits, nvcuda::wmma::col_major> f;
    DEVICE void load(const Bf16Bits *p, unsigned ld) { nvcuda::wmma::load_matrix_sync(f, p, ld); }
};

struct TileC {
    nvcuda::wmma::fragment<nvcuda::wmma::accumulator, 16, 16, 16, float> f;
    DEVICE void clear() { nvcuda::wmma::fill_fragment(f, 0.0f); }
    // += a b^T
    DEVICE void add(const TileA &a, const TileB &b) { nvcuda::wmma::mma_sync(f, a.f, b.f, f); }
    DEVICE void store(float *p, unsigned ld) {
        nvcuda::wmma::store_matrix_sync(p, f, ld, nvcuda::wmma::mem_row_major);
    }
};
#else
using Bf16Bits = uint16_t;
DEVICE Bf16Bits bf16_bits(float x) {
    uint32_t bits = float_bits(x);
    return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}
DEVICE float bf16_value(Bf16Bits x) { return bits_float((uint32_t)x << 16); }

struct TileA {
    const Bf16Bits *p;
    unsigned ld;
    void load(const Bf16Bits *from, unsigned stride) { p = from, ld = stride; }
};
using TileB = TileA;

// Each of the 32 threads holds 8 of the 256 sums.
struct TileC {
    float sums[8];
    static unsigned at(int i) { return threadIdx.x % WARP * 8 + i; }
    void clear() {
        for (float &sum : sums) sum = 0;
    }
    void add(const TileA &a, const TileB &b) {
        for (int i = 0; i < 8; i++)
            for (int k = 0; k < 16; k++)
                sums[i] += bf16_value(a.p[at(i) / 16 * a.ld + k]) * bf16_value(b.p[at(i) % 16 * b.ld + k]);
    }
    void store(float *to, unsigned stride) {
        for (int i = 0; i < 8; i++) to[at(i) / 16 * stride + at(i) % 16] = sums[i];
    }
};
#endif
