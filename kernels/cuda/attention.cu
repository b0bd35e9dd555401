// Softmax attention of query rows over ranges of cached keys: windowed and full self-attention, and
// both cross-attentions.
//
// Row i sees the positions from..to of its sequence, not none. Many are cut into splits, by their number
// alone. A block takes one head of one row, all its splits or some of them. In a split keys are dealt out to
// groups of lanes, each lane with eight columns of the head, so that a group reads a key and a value in a
// row. Every group keeps a maximum and sums of its own, which are joined at its end:
//
//     m' = max(m, scores); sum = sum exp(m - m') + exp(score - m'); acc likewise, with the values
//
// and so are the splits, in their order. Where several blocks share them, each leaves its sums in memory,
// and the last that is done joins them. So a row's result is the same bits with however many blocks.
#include "common.cuh"

constexpr unsigned ATTENTION_WARPS = 8;  // of a block
constexpr unsigned MAX_HEAD = 256;       // widest head: each thread of a block has a column
// The same two in src/cuda/attention.rs.
constexpr unsigned SPLIT_KEYS = 128;  // least keys of a split, but the last
constexpr unsigned MAX_SPLITS = 16;

// Keys of each split but the last, of n. A block reads 64 at once, of heads 64 wide (128 in half floats).
DEVICE unsigned split_size(unsigned n) {
    unsigned splits = n < 2 * SPLIT_KEYS ? 1 : n < MAX_SPLITS * SPLIT_KEYS ? n / SPLIT_KEYS : MAX_SPLITS;
    return ((n + splits - 1) / splits + 63) / 64 * 64;
}

// exp(x - max), also where there is nothing yet and both are -infinity.
DEVICE float exp_diff(float x, float max) { return x == -INFINITY ? 0 : expf(x - max); }

// Of some keys the largest score, and relative to it the sum of the weights, and that of the values in the
// column that a thread has. The same size in src/cuda/attention.rs.
struct Partial {
    float max, weights, values;
};

DEVICE void merge(Partial &to, const Partial &from) {
    float max = fmaxf(to.max, from.max), a = exp_diff(to.max, max), b = exp_diff(from.max, max);
    to.max = max;
    to.weights = fmaf(from.weights, b, to.weights * a);
    to.values = fmaf(from.values, b, to.values * a);
}

DEVICE uint32_t bits(float x) { return float_bits(x); }
DEVICE uint32_t bits(uint16_t half) { return half; }

// Columns of a row of a head from `d` on, as many as 16 bytes hold, zeros past its end.
template <class T>
DEVICE uint4 columns(const T *row, unsigned d, unsigned head_dim) {
    constexpr unsigned WIDTH = 16 / sizeof(T), IN_WORD = 4 / sizeof(T);
    if (head_dim % WIDTH == 0 && d < head_dim) return *(const uint4 *)(row + d);
    uint32_t words[4] = {};
    UNROLL
    for (unsigned i = 0; i < WIDTH; i++)
        if (d + i < head_dim) words[i / IN_WORD] |= bits(row[d + i]) << i % IN_WORD * 16;
    return {words[0], words[1], words[2], words[3]};
}
DEVICE void widen(const uint4 &from, float (&to)[4]) {
    to[0] = bits_float(from.x), to[1] = bits_float(from.y), to[2] = bits_float(from.z), to[3] = bits_float(from.w);
}
DEVICE void widen(const uint4 &from, float (&to)[8]) {
    const uint32_t words[4] = {from.x, from.y, from.z, from.w};
    UNROLL
    for (unsigned i = 0; i < 8; i++) to[i] = half_float((uint16_t)(words[i / 2] >> i % 2 * 16));
}

// What the warps of a block join.
struct WarpPartials {
    float maxima[ATTENTION_WARPS], sums[ATTENTION_WARPS], accs[ATTENTION_WARPS][MAX_HEAD];
};

