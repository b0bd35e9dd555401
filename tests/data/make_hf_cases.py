#!/usr/bin/env python3
"""Writes the `hf-*` reference cases next to this file (or under --out).

Needs only: torch, transformers (with the BLT model), safetensors, numpy.
    python make_hf_cases.py --out DIR [--only NAME ...]

Every case is a tiny BLT with random weights. The weights are saved by
`save_pretrained`; the expected numbers come from running that saved model
again in float32 on the CPU, with `use_cache=False` everywhere.
"""

import argparse
import json
import math
import os
import shutil

import numpy as np
import torch
import transformers
from safetensors.torch import save_file
from transformers import BltConfig, BltForCausalLM
from transformers.models.blt import modeling_blt as mb

transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()
torch.set_num_threads(1)

BOS, EOS, OFFSET = 1, 2, 4
LONG = ("binary", "long", "long600", "noise", "longer")  # only logits and entropies are kept
NEW_TOKENS = 40
THRESHOLD_AT = 0.5  # quantile of the entropies


# ----------------------------------------------------------------- prompts
def enc(data, bos=True):
    return ([BOS] if bos else []) + [b + OFFSET for b in data]


def dev_prompts():
    rng = np.random.default_rng(7)
    long_text = (
        "In the beginning the river was only a line on a map, drawn by people who had "
        "never seen water move. Later, they walked along it: stone, reed, mud, stone again. "
        "(They counted 1,024 bends.) Nobody agreed on the name"
    ).encode()
    return {
        "ascii": enc(b"The quick brown fox jumps over the lazy dog. 0123456789!?"),
        "utf8": enc("Grüße, κόσμε! 日本語 🙂🚀 مرحبا é".encode()),
        "binary": enc(bytes(rng.permutation(256).astype(np.uint8))),
        "single": enc(b"A"),
        "empty": [BOS],
        "long": enc(long_text),
        "nobos": enc(b"no bos token here", bos=False),
        "repeat": enc(b"abababababababab" + b"\n" * 24 + b"zzzz"),
        "specials": enc(b"one doc") + [EOS] + enc(b"second doc") + [0, 3] + enc(b"x", False),
    }




# ------------------------------------------------------------------ models
def make_config(
    *,
    local=32,
    glob=64,
    k=2,
    heads=4,
    kv=None,
    enc_layers=1,
    dec_layers=2,
    glob_layers=2,
    pat_dim=32,
    pat_layers=2,
    window=16,
    pat_window=24,
    hash_vocab=211,
    groups=(3, 4, 5, 6, 7, 8),
    nb_functions=1,
    enc_all=False,
    dec_all=True,
    thetas=(500000.0, 500000.0, 500000.0, 10000.0),
    eps=(1e-5, 1e-5, 1e-5, 1e-5),
    max_pos=1024,
    ffn=None,
    **kw,
):
    def rope(t):
        return {"rope_type": "default", "rope_theta": t}

    f = ffn or (lambda d: 8 * round(d / 3))
    return BltConfig(
        vocab_size=260,
        max_position_embeddings=max_pos,
        patch_size=4,
        patching_threshold=1.0,
        local_attention_window_len=window,
        cross_attn_k=k,
        encoder_hash_byte_group_size=list(groups),
        encoder_hash_byte_group_vocab=hash_vocab,
        encoder_hash_byte_group_nb_functions=nb_functions,
        bos_token_id=BOS,
        eos_token_id=EOS,
        pad_token_id=0,
        use_cache=False,
        patcher_config=dict(
            hidden_size=pat_dim, num_hidden_layers=pat_layers, num_attention_heads=heads,
            num_key_value_heads=kv, intermediate_size=f(pat_dim), max_position_embeddings=max_pos,
            sliding_window=pat_window, rope_parameters=rope(thetas[3]), rms_norm_eps=eps[3],
        ),
        encoder_config=dict(
            hidden_size=local, hidden_size_global=glob, num_attention_heads=heads,
            num_key_value_heads=kv, num_hidden_layers=enc_layers, intermediate_size=f(local),
            max_position_embeddings=max_pos, cross_attn_all_layers=enc_all, cross_attn_k=k,
            rope_parameters=rope(thetas[0]), rms_norm_eps=eps[0],
        ),
        decoder_config=dict(
            hidden_size=local, hidden_size_global=glob, num_attention_heads=heads,
            num_key_value_heads=kv, num_hidden_layers=dec_layers, intermediate_size=f(local),
            max_position_embeddings=max_pos, cross_attn_all_layers=dec_all, cross_attn_k=k,
            rope_parameters=rope(thetas[1]), rms_norm_eps=eps[1],
        ),
        global_config=dict(
            hidden_size=glob, num_attention_heads=heads, num_key_value_heads=kv,
            num_hidden_layers=glob_layers, intermediate_size=f(glob), max_position_embeddings=max_pos,
            rope_parameters=rope(thetas[2]), rms_norm_eps=eps[2],
        ),
        **kw,
    )


