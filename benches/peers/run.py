#!/usr/bin/env python3
"""Times blt beside other engines, in turn, in one run: benches/peers/run.py FOLDER PART...

FOLDER/peers is what benches/peers/setup.sh installed; the models in FOLDER are those that benches/report.sh makes.
A round measures the machine's limits, blt and the peers one after the other. Ratios are medians of the rounds' own
ratios, because the memory of a shared machine changes its speed from minute to minute.

  generate      generation with the blt-1b shape, beside llama.cpp's parts
  prompt        512 bytes, beside transformers and llama.cpp's parts
  transformers  generation after 64, 256 and 512 bytes, beside transformers
  matmul        matrices of that shape times 1, 128 and 512 vectors, beside candle and PyTorch

llama.cpp has no BLT. Its time per byte is the sum of what Llama models of the same shapes take: one step each of
entropy model, encoder and decoder, and a step of the global transformer every fourth byte, after the same context.
Cross-attention, hash tables and pooling, which a BLT in llama.cpp would also need, are not counted.
"""

import os
import pathlib
import re
import subprocess
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))
from common import ROOT, Table, bench_program, blt_bench, cached, drop_pages, limits, main, median, percent, run, spread

PATCH = 4
CONTEXT = 64
BYTES = 128
PROMPT = 512
# blt format: llama.cpp format, and the unit that limits its prompts.
FORMATS = {"bf16": ("bf16", "bf16"), "bf12": ("bf16", "bf16"), "q8_0": ("q8_0", "int8"), "q4_k": ("q4_0", "int8")}
THEIRS = list(dict.fromkeys(theirs for theirs, _ in FORMATS.values()))
SHAPES = [(2048, 2048), (5632, 2048), (2048, 5632), (1024, 2816)]
# Byte by byte, and with drafts (the default).
DRAFTING = {"": ["--draft", 0], ", drafting": []}
# Weights of the 1b shape that a byte is multiplied with, and that a patch is.
PER_BYTE, PER_PATCH = 246.9e6, 1313.9e6


def model(args, name: str) -> pathlib.Path:
    return args.folder / ("1b.safetensors" if name == "bf16" else f"1b.{name}.safetensors")


