// Work on rows by themselves: norm, gate, entropy. One block per row, ROW_THREADS threads.
#include "common.cuh"

// RMSNorm: x and y (n, dim), weight (dim).
KERNEL(rms_norm)(const float *x, const float *weight, float *y, unsigned dim, float eps) {
    x += (size_t)blockIdx.x * dim, y += (size_t)blockIdx.x * dim;
    float sum = 0;
    for (unsigned i = threadIdx.x; i < dim; i += blockDim.x) sum = fmaf(x[i], x[i], sum);
    float scale = 1 / sqrtf(block_sum(sum) / dim + eps);
    for (unsigned i = threadIdx.x; i < dim; i += blockDim.x) y[i] = x[i] * scale * weight[i];
}

// gate_up (n, 2 * dim): gates, then ups; out (n, dim) = silu(gate) * up.
KERNEL(swiglu)(const float *gate_up, float *out, unsigned dim) {
    const float *gate = gate_up + (size_t)blockIdx.x * 2 * dim, *up = gate + dim;
    out += (size_t)blockIdx.x * dim;
    for (unsigned i = threadIdx.x; i < dim; i += blockDim.x) out[i] = gate[i] / (1 + expf(-gate[i])) * up[i];
}

// Entropy in nats of the distribution that a row of logits (n, vocab) stands for; NaN if one is.
KERNEL(entropy)(const float *logits, float *out, unsigned vocab) {
    logits += (size_t)blockIdx.x * vocab;
    float max = -INFINITY;
    for (unsigned i = threadIdx.x; i < vocab; i += blockDim.x) max = fmaxf(max, logits[i]);
    max = block_max(max);
    float sum = 0, weighted = 0;
    for (unsigned i = threadIdx.x; i < vocab; i += blockDim.x) {
        float e = expf(logits[i] - max);
        sum += e;
        if (e != 0) weighted += e * (logits[i] - max);  // NaN goes on, -infinity does not
    }
    sum = block_sum(sum);
    weighted = block_sum(weighted);
    if (threadIdx.x == 0) out[blockIdx.x] = logf(sum) - weighted / sum;
}
