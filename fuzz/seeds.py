"""Makes the seeds of the pickle and zip targets: a byte model of one small layer as torch.save
would write it. Python's own pickler, with stand-ins for torch's classes; no torch.

    python3 fuzz/seeds.py
"""

import collections
import pathlib
import pickle
import sys
import types
import zipfile

CORPUS = pathlib.Path(__file__).parent / "corpus"
DIM, HIDDEN = 4, 256  # of ENTROPY_PARAMS in src/files.rs
SHAPES = {
    "tok_embeddings.weight": (260, DIM),
    "layers.0.attention.wq.weight": (DIM, DIM),
    "layers.0.attention.wk.weight": (DIM, DIM),
    "layers.0.attention.wv.weight": (DIM, DIM),
    "layers.0.attention.wo.weight": (DIM, DIM),
    "layers.0.feed_forward.w1.weight": (HIDDEN, DIM),
    "layers.0.feed_forward.w2.weight": (DIM, HIDDEN),
    "layers.0.feed_forward.w3.weight": (HIDDEN, DIM),
    "layers.0.attention_norm.weight": (DIM,),
    "layers.0.ffn_norm.weight": (DIM,),
    "norm.weight": (DIM,),
    "output.weight": (260, DIM),
}

torch = types.ModuleType("torch")
utils = types.ModuleType("torch._utils")
sys.modules.update({"torch": torch, "torch._utils": utils})
exec("def _rebuild_tensor_v2(*args): pass", utils.__dict__)
utils._rebuild_tensor_v2.__module__ = "torch._utils"
torch.BFloat16Storage = type("BFloat16Storage", (), {"__module__": "torch"})


class Storage:
    def __init__(self, key, n):
        self.id = ("storage", torch.BFloat16Storage, str(key), "cpu", n)


class Tensor:
    def __init__(self, key, shape):
        self.key, self.shape = key, shape

    def __reduce__(self):
        n = 1
        strides = []
        for length in reversed(self.shape):
            strides.insert(0, n)
            n *= length
        storage, hooks = Storage(self.key, n), collections.OrderedDict()
        return utils._rebuild_tensor_v2, (storage, 0, self.shape, tuple(strides), False, hooks)


class Pickler(pickle._Pickler):
    def persistent_id(self, value):
        return value.id if isinstance(value, Storage) else None


class Out(bytearray):
    write = bytearray.extend


def dump(value):
    out = Out()
    Pickler(out, protocol=2).dump(value)
    return bytes(out)


state = collections.OrderedDict((n, Tensor(i, s)) for i, (n, s) in enumerate(SHAPES.items()))
whole = dump({"model": state, "step": 7, "lr": 0.5, "names": ["a", ("b", None, True)]})
(CORPUS / "pickle").mkdir(parents=True, exist_ok=True)
(CORPUS / "zip").mkdir(parents=True, exist_ok=True)
(CORPUS / "pickle/wrapped").write_bytes(whole)
(CORPUS / "pickle/bare").write_bytes(dump(dict(state)))
for name, zip64 in [("stored", False), ("zip64", True)]:
    with zipfile.ZipFile(CORPUS / "zip" / name, "w", zipfile.ZIP_STORED) as archive:
        entries = {"a/data.pkl": whole, "a/byteorder": b"little", "a/version": b"3\n"}
        for i, shape in enumerate(SHAPES.values()):
            n = shape[0] * (shape[1] if len(shape) > 1 else 1)
            entries[f"a/data/{i}"] = bytes(2 * n)
        for entry, data in entries.items():
            with archive.open(zipfile.ZipInfo(entry), "w", force_zip64=zip64) as file:
                file.write(data)
