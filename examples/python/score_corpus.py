"""Scores a corpus with Ray Data: bits per byte, entropies and patch lengths of every document.

    python3 score_corpus.py MODEL IN OUT [--column text] [--workers 2] [--threads 1]

IN is Parquet or JSON lines (by its name, a file or a folder), OUT a folder of Parquet files with the
columns of IN and of `Scorer`. Runs on the Ray cluster of RAY_ADDRESS, else on this machine. Each
worker opens the model once; it is mapped, so the workers of a node share its pages. Needs
`pip install "ray[data]"`, and on every node the model, this folder, and libblt (BLT_LIBRARY).
"""

import argparse
import os
import time

import numpy as np
import pyarrow as pa

import blt


class Scorer:
    """Scores tables in one worker. Adds these columns:

    n_bytes         length of the document in UTF-8
    n_patches       how many patches it has
    bits_per_byte   mean of -log2 of the probabilities of its bytes
    entropies       nats of uncertainty before each byte, one per byte
    patch_lengths   bytes in each patch; they sum to n_bytes

    A document longer than the model's context is scored in pieces that know nothing of each other.
    """

    def __init__(self, model: str, column: str, threads: int) -> None:
        self.column = column
        self.model = blt.Model(model, threads=threads)
        entropies = bool(self.model.info("has_entropy_model"))
        self.session = blt.Session(self.model, entropies=entropies)
        self.piece = self.session.info("max_bytes") - 1

    def __call__(self, batch: pa.Table) -> pa.Table:
        texts = [(text or "").encode() for text in batch[self.column].to_pylist()]
        bits, entropies, lengths = zip(*map(self.score, texts))
        n_bytes = np.array([len(text) for text in texts])
        columns = {
            "n_bytes": pa.array(n_bytes),
            "n_patches": pa.array([len(own) for own in lengths]),
            "bits_per_byte": pa.array(np.array(bits) / np.maximum(n_bytes, 1)),
            "entropies": pa.array(entropies, pa.list_(pa.float32())),
            "patch_lengths": pa.array(lengths, pa.list_(pa.int32())),
        }
        for name, values in columns.items():
            batch = batch.append_column(name, values)
        return batch

    def score(self, text: bytes) -> tuple[float, np.ndarray, np.ndarray]:
        bits, entropies, lengths = 0.0, [], []
        for first in range(0, len(text), self.piece):
            piece = text[first : first + self.piece]
            self.session.reset()
            bits += self.session.score(piece)
            # Position 0 is the begin-of-sequence id, so its entropy is that of the first byte.
            entropies.append(np.array(self.session.entropies()[: len(piece)]))
            starts = [s for s in self.session.patch_starts()[1:] if s <= len(piece)]
            lengths.append(np.diff(np.array(starts + [len(piece) + 1], dtype=np.int64)))
        empty = [np.array([], dtype=np.float32)], [np.array([], dtype=np.int64)]
        return bits, np.concatenate(entropies or empty[0]), np.concatenate(lengths or empty[1])


def main() -> None:
    import ray  # here, so that `Scorer` serves elsewhere, too

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("input")
    parser.add_argument("output")
    parser.add_argument("--column", default="text", help="of the documents (default: text)")
    parser.add_argument("--workers", type=int, default=2, help="processes (default: 2)")
    parser.add_argument("--threads", type=int, default=1, help="per process (default: 1)")
    parser.add_argument("--batch", type=int, default=16, help="documents at a time (default: 16)")
    args = parser.parse_args()

    # Cores as Ray counts them. Without one for reading and writing it would wait forever.
    n_cores = args.workers * args.threads + 1
    address = os.environ.get("RAY_ADDRESS")
    ray.init(address or "local", num_cpus=None if address else n_cores)
    found = ray.cluster_resources().get("CPU", 0)
    if found < n_cores:
        parser.error(
            f"{args.workers} workers of {args.threads} threads, and one core to read and write: "
            f"expected a cluster of at least {n_cores} cores, found {found:.0f}"
        )

    lines = args.input.rstrip("/").endswith((".jsonl", ".json", ".jsonl.gz", ".json.gz"))
    corpus = ray.data.read_json(args.input) if lines else ray.data.read_parquet(args.input)
    start = time.monotonic()
    scored = corpus.map_batches(
        Scorer,
        fn_constructor_args=(args.model, args.column, args.threads),
        batch_size=args.batch,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(size=args.workers),
        num_cpus=args.threads,
    )
    scored.write_parquet(args.output, mode="overwrite")
    seconds = time.monotonic() - start

    n_documents, n_bytes, n_patches, bits = 0, 0, 0, 0.0
    columns = ["n_bytes", "n_patches", "bits_per_byte"]
    for batch in ray.data.read_parquet(args.output).select_columns(columns).iter_batches():
        n_documents += len(batch["n_bytes"])
        n_bytes += batch["n_bytes"].sum()
        n_patches += batch["n_patches"].sum()
        bits += (batch["n_bytes"] * batch["bits_per_byte"]).sum()
    print(
        f"{n_documents} documents, {n_bytes} bytes, {bits / max(n_bytes, 1):.4f} bits per byte, "
        f"{n_bytes / max(n_patches, 1):.2f} bytes per patch, {seconds:.1f} s, "
        f"{n_bytes / seconds:.0f} bytes/s with {args.workers} workers"
    )


if __name__ == "__main__":
    main()
