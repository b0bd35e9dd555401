"""PyTorch and transformers' BLT on the CPU, answering benches/peers/run.py on standard input and output.

Each line is answered with seconds:
    matmul bf16|f32 ROWS COLS N   a product of matrices: median
    prompt N                      reading N bytes with the blt-1b shape in bf16, patches of 4: best of 3
    generate CONTEXT COUNT        a byte of COUNT after CONTEXT bytes: mean
The model's weights are random, so patch lengths are handed in and the entropy model, whose work they
stand for, is run and timed by itself. Transformers reads the whole text again for every byte.
"""

import sys
import time

import torch
import transformers

ROTATION = 300 << 20
DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16}


def timed(run) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def matmul(dtype: str, rows: int, cols: int, n: int) -> float:
    w = torch.randn(rows, cols).to(DTYPES[dtype])
    count = 2 if n > 8 else ROTATION // w.nbytes + 1
    matrices = [w.clone() for _ in range(count)]
    x = torch.randn(n, cols).to(DTYPES[dtype])

    def turn() -> None:
        for w in matrices:
            torch.nn.functional.linear(x, w)

    turn()
    begin, times = time.perf_counter(), []
    while time.perf_counter() - begin < 0.8 or len(times) < 5:
        times.append(timed(turn) / count)
    return sorted(times)[len(times) // 2]


def build() -> transformers.BltForCausalLM:
    # Weights are drawn here, quickly, and not by transformers. Of the hash tables (6 GB) only rows that are
    # read take memory.
    for layer in (torch.nn.Linear, torch.nn.Embedding):
        layer.reset_parameters = lambda self: None
    transformers.PreTrainedModel.init_weights = lambda self: None
    torch.set_default_dtype(torch.bfloat16)
    model = transformers.BltForCausalLM(transformers.BltConfig()).eval()
    for name, weights in model.named_parameters():
        if "encoder_hash" not in name:
            torch.nn.init.ones_(weights) if weights.dim() == 1 else weights.normal_(0, weights.shape[1] ** -0.5)
    return model


class Blt:
    model = None

    def read(self, n: int) -> None:
        """A pass over BOS and n bytes, the logits of the last."""
        if Blt.model is None:
            Blt.model = build()
        ids = torch.randint(4, 260, (1, n + 1))
        ids[0, 0] = 1
        lengths = [1, 1] + [4] * ((n - 1) // 4) + [(n - 1) % 4]
        lengths = torch.tensor([[length for length in lengths if length]])
        Blt.model.model.patcher(ids, patch_size=4, threshold=1.335442066192627)
        Blt.model(input_ids=ids, patch_lengths=lengths, use_cache=False, logits_to_keep=1)

    def prompt(self, n: int) -> float:
        self.read(n)
        return min(timed(lambda: self.read(n)) for _ in range(3))

    def generate(self, context: int, count: int) -> float:
        self.read(context)
        return timed(lambda: [self.read(context + i) for i in range(count)]) / count


@torch.inference_mode()
def main() -> None:
    torch.set_num_threads(int(sys.argv[1]))
    blt = Blt()
    for line in sys.stdin:
        what, *words = line.split()
        if what == "matmul":
            answer = matmul(words[0], *map(int, words[1:]))
        else:
            answer = {"prompt": blt.prompt, "generate": blt.generate}[what](*map(int, words))
        print(answer, flush=True)


main()
