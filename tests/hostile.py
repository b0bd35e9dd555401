#!/usr/bin/env python3
"""Runs the programs on thousands of hostile inputs, each with 4 GB of address space and 20 seconds.

    cargo build --release --workspace --all-features && python3 tests/hostile.py target/release [SUITE ...]

Every run must exit with 0, 1 or 2, print no "panicked" and no control characters, keep its resident set under four times the
input plus 64 MB, and if it fails say in one line which file or argument is wrong and how. Prints the counts of each suite and
every run that did otherwise. tests/programs/hostile.rs has the cases that run in every test; this script needs minutes.
"""

import collections
import json
import os
import pathlib
import random
import resource
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time

SECONDS = 20
SHOWN = 20
EVERY = int(os.environ.get("HOSTILE_EVERY", 1))
ADDRESS_SPACE = 4_000_000 * 1024
ALLOWANCE = 64 << 20
DATA = pathlib.Path(__file__).resolve().parent / "data"
PROGRAMS = pathlib.Path(sys.argv[1]).resolve() if len(sys.argv) > 1 else None
TEMP = pathlib.Path(tempfile.mkdtemp(prefix="blt-hostile-"))
TEXT = TEMP / "text.txt"
TEXT.write_text("The cat sat on the mat. A dog ran to the cat.\n" * 8)
MODEL = DATA / "hf-gqa" / "model"

counts = collections.defaultdict(collections.Counter)
peaks = collections.Counter()
faults = []


def limit():
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def run(suite, case, program, *args, names=(), size=0):
    """Runs a program. `names`: what the message must have, one of them; `size`: bytes of the hostile input."""
    command = [PROGRAMS / program, *map(str, args)]
    with open(TEMP / "stderr", "w+b") as stderr, open(TEMP / "stdout", "wb") as stdout:
        child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr, preexec_fn=limit)
        signal.alarm(SECONDS)
        try:
            _, status, usage = os.wait4(child.pid, 0)
            late = False
        except TimeoutError:
            child.kill()
            _, status, usage = os.wait4(child.pid, 0)
            late = True
        signal.alarm(0)
        child.returncode = 0
        stderr.seek(0)
        message = stderr.read()
    code = os.waitstatus_to_exitcode(status)
    peak = usage.ru_maxrss * 1024
    counts[suite][code] += 1
    peaks[suite] = max(peaks[suite], peak)
    wrong = []
    if late:
        wrong.append(f"still running after {SECONDS} s")
    elif code not in (0, 1, 2):
        wrong.append(f"exit code {code}")
    if b"panicked" in message:
        wrong.append("panicked")
    if any(byte < 32 and byte not in (10,) for byte in message):
        wrong.append("control characters")
    if peak > 4 * size + ALLOWANCE:
        wrong.append(f"{peak >> 20} MB resident")
    if code in (1, 2):
        text = message.decode(errors="replace")
        if not text.startswith(program + ": ") or text.count("\n") != 1:
            wrong.append("not one line")
        if names and not any(name in text for name in map(str, names)):
            wrong.append("message does not name the input")
        if len(text) > 1200:
            wrong.append(f"message of {len(text)} bytes")
    if wrong:
        faults.append(f"{suite}: {case}: {' '.join(map(str, command))}: {', '.join(wrong)}: {message[-200:]!r}")
        if sum(fault.startswith(suite) for fault in faults) <= SHOWN:
            print(faults[-1], flush=True)
    return code, message


def on_alarm(*_):
    raise TimeoutError


signal.signal(signal.SIGALRM, on_alarm)


def copy(model, name="model"):
    folder = TEMP / name
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(model, folder)
    if (model.parent / "tokenizer").exists() and name == "model":
        shutil.copytree(model.parent / "tokenizer", folder / "tokenizer")
    return folder


def positions(length, n, seed):
    """All positions of the first 64 bytes, and a sample of the rest."""
    rest = range(64, length)
    return sorted({*range(min(64, length)), *random.Random(seed).sample(rest, min(n, len(rest)))})


