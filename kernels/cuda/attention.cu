// Softmax attention of query rows over ranges of cached keys: windowed and full self-attention, and
// both cross-attentions.
//
// Row i sees the positions from..to of its sequence, not none. Many are cut into splits, by their number
// alone. A block takes one head of one row, all its splits or some of them. In a split keys are dealt out to
// groups of lanes, each lane with a few columns of the head, so that a group reads a key and a value in a
// row. Every group keeps a maximum and sums of its own, which are joined at its end:
//
//     m' = max(m, scores); sum = sum exp(m - m') + exp(score - m'); acc likewise, with the values
//
// and so are the splits, in their order. Where several blocks share them, each leaves its sums in memory,
// and the last that is done joins them. So a row's result is the same bits with however many blocks.
#include "common.cuh"

constexpr unsigned ATTENTION_WARPS = 8;  // of a block
constexpr unsigned MAX_HEAD = 256;       // widest head: each thread of a block has a column
constexpr unsigned AT_ONCE = 4;          // keys of a group that are loaded before the first is used
// The same two in src/cuda/attention.rs.
constexpr unsigned SPLIT_KEYS = 128;  // least keys of a split, but the last
constexpr unsigned MAX_SPLITS = 16;

// Keys of each split but the last, of n. A block reads 64 at once, of heads 64 wide.
DEVICE unsigned split_size(unsigned n) {
    unsigned splits = n < 2 * SPLIT_KEYS ? 1 : n < MAX_SPLITS * SPLIT_KEYS ? n / SPLIT_KEYS : MAX_SPLITS;
    return ((n + splits - 1) / splits + 63) / 64 * 64;
}

// exp(x - max), also where there is nothing yet and both are -infinity.
DEVICE float share(float x, float max) { return x == -INFINITY ? 0 : expf(x - max); }

// Of some keys the largest score, and relative to it the sum of the weights, and that of the values in the
// column that a thread has. The same size in src/cuda/attention.rs.
struct Sums {
    float max, weights, values;
};

DEVICE void join(Sums &to, const Sums &from) {
    float max = fmaxf(to.max, from.max), a = share(to.max, max), b = share(from.max, max);
    to.max = max;
    to.weights = fmaf(from.weights, b, to.weights * a);
    to.values = fmaf(from.values, b, to.values * a);
}

// Four columns of a row of a head from `d` on, zeros past its end.
DEVICE float4 columns(const float *row, unsigned d, unsigned head_dim) {
    if (head_dim % 4 == 0 && d < head_dim) return *(const float4 *)(row + d);
    float4 x;
    x.x = d < head_dim ? row[d] : 0, x.y = d + 1 < head_dim ? row[d + 1] : 0;
    x.z = d + 2 < head_dim ? row[d + 2] : 0, x.w = d + 3 < head_dim ? row[d + 3] : 0;
    return x;
}

// The positions that `row` sees, by all threads of the block. C: how many times four columns of a head a
// lane has.
template <unsigned C>
DEVICE Sums attend(const float *query, const float *k, const float *v, const Row &row, size_t stride,
                   unsigned head_dim, float (*accs)[MAX_HEAD]) {
    __shared__ float maxima[ATTENTION_WARPS], sums[ATTENTION_WARPS];
    unsigned lanes_per_key = 1;
    while (lanes_per_key < WARP && lanes_per_key * 4 < head_dim) lanes_per_key *= 2;
    unsigned group = threadIdx.x / lanes_per_key, groups = blockDim.x / lanes_per_key;
    unsigned lane = threadIdx.x % lanes_per_key;
    float scale = 1 / sqrtf((float)head_dim);
    float4 q[C], acc[C];
    for (unsigned c = 0; c < C; c++) {
        q[c] = columns(query, (c * lanes_per_key + lane) * 4, head_dim);
        acc[c].x = acc[c].y = acc[c].z = acc[c].w = 0;
    }
    float max = -INFINITY, sum = 0;
    for (unsigned first = row.from; first < row.to; first += groups * AT_ONCE) {
        float4 keys[AT_ONCE][C], values[AT_ONCE][C];
        float scores[AT_ONCE], new_max = max;
        UNROLL
        for (unsigned i = 0; i < AT_ONCE; i++) {
            unsigned position = first + i * groups + group;
            size_t at = position % row.capacity * stride;
            for (unsigned c = 0; c < C; c++) {
                // Past the end of the head there are no columns to read.
                unsigned d = position < row.to ? (c * lanes_per_key + lane) * 4 : head_dim;
                keys[i][c] = columns(k + at, d, head_dim);
                values[i][c] = columns(v + at, d, head_dim);
            }
        }
        UNROLL
        for (unsigned i = 0; i < AT_ONCE; i++) {
            float dot = 0;
            for (unsigned c = 0; c < C; c++) {
                dot = fmaf(q[c].x, keys[i][c].x, dot), dot = fmaf(q[c].y, keys[i][c].y, dot);
                dot = fmaf(q[c].z, keys[i][c].z, dot), dot = fmaf(q[c].w, keys[i][c].w, dot);
            }
            for (unsigned mask = lanes_per_key / 2; mask > 0; mask /= 2) dot += warp_xor(dot, mask);
            scores[i] = first + i * groups + group < row.to ? dot * scale : -INFINITY;
            new_max = fmaxf(new_max, scores[i]);
        }
        float shrink = share(max, new_max), weights = 0;
        for (unsigned c = 0; c < C; c++) acc[c].x *= shrink, acc[c].y *= shrink, acc[c].z *= shrink, acc[c].w *= shrink;
        UNROLL
        for (unsigned i = 0; i < AT_ONCE; i++) {
            float weight = share(scores[i], new_max);
            weights += weight;
            for (unsigned c = 0; c < C; c++) {
                acc[c].x = fmaf(weight, values[i][c].x, acc[c].x), acc[c].y = fmaf(weight, values[i][c].y, acc[c].y);
                acc[c].z = fmaf(weight, values[i][c].z, acc[c].z), acc[c].w = fmaf(weight, values[i][c].w, acc[c].w);
            }
        }
        max = new_max;
        sum = fmaf(sum, shrink, weights);
    }
    // The groups of a warp, then the warps.
    for (unsigned mask = lanes_per_key; mask < WARP; mask *= 2) {
        float new_max = fmaxf(max, warp_xor(max, mask)), shrink = share(max, new_max);
        max = new_max;
        sum *= shrink, sum += warp_xor(sum, mask);
        for (unsigned c = 0; c < C; c++) {
            acc[c].x *= shrink, acc[c].x += warp_xor(acc[c].x, mask);
            acc[c].y *= shrink, acc[c].y += warp_xor(acc[c].y, mask);
            acc[c].z *= shrink, acc[c].z += warp_xor(acc[c].z, mask);
            acc[c].w *= shrink, acc[c].w += warp_xor(acc[c].w, mask);
        }
    }
    __syncthreads();  // the arrays may still be read for the split before
    unsigned warp = threadIdx.x / WARP;
    if (threadIdx.x % WARP < lanes_per_key) {
        maxima[warp] = max, sums[warp] = sum;
        for (unsigned c = 0; c < C; c++) {
            float *to = accs[warp] + (c * lanes_per_key + lane) * 4;
            to[0] = acc[c].x, to[1] = acc[c].y, to[2] = acc[c].z, to[3] = acc[c].w;
        }
    }
    __syncthreads();
    Sums all = {maxima[0], 0, 0};
    for (unsigned i = 1; i < ATTENTION_WARPS; i++) all.max = fmaxf(all.max, maxima[i]);
    for (unsigned i = 0; i < ATTENTION_WARPS; i++) {
        float weight = share(maxima[i], all.max);
        all.weights = fmaf(sums[i], weight, all.weights);
        if (threadIdx.x < head_dim) all.values = fmaf(accs[i][threadIdx.x], weight, all.values);
    }
    return all;
}

