#!/usr/bin/env python3
"""Checks a folder that `blt-train --hf DIR` wrote against the real library.

    pip install torch transformers safetensors
    python examples/python/check_hf_export.py DIR TEXT [BITS]

Loads the folder with transformers' BltForCausalLM, refuses missing or unexpected tensors, and prints the
bits per byte of the first bytes of TEXT after BOS. With BITS, what blt-score says of the same
bytes, it fails unless both agree to a thousandth.
"""
import math
import sys

import torch
from transformers import BltForCausalLM

folder, text = sys.argv[1], open(sys.argv[2], "rb").read()[:1500]
model, info = BltForCausalLM.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
bad = {kind: list(names) for kind, names in info.items() if names and kind != "error_msgs"}
if bad or info["error_msgs"]:
    sys.exit(f"{folder}: {bad} {info['error_msgs']}")
ids = torch.tensor([[1] + [b + 4 for b in text]])
with torch.no_grad():
    logits = model.float().eval()(input_ids=ids, use_cache=False).logits
nats = torch.nn.functional.cross_entropy(logits[0, :-1].double(), ids[0, 1:], reduction="sum").item()
bits = nats / math.log(2) / len(text)
print(f"transformers: {bits:.4f} bits per byte on {len(text)} bytes")
if len(sys.argv) > 3 and abs(bits - float(sys.argv[3])) > 1e-3:
    sys.exit(f"blt-score: {sys.argv[3]}")