class Peer:
    """A program that answers each line with a number of seconds."""

    def __init__(self, *command, **environment) -> None:
        self.process = subprocess.Popen(
            [str(word) for word in command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=os.environ | environment,
        )

    def ask(self, *words) -> float:
        print(*words, file=self.process.stdin, flush=True)
        answer = self.process.stdout.readline()
        if not answer:
            raise SystemExit(f"{self.process.args[0]}: no answer to {' '.join(map(str, words))}")
        return float(answer)


def torch(args) -> Peer:
    peer = Peer(args.folder / "peers/py/bin/python", ROOT / "benches/peers/torch_peer.py", os.cpu_count())
    peer.ask("matmul", "bf16", 16, 16, 1)  # waits for its start, which keeps the machine busy for seconds
    return peer


class Llama:
    """A BLT put together from Llama models in llama.cpp."""

    # Bytes per step of each model.
    STACKS = {"entropy": 1, "encoder": 1, "decoder": 1, "global": PATCH}

    def __init__(self, args) -> None:
        self.models = args.folder / "peers/gguf"
        self.peer = Peer(args.folder / "peers/llama_peer", os.cpu_count())

    def prompt(self, name: str, n: int) -> float:
        """Bytes per second."""
        return n / sum(self.peer.ask("prompt", self.models / f"{stack}.{name}.gguf", n // step) for stack, step in self.STACKS.items())

    def generate(self, name: str, context: int, n: int) -> float:
        """Bytes per second."""
        ask = lambda stack, step: self.peer.ask("generate", self.models / f"{stack}.{name}.gguf", context // step, n)
        return 1 / sum(ask(stack, step) / step for stack, step in self.STACKS.items())


def generate(args) -> Table:
    rows, llama = [], Llama(args)
    for ours, (theirs, _) in FORMATS.items():
        rounds, path = [], cached(model(args, ours))
        for _ in range(args.rounds):
            allowed = limits()
            blt = {
                how: blt_bench(path, "-p", 0, "-n", BYTES, "-r", 3, "--context", CONTEXT, "--patch-length", PATCH, *options)
                for how, options in DRAFTING.items()
            }
            llama_rate = llama.generate(theirs, CONTEXT, BYTES)
            allowed = [allowed["read"], limits()["read"]]
            rounds.append((blt, llama_rate, sum(allowed) / 2))
        drop_pages(path)
        for how in DRAFTING:
            reports = [(blt[how], theirs, read) for blt, theirs, read in rounds]
            rate = lambda report: report["generate"]["bytes_per_second"]
            weights = lambda report: report["weight_bytes_per_generated_byte"]
            caches = lambda report: report["cache_bytes_per_generated_byte"]
            drafts = reports[0][0]["generate"]
            rows.append([
                f"{ours}{how} (llama.cpp {theirs})",
                spread([rate(report) for report, *_ in reports]),
                spread([theirs for _, theirs, _ in reports]),
                f"{median(rate(report) / theirs for report, theirs, _ in reports):.2f}",
                f"{weights(reports[0][0]) / 1e6:.0f}",
                spread([read for *_, read in reports]),
                f"{median(read * 1e9 / weights(report) / theirs for report, theirs, read in reports):.2f}",
                percent(median(rate(report) * weights(report) / read / 1e9 for report, _, read in reports)),
                percent(median(rate(report) * (weights(report) + caches(report)) / read / 1e9 for report, _, read in reports)),
                f"{drafts['accepted_bytes'] / drafts['drafts']:.1f} of {drafts['drafted_bytes'] / drafts['drafts']:.1f}" if drafts["drafts"] else "",
            ])
    return Table(
        f"Generating, bytes/s: blt-1b shape, {CONTEXT} bytes of context, patches of {PATCH}",
        ["weights", "blt", "llama.cpp's parts", "ratio", "weights read per byte, MB", "memory, GB/s", "ratio at that rate", "share of it", "with keys and values", "drafted bytes accepted"],
        rows,
        "benches/peers/run.py FOLDER generate",
        "Files are in the page cache.",
    )


def prompt(args) -> Table:
    peer, llama = torch(args), Llama(args)
    ours = {name: (name, []) for name in FORMATS} | {f"{name}, fast profile": (name, ["--profile", "fast"]) for name in ("bf16", "q8_0")}
    rounds = []
    for _ in range(args.rounds):
        allowed = limits()
        rates = {
            label: blt_bench(model(args, name), "-p", PROMPT, "-n", 0, "-r", 3, "--patch-length", PATCH, *options)["prompt"]["bytes_per_second"]
            for label, (name, options) in ours.items()
        }
        rates["PyTorch"] = PROMPT / peer.ask("prompt", PROMPT)
        for theirs in THEIRS:
            rates[f"llama {theirs}"] = llama.prompt(theirs, PROMPT)
        rounds.append((rates, allowed))
    operations = 2 * (PER_BYTE + PER_PATCH / PATCH)
    rows = []
    for label, (name, _) in ours.items():
        unit = {"bf16": "f32", "bf12": "f32", "bf16, fast profile": "bf16"}.get(label, "int8")
        ratio = lambda other: f"{median(rates[label] / rates[other] for rates, _ in rounds):.2f}"
        share = "-" if rounds[0][1][unit] is None else percent(median(rates[label] * operations / 1e9 / allowed[unit] for rates, allowed in rounds))
        rows.append([
            label,
            spread([rates[label] for rates, _ in rounds]),
            ratio("PyTorch"),
            ratio(f"llama {FORMATS[name][0]}"),
            f"{median(rates[label] for rates, _ in rounds) * operations / 1e9:.0f}",
            f"{share} of {unit}",
        ])
    for label, title in [("PyTorch", "transformers, bf16")] + [(f"llama {theirs}", f"llama.cpp's parts, {theirs}") for theirs in THEIRS]:
        rows.append([title, spread([rates[label] for rates, _ in rounds]), "", "", f"{median(rates[label] for rates, _ in rounds) * operations / 1e9:.0f}", ""])
    return Table(
        f"A prompt of {PROMPT} bytes, bytes/s: blt-1b shape, patches of {PATCH}",
        ["", "bytes/s", "to transformers", "to llama.cpp", "GOP/s", "share of the peak"],
        rows,
        "benches/peers/run.py FOLDER prompt",
    )


def transformers(args) -> Table:
    peer = torch(args)
    rows = []
    for context in (64, 256, 512):
        rates = {}
        for name in FORMATS:
            path = cached(model(args, name))
            for how, options in DRAFTING.items():
                options = ["-p", 0, "-n", BYTES, "-r", 3, "--context", context, "--patch-length", PATCH, *options]
                rates[name + how] = blt_bench(path, *options)["generate"]["bytes_per_second"]
            drop_pages(path)
        theirs = 1 / peer.ask("generate", context, 3)
        rows.append([str(context), f"{theirs:.2f}", *(f"{rate:.1f} ({rate / theirs:.0f} times)" for rate in rates.values())])
    return Table(
        "Generating beside transformers on PyTorch in bf16, bytes/s: blt-1b shape",
        ["bytes of context", "transformers", *rates],
        rows,
        "benches/peers/run.py FOLDER transformers",
        "transformers computes the whole text again for every byte, blt only the new byte.",
    )


def matmul(args) -> Table:
    linear = bench_program("blt-kernels", "linear")
    pytorch = torch(args)
    candle = Peer(args.folder / "peers/candle/target/release/candle-peer", RAYON_NUM_THREADS=str(os.cpu_count()))
    rows = []
    for n in (1, 128, 512):
        for name, unit in [("bf16fast", "bf16"), ("q8_0", "int8"), ("q4_k", "int8")]:
            for shape in SHAPES:
                ask = lambda threads: run(linear, name, f"{shape[0]}x{shape[1]}", f"n={n}", f"threads={threads}")
                out = ask(os.cpu_count())
                rate = float(re.search(r": +([\d.]+) G", out)[1])
                if name == "bf16fast":
                    seconds, bits = pytorch.ask("matmul", "bf16", *shape, n), 16
                else:
                    seconds, bits = candle.ask(name, *shape, n), {"q8_0": 8.5, "q4_k": 4.5}[name]
                weights = shape[0] * shape[1]
                theirs = weights * bits / 8 / seconds / 1e9 if n == 1 else 2 * n * weights / seconds / 1e9
                title = f"{name.removesuffix('fast')}, {shape[0]} x {shape[1]}, {n}"
                if n == 1:
                    # Compared with a plain read of the same bytes, pass by pass.
                    read = lambda out: re.search(r": +([\d.]+) G.*probe +([\d.]+) .*ratio ([\d.]+)", out).groups()
                    rate_and_limit = [read(out), read(ask(1))]
                    for threads, (rate, limit, ratio), theirs in zip((os.cpu_count(), 1), rate_and_limit, (theirs, None)):
                        peer = [f"{theirs:.1f}", f"{float(rate) / theirs:.2f}"] if theirs else ["", ""]
                        rows.append([f"{title}, threads: {threads}", rate, *peer, limit, percent(float(ratio))])
                    continue
                limit = limits()[unit]
                rows.append([
                    title,
                    f"{rate:.0f}",
                    f"{theirs:.0f}",
                    f"{rate / theirs:.2f}",
                    f"{limit:.0f}" if limit else "-",
                    percent(rate / limit) if limit else "-",
                ])
    return Table(
        "Matrices times vectors: GB/s of weights for one vector, GOP/s for more",
        ["type, shape, vectors", "blt", "candle, PyTorch for bf16", "ratio", "limit", "share of it"],
        rows,
        "benches/peers/run.py FOLDER matmul",
    )


if __name__ == "__main__":
    main(__doc__, {f.__name__: f for f in (generate, prompt, transformers, matmul)})
