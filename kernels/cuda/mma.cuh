// Products of tiles of bfloat16, summed in f32: the tensor cores, or on the host their meaning.
#pragma once

#include "common.cuh"

#ifdef __CUDACC__
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
DEVICE uint32_t bf16_pair(float a, float b) {
    auto rounded = [](float x) { return (float_bits(x) + 0x7fff + (float_bits(x) >> 16 & 1)) >> 16; };
    return rounded(a) | rounded(b) << 16;
}

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
    auto half = [](uint32_t pair, unsigned i) { return bits_float(i ? pair & 0xffff0000 : pair << 16); };
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
