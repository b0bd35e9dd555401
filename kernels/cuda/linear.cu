// y = x W^T for x (n, cols), W (rows, cols), y (n, rows of `stride`): weights as they lie in the file,
// activations and sums in f32.
//
// `matvec*` is for up to 32 rows of x and bound by the bytes of W, of which every one is read once for all rows.
// `matmul_*` is for more, of whole runs of 32 columns. Both use the tensor cores: every f32 is cut into two bfloat16,
// high + low, and the product is high high + high low + low high, which loses about 2^-16 of a term. Weights that are
// bfloat16, or small whole numbers times a scale, have no low part and save a third of it.
//
// `matvec*` can also norm x and gate y on the way, so that a layer of few rows is five launches:
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

DEVICE void store_output(float *y, float sum, unsigned mode) {
    *y = mode == 0 ? sum : fmaf((float)mode, *y, sum);
}

constexpr unsigned MATVEC_WARPS = 8;  // of a block

// x[row][col..col + 4]; zero outside.
DEVICE float4 load_x(const float *x, unsigned cols, unsigned n, unsigned row, unsigned col) {
    x += (size_t)row * cols + col;
    if (row < n && col + 4 <= cols && cols % 4 == 0) return *(const float4 *)x;
    float4 v;
    v.x = row < n && col < cols ? x[0] : 0, v.y = row < n && col + 1 < cols ? x[1] : 0;
    v.z = row < n && col + 2 < cols ? x[2] : 0, v.w = row < n && col + 3 < cols ? x[3] : 0;
    return v;
}

// Adds the product of 16 rows of weights and 8 of x in a step.
template <class F>
DEVICE void add_products(float sums[4], const uint32_t a_high[4], const uint32_t a_low[4], const uint32_t high[2],
                         const uint32_t low[2], const float scale[2]) {
    if (F::SCALES == 0) {
        mma(sums, a_high, low);
        if (F::LOW_PART) mma(sums, a_low, high);
        mma(sums, a_high, high);
        return;
    }
    float c[4] = {0, 0, 0, 0};
    mma(c, a_high, low);
    mma(c, a_high, high);
    for (unsigned j = 0; j < 4; j++) sums[j] = fmaf(scale[j / 2], c[j], sums[j]);
}

// Takes a minimum times the sum of x over the step off.
template <class F>
DEVICE void subtract_minimum(float sums[4], const float of_x[4], const float minimum[2]) {
    if (F::SCALES == 2)
        for (unsigned j = 0; j < 4; j++) sums[j] = fmaf(-minimum[j / 2], of_x[j], sums[j]);
}