// The positions that `row` sees, by all threads of the block; its memory, of keys from `k` on and values
// from `v` on, is of type T.
template <class T>
DEVICE Partial attend(const float *query, const Row &row, size_t k, size_t v, size_t stride, unsigned head_dim,
                   WarpPartials &of) {
    constexpr unsigned WIDTH = 16 / sizeof(T), C = 8 / WIDTH;  // a lane has C times WIDTH columns
    constexpr unsigned AT_ONCE = 4 / C;  // keys of a group that are loaded before the first is used
    const T *memory = (const T *)row.memory;
    unsigned lanes_per_key = 1;
    while (lanes_per_key < WARP && lanes_per_key * 8 < head_dim) lanes_per_key *= 2;
    unsigned group = threadIdx.x / lanes_per_key, groups = blockDim.x / lanes_per_key;
    unsigned lane = threadIdx.x % lanes_per_key;
    float scale = 1 / sqrtf((float)head_dim);
    float q[C][WIDTH], acc[C][WIDTH];
    for (unsigned c = 0; c < C; c++) {
        UNROLL
        for (unsigned j = 0; j < WIDTH; j++) {
            unsigned d = (c * lanes_per_key + lane) * WIDTH + j;
            q[c][j] = d < head_dim ? query[d] : 0, acc[c][j] = 0;
        }
    }
    float max = -INFINITY, sum = 0;
    // The row of memory of the group's next key; divided here, not for every key.
    unsigned place = (row.from + group) % row.capacity, step = groups % row.capacity;
    for (unsigned first = row.from; first < row.to; first += groups * AT_ONCE) {
        uint4 keys[AT_ONCE][C], values[AT_ONCE][C];
        float scores[AT_ONCE], new_max = max;
        UNROLL
        for (unsigned i = 0; i < AT_ONCE; i++) {
            unsigned position = first + i * groups + group;
            size_t at = place * stride;
            place += step;
            if (place >= row.capacity) place -= row.capacity;
            for (unsigned c = 0; c < C; c++) {
                // Past the end of the head there are no columns to read.
                unsigned d = position < row.to ? (c * lanes_per_key + lane) * WIDTH : head_dim;
                keys[i][c] = columns(memory + k + at, d, head_dim);
                values[i][c] = columns(memory + v + at, d, head_dim);
            }
        }
        UNROLL
        for (unsigned i = 0; i < AT_ONCE; i++) {
            scores[i] = 0;
            for (unsigned c = 0; c < C; c++) {
                float key[WIDTH];
                widen(keys[i][c], key);
                UNROLL
                for (unsigned j = 0; j < WIDTH; j++) scores[i] = fmaf(q[c][j], key[j], scores[i]);
            }
        }
        for (unsigned mask = lanes_per_key / 2; mask > 0; mask /= 2) {
            UNROLL
            for (unsigned i = 0; i < AT_ONCE; i++) scores[i] += warp_xor(scores[i], mask);
        }
        UNROLL
        for (unsigned i = 0; i < AT_ONCE; i++) {
            scores[i] = first + i * groups + group < row.to ? scores[i] * scale : -INFINITY;
            new_max = fmaxf(new_max, scores[i]);
        }
        float shrink = exp_diff(max, new_max), weights = 0;
        for (unsigned c = 0; c < C; c++) {
            UNROLL
            for (unsigned j = 0; j < WIDTH; j++) acc[c][j] *= shrink;
        }
        UNROLL
        for (unsigned i = 0; i < AT_ONCE; i++) {
            float weight = exp_diff(scores[i], new_max);
            weights += weight;
            for (unsigned c = 0; c < C; c++) {
                float value[WIDTH];
                widen(values[i][c], value);
                UNROLL
                for (unsigned j = 0; j < WIDTH; j++) acc[c][j] = fmaf(weight, value[j], acc[c][j]);
            }
        }
        max = new_max;
        sum = fmaf(sum, shrink, weights);
    }
    // The groups of a warp, then the warps.
    for (unsigned mask = lanes_per_key; mask < WARP; mask *= 2) {
        float new_max = fmaxf(max, warp_xor(max, mask)), shrink = exp_diff(max, new_max);
        max = new_max;
        sum *= shrink, sum += warp_xor(sum, mask);
        for (unsigned c = 0; c < C; c++) {
            UNROLL
            for (unsigned j = 0; j < WIDTH; j++) acc[c][j] *= shrink, acc[c][j] += warp_xor(acc[c][j], mask);
        }
    }
    __syncthreads();  // the arrays may still be read for the split before
    unsigned warp = threadIdx.x / WARP;
    if (threadIdx.x % WARP < lanes_per_key) {
        of.maxima[warp] = max, of.sums[warp] = sum;
        for (unsigned c = 0; c < C; c++) {
            UNROLL
            for (unsigned j = 0; j < WIDTH; j++) of.accs[warp][(c * lanes_per_key + lane) * WIDTH + j] = acc[c][j];
        }
    }
    __syncthreads();
    Partial all = {of.maxima[0], 0, 0};
    for (unsigned i = 1; i < ATTENTION_WARPS; i++) all.max = fmaxf(all.max, of.maxima[i]);
    for (unsigned i = 0; i < ATTENTION_WARPS; i++) {
        float weight = exp_diff(of.maxima[i], all.max);
        all.weights = fmaf(of.sums[i], weight, all.weights);
        if (threadIdx.x < head_dim) all.values = fmaf(of.accs[i][threadIdx.x], weight, all.values);
    }
    return all;
}

