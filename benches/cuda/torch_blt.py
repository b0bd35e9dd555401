"""Transformers' BLT at the 1b shape with random weights, on the GPU: prompt and generation, bytes/s.

    pip install torch transformers && python3 torch_blt.py

The model recomputes the whole text for each byte. Patches of 4 bytes are handed in, as
`blt-bench --patch-length 4` does; the entropy model then runs apart, once per pass, as it would.
"""

import time

import torch
from transformers import BltConfig, BltForCausalLM

PROMPT, NEW = 512, 16


def timed(run):
    run()
    torch.cuda.synchronize()
    times = []
    for _ in range(3):
        start = time.perf_counter()
        run()
        torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return sorted(times)[1]


@torch.inference_mode()
def main():
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda"):
        model = BltForCausalLM(BltConfig()).eval()
    ids = torch.randint(4, 260, (1, PROMPT + NEW), device="cuda")

    def forward(n):
        lengths = torch.full((1, n // 4), 4, device="cuda")
        lengths[0, 0] = 1
        lengths = torch.cat([lengths, torch.tensor([[n - int(lengths.sum())]], device="cuda")], dim=1)
        if model.model.patcher is not None:
            model.model.patcher(ids[:, :n], patch_size=None, threshold=1.335442066192627)
        model(input_ids=ids[:, :n], patch_lengths=lengths, use_cache=False)

    prompt = timed(lambda: forward(PROMPT))
    generate = timed(lambda: [forward(PROMPT + i) for i in range(NEW)])
    print(f"prompt {PROMPT / prompt:.1f} bytes/s; generate {NEW / generate:.2f} bytes/s")


main()
