// The choice of an id by its logits, as src/sampler.rs defines it and with the same result: sums in the same
// order, products and sums in double precision and not fused, and the same exponential.
#include "common.cuh"

constexpr unsigned MAX_VOCAB = 512;

// How a row's id is chosen, the same in src/cuda/ops.rs. `least`: the least weight that is kept; `top_p` of
// 1 and `top_k` of MAX_VOCAB keep all. Ids with a bit in `banned` (those below 32) are left out.
struct Choice {
    double draw, temperature, top_p, min_p;
    unsigned top_k, banned, fallback, unused;
};

// e^x for x <= 0: src/sampler/exact.rs.
DEVICE double exact_exp(double x) {
    const double COEFFICIENTS[14] = {
        1.0 / 6227020800.0, 1.0 / 479001600.0, 1.0 / 39916800.0, 1.0 / 3628800.0, 1.0 / 362880.0,
        1.0 / 40320.0,      1.0 / 5040.0,      1.0 / 720.0,      1.0 / 120.0,     1.0 / 24.0,
        1.0 / 6.0,          1.0 / 2.0,         1.0,              1.0,
    };
    const double ROUND = 6755399441055744.0;  // 3 * 2^51
    if (x < -708.0) return 0;
    double shifted = add(mul(x, 1.4426950408889634074), ROUND);
    double k = add(shifted, -ROUND);
    double r = add(add(x, -mul(k, 0.6931471803691238)), -mul(k, 1.9082149292705877e-10));
    double sum = 0;
    for (double c : COEFFICIENTS) sum = add(mul(sum, r), c);
    return mul(sum, bits_double((double_bits(shifted) + 1023) << 52));
}

// One block per row of logits (n, vocab), at most MAX_VOCAB of them.
KERNEL(sample)(const float *logits, const Choice *choices, unsigned *chosen, unsigned vocab) {
    __shared__ float values[MAX_VOCAB];         // -infinity: cannot be chosen
    __shared__ double weights[MAX_VOCAB];
    __shared__ unsigned short order[MAX_VOCAB];  // ids, largest logit first, of equal ones the lowest id
    Choice choice = choices[blockIdx.x];
    logits += (size_t)blockIdx.x * vocab;
    float max = -INFINITY, n_allowed = 0;
    for (unsigned id = threadIdx.x; id < vocab; id += blockDim.x) {
        bool allowed = logits[id] > -INFINITY && !(id < 32 && choice.banned >> id & 1);  // NaN is not
        values[id] = allowed ? logits[id] + 0.0f : -INFINITY;                            // no -0
        max = fmaxf(max, values[id]);
        n_allowed += allowed;
    }
    max = block_max(max);
    n_allowed = block_sum(n_allowed);  // whole numbers: exact
    for (unsigned id = threadIdx.x; id < vocab; id += blockDim.x) {
        float value = values[id];
        unsigned rank = 0;
        for (unsigned other = 0; other < vocab; other++)
            rank += values[other] > value || (values[other] == value && other < id);
        order[rank] = id;
        bool kept = value > -INFINITY && rank < choice.top_k;
        weights[id] = !kept           ? 0
                      : value == max ? 1
                                     : exact_exp(((double)value - (double)max) / choice.temperature);
    }
    __syncthreads();
    if (threadIdx.x != 0) return;
    if (n_allowed == 0 || choice.temperature == 0) {
        chosen[blockIdx.x] = n_allowed == 0 ? choice.fallback : order[0];
        return;
    }
    // Sums one after the other: in the order of ids before top-k, in that of ranks after.
    bool cut = choice.top_k < n_allowed;
    double total = 0;
    for (unsigned i = 0; i < vocab; i++) total = add(total, weights[cut ? order[i] : i]);
    double enough = mul(choice.top_p, total), sum = 0, kept = 0;
    unsigned end = 0, last = order[0];
    for (; end < vocab; end++) {
        double weight = weights[order[end]];
        if (weight == 0 || weight < choice.min_p) continue;
        kept = add(kept, weight);
        last = order[end];
        if (choice.top_p < 1 && kept >= enough) {
            end++;
            break;
        }
    }
    double target = mul(choice.draw, kept);
    unsigned id = last;
    for (unsigned i = 0; i < end; i++) {
        double weight = weights[order[i]];
        if (weight == 0 || weight < choice.min_p) continue;
        sum = add(sum, weight);
        if (sum > target) {
            id = order[i];
            break;
        }
    }
    chosen[blockIdx.x] = id;
}
