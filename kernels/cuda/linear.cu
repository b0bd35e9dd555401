// y = x W^T for x (n, cols), W (rows, cols), y (n, rows): weights as they lie in the file, activations
// and sums in f32.
//
// `matvec_*` is for few rows of x and bound by the bytes of W, which are widened in registers.
// `matmul_*` is for many and uses the tensor cores: every f32 is cut into two bfloat16, high + low, and
// the product is high high + high low + low high, which loses about 2^-16 of a term. Weights that are
// bfloat16 have no low part and save a third of it.
//
// `mode`: 0: y = x W^T, 1: y += x W^T (residual), 2: y = 2 y + x W^T (the double residual around
// cross-attentions).
#include "formats.cuh"
#include "mma.cuh"

DEVICE void finish(float *y, float sum, unsigned mode) {
    *y = mode == 0 ? sum : mode == 1 ? *y + sum : 2 * *y + sum;
}

// A warp per output; grid (rows / 8, n), 256 threads.
template <class F>
DEVICE void matvec_plain(const uint8_t *w, const float *x, float *y, unsigned rows, unsigned cols, unsigned mode) {
    using Element = typename F::Element;
    constexpr unsigned V = 16 / sizeof(Element);  // weights of one load
    unsigned row = blockIdx.x * (blockDim.x / WARP) + threadIdx.x / WARP, lane = threadIdx.x % WARP;
    if (row >= rows) return;
    x += (size_t)blockIdx.y * cols;
    const Element *r = (const Element *)w + (size_t)row * cols;
    float sum = 0;
    if (cols % V == 0) {
        for (unsigned k = lane * V; k < cols; k += WARP * V) {
            union {
                uint4 all;
                Element e[V];
            } weights;
            weights.all = *(const uint4 *)(r + k);
            for (unsigned i = 0; i < V; i += 4) {
                float4 v = *(const float4 *)(x + k + i);
                sum = fmaf(F::value(weights.e[i]), v.x, sum);
                sum = fmaf(F::value(weights.e[i + 1]), v.y, sum);
                sum = fmaf(F::value(weights.e[i + 2]), v.z, sum);
                sum = fmaf(F::value(weights.e[i + 3]), v.w, sum);
            }
        }
    } else {
        for (unsigned k = lane; k < cols; k += WARP) sum = fmaf(F::value(r[k]), x[k], sum);
    }
    sum = warp_sum(sum);
    if (lane == 0) finish(y + (size_t)blockIdx.y * rows + row, sum, mode);
}

// A block per tile of 16 outputs; grid (rows / 16, n), 256 threads. A warp takes every 8th chunk; its
// two halves take turns at the groups of 4 columns, so that it reads 128 bytes in a row.
template <class F>
DEVICE void matvec_tiles(const uint8_t *w, const float *x, float *y, unsigned rows, unsigned cols, unsigned mode) {
    __shared__ float parts[8][TILE_ROWS];
    unsigned warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, row = lane % TILE_ROWS;
    unsigned chunks = (cols + F::COLS - 1) / F::COLS;
    x += (size_t)blockIdx.y * cols;
    w += (size_t)blockIdx.x * chunks * F::CHUNK;
    float sum = 0;
    for (unsigned chunk = warp; chunk < chunks; chunk += blockDim.x / WARP) {
        for (unsigned group = lane / TILE_ROWS; group < F::COLS / 4; group += 2) {
            unsigned col = chunk * F::COLS + group * 4;
            float weights[4];
            F::group4(w + (size_t)chunk * F::CHUNK, row, group, weights);
            for (unsigned i = 0; i < 4; i++)
                if (col + i < cols) sum = fmaf(weights[i], x[col + i], sum);
        }
    }
    sum += warp_xor(sum, TILE_ROWS);
    if (lane < TILE_ROWS) parts[warp][lane] = sum;
    __syncthreads();
    unsigned out = blockIdx.x * TILE_ROWS + threadIdx.x;
    if (threadIdx.x < TILE_ROWS && out < rows) {
        float total = 0;
        for (unsigned i = 0; i < blockDim.x / WARP; i++) total += parts[i][threadIdx.x];
        finish(y + (size_t)blockIdx.y * rows + out, total, mode);
    }
}

// Side of a block's square of outputs, and the columns it takes at a time.
constexpr unsigned SIDE = 64, STEP = 32;
// Rows in shared memory are padded, so that tiles do not fall on the same banks.
constexpr unsigned STRIDE = STEP + 8;

