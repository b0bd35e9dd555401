"""Random weights of every type as the kernels read them, beside the matrix they mean. The block formats follow
formats.cuh and kernels/src/block: tiles of 16 rows, in chunks of 64 or 256 columns."""

import numpy as np

PLAIN = ("f32", "f16", "bf16")
TILED = {"q8_0": (64, 1088), "q4_0": (64, 576), "q4_k": (256, 2304), "q6_k": (256, 3392)}  # columns, bytes of a chunk
TYPES = (*PLAIN, *TILED)


def bf16_bits(x):
    """The nearest bfloat16 of each float32, to even between two, in the low half of 32 bits."""
    bits = np.ascontiguousarray(x).view(np.uint32).astype(np.uint64)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint32)


def random_weights(kind, rows, cols, rng):
    """(bytes as stored, matrix (rows, cols) in double precision)"""
    if kind in TILED:
        return tiled(kind, rows, cols, rng)
    values = rng.standard_normal((rows, cols)).astype(np.float32)
    if kind == "bf16":
        bits = bf16_bits(values)
        return bits.astype(np.uint16), (bits << 16).view(np.float32).astype(float)
    stored = values.astype(np.float16) if kind == "f16" else values
    return stored, stored.astype(float)


def scales(rng):
    return np.abs(rng.standard_normal(16)).astype(np.float16) * np.float16(0.01)


def tiled(kind, rows, cols, rng):
    width, size = TILED[kind]
    chunks, tiles = -(-cols // width), -(-rows // 16)
    stored = np.zeros((tiles, chunks, size), np.uint8)
    matrix = np.zeros((tiles * 16, chunks * width))
    for tile in range(tiles):
        for chunk in range(chunks):
            to = matrix[tile * 16 :, chunk * width : (chunk + 1) * width][:16]
            {"q8_0": q8_0, "q4_0": q4_0, "q4_k": q4_k, "q6_k": q6_k}[kind](stored[tile, chunk], to, rng)
    return stored, matrix[:rows, :cols]


# Each fills a chunk, and `to` (16, columns) with what it means. A run is 32 columns; group t of one of its halves is
# the four columns from 16 * half + 4 * t on.


def groups(runs):
    return ((run, half, t) for run in range(runs) for half in range(2) for t in range(4))


def columns(run, half, t):
    first = run * 32 + half * 16 + t * 4
    return slice(first, first + 4)


def nibbles(chunk, start, run, half, t, q):
    at = start + run * 256 + t * 64
    chunk[at : at + 64] |= (q << 4 * half).astype(np.uint8).ravel()


def q8_0(chunk, to, rng):
    d = [scales(rng), scales(rng)]
    for run in range(2):
        chunk[run * 32 : run * 32 + 32] = d[run].view(np.uint8)
    for run, half, t in groups(2):
        q = rng.integers(0, 256, (16, 4))
        at = 64 + run * 512 + (half * 4 + t) * 64
        chunk[at : at + 64] = q.astype(np.uint8).ravel()
        to[:, columns(run, half, t)] = d[run].astype(float)[:, None] * (q - 128)


def q4_0(chunk, to, rng):
    d = [scales(rng), scales(rng)]
    for run in range(2):
        chunk[run * 32 : run * 32 + 32] = d[run].view(np.uint8)
    for run, half, t in groups(2):
        q = rng.integers(0, 16, (16, 4))
        nibbles(chunk, 64, run, half, t, q)
        to[:, columns(run, half, t)] = d[run].astype(float)[:, None] * (q - 8)


def q4_k(chunk, to, rng):
    d, minimum = scales(rng), scales(rng)
    chunk[:32], chunk[32:64] = d.view(np.uint8), minimum.view(np.uint8)
    six = rng.integers(0, 64, (16, 16))  # by block (8 scales, 8 minimums) and row
    for group in range(4):
        a, b, c, rest = six[4 * group : 4 * group + 4]
        at = 64 + group * 48
        chunk[at : at + 16] = a | (rest & 3) << 6
        chunk[at + 16 : at + 32] = b | (rest >> 2 & 3) << 6
        chunk[at + 32 : at + 48] = c | (rest >> 4 & 3) << 6
    for run, half, t in groups(8):
        q = rng.integers(0, 16, (16, 4))
        nibbles(chunk, 256, run, half, t, q)
        scale, least = d.astype(float) * six[run], minimum.astype(float) * six[run + 8]
        to[:, columns(run, half, t)] = scale[:, None] * q - least[:, None]


def q6_k(chunk, to, rng):
    d, by = scales(rng), rng.integers(-128, 128, (16, 16))  # by half of a run and row
    chunk[:32] = d.view(np.uint8)
    chunk[64:320] = by.astype(np.int8).view(np.uint8).ravel()
    high = np.zeros((8, 2, 16), np.uint32)
    for run, half, t in groups(8):
        q = rng.integers(0, 64, (16, 4))
        nibbles(chunk, 320, run, half, t, q & 15)
        for i in range(4):
            high[run, half] |= ((q[:, i] >> 4) << (8 * i + 2 * t)).astype(np.uint32)
        to[:, columns(run, half, t)] = (d.astype(float) * by[run * 2 + half])[:, None] * (q - 32)
    chunk[2368:3392] = high.view(np.uint8).ravel()
