#!/usr/bin/env python3
"""Writes ggml_*.bin: blocks of GGML's formats and what the reference reader makes of them.

Needs `pip install gguf`. Each file holds 16 rows of 256 weights in GGML's own bytes, then the f32 values
of rows 0, 7 and 15 according to the `gguf` package. Integers are random; scales are random half floats of
ordinary size and either sign.
"""
import pathlib

import numpy as np
from gguf import GGMLQuantizationType as T
from gguf.quants import dequantize

# Bytes of a block, and where its half floats lie.
FORMATS = {
    "q8_0": (T.Q8_0, 32, 34, [0]),
    "q4_0": (T.Q4_0, 32, 18, [0]),
    "q4_k": (T.Q4_K, 256, 144, [0, 2]),
    "q6_k": (T.Q6_K, 256, 210, [208]),
}

rng = np.random.default_rng(2024)
for name, (kind, width, size, halves) in FORMATS.items():
    blocks = rng.integers(0, 256, (16 * 256 // width, size), dtype=np.uint8)
    for at in halves:
        scale = rng.uniform(-0.1, 0.1, len(blocks)).astype(np.float16)
        blocks[:, at : at + 2] = scale.view(np.uint8).reshape(-1, 2)
    rows = blocks.reshape(16, -1)
    values = dequantize(rows, kind).astype(np.float32)
    path = pathlib.Path(__file__).parent / f"ggml_{name}.bin"
    path.write_bytes(rows.tobytes() + values[[0, 7, 15]].tobytes())
