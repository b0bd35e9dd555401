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

# A Bolmo model of width 8 and the tokenizer of its subwords, for the layouts target: see `layouts` in src/lib.rs.
import json

D, KEYS, FFN, ROWS = 8, 4, 6, 260
local = {
    "pre_xlstm_layernorm.weight": [D], "pre_feedforward_layernorm.weight": [D],
    "xlstm.q.weight": [KEYS, D], "xlstm.k.weight": [KEYS, D], "xlstm.v.weight": [D, D],
    "xlstm.ogate_preact.weight": [D, D], "xlstm.out_proj.weight": [D, D],
    "xlstm.igate_preact.weight": [2, D], "xlstm.igate_preact.bias": [2],
    "xlstm.fgate_preact.weight": [2, D], "xlstm.fgate_preact.bias": [2], "xlstm.multihead_norm.weight": [D],
    "mlp.gate_proj.weight": [FFN, D], "mlp.up_proj.weight": [FFN, D], "mlp.down_proj.weight": [D, FFN],
}
shapes = {
    "model.local_encoder.byte_embedding.weight": [520, D], "model.local_encoder.subword_embedding.weight": [ROWS, D],
    "model.local_encoder.post_last_block_norm.weight": [D],
    "model.local_encoder.out_projection.weight": [D, D], "model.local_encoder.out_projection.bias": [D],
    "model.local_encoder.boundary_predictor_module.q_proj_layer.weight": [D, D],
    "model.local_encoder.boundary_predictor_module.k_proj_layer.weight": [D, D],
    "model.local_decoder.initial_norm.weight": [D],
    "model.local_decoder.in_projection.weight": [D, D], "model.local_decoder.in_projection.bias": [D],
    "model.norm.weight": [D], "lm_head.weight": [520, D],
}
shapes |= {f"model.local_{part}.layers.0.{name}": shape for part in ["encoder", "decoder"] for name, shape in local.items()}
shapes |= {f"model.layers.0.{name}": shape for name, shape in {
    "self_attn.q_proj.weight": [D, D], "self_attn.k_proj.weight": [D, D], "self_attn.v_proj.weight": [D, D],
    "self_attn.o_proj.weight": [D, D], "self_attn.q_norm.weight": [D], "self_attn.k_norm.weight": [D],
    "mlp.gate_proj.weight": [FFN, D], "mlp.up_proj.weight": [FFN, D], "mlp.down_proj.weight": [D, FFN],
    "post_attention_layernorm.weight": [D], "post_feedforward_layernorm.weight": [D],
}.items()}
header, offset = {}, 0
for name, shape in shapes.items():
    n = 2 * shape[0] * (shape[1] if len(shape) > 1 else 1)
    header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [offset, offset + n]}
    offset += n
config = {
    "model_type": "bolmo", "hidden_size": D, "intermediate_size": FFN, "num_hidden_layers": 1, "num_attention_heads": 2,
    "num_local_heads": 2, "num_local_decoder_layers": 1, "local_intermediate_size": FFN, "rope_theta": 10000,
    "layer_types": ["sliding_attention"], "sliding_window": 2, "subword_vocab_size": ROWS,
    "rope_scaling": {"rope_type": "yarn", "factor": 8, "original_max_position_embeddings": 32},
    "tokenizer_config": {"original_identifier": "a/b"},
}
printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
others = [b for b in range(256) if b not in printable]
names = {b: chr(b) for b in printable} | {b: chr(0x100 + i) for i, b in enumerate(others)}
vocab = {names[b]: b for b in range(256)} | {"<|end|>": 256, "ab": 257}
tokenizer = {"model": {"type": "BPE", "vocab": vocab, "merges": ["a b"]}, "added_tokens": [{"id": 258, "content": "<x>"}]}
texts = [config, header, tokenizer, {"eos_token": "<|end|>", "bos_token": None}]
texts = [json.dumps(text, separators=(",", ":"), ensure_ascii=False).encode() for text in texts]
seed = b"\x05" + b"".join(len(text).to_bytes(2, "little") + text for text in texts)
(CORPUS / "layouts").mkdir(parents=True, exist_ok=True)
(CORPUS / "layouts/bolmo").write_bytes(seed)
