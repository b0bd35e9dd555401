"""Code shared by benches/report.py and benches/peers/run.py: running programs, and results kept as files.

A part of the report is a function that returns a `Table`. Its result stays in FOLDER/results/PART.json until the
part is measured again, so a long report can be made piece by piece.
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
import sys
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
    """Runs a program that must succeed and returns its standard output."""
    words = [str(word) for word in command]
    done = subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)
    if done.returncode:
        raise SystemExit(f"{shlex.join(words)}: {done.stderr.strip()}")
    return done.stdout


def measured(*command) -> tuple[float, int]:
    """Runs a program that must succeed and returns its seconds and peak resident bytes."""
    start = time.perf_counter()
    child = subprocess.Popen([str(word) for word in command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(child.pid, 0)
    if status:
        raise SystemExit(f"{shlex.join(map(str, command))}: failed")
    return time.perf_counter() - start, 1024 * usage.ru_maxrss


def blt_bench(model: pathlib.Path, *options) -> dict:
    return json.loads(run(BIN / "blt-bench", model, *options, "--json", "--quiet"))


def cached(model: pathlib.Path) -> pathlib.Path:
    """Reads the file into the page cache: new text looks up rows of hash tables that no earlier run has read."""
    with open(model, "rb", buffering=0) as file:
        buffer = bytearray(16 << 20)
        while file.readinto(buffer):
            pass
    return model


def drop_pages(path: pathlib.Path) -> None:
    """Drops the file from the page cache: a full cache slows down programs that allocate."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def bench_program(package: str, name: str) -> pathlib.Path:
    """Compiles `cargo bench --bench NAME` and returns the executable."""
    command = ["cargo", "bench", "-p", package, "--bench", name, "--no-run", "--message-format=json"]
    for line in run(*command, cwd=ROOT).splitlines():
        message = json.loads(line)
        if message.get("executable") and message["target"]["name"] == name:
            return pathlib.Path(message["executable"])
    raise SystemExit(f"cargo built no {name}")


_limits = None


def limits() -> dict:
    """Measures the machine's limits at this moment; see kernels/benches/limits.rs."""
    global _limits
    _limits = _limits or bench_program("blt-kernels", "limits")
    return json.loads(run(_limits))


def median(values) -> float:
    return statistics.median(values)


def spread(values) -> str:
    """Formats the median, with the lowest and highest value in brackets."""
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


def main(description: str, parts: dict, derived: dict = {}) -> None:
    """Measures the parts named on the command line, keeps and prints their tables, and writes documents.

    `derived` has functions that make a table from kept results: they take a function that reads a part's record."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=pathlib.Path, help="where models, peers and results are kept")
    parser.add_argument("parts", nargs="*", metavar="part", help=f"one of {', '.join(parts)} (default: none)")
    parser.add_argument("--rounds", type=int, default=3, help="how often blt and its peers take turns (default: 3)")
    parser.add_argument("--write", type=pathlib.Path, metavar="FILE", action="append", default=[], help="write the kept tables between the marks of this Markdown file")
    args = parser.parse_args()
    if unknown := [part for part in args.parts if part not in parts]:
        parser.error(f"expected one of {', '.join(parts)}, found {unknown[0]}")
    (args.folder / "results").mkdir(parents=True, exist_ok=True)
    for part in args.parts:
        record = dataclasses.asdict(parts[part](args))
        record["machine"] = machine()
        record["date"] = datetime.date.today().isoformat()
        record["commit"] = run("git", "-C", ROOT, "rev-parse", "--short", "HEAD").strip()
        (args.folder / "results" / f"{part}.json").write_text(json.dumps(record, indent=1))
        print(markdown(record), flush=True)
    for path in args.write:
        write(args.folder, path, derived)


def write(folder: pathlib.Path, path: pathlib.Path, derived: dict) -> None:
    """Fills every `<!-- figures: PART... -->` of a Markdown file, down to its `<!-- end of figures -->`.

    A part that was never measured is left out, with a line on standard error."""

    def kept(part: str) -> dict | None:
        result = folder / f"results/{part}.json"
        return json.loads(result.read_text()) if result.exists() else None

    def fill(match: re.Match) -> str:
        tables, sources = [], []
        for part in match[1].split():
            found: list[dict] = []
            if part in derived:
                read_once: dict[str, dict | None] = {}
                read = lambda name: read_once.setdefault(name, kept(name))
                tables.append(dataclasses.asdict(derived[part](read)))
                found += filter(None, read_once.values())
            elif record := kept(part):
                found.append(record)
                tables.append(record)
            else:
                print(f"{path}: no result for {part}", file=sys.stderr)
            sources += [record for record in found if record not in sources]
        body = "\n".join([f"{measured_on(sources)}.\n", *map(markdown, tables)])
        return f"<!-- figures: {match[1]} -->\n{body}<!-- end of figures -->"

    text, n = re.subn(r"<!-- figures: (.*?) -->\n.*?<!-- end of figures -->", fill, path.read_text(), flags=re.DOTALL)
    if not n:
        raise SystemExit(f"{path}: expected <!-- figures: PART... --> and <!-- end of figures -->, found neither")
    path.write_text(text)


def measured_on(records: list[dict]) -> str:
    """Says on which machine, at which commit and when tables were measured."""
    machines: dict[str, dict[str, list[str]]] = {}
    for record in records:
        title = record["title"].split(",")[0].split(":")[0]
        when = machines.setdefault(record["machine"], {})
        when.setdefault(f"commit {record['commit']}, {record['date']}", []).append(title[0].lower() + title[1:])
    one = sum(map(len, machines.values())) == 1
    said = [f"{when}" if one else f"{when} ({', '.join(titles)})" for commits in machines.values() for when, titles in commits.items()]
    if len(machines) == 1:
        return f"Measured on {next(iter(machines))}; {'; '.join(said)}"
    return "; ".join(f"Measured on {name}: {'; '.join(commits)}" for name, commits in machines.items())


def markdown(record: dict) -> str:
    lines = [f"**{record['title']}** (`{record['command']}`)", ""]
    lines += [f"| {' | '.join(row)} |" for row in [record["header"], ["---"] * len(record["header"]), *record["rows"]]]
    if record["note"]:
        lines += ["", record["note"]]
    return "\n".join(lines) + "\n"