@torch.no_grad()
def randomize(model, seed):
    """Big enough weights that a wrong detail moves the logits far beyond rounding."""
    gen = torch.Generator().manual_seed(seed)
    done = set()
    for name, p in model.named_parameters():
        if p.data_ptr() in done:
            continue
        done.add(p.data_ptr())
        r = torch.randn(p.shape, generator=gen, dtype=torch.float32)
        if p.dim() == 1:
            w = 1.0 + 0.25 * r
        elif "hash_tok" in name:
            w = 0.35 * r
        elif "embed_tokens" in name:
            tied = model.config.tie_word_embeddings and "local_encoder" in name
            w = r * (0.3 if tied else 1.0)
        elif "lm_head" in name:
            w = r * (3.0 * p.shape[1] ** -0.5)
        elif "q_proj" in name or "k_proj" in name:
            w = r * (1.4 * p.shape[1] ** -0.5)
        else:
            w = r * (p.shape[1] ** -0.5)
        p.copy_(w.to(p.dtype))
    return model


# ------------------------------------------------------------------ running
class Tap:
    """Keeps what flows between the parts of the model."""

    def __init__(self, model):
        self.d = {}
        m = model.model
        self.h = [
            m.local_encoder.register_forward_hook(self.on_enc, with_kwargs=True),
            m.global_transformer.register_forward_hook(self.on_glob),
            m.local_decoder.register_forward_hook(self.on_dec),
        ]
        if m.patcher is not None:
            self.h.append(m.patcher.register_forward_hook(self.on_pat))

    def on_enc(self, mod, args, kwargs, out):
        self.d["input_embeds"] = kwargs["inputs_embeds"][0]
        self.d["encoder_hidden"] = out[0][0]
        self.d["encoder_cross"] = out[1][0]

    def on_glob(self, mod, args, out):
        self.d["global_out"] = out[0]

    def on_dec(self, mod, args, out):
        self.d["decoder_hidden"] = out[0]

    def on_pat(self, mod, args, out):
        self.d["entropies"], self.d["patch_lengths"], self.d["entropy_logits"] = (
            out[0][0], out[1][0].to(torch.int64), out[2][0],
        )

    def close(self):
        for h in self.h:
            h.remove()


@torch.no_grad()
def run(model, ids, patch_lengths=None):
    tap = Tap(model)
    kw = {} if patch_lengths is None else {"patch_lengths": torch.tensor([patch_lengths])}
    x = torch.tensor([ids])
    out = model.model(input_ids=x, use_cache=False, **kw)
    logits = model.lm_head(out.last_hidden_state)[0]
    tap.close()
    d = tap.d
    d["logits"] = logits
    if patch_lengths is not None:
        d["patch_lengths"] = torch.tensor(patch_lengths)
    elif "patch_lengths" not in d:
        d["patch_lengths"] = torch.ones(len(ids) + 1, dtype=torch.int64)
    return d


@torch.no_grad()
def greedy(model, ids, n, stop_at_eos):
    """Plain loop; also says how close the two best logits and the threshold came."""
    ids, new, gap, tgap = list(ids), [], math.inf, math.inf
    thr = model.config.patching_threshold
    for _ in range(n):
        d = run(model, ids)
        top = d["logits"][-1].float().topk(2).values
        gap = min(gap, (top[0] - top[1]).item())
        if "entropies" in d and d["entropies"].numel() > 1:
            tgap = min(tgap, (d["entropies"][1:].float() - thr).abs().min().item())
        t = int(d["logits"][-1].argmax())
        new.append(t)
        ids.append(t)
        if stop_at_eos and t == EOS:
            break
    return new, gap, tgap


def nll(logits, ids):
    if len(ids) < 2:
        return 0.0
    lp = torch.log_softmax(logits.double()[:-1], -1)
    return -lp[torch.arange(len(ids) - 1), torch.tensor(ids[1:])].sum().item()


