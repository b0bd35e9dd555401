#!/usr/bin/env python3
"""Copies a reference case with some of its prompts: trim.py FROM TO PROMPT...

The models are copied whole. Python's standard library is enough.
"""
import json, pathlib, shutil, struct, sys

source, target, prompts = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]), sys.argv[3:]
shutil.copytree(source, target)
expected = json.loads((source / "expected.json").read_text())
keep = lambda entries, key: [entry for entry in entries if entry[key] in prompts]
expected["prompts"] = keep(expected["prompts"], "name")
assert len(expected["prompts"]) == len(prompts), "no such prompt"
for key in ("prefix_vs_one_pass", "explicit_patch_lengths"):
    if key in expected:
        expected[key] = keep(expected[key], "prompt")
(target / "expected.json").write_text(json.dumps(expected, separators=(",", ":")))

data = (source / "expected.safetensors").read_bytes()
length = struct.unpack("<Q", data[:8])[0]
header, body = json.loads(data[8 : 8 + length]), data[8 + length :]
wanted = set(prompts) | {run["logits"].split("/")[0] for run in expected.get("explicit_patch_lengths", [])}
kept, parts, end = {}, [], 0
for name, info in header.items():
    if name != "__metadata__" and name.split("/")[0] in wanted:
        begin, stop = info["data_offsets"]
        kept[name] = {**info, "data_offsets": [end, end + stop - begin]}
        parts.append(body[begin:stop])
        end += stop - begin
text = json.dumps(kept, separators=(",", ":")).encode()
text += b" " * (-len(text) % 8)
(target / "expected.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + b"".join(parts))