// Grid (n_heads * blocks, n), 256 threads: so many blocks for each head of a row, of which those without a
// split leave at once. q: rows of `q_stride`, of which the first n_heads * head_dim are queries; out (n,
// n_heads * head_dim). Keys are side `side` of the memory, values the next one. If there is more than one
// block, they share parts (n, n_heads, MAX_SPLITS, head_dim) and arrivals (n, n_heads), which are 0 before
// and after.
//
// With `angles` (n, head_dim: cosines, then sines) the rows are of different sequences, and their own
// keys and values follow the queries: they are entered first, queries and keys turned, as rope_append
// would. Heads that share a key enter it alike, and so do blocks.
KERNEL(attention)
(const float *q, const Row *rows, const float *angles, float *out, Sums *parts, unsigned *arrivals,
 unsigned q_stride, unsigned side, unsigned n_heads, unsigned n_kv_heads, unsigned head_dim) {
    __shared__ __align__(16) float query[MAX_HEAD];
    __shared__ float accs[ATTENTION_WARPS][MAX_HEAD];
    __shared__ unsigned arrived;
    unsigned head = blockIdx.x % n_heads, kv_head = head / (n_heads / n_kv_heads);
    Row row = rows[blockIdx.y];
    unsigned from = row.from, to = row.to, size = split_size(to - from), splits = (to - from + size - 1) / size;
    unsigned block = blockIdx.x / n_heads, blocks = gridDim.x / n_heads;
    if (block >= splits) return;
    if (blocks > splits) blocks = splits;
    size_t stride = (size_t)n_kv_heads * head_dim;
    float *k = row.memory + (size_t)side * row.capacity * stride + kv_head * head_dim;
    float *v = k + (size_t)row.capacity * stride;
    q += (size_t)blockIdx.y * q_stride;
    const float *own = q + (size_t)n_heads * head_dim + kv_head * head_dim;  // key; the value is `stride` on
    q += head * head_dim;
    size_t at = row.position % row.capacity * stride;
    if (angles) {
        const float *cos = angles + (size_t)blockIdx.y * head_dim, *sin = cos + head_dim / 2;
        for (unsigned i = threadIdx.x; i < head_dim / 2; i += blockDim.x) {
            rotate(q + 2 * i, query + 2 * i, cos[i], sin[i]);
            rotate(own + 2 * i, k + at + 2 * i, cos[i], sin[i]);
        }
        for (unsigned d = threadIdx.x; d < head_dim; d += blockDim.x) v[at + d] = own[stride + d];
    } else {
        for (unsigned d = threadIdx.x; d < head_dim; d += blockDim.x) query[d] = q[d];
    }
    __syncthreads();
    size_t nth = (size_t)blockIdx.y * n_heads + head;
    unsigned d = threadIdx.x;
    parts += nth * MAX_SPLITS * head_dim + d;
    Sums all = {-INFINITY, 0, 0};
    for (unsigned split = block; split < splits; split += blocks) {
        row.from = from + split * size;
        row.to = to - row.from < size ? to : row.from + size;
        Sums one = head_dim <= 4 * WARP ? attend<1>(query, k, v, row, stride, head_dim, accs)
                                        : attend<2>(query, k, v, row, stride, head_dim, accs);
        if (blocks == 1)
            join(all, one);
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
        for (unsigned split = 0; split < splits && d < head_dim; split++) join(all, parts[split * head_dim]);
    }
    if (d < head_dim) out[nth * head_dim + d] = all.values / all.weights;
}
