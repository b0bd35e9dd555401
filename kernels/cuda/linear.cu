// y = x W^T for x (n, cols), W (rows, cols), y (n, rows of `stride`): weights as they lie in the file,
// activations and sums in f32.
//
// `narrow_*` is for up to 32 rows of x and bound by the bytes of W, of which every one is read once for all
// rows. `matmul_*` is for more. Both use the tensor cores: every f32 is cut into two bfloat16, high + low,
// and the product is high high + high low + low high, which loses about 2^-16 of a term. Weights that are
// bfloat16, or small whole numbers times a scale, have no low part and save a third of it.
//
// `narrow_*` can also norm x and gate y on the way, so that a layer of few rows is five launches:
//
// - With `gain` (cols) x is RMS-normed: each block multiplies x by the gain as it reads it, sums its squares
//   beside the products, and scales the sums at the end, which commutes.
// - With `up` above 0, y = silu(x G^T) * x U^T of `rows` outputs, where U begins `up` rows after G in w. The
//   upper 8 rows of a block's tile are gates, the lower 8 their ups.
//
// `mode`: 0: y = x W^T, 1: y += x W^T (residual), 2: y = 2 y + x W^T (the double residual around
// cross-attentions).
#include "formats.cuh"
#include "mma.cuh"

DEVICE void finish(float *y, float sum, unsigned mode) {
    *y = mode == 0 ? sum : mode == 1 ? *y + sum : 2 * *y + sum;
}

constexpr unsigned NARROW_WARPS = 8;  // of a block

// x[row][col..col + 4]; zero outside.
DEVICE float4 load_x(const float *x, unsigned cols, unsigned n, unsigned row, unsigned col) {
    x += (size_t)row * cols + col;
    if (row < n && col + 4 <= cols && cols % 4 == 0) return *(const float4 *)x;
    float4 v;
    v.x = row < n && col < cols ? x[0] : 0, v.y = row < n && col + 1 < cols ? x[1] : 0;
    v.z = row < n && col + 2 < cols ? x[2] : 0, v.w = row < n && col + 3 < cols ? x[3] : 0;
    return v;
}