class Float64:
    """Inside: norms and rotary angles stay in float64 (the library forces float32)."""

    def __enter__(self):
        self.norm, self.rot = mb.BltRMSNorm.forward, mb.BltRotaryEmbedding.forward

        def norm(s, x):
            return s.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + s.variance_epsilon))

        def rot(s, x, position_ids):
            c = s.config
            dim = getattr(c, "head_dim", None) or c.hidden_size // c.num_attention_heads
            inv = 1.0 / (c.rope_parameters["rope_theta"] ** (torch.arange(0, dim, 2, dtype=torch.float64) / dim))
            f = torch.repeat_interleave(position_ids[..., None].double() * inv, 2, dim=-1)
            return f.cos(), f.sin()

        mb.BltRMSNorm.forward, mb.BltRotaryEmbedding.forward = norm, rot

    def __exit__(self, *a):
        mb.BltRMSNorm.forward, mb.BltRotaryEmbedding.forward = self.norm, self.rot


STAGES = ["input_embeds", "encoder_hidden", "encoder_cross", "global_out", "logits", "entropies"]


def reachable(d, k):
    """Rows of the last patch when it holds no byte: nothing downstream reads them."""
    return int((d["patch_lengths"] > 0).sum()) if d["patch_lengths"][-1] <= 0 else len(d["patch_lengths"])


def noise(model, prompts):
    model64 = BltForCausalLM(model.config).eval()
    model64.load_state_dict(model.state_dict())
    model64 = model64.double()
    worst = {}
    for ids in prompts.values():
        a = run(model, ids)
        with Float64():
            b = run(model64, ids, patch_lengths=a["patch_lengths"].tolist())
            if model.model.patcher is not None:
                b["entropies"] = model64.model.patcher(torch.tensor([ids]))[0][0]
        n = reachable(a, model.config.cross_attn_k)
        for s in STAGES:
            if s in a and s in b:
                x, y = a[s].double(), b[s].double()
                if s == "encoder_cross":
                    x, y = x[: n * model.config.cross_attn_k], y[: n * model.config.cross_attn_k]
                if s == "global_out":
                    x, y = x[:n], y[:n]
                worst[s] = max(worst.get(s, 0.0), (x - y).abs().max().item())
    return worst


def pick_threshold(model, prompts):
    """The middle of the widest gap around the median entropy of all prompts (see THRESHOLD_AT)."""
    e = torch.cat([run(model, p)["entropies"][1:] for p in prompts.values() if len(p) > 1]).sort().values
    lo, hi = int((THRESHOLD_AT - 0.08) * len(e)), int((THRESHOLD_AT + 0.08) * len(e))
    gaps = e[lo + 1 : hi] - e[lo : hi - 1]
    i = lo + int(gaps.argmax())
    return float(np.float32((e[i] + e[i + 1]).item() / 2))


def expect(model, prompts, *, n_new=NEW_TOKENS, tensors=STAGES, entropy_logits_for=("ascii",), full=True):
    js, ts = [], {}
    for name, ids in prompts.items():
        d = run(model, ids)
        r = {"name": name, "ids": ids, "bytes_hex": bytes(i - OFFSET for i in ids if i >= OFFSET).hex()}
        if "entropies" in d:
            r["entropies"] = [float(np.float32(v)) for v in d["entropies"].float()]
        r["patch_lengths"] = d["patch_lengths"].tolist()
        r["last_patch_empty"] = bool(d["patch_lengths"][-1] <= 0)
        r["nll_nats"] = nll(d["logits"], ids)
        r["bits_per_token"] = r["nll_nats"] / math.log(2) / (len(ids) - 1) if len(ids) > 1 else None
        if full:
            g, gap, tgap = greedy(model, ids, n_new, False)
            x = torch.tensor([ids])
            free = model.generate(x, attention_mask=torch.ones_like(x), max_new_tokens=n_new, do_sample=False, use_cache=False, eos_token_id=-1)
            stop = model.generate(x, attention_mask=torch.ones_like(x), max_new_tokens=n_new, do_sample=False, use_cache=False)
            assert free[0, len(ids):].tolist() == g, name
            r["greedy_ids"] = stop[0, len(ids):].tolist()
            r["greedy_ids_ignoring_eos"] = g
            r["stopped_at_eos"] = len(r["greedy_ids"]) < n_new or r["greedy_ids"][-1] == EOS
            r["min_top2_gap"] = gap
            r["min_threshold_gap"] = None if math.isinf(tgap) else tgap
        js.append(r)
        for s in tensors:
            if s not in d or (s == "input_embeds" and name not in ("ascii", "utf8", "code")):
                continue
            v = d[s].float().contiguous().clone()
            if name in LONG and s not in ("logits", "entropies"):
                continue
            if name == "long600" and s == "logits":
                ts["long600/logits_tail"] = v[-160:].clone()
            else:
                ts[f"{name}/{s}"] = v
        if name in entropy_logits_for and "entropy_logits" in d:
            ts[f"{name}/entropy_logits"] = d["entropy_logits"].float().contiguous().clone()
    return js, ts


