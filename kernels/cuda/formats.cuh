// How four consecutive weights of a row are read, for each element type: the plain ones row-major, the
// block formats in tiles of 16 rows as kernels/src/block lays them out (layout version 1).
#pragma once

#include "mma.cuh"

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

template <class E>
struct __align__(4 * sizeof(E)) Four {
    E e[4];
};

template <class F>
struct Plain : F {
    using Element = typename F::Element;
    static constexpr unsigned SCALES = 0;
    // Two rows at a lane's 8 columns of a run of 32: 8 t .. 8 t + 8, half of them per step.
    struct Run {
        union {
            uint4 all[sizeof(Element) / 2];
            Element e[8];
        } rows[2];
        float scale[2][2], minimum[2][2];
    };
    DEVICE static unsigned column(unsigned step, unsigned t) { return 8 * t + 4 * step; }
    // Rows past the last are the last one.
    DEVICE static const Element *at(const uint8_t *w, unsigned rows, unsigned cols, unsigned row, unsigned col) {
        return (const Element *)w + ((row < rows ? row : rows - 1) * cols + col);
    }
    DEVICE static Run run(const uint8_t *w, unsigned rows, unsigned cols, const unsigned of[2], unsigned number,
                          unsigned t) {
        Run run;
        unsigned col = number * 32 + 8 * t;
        for (unsigned i = 0; i < 2; i++) {
            const Element *from = at(w, rows, cols, of[i], col);
            if (number * 32 + 32 <= cols && cols % 8 == 0) {
                for (unsigned j = 0; j < sizeof(Element) / 2; j++) run.rows[i].all[j] = ((const uint4 *)from)[j];
            } else {
                for (unsigned j = 0; j < 8; j++) run.rows[i].e[j] = col + j < cols ? from[j] : 0;
            }
        }
        return run;
    }
    // A step alone, of a run that is whole: columns 16 step + 4 t on.
    DEVICE static Run run_for(unsigned step, const uint8_t *w, unsigned rows, unsigned cols, const unsigned of[2],
                              unsigned number, unsigned t) {
        Run run;
        for (unsigned i = 0; i < 2; i++)
            *(Four<Element> *)(run.rows[i].e + 4 * step) =
                *(const Four<Element> *)at(w, rows, cols, of[i], number * 32 + 16 * step + 4 * t);
        return run;
    }
    DEVICE static void step(const Run &run, unsigned step, unsigned, uint32_t high[4], uint32_t low[4]) {
        for (unsigned i = 0; i < 4; i++) {
            const Element *pair = run.rows[i % 2].e + 4 * step + i / 2 * 2;
            if (F::LOW_PART)
                split_pair(F::value(pair[0]), F::value(pair[1]), high[i], low[i]);
            else
                high[i] = (uint32_t)pair[0] | (uint32_t)pair[1] << 16;
        }
    }
    DEVICE static void scales_at(const uint8_t *, unsigned, unsigned, unsigned, unsigned, float &, float &) {}
    // Weights (row, col..col + 4) of a (rows, cols) matrix; zero outside.
    DEVICE static void load4(const uint8_t *w, unsigned cols, unsigned row, unsigned col, float out[4]) {
        const Element *from = (const Element *)w + (size_t)row * cols + col;
        for (unsigned i = 0; i < 4; i++) out[i] = col + i < cols ? F::value(from[i]) : 0;
    }
};

DEVICE float half_at(const uint8_t *p) { return half_float(*(const uint16_t *)p); }