// 16 outputs per block for up to 8 * N rows of x, 8 with gates; grid (rows / 16 or 8), 256 threads. A warp takes
// every 8th run of 32 columns, in two steps of 16; F says which columns of the run a lane has in which step (any
// order of the columns is right, as long as weights and x have the same), how they are read, and what is
// multiplied to the sums of a step.
template <class F, unsigned N>
DEVICE void narrow(const uint8_t *w, const float *x, float *y, const float *gain, unsigned rows, unsigned cols,
                   unsigned stride, unsigned n, unsigned mode, unsigned up, float eps) {
    __shared__ float parts[NARROW_WARPS][16][8 * N], squares_of[NARROW_WARPS][8 * N];
    unsigned warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, g = lane / 4, t = lane % 4;
    unsigned outputs = up ? 8 : 16, first_output = blockIdx.x * outputs;
    const unsigned of[2] = {first_output + g, first_output + g + (up ? up : 8)};
    unsigned weight_rows = up ? 2 * up : rows;
    float sums[N][4], squares[N];
    for (auto &sum : sums) sum[0] = sum[1] = sum[2] = sum[3] = 0;
    for (float &square : squares) square = 0;
    unsigned runs = (cols + 31) / 32;
    // All that several runs need is asked for before the first is worked on.
    constexpr unsigned AHEAD = N == 1 ? 4 : 2;
    for (unsigned first = warp; first < runs; first += NARROW_WARPS * AHEAD) {
        typename F::Run weights[AHEAD];
        float4 inputs[AHEAD][2][N];
        UNROLL
        for (unsigned r = 0; r < AHEAD; r++) {
            unsigned run = first + r * NARROW_WARPS;
            if (run >= runs) break;
            weights[r] = F::run(w, weight_rows, cols, of, run, t);
            UNROLL
            for (unsigned step = 0; step < 2; step++) {
                unsigned col = run * 32 + F::column(step, t);
                for (unsigned i = 0; i < N; i++) inputs[r][step][i] = load_x(x, cols, n, 8 * i + g, col);
                if (!gain) continue;
                float4 by = load_x(gain, cols, 1, 0, col);
                for (unsigned i = 0; i < N; i++) {
                    float4 &v = inputs[r][step][i];
                    squares[i] = fmaf(v.x, v.x, squares[i]), squares[i] = fmaf(v.y, v.y, squares[i]);
                    squares[i] = fmaf(v.z, v.z, squares[i]), squares[i] = fmaf(v.w, v.w, squares[i]);
                    v.x *= by.x, v.y *= by.y, v.z *= by.z, v.w *= by.w;
                }
            }
        }
        UNROLL
        for (unsigned r = 0; r < AHEAD; r++) {
            if (first + r * NARROW_WARPS >= runs) break;
            UNROLL
            for (unsigned step = 0; step < 2; step++) {
                uint32_t a_high[4], a_low[4];
                F::step(weights[r], step, a_high, a_low);
                UNROLL
                for (unsigned i = 0; i < N; i++) {
                    uint32_t high[2], low[2];
                    split_pair(inputs[r][step][i].x, inputs[r][step][i].y, high[0], low[0]);
                    split_pair(inputs[r][step][i].z, inputs[r][step][i].w, high[1], low[1]);
                    if (F::SCALES == 0) {
                        mma(sums[i], a_high, low);
                        if (F::LOW_PART) mma(sums[i], a_low, high);
                        mma(sums[i], a_high, high);
                        continue;
                    }
                    float c[4] = {0, 0, 0, 0};
                    mma(c, a_high, low);
                    mma(c, a_high, high);
                    for (unsigned j = 0; j < 4; j++)
                        sums[i][j] = fmaf(weights[r].scale[step][j / 2], c[j], sums[i][j]);
                    if (F::SCALES == 2) {
                        // What a minimum is multiplied with: the sum of x.
                        const uint32_t ones[4] = {0x3f803f80, 0x3f803f80, 0x3f803f80, 0x3f803f80};
                        float of_x[4] = {0, 0, 0, 0};
                        mma(of_x, ones, low);
                        mma(of_x, ones, high);
                        for (unsigned j = 0; j < 4; j++)
                            sums[i][j] = fmaf(-weights[r].minimum[step][j / 2], of_x[j], sums[i][j]);
                    }
                }
            }
        }
    }
    for (unsigned i = 0; i < N; i++) {
        for (unsigned j = 0; j < 4; j++) parts[warp][g + j / 2 * 8][8 * i + 2 * t + j % 2] = sums[i][j];
        float square = squares[i] + warp_xor(squares[i], 1);
        square += warp_xor(square, 2);
        if (t == 0) squares_of[warp][8 * i + g] = square;
    }
    __syncthreads();
    for (unsigned i = threadIdx.x; i < outputs * 8 * N; i += blockDim.x) {
        unsigned out = i % outputs, row = i / outputs, at = first_output + out;
        float sum = 0, of_up = 0, square = 0;
        for (unsigned j = 0; j < NARROW_WARPS; j++) {
            sum += parts[j][out][row], square += squares_of[j][row];
            if (up) of_up += parts[j][out + 8][row];
        }
        if (gain) {
            float scale = 1 / sqrtf(square / cols + eps);
            sum *= scale, of_up *= scale;
        }
        if (up) sum = sum / (1 + expf(-sum)) * of_up;
        if (row < n && at < rows) finish(y + (size_t)row * stride + at, sum, mode);
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
DEVICE void matmul(const uint8_t *w, const float *x, float *y, unsigned rows, unsigned cols,
                   unsigned stride, unsigned n, unsigned mode) {
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
        if (row < n && col < rows) finish(y + (size_t)row * stride + col, out[i], mode);
    }
}

#define LINEAR(name, LAYOUT, FORMAT)                                                                              \
    KERNEL(narrow8_##name)                                                                                        \
    (const uint8_t *w, const float *x, float *y, const float *gain, unsigned rows, unsigned cols,                 \
     unsigned stride, unsigned n, unsigned mode, unsigned up, float eps) {                                        \
        narrow<LAYOUT<FORMAT>, 1>(w, x, y, gain, rows, cols, stride, n, mode, up, eps);                           \
    }                                                                                                             \
    KERNEL(narrow32_##name)                                                                                       \
    (const uint8_t *w, const float *x, float *y, const float *gain, unsigned rows, unsigned cols,                 \
     unsigned stride, unsigned n, unsigned mode, unsigned up, float eps) {                                        \
        narrow<LAYOUT<FORMAT>, 4>(w, x, y, gain, rows, cols, stride, n, mode, up, eps);                           \
    }                                                                                                             \
    KERNEL(matmul_##name)                                                                                         \
    (const uint8_t *w, const float *x, float *y, unsigned rows, unsigned cols, unsigned stride, unsigned n,       \
     unsigned mode) {                                                                                             \
        matmul<LAYOUT<FORMAT>>(w, x, y, rows, cols, stride, n, mode);                                             \
    }

LINEAR(f32, Plain, F32)
LINEAR(f16, Plain, F16)
LINEAR(bf16, Plain, Bf16)
LINEAR(q8_0, Tiles, Q8_0)
LINEAR(q4_0, Tiles, Q4_0)
LINEAR(q4_k, Tiles, Q4K)
LINEAR(q6_k, Tiles, Q6K)
