"""Transformers' BLT with random weights at the shapes that `blt-bench --synthetic` knows: bytes/s of reading
a prompt and of generating after it.

    pip install torch transformers && python3 torch_blt.py [--shape 1b] [--batch 1,8,32] [--device cuda]

Transformers has no cache for BLT's patches: for each byte the model computes the whole text, with an
entropy model that reads it too. As in `blt-bench --patch-length 4` that model's choice is replaced by
patches of 4 bytes, since one of random weights cuts nearly everywhere. Prints a line per batch.
"""

import argparse
import time

import torch
import transformers
from transformers import BltConfig, BltForCausalLM

PATCH = 4
# Local width, layers of encoder and decoder; global width and layers; vectors per patch; rows of a hash
# table; width and layers of the entropy model; width of a head, in the global transformer twice that.
SHAPES = {
    "1b": (1024, 1, 9, 2048, 25, 2, 500002, 768, 14, 64),
    "7b": (1280, 1, 6, 4096, 32, 4, 500002, 768, 14, 64),
    "small": (128, 1, 2, 256, 4, 2, 8191, 192, 3, 32),
}


def config(shape):
    local, encoder, decoder, width, layers, k, rows, entropy, entropy_layers, head = SHAPES[shape]

    def stack(dim, n_layers, head_dim, **more):
        hidden = (8 * dim // 3 + 255) // 256 * 256
        return {
            "hidden_size": dim,
            "num_hidden_layers": n_layers,
            "num_attention_heads": dim // head_dim,
            "intermediate_size": hidden,
            **more,
        }

    cross = {"cross_attn_k": k, "hidden_size_global": width}
    return BltConfig(
        cross_attn_k=k,
        encoder_hash_byte_group_vocab=rows,
        patcher_config=stack(entropy, entropy_layers, head),
        encoder_config=stack(local, encoder, head, cross_attn_all_layers=False, **cross),
        decoder_config=stack(local, decoder, head, cross_attn_all_layers=True, **cross),
        global_config=stack(width, layers, 2 * head),
    )


class Bench:
    def __init__(self, options):
        self.device = options.device
        self.runs = options.runs
        dtype = torch.bfloat16 if self.device == "cuda" else torch.float32
        torch.set_default_dtype(dtype)
        with torch.device(self.device):
            self.model = BltForCausalLM(config(options.shape)).eval()

    def wait(self):
        if self.device == "cuda":
            torch.cuda.synchronize()

    def seconds(self, run):
        """Median of the runs, after one to warm up."""
        times = []
        for _ in range(self.runs + 1):
            self.wait()
            start = time.perf_counter()
            run()
            self.wait()
            times.append(time.perf_counter() - start)
        return sorted(times[1:])[self.runs // 2]

    def forward(self, ids):
        """Logits of ids (batch, n), in patches of which the first has one byte."""
        batch, n = ids.shape
        lengths = [1] + [PATCH] * ((n - 1) // PATCH) + [(n - 1) % PATCH]
        lengths = torch.tensor([lengths] * batch, device=self.device)
        patcher = self.model.model.patcher
        patcher(ids, patch_size=None, threshold=1.335442066192627)
        return self.model(input_ids=ids, patch_lengths=lengths, use_cache=False).logits

    def measure(self, batch, n_prompt, n_bytes):
        ids = torch.randint(4, 260, (batch, n_prompt), device=self.device)

        def generate():
            text = ids
            for _ in range(n_bytes):
                best = self.forward(text)[:, -1].argmax(-1, keepdim=True)
                text = torch.cat([text, best], 1)

        prompt = self.seconds(lambda: self.forward(ids))
        generated = self.seconds(generate)
        return batch * n_prompt / prompt, batch * n_bytes / generated


@torch.inference_mode()
def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--shape", choices=SHAPES, default="1b")
    parser.add_argument("--batch", default="1,8,32")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--bytes", type=int, default=8)
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args()
    bench = Bench(options)
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}"
    for batch in map(int, options.batch.split(",")):
        try:
            prompt, generate = bench.measure(batch, options.prompt, options.bytes)
            print(f"batch {batch}: prompt {prompt:.1f} bytes/s; generate {generate:.2f} bytes/s ({versions})", flush=True)
        except torch.OutOfMemoryError:
            print(f"batch {batch}: out of memory ({versions})", flush=True)


main()
