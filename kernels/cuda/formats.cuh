// How four consecutive weights of a row are read, for each element type: the plain ones row-major, the
// block formats in tiles of 16 rows as kernels/src/block lays them out (layout version 1).
#pragma once

#include "common.cuh"

constexpr unsigned TILE_ROWS = 16;

// Plain elements. `LOW_PART`: whether a weight can need more than one bfloat16.
struct F32 {
    using Element = float;
    static constexpr bool LOW_PART = true;
    DEVICE static float value(Element x) { return x; }
};
struct F16 {
    using Element = uint16_t;
    static constexpr bool LOW_PART = true;
    DEVICE static float value(Element x) { return half_float(x); }
};
struct Bf16 {
    using Element = uint16_t;
    static constexpr bool LOW_PART = false;
    DEVICE static float value(Element x) { return bits_float((uint32_t)x << 16); }
};

template <class F>
struct Plain : F {
    using Element = typename F::Element;
    // Weights (row, col..col + 4) of a (rows, cols) matrix; zero outside.
    DEVICE static void load4(const uint8_t *w, unsigned cols, unsigned row, unsigned col, float out[4]) {
        const Element *from = (const Element *)w + (size_t)row * cols + col;
        for (unsigned i = 0; i < 4; i++) out[i] = col + i < cols ? F::value(from[i]) : 0;
    }
};

DEVICE float half_at(const uint8_t *p) { return half_float(*(const uint16_t *)p); }

// The four bytes of group `group` (of 4 columns) in a run of 32 columns of nibbles.
DEVICE uint32_t nibbles(const uint8_t *quants, unsigned row, unsigned group) {
    uint32_t bytes = *(const uint32_t *)(quants + (group % 4 * TILE_ROWS + row) * 4);
    return group < 4 ? bytes & 0x0f0f0f0f : bytes >> 4 & 0x0f0f0f0f;
}

struct Q8_0 {
    static constexpr unsigned COLS = 64, CHUNK = 1088;
    // The four weights of group `group` of a row of a chunk.
    DEVICE static void group4(const uint8_t *chunk, unsigned row, unsigned group, float out[4]) {
        unsigned block = group / 8;
        float d = half_at(chunk + (block * TILE_ROWS + row) * 2);
        uint32_t q = *(const uint32_t *)(chunk + 64 + block * 512 + (group % 8 * TILE_ROWS + row) * 4);
        for (int i = 0; i < 4; i++) out[i] = d * ((int)(q >> 8 * i & 255) - 128);
    }
};

struct Q4_0 {
    static constexpr unsigned COLS = 64, CHUNK = 576;
    DEVICE static void group4(const uint8_t *chunk, unsigned row, unsigned group, float out[4]) {
        unsigned block = group / 8;
        float d = half_at(chunk + (block * TILE_ROWS + row) * 2);
        uint32_t q = nibbles(chunk + 64 + block * 256, row, group % 8);
        for (int i = 0; i < 4; i++) out[i] = d * ((int)(q >> 8 * i & 15) - 8);
    }
};

struct Q4K {
    static constexpr unsigned COLS = 256, CHUNK = 2304;
    // The 6-bit number of a row: scales are blocks 0..8, minimums 8..16.
    DEVICE static unsigned six(const uint8_t *chunk, unsigned row, unsigned block) {
        const uint8_t *bytes = chunk + 64 + block / 4 * 48 + row;
        if (block % 4 < 3) return bytes[block % 4 * 16] & 63;
        return bytes[0] >> 6 | bytes[16] >> 6 << 2 | bytes[32] >> 6 << 4;
    }
    DEVICE static void group4(const uint8_t *chunk, unsigned row, unsigned group, float out[4]) {
        unsigned block = group / 8;
        float scale = half_at(chunk + row * 2) * six(chunk, row, block);
        float minimum = half_at(chunk + 32 + row * 2) * six(chunk, row, block + 8);
        uint32_t q = nibbles(chunk + 256 + block * 256, row, group % 8);
        for (int i = 0; i < 4; i++) out[i] = scale * (q >> 8 * i & 15) - minimum;
    }
};

struct Q6K {
    static constexpr unsigned COLS = 256, CHUNK = 3392;
    DEVICE static void group4(const uint8_t *chunk, unsigned row, unsigned group, float out[4]) {
        unsigned block = group / 8, half = group / 4;
        float scale = half_at(chunk + row * 2) * (int8_t)chunk[64 + half * TILE_ROWS + row];
        uint32_t low = nibbles(chunk + 320 + block * 256, row, group % 8);
        uint32_t high = *(const uint32_t *)(chunk + 2368 + (half * TILE_ROWS + row) * 4);
        high = high >> group % 4 * 2 & 0x03030303;
        for (int i = 0; i < 4; i++)
            out[i] = scale * ((int)((low >> 8 * i & 15) | (high >> 8 * i & 3) << 4) - 32);
    }
};

template <class F>
struct Tiles : F {
    static constexpr bool LOW_PART = true;
    // Weights (row, col..col + 4), col a multiple of 4; padding is zero.
    DEVICE static void load4(const uint8_t *w, unsigned cols, unsigned row, unsigned col, float out[4]) {
        unsigned chunks = (cols + F::COLS - 1) / F::COLS;
        size_t chunk = (size_t)(row / TILE_ROWS) * chunks + col / F::COLS;
        F::group4(w + chunk * F::CHUNK, row % TILE_ROWS, col % F::COLS / 4, out);
    }
};