// Block formats: a weight is scale * (byte - ZERO) - minimum. Of a run of 32 columns of a row of a chunk, `load` has
// what group `t` (of 4 columns) of both its halves needs, and `bytes` makes the four of a half of it. SCALES: 1 if
// there is no minimum, 2 if there is one.
struct Q8_0 {
    static constexpr unsigned COLS = 64, CHUNK = 1088, ZERO = 128, SCALES = 1;
    struct Loaded {
        uint32_t halves[2];
    };
    DEVICE static Loaded load(const uint8_t *chunk, unsigned row, unsigned run, unsigned t) {
        const uint32_t *from = (const uint32_t *)(chunk + 64 + run * 512) + t * TILE_ROWS + row;
        return {from[0], from[4 * TILE_ROWS]};
    }
    DEVICE static uint32_t bytes(const Loaded &loaded, unsigned half, unsigned) { return loaded.halves[half]; }
    DEVICE static void scales(const uint8_t *chunk, unsigned row, unsigned run, unsigned, float &scale, float &) {
        scale = half_at(chunk + (run * TILE_ROWS + row) * 2);
    }
};

// 32 columns of nibbles.
struct Nibbles {
    uint32_t both;
    DEVICE static Nibbles load(const uint8_t *quants, unsigned row, unsigned run, unsigned t) {
        return {((const uint32_t *)(quants + run * 256))[t * TILE_ROWS + row]};
    }
    DEVICE uint32_t bytes(unsigned half) const { return both >> 4 * half & 0x0f0f0f0f; }
};

struct Q4_0 {
    static constexpr unsigned COLS = 64, CHUNK = 576, ZERO = 8, SCALES = 1;
    using Loaded = Nibbles;
    DEVICE static Loaded load(const uint8_t *chunk, unsigned row, unsigned run, unsigned t) {
        return Nibbles::load(chunk + 64, row, run, t);
    }
    DEVICE static uint32_t bytes(const Loaded &loaded, unsigned half, unsigned) { return loaded.bytes(half); }
    DEVICE static void scales(const uint8_t *chunk, unsigned row, unsigned run, unsigned, float &scale, float &) {
        scale = half_at(chunk + (run * TILE_ROWS + row) * 2);
    }
};

struct Q4K {
    static constexpr unsigned COLS = 256, CHUNK = 2304, ZERO = 0, SCALES = 2;
    // The 6-bit number of a row: scales are blocks 0..8, minimums 8..16.
    DEVICE static unsigned six(const uint8_t *chunk, unsigned row, unsigned block) {
        const uint8_t *bytes = chunk + 64 + block / 4 * 48 + row;
        if (block % 4 < 3) return bytes[block % 4 * 16] & 63;
        return bytes[0] >> 6 | bytes[16] >> 6 << 2 | bytes[32] >> 6 << 4;
    }
    using Loaded = Nibbles;
    DEVICE static Loaded load(const uint8_t *chunk, unsigned row, unsigned run, unsigned t) {
        return Nibbles::load(chunk + 256, row, run, t);
    }
    DEVICE static uint32_t bytes(const Loaded &loaded, unsigned half, unsigned) { return loaded.bytes(half); }
    DEVICE static void scales(const uint8_t *chunk, unsigned row, unsigned run, unsigned, float &scale,
                              float &minimum) {
        scale = half_at(chunk + row * 2) * six(chunk, row, run);
        minimum = half_at(chunk + 32 + row * 2) * six(chunk, row, run + 8);
    }
};

struct Q6K {
    static constexpr unsigned COLS = 256, CHUNK = 3392, ZERO = 32, SCALES = 1;
    struct Loaded {
        Nibbles low;
        uint32_t high[2];
    };
    DEVICE static Loaded load(const uint8_t *chunk, unsigned row, unsigned run, unsigned t) {
        const uint32_t *high = (const uint32_t *)(chunk + 2368) + run * 2 * TILE_ROWS + row;
        return {Nibbles::load(chunk + 320, row, run, t), {high[0], high[TILE_ROWS]}};
    }
    DEVICE static uint32_t bytes(const Loaded &loaded, unsigned half, unsigned t) {
        return loaded.low.bytes(half) | (loaded.high[half] >> t * 2 & 0x03030303) << 4;
    }
    DEVICE static void scales(const uint8_t *chunk, unsigned row, unsigned run, unsigned half, float &scale, float &) {
        scale = half_at(chunk + row * 2) * (int8_t)chunk[64 + (run * 2 + half) * TILE_ROWS + row];
    }
};

