#!/usr/bin/env python3
"""Trains one model with transformers' BLT class in PyTorch and with blt-train: bytes per second.

    pip install torch transformers safetensors
    python examples/python/train_compare.py MODEL TEXT [STEPS] [THREADS] [REPEATS]

MODEL is a folder in the layout of transformers, TEXT any text. Both read batches of 8 x 512 ids, cut
patches with the model's own entropy model, and take full AdamW steps; the first step, which warms up, is
not counted. Each runs in f32 and in bf16 (autocast, --precision bf16), in turn, REPEATS times; figures are
medians. blt-train is taken from target/release; the peaks that shares are of are those of blt-train bench,
and PyTorch's share counts the operations that blt-train needs for the same number of bytes.
"""
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time

model_path, text_path = sys.argv[1], sys.argv[2]
steps = int(sys.argv[3]) if len(sys.argv) > 3 else 5
threads = int(sys.argv[4]) if len(sys.argv) > 4 else os.cpu_count()
repeats = int(sys.argv[5]) if len(sys.argv) > 5 else 3
ROWS, LENGTH = 8, 512
root = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..")


def with_torch(autocast):
    import torch
    from transformers import BltForCausalLM

    torch.set_num_threads(threads)
    torch.manual_seed(1)
    model = BltForCausalLM.from_pretrained(model_path, dtype=torch.float32).train()
    trained = [p for n, p in model.named_parameters() if not n.startswith("model.patcher.")]
    for n, p in model.named_parameters():
        p.requires_grad_(not n.startswith("model.patcher."))
    optimiser = torch.optim.AdamW(trained, lr=1e-4)
    text = open(text_path, "rb").read(ROWS * LENGTH * (steps + 1))
    seconds = 0.0
    for step in range(steps + 1):
        rows = [text[(step * ROWS + r) * LENGTH:][: LENGTH] for r in range(ROWS)]
        ids = torch.tensor([[1] + [b + 4 for b in row] for row in rows])
        start = time.perf_counter()
        optimiser.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            logits = model(input_ids=ids[:, :-1], use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(logits.float().reshape(-1, 260), ids[:, 1:].reshape(-1))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimiser.step()
        seconds += (time.perf_counter() - start) * (step > 0)
    return steps * ROWS * LENGTH / seconds, loss.item()


def with_blt(precision):
    with tempfile.TemporaryDirectory() as out:
        text = os.path.join(out, "text.txt")
        with open(text, "wb") as f:
            f.write(open(text_path, "rb").read(ROWS * LENGTH * (steps + 2)))
        subprocess.run(
            [os.path.join(root, "target/release/blt-train"), "finetune", model_path, "--data", text, "--separator", "",
             "--valid-share", "0", "--out", out, "--steps", str(steps + 1), "--batch", str(ROWS * LENGTH), "--seq-len", str(LENGTH + 1),
             "--precision", precision, "--lr", "1e-4", "--warmup", "1", "--log-every", "1", "--threads", str(threads), "--shards", str(threads), "--quiet"],
            check=True)
        lines = [json.loads(line) for line in open(os.path.join(out, "log.jsonl"))]
        lines = [line for line in lines if "bytes_per_second" in line][1:]
        return len(lines) / sum(1 / line["bytes_per_second"] for line in lines), lines[-1]["loss"], lines[-1]["gflops"] / lines[-1]["bytes_per_second"]


def peaks():
    """GFLOP/s of multiply-adds alone, by precision."""
    out = subprocess.run(
        [os.path.join(root, "target/release/blt-train"), "bench", "--preset", "toy", "--threads", str(threads)],
        check=True, capture_output=True, text=True).stdout
    rows = [line.split() for line in out.splitlines()]
    return {row[0]: float(row[3]) for row in rows if row[0] in ("f32", "bf16")}


runs = {"f32": [], "bf16": []}
peak = {"f32": [], "bf16": []}
for _ in range(repeats):
    for precision, autocast in [("f32", False), ("bf16", True)]:
        ours, ours_loss, gflop_a_byte = with_blt(precision)
        theirs, theirs_loss = with_torch(autocast)
        print(f"{precision:4}  blt-train {ours:.0f} bytes/s (loss {ours_loss:.3f}), PyTorch {theirs:.0f} "
              f"(loss {theirs_loss:.3f}), {ours / theirs:.2f} times", flush=True)
        runs[precision].append((ours, theirs, ours / theirs, gflop_a_byte))
    for precision, rate in peaks().items():
        peak[precision].append(rate)
print("\nmedians:        bytes/s   GFLOP/s   share of the measured peak")
for precision, rows in runs.items():
    ours, theirs, ratio, gflop_a_byte = map(statistics.median, zip(*rows))
    best = statistics.median(peak[precision])
    for name, rate in [("blt-train", ours), ("PyTorch", theirs)]:
        gflops = rate * gflop_a_byte
        print(f"{name:9} {precision:4} {rate:8.0f} {gflops:9.0f} {100 * gflops / best:6.0f} % of {best:.0f}")
    print(f"blt-train in {precision} is {ratio:.2f} times as fast")
