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

// Two bfloat16 in a word, the first in its low half.
DEVICE uint32_t bf16_pair(float a, float b) {
    __nv_bfloat162 pair = __floats2bfloat162_rn(a, b);
    return *(uint32_t *)&pair;
}

// c (16, 8) += a (16, 16) b (16, 8)^T, spread over a warp as the instruction m16n8k16 has it. Lane 4 g + t:
// a: rows g and g + 8 at columns 2 t, 2 t + 1, then both at 2 t + 8, 2 t + 9; b: row g there, likewise; c:
// (g, 2 t), (g, 2 t + 1), (g + 8, 2 t), (g + 8, 2 t + 1).
DEVICE void mma(float c[4], const uint32_t a[4], const uint32_t b[2]) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
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

DEVICE uint32_t bf16_pair(float a, float b) { return bf16_bits(a) | (uint32_t)bf16_bits(b) << 16; }

DEVICE void mma(float c[4], const uint32_t a[4], const uint32_t b[2]) {
    // Two sets, used in turn: see `Exchange`.
    struct Lane {
        uint32_t a[4], b[2];
    };
    static thread_local Lane sets[2][1024];
    static thread_local unsigned char set[1024];
    unsigned thread = threadIdx.x, first = thread / WARP * WARP, g = thread % WARP / 4, t = thread % 4;
    Lane *lanes = sets[set[thread] ^= 1] + first;
    memcpy(lanes[thread % WARP].a, a, 16), memcpy(lanes[thread % WARP].b, b, 8);
    warp_wait();
    auto half = [](uint32_t pair, unsigned i) { return bf16_value(pair >> 16 * i); };
    for (unsigned j = 0; j < 4; j++) {
        unsigned column = 2 * t + j % 2, upper = j / 2;
        for (unsigned k = 0; k < 16; k++) {
            unsigned from = k % 8 / 2, second = k / 8;
            float x = half(lanes[4 * g + from].a[2 * second + upper], k % 2);
            c[j] += x * half(lanes[4 * column + from].b[second], k % 2);
        }
    }
}
#endif

// Both cut into a high and a low part.
DEVICE void split_pair(float a, float b, uint32_t &high, uint32_t &low) {
    high = bf16_pair(a, b);
    low = bf16_pair(a - bits_float(high << 16), b - bits_float(high & 0xffff0000));
}