// 16 outputs per block for up to 8 * N rows of x, 8 with gates; grid (rows / 16 or 8), 256 threads. A warp takes
// every 8th run of 32 columns, in two steps of 16; F says which columns of the run a lane has in which step (any
// order of the columns is right, as long as weights and x have the same), how they are read, and what is
// multiplied to the sums of a step.
template <class F, unsigned N>
DEVICE void matvec(const uint8_t *w, const float *x, float *y, const float *gain, unsigned rows, unsigned cols,
                   unsigned stride, unsigned n, unsigned mode, unsigned up, float eps) {
    __shared__ float parts[MATVEC_WARPS][16][8 * N], squares_of[MATVEC_WARPS][8 * N];
    unsigned warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, g = lane / 4, t = lane % 4;
    unsigned outputs = up ? 8 : 16, first_output = blockIdx.x * outputs;
    const unsigned of[2] = {first_output + g, first_output + g + (up ? up : 8)};
    unsigned weight_rows = up ? 2 * up : rows;
    float sums[N][4], squares[N];
    for (auto &sum : sums) sum[0] = sum[1] = sum[2] = sum[3] = 0;
    for (float &square : squares) square = 0;
    unsigned runs = (cols + 31) / 32;
    // All that several runs need is asked for before the first is worked on.
    constexpr unsigned PREFETCH = N == 1 ? 4 : 2;
    for (unsigned first = warp; first < runs; first += MATVEC_WARPS * PREFETCH) {
        typename F::Run weights[PREFETCH];
        float4 inputs[PREFETCH][2][N];
        UNROLL
        for (unsigned r = 0; r < PREFETCH; r++) {
            unsigned run = first + r * MATVEC_WARPS;
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
        for (unsigned r = 0; r < PREFETCH; r++) {
            if (first + r * MATVEC_WARPS >= runs) break;
            UNROLL
            for (unsigned step = 0; step < 2; step++) {
                uint32_t a_high[4], a_low[4];
                F::step(weights[r], step, t, a_high, a_low);
                UNROLL
                for (unsigned i = 0; i < N; i++) {
                    uint32_t high[2], low[2];
                    split_pair(inputs[r][step][i].x, inputs[r][step][i].y, high[0], low[0]);
                    split_pair(inputs[r][step][i].z, inputs[r][step][i].w, high[1], low[1]);
                    add_products<F>(sums[i], a_high, a_low, high, low, weights[r].scale[step]);
                    if (F::SCALES < 2) continue;
                    // What a minimum is multiplied with: the sum of x.
                    const uint32_t ones[4] = {0x3f803f80, 0x3f803f80, 0x3f803f80, 0x3f803f80};
                    float of_x[4] = {0, 0, 0, 0};
                    mma(of_x, ones, low);
                    mma(of_x, ones, high);
                    subtract_minimum<F>(sums[i], of_x, weights[r].minimum[step]);
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
        for (unsigned j = 0; j < MATVEC_WARPS; j++) {
            sum += parts[j][out][row], square += squares_of[j][row];
            if (up) of_up += parts[j][out + 8][row];
        }
        if (gain) {
            float scale = 1 / sqrtf(square / cols + eps);
            sum *= scale, of_up *= scale;
        }
        if (up) sum = sum / (1 + expf(-sum)) * of_up;
        if (row < n && at < rows) store_output(y + (size_t)row * stride + at, sum, mode);
    }
}

// Side of a block's square of outputs; runs of 32 columns whose scales are made at a time.
constexpr unsigned SIDE = 128, SCALE_RUNS = 8;

// What a thread multiplies: 4 tiles of 16 rows of W from `w_tile` on by 4 of 8 rows of x from `x_tile` on.
struct WarpTile {
    unsigned lane, w_tile, x_tile;
    DEVICE WarpTile(unsigned thread)
        : lane(thread % WARP), w_tile(thread / WARP % 2 * 4), x_tile(thread / WARP / 2 * 4) {}
};

// 128 x 128 outputs per block, for whole runs of 32 columns; grid (rows / 128, n / 128, slices), 256 threads: 8 warps
// of 64 rows of W by 32 of x. A slice is `slice_runs` of the runs, a multiple of SCALE_RUNS; where there is more than
// one, y is (slices, n, stride), for `add_slices`.
//
//     for each step of 16 columns:
//         ask for W, then x of the next step, into registers
//         multiply those of this step, from shared memory
//         cut the next ones into high and low parts, into the other half of shared memory
//
// 1. Shared memory holds operands as the lanes of an mma have them, so that each is one read of 16 bytes without
//    conflicts, whatever the format; a warp puts its 16 rows of W there and twice 8 rows of x.
// 2. All fits 128 registers, two blocks an SM, which are at different places of the loop. To that end a third of a
//    step is under way at a time, scales are made 256 columns ahead, and addresses are made `anew` where they are used.
//
// Counted, not measured: in a step a warp makes 32 mma (48 if weights have a low part), reads 4 (6) KB of shared
// memory, writes 1.5 (2) there, and loads 1.5 (2) from elsewhere: 224 (213) bytes per mma on the one path that shared
// memory and L1 have; scales add 32. An SM of an A100 takes an mma in 2 clocks, in which the path moves 256 bytes:
// 87%, with scales all of it, if mma runs at its peak. An H100 would take it in 1, so the path allows 57% of that
// peak, where mma.sync alone is known to reach two thirds. From L2 a block asks for 768 bytes per column in bf16: 24
// bytes a clock and SM at the peak of an A100. Cutting x takes 24 instructions of a thread per step, beside mma of 256
// clocks on its quarter of the SM; a kernel that does it once for all blocks would save less than a tenth of the issue
// slots, and cost a launch and a pass over x. Scales cost 2 fma per mma, minimums 2 more. The peak of mma is half of
// the tensor cores' for products of f32 by bf16 or whole numbers, a third for f32 and f16.
//
// Slices are for the global transformer, whose rows are patches: 2,048 x 2,048 weights and 115 patches are 16 blocks
// of outputs, 65,000 clocks of mma each; in 8 slices 128 blocks of 8,200, and 7 MB of sums written and read again.
template <class F>
DEVICE void matmul(const uint8_t *w, const float *x, float *y, unsigned rows, unsigned cols, unsigned stride,
                   unsigned n, unsigned mode, unsigned slice_runs) {
    // Each by step of a run. W: high and low parts; x: both; scales by row; the sums of x that minimums are for.
    __shared__ uint4 of_w[2][F::LOW_PART ? 2 : 1][SIDE / 16 * WARP], of_x[2][SIDE / 8 * WARP];
    __shared__ float scales[2 * SCALE_RUNS][SIDE], minimums[2 * SCALE_RUNS][SIDE];
    __shared__ __align__(8) float x_sums[2][SIDE];
    unsigned first_w = blockIdx.x * SIDE, first_x = blockIdx.y * SIDE;
    // What the warp puts, in three parts: 16 rows of W, and twice 8 rows of x.
    typename F::Run weights;
    float4 input;
    auto fetch = [&](unsigned run, unsigned step, unsigned part) {
        // In place of rows past the last, any: their outputs are dropped.
        unsigned thread = opaque(threadIdx.x), g = thread % WARP / 4, t = thread % 4;
        if (part == 0) {
            unsigned tile = first_w / 16 + thread / WARP, own = 16 * (16 * tile < rows ? tile : 0);
            const unsigned of[2] = {own | g, own | 8 | g};
            weights = F::run_for(step, w, rows, cols, of, run, t);
        } else {
            unsigned row = first_x + 8 * (thread / WARP + 8 * (part - 1)) + g;
            input = *(const float4 *)(x + ((row < n ? row : 0) * cols + run * 32 + 16 * step + 4 * t));
        }
    };
    auto put = [&](unsigned step, unsigned part) {
        uint32_t high[4], low[4];
        if (part == 0) {
            F::step(weights, step, opaque(threadIdx.x) % 4, high, low);
            of_w[step][0][threadIdx.x] = {high[0], high[1], high[2], high[3]};
            if (F::LOW_PART) of_w[step][F::LOW_PART][threadIdx.x] = {low[0], low[1], low[2], low[3]};
            return;
        }
        unsigned at = 8 * WARP * (part - 1) + threadIdx.x;
        split_pair(input.x, input.y, high[0], low[0]);
        split_pair(input.z, input.w, high[1], low[1]);
        of_x[step][at] = {high[0], high[1], low[0], low[1]};
        if (F::SCALES == 2) {
            float sum = input.x + input.y + input.z + input.w;
            sum += warp_xor(sum, 1), sum += warp_xor(sum, 2);
            if (at % 4 == 0) x_sums[step][at / 4] = sum;
        }
    };
    float sums[4][4][4] = {};
    unsigned first = blockIdx.z * slice_runs, runs = cols / 32;
    if (first + slice_runs < runs) runs = first + slice_runs;
    UNROLL
    for (unsigned part = 0; part < 3; part++) {
        fetch(first, 0, part);
        put(0, part);
    }
    for (unsigned run = first; run < runs; run++) {
        if (F::SCALES > 0 && run % SCALE_RUNS == 0) {
            __syncthreads();
            for (unsigned i = opaque(threadIdx.x); i < 2 * SCALE_RUNS * SIDE; i += blockDim.x) {
                unsigned to = i / SIDE, row = i % SIDE, at = run + to % SCALE_RUNS;
                if (first_w + row >= rows || at >= runs) continue;
                float minimum;
                F::scales_at(w, cols, first_w + row, at, to / SCALE_RUNS, scales[to][row], minimum);
                if (F::SCALES == 2) minimums[to][row] = minimum;
            }
        }
        UNROLL
        for (unsigned step = 0; step < 2; step++) {
            __syncthreads();
            const WarpTile warp_tile(opaque(threadIdx.x));
            unsigned lane = warp_tile.lane, w_tile = warp_tile.w_tile, x_tile = warp_tile.x_tile, g = lane / 4, t = lane % 4;
            bool busy = first_w + 16 * w_tile < rows && first_x + 8 * x_tile < n;
            // After the last step its run once more, put where nothing reads it.
            unsigned next = run + step == runs ? run : run + step;
            uint32_t high[4][2], low[4][2];
            const uint4 *own_w = of_w[step][0] + w_tile * WARP + lane, *own_x = of_x[step] + x_tile * WARP + lane;
            for (unsigned j = 0; j < 4; j++) {
                uint4 v = own_x[j * WARP];
                high[j][0] = v.x, high[j][1] = v.y, low[j][0] = v.z, low[j][1] = v.w;
            }
            UNROLL
            for (unsigned part = 0; part < 3; part++) {
                fetch(next, 1 - step, part);
                UNROLL
                for (unsigned i = part; busy && i < (part == 2 ? 4 : part + 1); i++) {
                    uint4 v = own_w[i * WARP], l = own_w[(F::LOW_PART * SIDE / 16 + i) * WARP];
                    const uint32_t a_high[4] = {v.x, v.y, v.z, v.w}, a_low[4] = {l.x, l.y, l.z, l.w};
                    unsigned row = 16 * (w_tile + i) + g, from = step * SCALE_RUNS + run % SCALE_RUNS;
                    const float scale[2] = {scales[from][row], scales[from][row + 8]};
                    const float minimum[2] = {minimums[from][row], minimums[from][row + 8]};
                    UNROLL
                    for (unsigned j = 0; j < 4; j++) {
                        add_products<F>(sums[i][j], a_high, a_low, high[j], low[j], scale);
                        float2 sum = *(const float2 *)&x_sums[step][8 * (x_tile + j) + 2 * t];
                        const float x_sum[4] = {sum.x, sum.y, sum.x, sum.y};
                        subtract_minimum<F>(sums[i][j], x_sum, minimum);
                    }
                }
                put(1 - step, part);
            }
        }
    }
    const WarpTile warp_tile(opaque(threadIdx.x));
    unsigned lane = warp_tile.lane, w_tile = warp_tile.w_tile, x_tile = warp_tile.x_tile;
    UNROLL
    for (unsigned i = 0; i < 4; i++)
        UNROLL
        for (unsigned j = 0; j < 4; j++)
            UNROLL
            for (unsigned k = 0; k < 4; k++) {
                unsigned at = first_w + 16 * (w_tile + i) + lane / 4 + k / 2 * 8;
                unsigned row = first_x + 8 * (x_tile + j) + lane % 4 * 2 + k % 2;
                if (row < n && at < rows)
                    store_output(y + ((size_t)blockIdx.z * n + row) * stride + at, sums[i][j][k], mode);
            }
}

// Adds the sums of slices (slices, n, rows) into y, in their order. Grid (rows / 256, n), 256 threads.
KERNEL(add_slices)
(const float *parts, float *y, unsigned rows, unsigned stride, unsigned mode, unsigned slices) {
    unsigned at = blockIdx.x * blockDim.x + threadIdx.x, row = blockIdx.y, n = gridDim.y;
    if (at >= rows) return;
    float sum = 0;
    for (unsigned slice = 0; slice < slices; slice++) sum += parts[((size_t)slice * n + row) * rows + at];
    store_output(y + (size_t)row * stride + at, sum, mode);
}

#define LINEAR(name, LAYOUT, FORMAT)                                                                              \
    KERNEL(matvec8_##name)                                                                                        \
    (const uint8_t *w, const float *x, float *y, const float *gain, unsigned rows, unsigned cols,                 \
     unsigned stride, unsigned n, unsigned mode, unsigned up, float eps) {                                        \
        matvec<LAYOUT<FORMAT>, 1>(w, x, y, gain, rows, cols, stride, n, mode, up, eps);                           \
    }                                                                                                             \
    KERNEL(matvec32_##name)                                                                                       \
    (const uint8_t *w, const float *x, float *y, const float *gain, unsigned rows, unsigned cols,                 \
     unsigned stride, unsigned n, unsigned mode, unsigned up, float eps) {                                        \
        matvec<LAYOUT<FORMAT>, 4>(w, x, y, gain, rows, cols, stride, n, mode, up, eps);                           \
    }                                                                                                             \
    KERNEL(BOUNDED(256, 2) matmul_##name)                                                                         \
    (const uint8_t *w, const float *x, float *y, unsigned rows, unsigned cols, unsigned stride, unsigned n,       \
     unsigned mode, unsigned slice_runs) {                                                                        \
        matmul<LAYOUT<FORMAT>>(w, x, y, rows, cols, stride, n, mode, slice_runs);                                 \
    }

LINEAR(f32, Plain, F32)
LINEAR(f16, Plain, F16)
LINEAR(bf16, Plain, Bf16)
LINEAR(q8_0, Tiles, Q8_0)
LINEAR(q4_0, Tiles, Q4_0)
LINEAR(q4_k, Tiles, Q4K)
LINEAR(q6_k, Tiles, Q6K)
