// Softmax attention of query rows over ranges of cached keys: windowed and full self-attention, and
// both cross-attentions.
//
// Keys and values are rings: position p lies in row p % capacity. Row i sees from[i]..to[i], not empty.
// A block takes one head of one row, 128 positions at a time, with a running maximum and sum:
//
//     score one key per thread; m' = max(m, scores); acc *= exp(m - m'); acc += exp(score - m') v
#include "common.cuh"

constexpr unsigned KEYS = 128;      // threads of the block, one key each
constexpr unsigned MAX_HEAD = 256;  // widest head

// Grid (n_heads, n): q and out (n, n_heads * head_dim), k and v (capacity, n_kv_heads * head_dim).
KERNEL(attention)
(const float *q, const float *k, const float *v, const unsigned *from, const unsigned *to, float *out,
 unsigned n_kv_heads, unsigned head_dim, unsigned capacity) {
    __shared__ float query[MAX_HEAD], weights[KEYS];
    unsigned n_heads = gridDim.x, head = blockIdx.x, row = blockIdx.y, t = threadIdx.x;
    size_t stride = (size_t)n_kv_heads * head_dim;
    q += ((size_t)row * n_heads + head) * head_dim;
    out += ((size_t)row * n_heads + head) * head_dim;
    k += head / (n_heads / n_kv_heads) * head_dim;
    v += head / (n_heads / n_kv_heads) * head_dim;
    float scale = 1 / sqrtf((float)head_dim);
    for (unsigned d = t; d < head_dim; d += KEYS) query[d] = q[d];
    float acc[MAX_HEAD / KEYS] = {0, 0};  // of the columns t, t + KEYS
    float max = -INFINITY, sum = 0;
    for (unsigned first = from[row]; first < to[row]; first += KEYS) {
        unsigned n = to[row] - first < KEYS ? to[row] - first : KEYS;
        __syncthreads();  // the query is there; the weights before are used up
        float score = -INFINITY;
        if (t < n) {
            const float *key = k + (first + t) % capacity * stride;
            float dot = 0;
            for (unsigned d = 0; d < head_dim; d++) dot = fmaf(query[d], key[d], dot);
            score = dot * scale;
        }
        float new_max = fmaxf(max, block_max(score));
        float weight = t < n ? expf(score - new_max) : 0;
        weights[t] = weight;
        float shrink = expf(max - new_max);
        sum = sum * shrink + block_sum(weight);  // its barriers also show all weights
        max = new_max;
        for (unsigned i = 0; i < MAX_HEAD / KEYS; i++) {
            unsigned d = t + i * KEYS;
            if (d >= head_dim) break;
            acc[i] *= shrink;
            for (unsigned j = 0; j < n; j++) acc[i] = fmaf(weights[j], v[(first + j) % capacity * stride + d], acc[i]);
        }
    }
    for (unsigned i = 0; i < MAX_HEAD / KEYS; i++)
        if (t + i * KEYS < head_dim) out[t + i * KEYS] = acc[i] / sum;
}