// Grid (n_heads * blocks, n), 256 threads: so many blocks for each head of a row, of which those without a
// split leave at once. q: rows of `q_stride`, of which the first n_heads * head_dim are queries; out (n,
// n_heads * head_dim). Keys are plane `plane` of the memory, values the next one. If there is more than one
// block, they share parts (n, n_heads, MAX_SPLITS, head_dim) and arrivals (n, n_heads), which are 0 before
// and after.
//
// With `angles` (n, head_dim: cosines, then sines) the rows are of different sequences, and their own
// keys and values follow the queries: they are entered first, queries and keys rotated, as rope_append
// would. Heads that share a key enter it alike, and so do blocks.
KERNEL(attention)
(const float *q, const Row *rows, const float *angles, float *out, Partial *parts, unsigned *arrivals,
 unsigned q_stride, unsigned plane, unsigned n_heads, unsigned n_kv_heads, unsigned head_dim) {
    __shared__ float query[MAX_HEAD];
    __shared__ WarpPartials of;
    __shared__ unsigned arrived;
    unsigned head = blockIdx.x % n_heads, kv_head = head / (n_heads / n_kv_heads);
    Row row = rows[blockIdx.y];
    unsigned from = row.from, to = row.to, size = split_size(to - from), splits = (to - from + size - 1) / size;
    unsigned block = blockIdx.x / n_heads, blocks = gridDim.x / n_heads;
    if (block >= splits) return;
    if (blocks > splits) blocks = splits;
    size_t stride = (size_t)n_kv_heads * head_dim;
    size_t k = (size_t)plane * row.capacity * stride + kv_head * head_dim, v = k + row.capacity * stride;
    q += (size_t)blockIdx.y * q_stride;
    const float *own = q + (size_t)n_heads * head_dim + kv_head * head_dim;  // key; the value is `stride` on
    q += head * head_dim;
    size_t at = row.position % row.capacity * stride;
    if (angles) {
        const float *cos = angles + (size_t)blockIdx.y * head_dim, *sin = cos + head_dim / 2;
        for (unsigned i = threadIdx.x; i < head_dim / 2; i += blockDim.x) {
            rotate(q + 2 * i, query + 2 * i, cos[i], sin[i]);
            store_rotated(row, k + at + 2 * i, own + 2 * i, cos[i], sin[i]);
        }
        for (unsigned d = threadIdx.x; d < head_dim; d += blockDim.x) store_value(row, v + at + d, own[stride + d]);
    } else {
        for (unsigned d = threadIdx.x; d < head_dim; d += blockDim.x) query[d] = q[d];
    }
    __syncthreads();
    size_t nth = (size_t)blockIdx.y * n_heads + head;
    unsigned d = threadIdx.x;
    parts += nth * MAX_SPLITS * head_dim + d;
    Partial all = {-INFINITY, 0, 0};
    for (unsigned split = block; split < splits; split += blocks) {
        row.from = from + split * size;
        row.to = to - row.from < size ? to : row.from + size;
        Partial one = row.is_half ? attend<uint16_t>(query, row, k, v, stride, head_dim, of)
                               : attend<float>(query, row, k, v, stride, head_dim, of);
        if (blocks == 1)
            merge(all, one);
        else if (d < head_dim)
            parts[split * head_dim] = one;
    }
    if (blocks > 1) {
        __syncthreads();
        if (d == 0) {
            // What this block has left is there for who sees its arrival, and what the others have for it.
            __threadfence();
            arrived = atomicInc(arrivals + nth, blocks - 1);  // 0 again after the last
            __threadfence();
        }
        __syncthreads();
        if (arrived != blocks - 1) return;
        for (unsigned split = 0; split < splits && d < head_dim; split++) merge(all, parts[split * head_dim]);
    }
    if (d < head_dim) out[nth * head_dim + d] = all.values / all.weights;
}
