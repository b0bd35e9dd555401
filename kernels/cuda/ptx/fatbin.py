"""Reads the images of a fatbin as kernels/cuda/build packs it: a header, then images with headers of their own, each
compressed with LZ4."""

import struct

import lz4.block

PTX = 1


def images(path):
    """Yields (kind, architecture, content) for every image."""
    data = path.read_bytes()
    _, _, header, size = struct.unpack_from("<IHHQ", data)
    at = header
    while at < header + size:
        kind, _, head, padded = struct.unpack_from("<HHIQ", data, at)
        (compressed,) = struct.unpack_from("<I", data, at + 16)
        (arch,) = struct.unpack_from("<I", data, at + 28)
        (whole,) = struct.unpack_from("<Q", data, at + 56)
        yield kind, arch, lz4.block.decompress(data[at + head : at + head + compressed], uncompressed_size=whole)
        at += head + padded


def ptx(path):
    """The text of the only PTX image."""
    (text,) = [content for kind, _, content in images(path) if kind == PTX]
    return text.rstrip(b"\0").decode()
