#!/usr/bin/env python3
"""Writes data/gguf-oracle.safetensors: blocks and what the reference reader makes of them.

Needs only: gguf, numpy (pip install gguf).
    python make_gguf_oracle.py [--out FILE]

For each format a (16, 256) matrix: `FORMAT.blocks`, the bytes of its blocks in GGML's own order, and
`FORMAT.values`, what `gguf.quants.dequantize` makes of them. q8_0 and q4_0 are quantised by the
package from `source`; for q4_k and q6_k, which it only reads, the blocks are random.
"""

import argparse
import json
import pathlib
import struct

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type

ROWS, COLS = 16, 256


def random_blocks(rng, kind):
    _, size = gguf.GGML_QUANT_SIZES[kind]
    blocks = rng.integers(0, 256, (ROWS * COLS // 256, size), dtype=np.uint8)
    # Scales must be numbers: halves of moderate size, some zero, some negative.
    at = {Type.Q4_K: [0, 2], Type.Q6_K: [208]}[kind]
    for offset in at:
        scale = rng.normal(0, 0.01, len(blocks)).astype(np.float16)
        scale[3] = 0
        blocks[:, offset : offset + 2] = scale.view(np.uint8).reshape(-1, 2)
    return blocks


def main():
    here = pathlib.Path(__file__).parent
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", default=here / "data/gguf-oracle.safetensors")
    out = parser.parse_args().out

    rng = np.random.default_rng(20241213)
    source = rng.normal(0, 1, (ROWS, COLS)) * rng.lognormal(-3, 1, (ROWS, COLS // 32)).repeat(32, 1)
    source[5, 32:64] = 0
    source[6, 70] = 40
    source = source.astype(np.float32)

    tensors = {"source": source}
    for name, kind in [("q8_0", Type.Q8_0), ("q4_0", Type.Q4_0), ("q4_k", Type.Q4_K), ("q6_k", Type.Q6_K)]:
        if name in ("q8_0", "q4_0"):
            blocks = gguf.quants.quantize(source, kind)
        else:
            blocks = random_blocks(rng, kind)
        values = gguf.quants.dequantize(blocks, kind).astype(np.float32)
        tensors[f"{name}.blocks"] = blocks.reshape(-1)
        tensors[f"{name}.values"] = values.reshape(ROWS, COLS)

    header, data = {"__metadata__": {"gguf": "pip package, " + gguf_version()}}, b""
    for name, array in tensors.items():
        array = np.ascontiguousarray(array)
        dtype = {np.dtype(np.float32): "F32", np.dtype(np.uint8): "U8"}[array.dtype]
        bytes_ = array.tobytes()
        header[name] = {
            "dtype": dtype,
            "shape": list(array.shape),
            "data_offsets": [len(data), len(data) + len(bytes_)],
        }
        data += bytes_
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    pathlib.Path(out).write_bytes(struct.pack("<Q", len(text)) + text + data)


def gguf_version():
    from importlib.metadata import version

    return version("gguf")


if __name__ == "__main__":
    main()