def gaps_ok(js):
    g = min(r["min_top2_gap"] for r in js)
    t = min((r["min_threshold_gap"] for r in js if r["min_threshold_gap"] is not None), default=1.0)
    return g > 4e-4 and t > 1e-5, g, t


def write(out, name, js, ts, info):
    d = os.path.join(out, name)
    save_file(ts, os.path.join(d, "expected.safetensors"))
    for top, _, files in os.walk(d):
        for f in files:
            os.chmod(os.path.join(top, f), 0o644)
    info = {"case": name, "made_with": f"transformers {transformers.__version__}, torch {torch.__version__.split('+')[0]}, float32, CPU", **info}
    with open(os.path.join(d, "expected.json"), "w") as f:
        f.write("{\n")
        for k, v in info.items():
            f.write(f" {json.dumps(k)}: {json.dumps(v)},\n")
        f.write(' "prompts": [\n' + ",\n".join("  " + json.dumps(r) for r in js) + "\n ]\n}\n")


def build(out, name, seed, cfg, prompts, *, save_kw=None, dtype=None, extra=None, note="", **ekw):
    d = os.path.join(out, name)
    for attempt in range(40):
        s = seed + 1000 * attempt
        shutil.rmtree(d, ignore_errors=True)
        os.makedirs(os.path.join(d, "model"))
        torch.manual_seed(s)
        model = randomize(BltForCausalLM(cfg).eval(), s)
        if dtype is not None:
            model = model.to(dtype).float()
        if model.model.patcher is not None and cfg.patching_mode == "entropy":
            cfg.patching_threshold = pick_threshold(model, prompts)
        (model if dtype is None else model.to(dtype)).save_pretrained(os.path.join(d, "model"), **(save_kw or {}))
        model = BltForCausalLM.from_pretrained(os.path.join(d, "model"), dtype=torch.float32).eval()
        js, ts = expect(model, prompts, **ekw)
        ok, g, t = gaps_ok(js)
        if ok:
            break
        print(f"  {name}: seed {s} too close to a tie ({g:.1e}, {t:.1e}), next", flush=True)
    info = {"note": note, "seed": s, "patching_threshold": model.config.patching_threshold,
            "max_patch_length": model.config.max_patch_length, "float32_vs_float64": noise(model, prompts)}
    if extra is not None:
        info.update(extra(model, d, ts, js) or {})
    write(out, name, js, ts, info)
    size = sum(os.path.getsize(os.path.join(a, f)) for a, _, fs in os.walk(d) for f in fs)
    mean = np.mean([l for r in js for l in r["patch_lengths"] if l > 0])
    print(f"{name}: seed {s}, thr {model.config.patching_threshold:.4f}, mean patch {mean:.2f}, "
          f"gap {g:.1e}/{t:.1e}, noise {info['float32_vs_float64'].get('logits'):.1e}, {size/1e6:.2f} MB", flush=True)