def damaged(data, n, seed):
    """Flipped bits, other bytes, cuts, and repetitions of bytes, `n` of each."""
    chance = random.Random(seed)
    for at in positions(len(data), n, seed):
        changed = bytearray(data)
        changed[at] ^= 1 << chance.randrange(8)
        yield f"flip at {at}", bytes(changed)
    for at in positions(len(data), n, seed + 1):
        changed = bytearray(data)
        changed[at] = chance.choice(b"\0\xff\x7f\x80[{}\"09-eE\\\x1b")
        yield f"byte at {at}", bytes(changed)
    for at in positions(len(data), n, seed + 2):
        yield f"cut at {at}", data[:at]
    for _ in range(n // 4):
        start, length = chance.randrange(len(data)), chance.randrange(1, 64)
        at = chance.randrange(len(data))
        yield f"bytes {start}+{length} at {at}", data[:at] + data[start : start + length] + data[at:]


def header_of(data):
    length = struct.unpack("<Q", data[:8])[0]
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def with_header(header, data):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


VALUES = [
    None, True, False, 0, 1, -1, 3, 255, 65536, 2**31 - 1, 2**31, 2**32, 2**53, 2**63, 2**64, -(2**63), 0.5, -1.5, 1e-300, 1e308, "", "x",
    "\x1b[31m", "\u202e", "x" * 5000, [], [0], [[]], {}, {"x": 1}, float("nan"), float("inf"), float("-inf"), [1] * 5000,
]  # fmt: skip


def sample(cases):
    """One in EVERY of the cases, for a quick look."""
    return (case for i, case in enumerate(cases) if i % EVERY == 0)


def changed_values(value, path=()):
    """Every JSON value that differs from `value` in one place: another value, or a key less."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in list(items):
        for new in VALUES:
            yield (*path, key, repr(new)[:20]), {**value, key: new} if isinstance(value, dict) else [
                *value[:key], new, *value[key + 1 :]
            ]  # fmt: skip
        if isinstance(value, dict):
            yield (*path, key, "missing"), {k: v for k, v in value.items() if k != key}
        for at, new in changed_values(inner, (*path, key)):
            yield at, {**value, key: new} if isinstance(value, dict) else [*value[:key], new, *value[key + 1 :]]


def each(model, suite, case, path, size, seed):
    """One of the programs that open a model, in turn."""
    name = path.name
    turn = seed % 5
    if turn == 0:
        run(suite, case, "blt-info", model, names=[name], size=size)
    elif turn == 1:
        run(suite, case, "blt-info", model, "--check", "--quiet", names=[name], size=size)
    elif turn == 2:
        run(suite, case, "blt-run", model, "-p", "The cat", "-n", 8, "--quiet", names=[name, "blt-info --check"], size=size)
    elif turn == 3:
        run(suite, case, "blt-score", model, "-f", TEXT, "--quiet", names=[name, "blt-info --check"], size=size)
    else:
        out = TEMP / "quantized.blt"
        run(suite, case, "blt-quantize", model, out, "--type", "q8_0", "--quiet", names=[name], size=size)


def suite_configs(suite):
    """Every value of every layout's configuration replaced by others."""
    for source, file in [
        ("hf-gqa/model", "config.json"), ("meta-threshadd/hub", "config.json"), ("meta-threshadd/hub", "train_args.json"),
        ("meta-bf16/consolidated", "params.json"),
        ("bolmo-bwen/model", "config.json"), ("bolmo-bwen/model", "generation_config.json"),
    ]:  # fmt: skip
        folder = copy(DATA / source)
        path = folder / file
        if not path.exists():
            continue
        apart = ["--entropy-model", DATA / "meta-threshadd/entropy_hub"]
        more = apart if source.startswith("meta-threshadd") else []
        for i, (at, value) in enumerate(sample(changed_values(json.loads(path.read_text())))):
            text = json.dumps(value)
            path.write_text(text)
            names = [file, "model.safetensors", "consolidated"]
            if i % 2:
                run(suite, at, "blt-info", folder, *more, names=names, size=len(text))
            else:
                run(suite, at, "blt-run", folder, *more, "-p", "The cat", "-n", 4, "--quiet", names=names, size=len(text))


def suite_tokenizers(suite):
    """Every value of a tokenizer replaced by others, and bytes of it."""
    folder = copy(DATA / "bolmo-bwen/tokenizer", "tokenizer")
    for file in sorted(path.name for path in folder.iterdir()):
        path = folder / file
        good = path.read_bytes()
        for i, (at, value) in enumerate(changed_values(json.loads(good))):
            if i % max(1, len(good) // 4000):
                continue
            text = json.dumps(value)
            path.write_text(text)
            run(suite, at, "blt-info", DATA / "bolmo-bwen/model", "--tokenizer", folder, names=[file], size=len(text))
        for at, data in damaged(good, 60, 1):
            path.write_bytes(data)
            run(suite, at, "blt-info", DATA / "bolmo-bwen/model", "--tokenizer", folder, names=[file], size=len(data))
        path.write_bytes(good)


def suite_texts(suite):
    """Bytes of configurations."""
    for source, file in [("hf-gqa/model", "config.json"), ("hf-sharded/model", "model.safetensors.index.json")]:
        folder = copy(DATA / source)
        path = folder / file
        for i, (at, data) in enumerate(damaged(path.read_bytes(), 200, 2)):
            path.write_bytes(data)
            run(suite, at, "blt-info", folder, names=[file, "model-0", "model.safetensors"], size=len(data))


def suite_headers(suite):
    """Every value of a safetensors header replaced by others."""
    folder = copy(MODEL)
    path = folder / "model.safetensors"
    header, data = header_of(path.read_bytes())
    entries = dict(list(header.items())[:12])
    for i, (at, value) in enumerate(sample(changed_values(entries))):
        content = with_header({**header, **value} if at[-1] != "missing" or len(at) > 2 else
                              {k: v for k, v in header.items() if k != at[0]}, data)
        path.write_bytes(content)
        each(folder, suite, at, path, len(content), i)


def suite_weights(suite):
    """Bytes of weight files in each container."""
    native = TEMP / "native.blt"
    subprocess.run([PROGRAMS / "blt-quantize", MODEL, native, "--type", "q8_0", "--quiet"], check=True, stdout=subprocess.DEVNULL)
    q4 = TEMP / "q4.blt"
    subprocess.run([PROGRAMS / "blt-quantize", MODEL, q4, "--type", "q4_0", "--quiet"], check=True, stdout=subprocess.DEVNULL)
    pth = next((DATA / "meta-bf16/consolidated").glob("*.pth"))
    for source, file, n in [
        (MODEL, "model.safetensors", 150), (native, None, 150), (q4, None, 100),
        (pth.parent, pth.name, 200), (DATA / "bolmo-bwen/model", "model.safetensors", 60),
    ]:  # fmt: skip
        if file is None:
            folder = path = TEMP / f"damaged-{source.name}"
            good = source.read_bytes()
        else:
            folder = copy(source)
            path = folder / file
            good = path.read_bytes()
        for i, (at, data) in enumerate(sample(damaged(good, n, 3))):
            path.write_bytes(data)
            each(folder, suite, f"{source.name}: {at}", path, len(data), i)


def suite_training(suite):
    """Settings, states and texts of training runs."""
    out = TEMP / "run"
    small = ["--patching", "space", "--preset", "toy", "--steps", "2", "--batch", "512", "--seq-len", "128"]
    train = [PROGRAMS / "blt-train", "main", *small, "--data", TEXT, "--out", out]
    made = subprocess.run(train, capture_output=True)
    if made.returncode:
        faults.append(f"{suite}: no run to damage: {made.stderr!r}")
        return
    for path in sorted(out.rglob("*")):
        if not path.is_file():
            continue
        good = path.read_bytes()
        for i, (at, data) in enumerate(sample(damaged(good, 25, 4))):
            again = TEMP / "again"
            shutil.rmtree(again, ignore_errors=True)
            shutil.copytree(out, again)
            (again / path.relative_to(out)).write_bytes(data)
            run(suite, f"{path.name} {at}", "blt-train", "main", "--resume", "--steps", "2", "--data", TEXT, "--out", again,
                names=[path.name, "again"], size=len(data) + (16 << 20))
    shutil.rmtree(TEMP / "again", ignore_errors=True)


def suite_documents(suite):
    """JSON lines and lists of ids."""
    lines = b"".join(json.dumps({"id": i, "text": f"The cat {i}\n\u00e9"}).encode() + b"\n" for i in range(8))
    for at, data in sample(damaged(lines, 300, 6)):
        path = TEMP / "damaged.jsonl"
        path.write_bytes(data)
        run(suite, at, "blt-score", MODEL, "-f", path, "--quiet", names=[path.name], size=len(data))
    ids = json.dumps([1, 100, 101, 259, 4]).encode()
    for at, data in sample([*damaged(ids, 60, 7), *((c, json.dumps(v).encode()) for c, v in changed_values([1, 2, 3]))]):
        path = TEMP / "damaged.json"
        path.write_bytes(data)
        run(suite, at, "blt-score", MODEL, "--raw-ids", path, "--quiet", names=[path.name], size=len(data))


def suite_schemas(suite):
    """JSON schemas and regular expressions."""
    schema = {"type": "object", "properties": {"a": {"type": "array", "items": {"enum": [1, "b"]}, "maxItems": 3}},
              "required": ["a"], "additionalProperties": False}  # fmt: skip
    path = TEMP / "schema.json"
    for at, value in sample(changed_values(schema)):
        path.write_text(json.dumps(value))
        run(suite, at, "blt-run", MODEL, "-p", "a", "-n", 4, "--quiet", "--json-schema", path, names=[path.name, "json-schema"])
    for at, data in sample(damaged(json.dumps(schema).encode(), 80, 8)):
        path.write_bytes(data)
        run(suite, at, "blt-run", MODEL, "-p", "a", "-n", 4, "--quiet", "--json-schema", path, names=[path.name, "json-schema"])
    patterns = ["(" * 10000, "a{1000}{1000}{1000}", "((a{100}){100}){100}", "[" * 1000, "\\p{Greek}{999}", "(?i)" * 500, "a|" * 20000,
                "(a*)*" * 200, ".{0,99999}", "\\x{110000}", "[^\\s\\S]", "a{5,2}", "(?<n>a)\\k<n>", "\\b" * 100, "*", "", "$^"]  # fmt: skip
    for pattern in patterns:
        run(suite, pattern[:20], "blt-run", MODEL, "-p", "a", "-n", 4, "--quiet", "--regex", pattern, names=["--regex", "regex"],
            size=len(pattern) + (64 << 20))


def suite_settings(suite):
    """Settings files of training runs."""
    good = b'preset = "toy"\npatching = "space"\nsteps = 1\nbatch = 256\nseq_len = 64\nhash_sizes = [3, 4]\nlr = 1e-3\n'
    path = TEMP / "settings.toml"
    for at, data in sample(damaged(good, 150, 9)):
        path.write_bytes(data)
        out = TEMP / "settings-run"
        shutil.rmtree(out, ignore_errors=True)
        run(suite, at, "blt-train", "main", "--config", path, "--data", TEXT, "--out", out, "--steps", "1",
            names=[path.name, "configuration key", "--"], size=len(data) + (64 << 20))


SUITES = {name[6:]: value for name, value in list(globals().items()) if name.startswith("suite_")}

if __name__ == "__main__":
    chosen = sys.argv[2:] or SUITES
    for name in chosen:
        start = time.time()
        SUITES[name](name)
        codes = ", ".join(f"{n} exited {code}" for code, n in sorted(counts[name].items()))
        total = sum(counts[name].values())
        print(f"{name}: {total} runs: {codes}; at most {peaks[name] >> 20} MB; {time.time() - start:.0f} s", flush=True)
    print(f"{len(faults)} faults")
    shutil.rmtree(TEMP)
    sys.exit(bool(faults))
