"""What benches/report.py and benches/peers/run.py share: running programs, and results kept as files.

A part of the report is a function that returns a `Table`; its result lies in FOLDER/results/PART.json until
the part is measured anew, so that a long report can be made piece by piece.
"""

import argparse
import dataclasses
import datetime
import json
import os
import pathlib
import re
import shlex
import statistics
import subprocess
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
BIN = ROOT / "target" / "release"


@dataclasses.dataclass
class Table:
    title: str
    header: list[str]
    rows: list[list[str]]
    command: str  # what a reader can type to see such figures
    note: str = ""


def run(*command, **options) -> str:
    """The standard output of a program that must succeed."""
    words = [str(word) for word in command]
    done = subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)
    if done.returncode:
        raise SystemExit(f"{shlex.join(words)}: {done.stderr.strip()}")
    return done.stdout


def measured(*command) -> tuple[float, int]:
    """Seconds and peak resident bytes of a program that must succeed."""
    start = time.perf_counter()
    child = subprocess.Popen([str(word) for word in command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(child.pid, 0)
    if status:
        raise SystemExit(f"{shlex.join(map(str, command))}: failed")
    return time.perf_counter() - start, 1024 * usage.ru_maxrss


def blt_bench(model: pathlib.Path, *options) -> dict:
    return json.loads(run(BIN / "blt-bench", model, *options, "--json", "--quiet"))


def cached(model: pathlib.Path) -> pathlib.Path:
    """The file, once it is in the page cache: text that was never seen before looks up rows of hash tables
    that no run before has read."""
    with open(model, "rb", buffering=0) as file:
        buffer = bytearray(16 << 20)
        while file.readinto(buffer):
            pass
    return model


def drop_pages(path: pathlib.Path) -> None:
    """Takes the file out of the page cache: a full cache slows programs that allocate down."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def bench_program(package: str, name: str) -> pathlib.Path:
    """The compiled `cargo bench --bench name`."""
    command = ["cargo", "bench", "-p", package, "--bench", name, "--no-run", "--message-format=json"]
    for line in run(*command, cwd=ROOT).splitlines():
        message = json.loads(line)
        if message.get("executable") and message["target"]["name"] == name:
            return pathlib.Path(message["executable"])
    raise SystemExit(f"cargo built no {name}")


_limits = None


def limits() -> dict:
    """What the machine allows right now; see kernels/benches/limits.rs."""
    global _limits
    _limits = _limits or bench_program("blt-kernels", "limits")
    return json.loads(run(_limits))


def median(values) -> float:
    return statistics.median(values)


def spread(values) -> str:
    """Median, and the lowest and highest."""
    values = sorted(values)
    digits = 0 if values[0] >= 100 else 1 if values[0] >= 10 else 2
    text = f"{median(values):.{digits}f}"
    return text if len(values) == 1 else f"{text} ({values[0]:.{digits}f} to {values[-1]:.{digits}f})"


def percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def machine() -> str:
    name = next((line.split(":")[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")), "?")
    flags = next((line for line in open("/proc/cpuinfo") if line.startswith("flags")), "")
    has = [label for flag, label in [("avx512_vnni", "AVX-512 VNNI"), ("avx512_bf16", "BF16"), ("avx_vnni", "AVX-VNNI")] if flag in flags]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{name}, {os.cpu_count()} cores ({', '.join(has) or 'no AVX-512'}), {memory:.0f} GiB, Linux {os.uname().release.split('-')[0]}"


def main(description: str, parts: dict) -> None:
    """Measures the parts named on the command line, keeps and prints their tables."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=pathlib.Path, help="where models, peers and results are kept")
    parser.add_argument("parts", nargs="*", metavar="part", help=f"of {', '.join(parts)} (default: none)")
    parser.add_argument("--rounds", type=int, default=3, help="times that ours and theirs take turns (default: 3)")
    parser.add_argument("--write", type=pathlib.Path, metavar="FILE", action="append", default=[], help="put kept tables where its marks ask for them")
    args = parser.parse_args()
    if unknown := [part for part in args.parts if part not in parts]:
        parser.error(f"expected parts of {', '.join(parts)}, found {unknown[0]}")
    (args.folder / "results").mkdir(parents=True, exist_ok=True)
    for part in args.parts:
        table = parts[part](args)
        record = dataclasses.asdict(table)
        record["machine"] = machine()
        record["date"] = datetime.date.today().isoformat()
        record["commit"] = run("git", "-C", ROOT, "rev-parse", "--short", "HEAD").strip()
        (args.folder / "results" / f"{part}.json").write_text(json.dumps(record, indent=1))
        print(markdown(record), flush=True)
    for path in args.write:
        write(args.folder, path)


def write(folder: pathlib.Path, path: pathlib.Path) -> None:
    """Fills every `<!-- figures: PART... -->` of a Markdown file, down to its `<!-- end of figures -->`."""

    def fill(match: re.Match) -> str:
        kept = [folder / f"results/{part}.json" for part in match[1].split()]
        records = [json.loads(result.read_text()) for result in kept if result.exists()]
        runs: dict[str, list[str]] = {}
        for record in records:
            runs.setdefault(f"{record['machine']}; commit {record['commit']}, {record['date']}", []).append(record["title"].split(",")[0].split(":")[0].lower())
        where = "; ".join(runs) if len(runs) == 1 else "; ".join(f"{run} ({', '.join(titles)})" for run, titles in runs.items())
        body = "\n".join([f"{where}.\n", *map(markdown, records)])
        return f"<!-- figures: {match[1]} -->\n{body}<!-- end of figures -->"

    text, n = re.subn(r"<!-- figures: (.*?) -->\n.*?<!-- end of figures -->", fill, path.read_text(), flags=re.DOTALL)
    if not n:
        raise SystemExit(f"{path}: expected <!-- figures: PART... --> and <!-- end of figures -->, found neither")
    path.write_text(text)


def markdown(record: dict) -> str:
    lines = [f"**{record['title']}** (`{record['command']}`)", ""]
    lines += [f"| {' | '.join(row)} |" for row in [record["header"], ["---"] * len(record["header"]), *record["rows"]]]
    if record["note"]:
        lines += ["", record["note"]]
    return "\n".join(lines) + "\n"