# ---------------------------------------------------------- extra material
def extra_explicit(model, d, ts, js):
    """The same model with patch lengths handed in by the caller."""
    runs = []
    for r in js:
        if r["name"] not in ("ascii", "utf8"):
            continue
        n = len(r["ids"])
        for size in (1, 4, 6):
            body = n - 1 + 1  # the byte that comes next counts too
            pl = [1] + [size] * (body // size) + ([body % size] if body % size else [])
            o = run(model, r["ids"], patch_lengths=pl)
            key = f"{r['name']}/static{size}/logits"
            ts[key] = o["logits"].contiguous().clone()
            runs.append({"prompt": r["name"], "patch_lengths": pl, "logits": key, "nll_nats": nll(o["logits"], r["ids"])})
    return {"explicit_patch_lengths": runs}


def extra_prefix(model, d, ts, js):
    """Logits of the last position of every prefix, next to the one-pass logits."""
    rep = []
    for r in js:
        if r["name"] not in ("ascii", "repeat"):
            continue
        last = torch.stack([run(model, r["ids"][: i + 1])["logits"][-1] for i in range(len(r["ids"]))])
        full = ts[f"{r['name']}/logits"]
        ts[f"{r['name']}/prefix_last_logits"] = last.contiguous().clone()
        diff = (last - full).abs().max(-1).values
        rep.append({"prompt": r["name"], "positions_that_differ": [i for i, v in enumerate(diff.tolist()) if v > 1e-3]})
    return {"prefix_vs_one_pass": rep}


def extra_bf16(model, d, ts, js):
    m = BltForCausalLM.from_pretrained(os.path.join(d, "model"), dtype=torch.bfloat16).eval()
    out = []
    for r in js:
        o = run(m, r["ids"])
        fixed = run(m, r["ids"], patch_lengths=r["patch_lengths"])
        ts[f"{r['name']}/bf16_logits"] = fixed["logits"].float().contiguous().clone()
        f32 = ts[f"{r['name']}/logits"]
        out.append({
            "prompt": r["name"],
            "entropies": [float(v) for v in o["entropies"].float()],
            "patch_lengths": o["patch_lengths"].tolist(),
            "patch_lengths_equal_float32": o["patch_lengths"].tolist() == r["patch_lengths"],
            "max_abs_diff_to_float32_same_patches": (fixed["logits"].float() - f32).abs().max().item(),
            "argmax_agreement": (fixed["logits"].argmax(-1) == f32.argmax(-1)).float().mean().item(),
            "nll_nats_same_patches": nll(fixed["logits"], r["ids"]),
        })
    return {"bf16_run": out}


def dev_cases(out, only):
    P = dev_prompts()
    A = {k: P[k] for k in P if k != "binary"}
    S = {k: P[k] for k in ("ascii", "utf8", "empty", "single")}
    L = {k: P[k] for k in ("ascii", "empty", "long")}
    M = {k: P[k] for k in ("ascii", "utf8", "empty", "repeat", "specials", "nobos")}

    def case(name, *a, **k):
        if not only or name in only:
            build(out, name, *a, **k)

    case("hf-entropy", 101, make_config(local=48, glob=96, hash_vocab=503), P, extra=extra_explicit,
         note="Base case: entropy patches, encoder width * k equals the global width, so no projection in the global part.")
    case("hf-bf16", 102, make_config(), A, dtype=torch.bfloat16, extra=extra_bf16,
         note="Weights stored as bfloat16. Main numbers: float32 arithmetic on those weights. bf16_run: the whole model in bfloat16.")
    case("hf-sharded", 103, make_config(local=24, glob=48, hash_vocab=127), S, save_kw={"max_shard_size": "80KB"},
         note="Weights in many files with an index.")
    case("hf-maxpatch", 104, make_config(local=24, glob=48, max_patch_length=3, groups=(2, 3, 5), nb_functions=3, hash_vocab=97), A, extra=extra_prefix,
         note="max_patch_length 3, three hash functions. See README: the last position depends on whether the text ends there.")
    case("hf-byte", 105, make_config(local=24, glob=48, patching_mode="byte", hash_vocab=127), S,
         note="patching_mode other than entropy: every byte is a patch.")
    case("hf-nopatcher", 106, make_config(local=24, glob=48, patch_in_forward=False, hash_vocab=127), M,
         note="patch_in_forward false: no entropy model in the file, every byte is a patch.")
    case("hf-tied", 107, make_config(local=24, glob=48, tie_word_embeddings=True, hash_vocab=127), S,
         note="tie_word_embeddings: the file holds lm_head.weight only; the input table is the same tensor.")
    case("hf-gqa", 108, make_config(local=32, glob=48, kv=2, enc_layers=2, dec_layers=3, hash_vocab=127,
                                    thetas=(10000.0, 20000.0, 500000.0, 3000.0), eps=(1e-5, 1e-6, 1e-3, 1e-4)), A,
         note="2 key/value heads for 4 query heads (also in cross attention), a projection in the global part (32*2 -> 48), own rope base and norm eps per part.")
    case("hf-allcross", 109, make_config(local=24, glob=96, k=4, enc_layers=2, enc_all=True, dec_all=False, hash_vocab=127), M,
         note="k = 4; the encoder has cross attention in every layer (each layer pools anew), the decoder only in the first.")
    case("hf-fullattn", 110, make_config(local=24, glob=48, window=None, pat_window=None, hash_vocab=127), L,
         note="No local attention window anywhere.")


if __name__ == "__main__":
    ap = argparse.ArgumentParser()
    ap.add_argument("--out", default=os.path.dirname(os.path.abspath(__file__)))
    ap.add_argument("--only", nargs="*", default=[])
    a = ap.parse_args()
    dev_cases(a.out, a.only)