DEVICE void put_split(Bf16Bits *high, Bf16Bits *low, unsigned at, float x) {
    high[at] = bf16_bits(x);
    low[at] = bf16_bits(x - bf16_value(high[at]));
}

// 64 x 64 outputs per block; grid (rows / 64, n / 64), 128 threads: 2 x 2 warps of 32 x 32 each.
template <class F>
DEVICE void matmul(const uint8_t *w, const float *x, float *y, unsigned rows, unsigned cols, unsigned n, unsigned mode) {
    __shared__ __align__(32) Bf16Bits x_high[SIDE * STRIDE], x_low[SIDE * STRIDE];
    __shared__ __align__(32) Bf16Bits w_high[SIDE * STRIDE], w_low[SIDE * STRIDE];
    __shared__ __align__(32) float out[SIDE * SIDE];
    unsigned first_w = blockIdx.x * SIDE, first_x = blockIdx.y * SIDE;
    unsigned warp = threadIdx.x / WARP, to_x = warp / 2 * 32, to_w = warp % 2 * 32;
    TileC sums[2][2];
    for (auto &line : sums)
        for (TileC &tile : line) tile.clear();
    for (unsigned k = 0; k < cols; k += STEP) {
        __syncthreads();
        for (unsigned i = threadIdx.x; i < SIDE * STEP / 4; i += blockDim.x) {
            unsigned row = i / (STEP / 4), col = i % (STEP / 4) * 4;
            float weights[4] = {0, 0, 0, 0};
            if (first_w + row < rows && k + col < cols) F::load4(w, cols, first_w + row, k + col, weights);
            for (unsigned j = 0; j < 4; j++) {
                bool inside = first_x + row < n && k + col + j < cols;
                float v = inside ? x[(size_t)(first_x + row) * cols + k + col + j] : 0;
                put_split(x_high, x_low, row * STRIDE + col + j, v);
                put_split(w_high, w_low, row * STRIDE + col + j, weights[j]);
            }
        }
        __syncthreads();
        for (unsigned kk = 0; kk < STEP; kk += 16) {
            TileA a_high[2], a_low[2];
            for (unsigned i = 0; i < 2; i++) {
                a_high[i].load(x_high + (to_x + 16 * i) * STRIDE + kk, STRIDE);
                a_low[i].load(x_low + (to_x + 16 * i) * STRIDE + kk, STRIDE);
            }
            for (unsigned j = 0; j < 2; j++) {
                TileB b;
                b.load(w_high + (to_w + 16 * j) * STRIDE + kk, STRIDE);
                for (unsigned i = 0; i < 2; i++) {
                    sums[i][j].add(a_low[i], b);
                    sums[i][j].add(a_high[i], b);
                }
                if (F::LOW_PART) {
                    b.load(w_low + (to_w + 16 * j) * STRIDE + kk, STRIDE);
                    for (unsigned i = 0; i < 2; i++) sums[i][j].add(a_high[i], b);
                }
            }
        }
    }
    for (unsigned i = 0; i < 2; i++)
        for (unsigned j = 0; j < 2; j++) sums[i][j].store(out + (to_x + 16 * i) * SIDE + to_w + 16 * j, SIDE);
    __syncthreads();
    for (unsigned i = threadIdx.x; i < SIDE * SIDE; i += blockDim.x) {
        unsigned row = first_x + i / SIDE, col = first_w + i % SIDE;
        if (row < n && col < rows) finish(y + (size_t)row * rows + col, out[i], mode);
    }
}

#define LINEAR(name, LAYOUT, FORMAT, matvec)                                                                       \
    KERNEL(matvec_##name)(const uint8_t *w, const float *x, float *y, unsigned rows, unsigned cols, unsigned mode) { \
        matvec<LAYOUT<FORMAT>>(w, x, y, rows, cols, mode);                                                         \
    }                                                                                                              \
    KERNEL(matmul_##name)                                                                                          \
    (const uint8_t *w, const float *x, float *y, unsigned rows, unsigned cols, unsigned n, unsigned mode) {        \
        matmul<LAYOUT<FORMAT>>(w, x, y, rows, cols, n, mode);                                                      \
    }

LINEAR(f32, Plain, F32, matvec_plain)
LINEAR(f16, Plain, F16, matvec_plain)
LINEAR(bf16, Plain, Bf16, matvec_plain)
LINEAR(q8_0, Tiles, Q8_0, matvec_tiles)
LINEAR(q4_0, Tiles, Q4_0, matvec_tiles)
LINEAR(q4_k, Tiles, Q4K, matvec_tiles)
LINEAR(q6_k, Tiles, Q6K, matvec_tiles)