// Four whole numbers of a byte each, less `zero`, as bfloat16: exactly. 0x4b000000 is 2^23, whose last bit counts
// ones.
DEVICE void whole_numbers(uint32_t bytes, float zero, uint32_t pairs[2]) {
    float v[4];
    for (unsigned i = 0; i < 4; i++) v[i] = bits_float(with_byte(0x4b000000, bytes, i)) - (8388608 + zero);
    pairs[0] = bf16_pair(v[0], v[1]), pairs[1] = bf16_pair(v[2], v[3]);
}

template <class F>
struct Tiles : F {
    static constexpr bool LOW_PART = false;
    // Two rows: in a step of 16 columns a lane has the four of group t.
    struct Run {
        typename F::Loaded rows[2];
        float scale[2][2], minimum[2][2];  // step, row
    };
    DEVICE static unsigned column(unsigned step, unsigned t) { return 16 * step + 4 * t; }
    // The chunk of a row with a run of 32 columns, and which of the chunk's runs that is.
    DEVICE static const uint8_t *chunk_at(const uint8_t *w, unsigned cols, unsigned row, unsigned &run) {
        unsigned chunk = row / TILE_ROWS * ((cols + F::COLS - 1) / F::COLS) + run / (F::COLS / 32);
        run %= F::COLS / 32;
        return w + (size_t)chunk * F::CHUNK;
    }
    DEVICE static void scales_at(const uint8_t *w, unsigned cols, unsigned row, unsigned run, unsigned half,
                                 float &scale, float &minimum) {
        const uint8_t *chunk = chunk_at(w, cols, row, run);
        F::scales(chunk, row % TILE_ROWS, run, half, scale, minimum);
    }
    DEVICE static Run run(const uint8_t *w, unsigned, unsigned cols, const unsigned of[2], unsigned number,
                          unsigned t) {
        Run run;
        for (unsigned i = 0; i < 2; i++) {
            unsigned in_chunk = number, row = of[i] % TILE_ROWS;
            const uint8_t *chunk = chunk_at(w, cols, of[i], in_chunk);
            run.rows[i] = F::load(chunk, row, in_chunk, t);
            for (unsigned step = 0; step < 2; step++)
                F::scales(chunk, row, in_chunk, step, run.scale[step][i], run.minimum[step][i]);
        }
        return run;
    }
    DEVICE static Run run_for(unsigned, const uint8_t *w, unsigned rows, unsigned cols, const unsigned of[2],
                              unsigned number, unsigned t) {
        return run(w, rows, cols, of, number, t);
    }
    DEVICE static void step(const Run &run, unsigned step, unsigned t, uint32_t high[4], uint32_t *) {
        for (unsigned i = 0; i < 2; i++) {
            uint32_t pairs[2];
            whole_numbers(F::bytes(run.rows[i], step, t), F::ZERO, pairs);
            high[i] = pairs[0], high[i + 2] = pairs[1];
        }
    }
    // The four weights of a group of a row of a chunk.
    DEVICE static void group4(const uint8_t *chunk, unsigned row, unsigned group, float out[4]) {
        float scale, minimum = 0;
        unsigned run = group / 8, half = group / 4 % 2, t = group % 4;
        F::scales(chunk, row, run, half, scale, minimum);
        uint32_t q = F::bytes(F::load(chunk, row, run, t), half, t);
        for (int i = 0; i < 4; i++) out[i] = scale * ((int)(q >> 8 * i & 255) - (int)F::ZERO) - minimum;
    }
    // Weights (row, col..col + 4), col a multiple of 4; padding is zero.
    DEVICE static void load4(const uint8_t *w, unsigned cols, unsigned row, unsigned col, float out[4]) {
        unsigned run = col / 32;
        const uint8_t *chunk = chunk_at(w, cols, row, run);
        group4(chunk, row % TILE_ROWS, run * 8 + col % 32 / 4, out);
    }
};
