#!/usr/bin/env python3
"""Measures blt alone, and writes the tables of the documentation: benches/report.py FOLDER PART...

FOLDER keeps the models (the blt-1b shape with random weights, 9.3 GB, and packed, 8- and 4-bit copies, made when
missing) and the result of each part, so parts can be measured one at a time. `--write FILE` puts the tables of
parts, including those of benches/peers/run.py, between the marks `<!-- figures: PART... -->` of a Markdown file.
There `summary` is the README's table, made from the parts default, generate and prompt.

  convert    the 9.3 GB file to 12, 8 and 4 bits: time, memory
  opening    from the start of the program to the first byte, and the memory it takes
  memory     resident memory after a prompt, beside what it has to be
  cold       a prompt from a file of which nothing is in memory; a row of a hash table
  context    speed after a long context, and the share of global attention
  default    the model that comes with the source
  quality    what quantising costs trained models (BLT_TEXT and BLT_MODELS name the text and the models' folder)
  training   speed of training, beside the peak of multiply-adds
"""

import fcntl
import json
import os
import pathlib
import re
import tempfile

from common import BIN, ROOT, Table, bench_program, blt_bench, cached, drop_pages, limits, main, measured, median, percent, run, spread

SMALL = ["bf12", "q8_0", "q4_k"]


def option(name: str) -> str:
    return "--to" if name == "bf12" else "--type"


