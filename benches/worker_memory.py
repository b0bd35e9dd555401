"""What opening a model adds to the memory of each worker of a Ray cluster on this machine (Linux).

    python3 benches/worker_memory.py MODEL TEXT_FILE [--workers 2]

The workers are those of examples/python/score_corpus.py (PYTHONPATH names that folder, BLT_LIBRARY
the library). Each counts its own memory when its imports are done, and again when all have opened
the model and scored the text. Of a page that n processes share, Pss counts one nth; `private` pages
are in this process alone, `shared` ones, such as a mapped model's, in others, too, and exist once.
"""

import argparse
import pathlib

import ray

from score_corpus import Scorer

MEASURES = {
    "pss": ["Pss"],
    "private": ["Private_Clean", "Private_Dirty"],
    "shared": ["Shared_Clean", "Shared_Dirty"],
}


def memory(file: str | None = None) -> dict[str, int]:
    """Bytes of this process, or of its mappings of `file`."""
    total, counts = dict.fromkeys(MEASURES, 0), file is None
    for line in pathlib.Path("/proc/self/smaps").read_text().splitlines():
        key, *rest = line.split()
        if not key.endswith(":"):  # a mapping begins: addresses, rights, offset, device, inode, path
            counts = file is None or rest[4:] == [file]
        for name, keys in MEASURES.items():
            if counts and key[:-1] in keys:
                total[name] += 1024 * int(rest[0])
    return total


@ray.remote(num_cpus=0)
class Worker:
    def __init__(self) -> None:
        self.before = memory()

    def score(self, model: str, text: bytes) -> None:
        self.scorer = Scorer(model, "text", threads=1)
        self.scorer.score(text)

    def report(self, model: str) -> dict[str, dict[str, int]]:
        now = memory()
        added = {name: now[name] - self.before[name] for name in MEASURES}
        return {"before": self.before, "added": added, "of the model's file": memory(model)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=pathlib.Path)
    parser.add_argument("text", type=pathlib.Path)
    parser.add_argument("--workers", type=int, default=2, help="processes (default: 2)")
    args = parser.parse_args()
    model, text = str(args.model.resolve()), args.text.read_bytes()

    workers = [Worker.remote() for _ in range(args.workers)]
    ray.get([worker.__ray_ready__.remote() for worker in workers])
    ray.get([worker.score.remote(model, text) for worker in workers])
    for i, report in enumerate(ray.get([worker.report.remote(model) for worker in workers])):
        for what, measures in report.items():
            figures = ", ".join(f"{name} {n / 1e6:.1f} MB" for name, n in measures.items())
            print(f"worker {i}, {what}: {figures}")


if __name__ == "__main__":
    main()