def model(args, name: str = "bf16") -> pathlib.Path:
    """Returns the blt-1b shape in some format, made if it is missing."""
    path = args.folder / ("1b.safetensors" if name == "bf16" else f"1b.{name}.safetensors")
    with open(args.folder / "1b.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists() and name == "bf16":
            run(BIN / "examples/synthetic", path, "1b")
        elif not path.exists():
            run(BIN / "blt-quantize", model(args), path, option(name), name, "--quiet")
    return path


def mb(n_bytes: float) -> str:
    return f"{n_bytes / 1e6:.0f}"


def convert(args) -> Table:
    rows, source = [], model(args)
    for name in SMALL:
        out = args.folder / f"1b.{name}.safetensors"
        seconds, memory = measured(BIN / "blt-quantize", source, out, option(name), name, "--quiet")
        rows.append([name, f"{seconds:.0f}", mb(source.stat().st_size / seconds), f"{out.stat().st_size / 1e9:.2f}", mb(memory)])
    return Table(
        f"Converting the blt-1b shape ({source.stat().st_size / 1e9:.1f} GB)",
        ["to", "seconds", "MB read per second", "GB written", "peak memory, MB"],
        rows,
        "blt-quantize 1b.safetensors OUT --type q4_k",
    )


def opening(args) -> Table:
    rows = []
    for name in ["bf16", *reversed(SMALL)]:
        command = [BIN / "blt-run", model(args, name), "-p", "", "-n", "1", "--temp", "0", "--quiet"]
        measured(*command)  # brings the pages into the cache
        runs = [measured(*command) for _ in range(5)]
        rows.append([name, spread([seconds for seconds, _ in runs]), mb(median(memory for _, memory in runs))])
    return Table(
        "From the start of the program to the first byte, file in the page cache: blt-1b shape",
        ["weights", "seconds", "resident, MB"],
        rows,
        "time blt-run MODEL -p '' -n 1",
    )


def memory(args) -> Table:
    rows = []
    for name in ["bf16", *SMALL]:
        path = model(args, name)
        # The page cache holds a file just written in large folios, which the kernel maps whole for every row of a
        # hash table that is read. A file that programs have read by rows is cached in single pages.
        drop_pages(path)
        report = [blt_bench(path, "-p", 512, "-n", 0, "-r", 1, "--patch-length", 4) for _ in range(2)][1]
        info = json.loads(run(BIN / "blt-info", path, "--json"))
        dense, caches = info["memory"]["resident_weight_bytes"], report["prompt"]["cache_bytes"]
        tables = info["config"]["hash"]
        row = info["parts"]["hash_tables"]["bytes"] / tables["vocab"] / len(tables["group_sizes"])
        # A row touches one page, or one more than its whole pages.
        page = os.sysconf("SC_PAGE_SIZE")
        touched = 512 * len(tables["group_sizes"]) * ((row - 1) // page + 1 + (row - 1) % page / page) * page
        expected = dense + caches + touched
        found = report["peak_memory_bytes"]
        rows.append([name, *map(mb, (dense, caches, touched, expected, found)), f"{100 * (found / expected - 1):+.1f} %"])
    return Table(
        "Memory of a prompt of 512 bytes, MB: blt-1b shape",
        ["weights", "weights without hash tables", "caches", "pages of hash rows", "sum", "peak resident", ""],
        rows,
        "blt-bench MODEL -p 512 -n 0 -r 1 --patch-length 4",
    )


def cold(args) -> Table:
    rows = []
    text = (ROOT / "README.md").read_bytes()[:512]
    with tempfile.NamedTemporaryFile() as prompt:
        prompt.write(text)
        prompt.flush()
        for name in ["bf16", "q4_k"]:
            path = model(args, name)
            command = [BIN / "blt-run", path, "-f", prompt.name, "-n", "1", "--temp", "0", "--patching", "static", "--quiet"]
            times = {"cold": [], "warm": []}
            for _ in range(3):
                drop_pages(path)
                times["cold"].append(measured(*command)[0])
                times["warm"].append(measured(*command)[0])
            rows.append([f"512 bytes and one more, {name}, seconds", spread(times["cold"]), "", spread(times["warm"])])
    out = run(bench_program("blt", "cold_rows"), model(args), cwd=ROOT)
    runs = [list(map(float, line.split())) for line in out.splitlines() if re.fullmatch(r"[\d. ]+", line)]
    prefetched, plain, warm = ([times[i] for times in runs] for i in range(3))
    rows.append(["a row of a hash table, µs", spread(prefetched), spread(plain), spread(warm)])
    return Table(
        "From a file of which nothing is in memory: blt-1b shape",
        ["", "cold, prefetched", "cold, one by one", "in the page cache"],
        rows,
        "cargo bench --bench cold_rows -- MODEL",
        "Each prompt is one start of the program. Patches are cut every 4 bytes, without the entropy model.",
    )


def context(args) -> Table:
    path, rows = cached(model(args, "q4_k")), []

    def times(n: int) -> tuple[float, float]:
        """Measures milliseconds per byte in patches of 4, and in one endless patch, which runs the byte models alone."""
        options = ["-p", 0, "-n", 32, "-r", 3, "--context", n, "--draft", 0, "--patch-length"]
        return tuple(1000 / blt_bench(path, *options, length)["generate"]["bytes_per_second"] for length in (4, 10**6))

    for n in (64, 512, 4000, 16000):
        # Alternates with little context: the memory's rate changes within a minute.
        rounds = [(*times(n), *times(64)) for _ in range(3)]
        whole, local = (median(of_round[i] for of_round in rounds) for i in range(2))
        # The part of the global transformer's time that grows with the patches is its attention.
        share = median((whole - local - (whole64 - local64)) / whole for whole, local, whole64, local64 in rounds)
        rows.append([str(n), str(n // 4), f"{1000 / whole:.1f}", f"{whole:.1f}", f"{local:.1f}", f"{whole - local:.1f}", percent(max(0, share)) if n > 64 else "-"])
    return Table(
        "Generating after a long context: blt-1b shape, q4_k, patches of 4",
        ["bytes", "patches", "bytes/s", "ms per byte", "byte models, ms", "the rest, ms", "share of global attention"],
        rows,
        "blt-bench MODEL -p 0 -n 32 --context BYTES --patch-length 4 --draft 0",
        "The time of the byte models is measured with one endless patch. Global attention is counted as the growth of the rest since 64 bytes of context, measured in turn.",
    )


def default(args) -> Table:
    path, rows = ROOT / "models/default.safetensors", []
    allowed = limits()["read"]
    for title, what, options in [
        ("prompt of 512 bytes", "prompt", ["-p", 512, "-n", 0]),
        ("generating 512 bytes after it", "generate", ["-p", 0, "--context", 512, "-n", 512]),
        ("the same, byte by byte (`--draft 0`)", "generate", ["-p", 0, "--context", 512, "-n", 512, "--draft", 0]),
    ]:
        report = blt_bench(path, "-r", 9, *options)
        rates = [report[what]["bytes"] / seconds for seconds in report[what]["seconds"]]
        share = "-"
        if what == "generate":
            share = median(rates) * report["weight_bytes_per_generated_byte"] / allowed / 1e9
            share = f"{percent(share)} of {allowed:.0f} GB/s (weights fit the caches)"
        rows.append([title, spread(rates), share])
    return Table("The default model, bytes/s", ["", "bytes/s", "share of the memory's rate"], rows, "blt-bench -p 512 -n 512 -r 9")


def quality(args) -> Table:
    if not {"BLT_TEXT", "BLT_MODELS"} <= set(os.environ):
        raise SystemExit("quality: expected BLT_TEXT (a text of children's stories) and BLT_MODELS (a folder with the model `stories`)")
    text = pathlib.Path(os.environ["BLT_TEXT"])
    models = {"default": ROOT / "models/default.safetensors", "stories": pathlib.Path(os.environ["BLT_MODELS"]) / "stories"}
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for label, path in models.items():
            for name in ["--to bf16", "--type q8_0", "--type q6_k", "--type q4_k", "--type q4_0"]:
                out = pathlib.Path(folder) / "out.safetensors"
                printed = run(BIN / "blt-quantize", path, out, *name.split(), "--eval", text, "--quiet")
                value = lambda title: re.search(rf"^{title} +(.*)$", printed, re.M)[1]
                bits = re.search(r"^all .*?([\d.]+) +[\d.]+ %", printed, re.M)[1]
                rows.append([label, name.split()[1], mb(out.stat().st_size), bits]
                    + [value(title) for title in ("bits per byte after", "divergence of next-byte guesses", "patch boundaries unchanged", "greedy bytes unchanged")])
    return Table(
        "What quantising costs trained models, on 65,536 bytes of held-out children's stories",
        ["model", "type", "MB", "bits a weight", "bits per byte", "divergence", "patch starts kept", "best next byte kept"],
        rows,
        "blt-quantize MODEL OUT --type q4_k --eval TEXT",
        "Each is compared with the unquantised model, in windows of 512 bytes.",
    )


def training(args) -> Table:
    out = run(BIN / "blt-train", "bench", "--quiet").splitlines()
    rows = [re.match(r"(\S+) +(\d+) +(\d+) +(\d+) +(\d+ %)", line).groups() for line in out[2:]]
    return Table(
        "Training: " + out[0].split(", medians")[0],
        ["precision", "bytes/s", "GFLOP/s in matrix products", "peak of multiply-adds, GFLOP/s", "share"],
        [list(row) for row in rows],
        "blt-train bench",
    )


def summary(kept) -> Table:
    """Makes the README's table from results of other parts."""

    def cells(part: str, label: str) -> dict[str, str] | None:
        record = kept(part)
        rows = [dict(zip(record["header"], row)) for row in record["rows"] if row[0].startswith(label)] if record else []
        return rows[0] if rows else None

    rows = []
    if found := cells("default", "generating"):
        rows.append(["generate, default model (8 M)", found["bytes/s"], "", "", ""])
    for ours, theirs in [("bf16", "bf16"), ("q8_0", "q8_0"), ("q4_k", "q4_0")]:
        if found := cells("generate", f"{ours}, drafting"):
            rows.append([f"generate, 1B shape, {ours}", found["blt"], f"llama.cpp's parts, {theirs}", found["llama.cpp's parts"], found["ratio"]])
    for ours, theirs, ratio in [("bf16", "transformers, bf16", "to transformers"), ("q4_k", "llama.cpp's parts, q4_0", "to llama.cpp")]:
        found, other = cells("prompt", ours), cells("prompt", theirs)
        if found and other:
            rows.append([f"read a prompt, 1B shape, {ours}", found["bytes/s"], theirs, other["bytes/s"], found[ratio]])
    return Table("Bytes per second", ["", "blt", "compared with", "its bytes/s", "ratio"], rows, "benches/report.sh", "Generation drafts ahead, as it does by default. Brackets hold the lowest and the highest of several runs.")


if __name__ == "__main__":
    parts = (convert, opening, memory, cold, context, default, quality, training)
    main(__doc__, {f.__name__: f for f in parts}, {"summary": summary})
