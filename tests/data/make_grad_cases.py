#!/usr/bin/env python3
"""Writes the `grad-*` reference cases: loss, the gradient of every parameter, and 20 AdamW steps.

Needs only: torch, transformers (with the BLT model), safetensors, numpy.
    python make_grad_cases.py --out DIR [--seed N]

`grad-main`: the BLT with given patch lengths; the patcher takes no part.
`grad-entropy`: the patcher's byte model alone, trained on its own next-byte loss.
Float32 on the CPU, one thread, no dropout. The loss is the mean of -ln p(ids[i+1]) over
positions 0..n-2 of every row (rows have equal length and no padding).
"""
import argparse, json, os
import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from transformers import BltConfig, BltForCausalLM

torch.set_num_threads(1)
STEPS, LR, BETAS, EPS, DECAY, CLIP = 20, 3e-3, (0.9, 0.95), 1e-8, 0.1, 1.0


def config():
    local = dict(vocab_size=260, hidden_size=32, num_attention_heads=4, intermediate_size=88, cross_attn_k=2, hidden_size_global=48)
    return BltConfig(
        patch_in_forward=True, patching_mode="entropy", patching_threshold=1.0, local_attention_window_len=16, cross_attn_k=2,
        encoder_hash_byte_group_size=[3, 4, 5], encoder_hash_byte_group_vocab=101, encoder_hash_byte_group_nb_functions=1,
        patcher_config=dict(vocab_size=260, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=88, sliding_window=12),
        encoder_config=dict(local, num_hidden_layers=1, cross_attn_all_layers=False),
        decoder_config=dict(local, num_hidden_layers=2, cross_attn_all_layers=True),
        global_config=dict(hidden_size=48, num_attention_heads=4, num_hidden_layers=2, intermediate_size=128),
        use_cache=False, bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )


def rows(seed, n_rows=3, n=49):
    text = ("It was a bright cold day, and the clocks were striking; a cat sat on the mat, then it ran. "
            "Grüße aus dem Süden! 12 × 12 = 144. The end of one story is the start of another, said the old man.").encode()
    rng = np.random.default_rng(seed)
    ids, lens = [], []
    for _ in range(n_rows):
        i = int(rng.integers(0, len(text) - n))
        ids.append([1] + [b + 4 for b in text[i:i + n - 1]])
        l = [1]
        while sum(l) < n:
            l.append(int(min(rng.integers(1, 7), n - sum(l))))
        lens.append(l)
    width = max(map(len, lens))
    # transformers' own convention: each row sums to n, zeros on the right
    return torch.tensor(ids), torch.tensor([l + [0] * (width - len(l)) for l in lens])


def loss_main(model, ids, lens):
    logits = model(input_ids=ids, patch_lengths=lens, use_cache=False).logits
    return F.cross_entropy(logits[:, :-1].reshape(-1, 260).float(), ids[:, 1:].reshape(-1))


def loss_entropy(model, ids, lens):
    logits = model.model.patcher(ids)[2]
    return F.cross_entropy(logits[:, :-1].reshape(-1, 260).float(), ids[:, 1:].reshape(-1))


def run(name, out, seed):
    torch.manual_seed(seed)
    model = BltForCausalLM(config()).float()
    with torch.no_grad():
        for n, p in model.named_parameters():
            if p.dim() == 1:
                p.add_(0.1 * torch.randn_like(p))
    entropy = name == "grad-entropy"
    trained = {n: p for n, p in model.named_parameters() if n.startswith("model.patcher.") == entropy}
    for n, p in model.named_parameters():
        p.requires_grad_(n in trained)
    ids, lens = rows(seed + 1)
    loss_fn = loss_entropy if entropy else loss_main
    d = os.path.join(out, name)
    os.makedirs(d, exist_ok=True)
    model.save_pretrained(os.path.join(d, "model"))
    loss = loss_fn(model, ids, lens)
    loss.backward()
    tensors = {"grad/" + n: p.grad.clone().contiguous() for n, p in trained.items() if p.grad is not None}
    unused = [n for n, p in trained.items() if p.grad is None]
    opt = torch.optim.AdamW(
        [{"params": [p for n, p in trained.items() if p.dim() > 1 and "embed" not in n], "weight_decay": DECAY},
         {"params": [p for n, p in trained.items() if p.dim() <= 1 or "embed" in n], "weight_decay": 0.0}],
        lr=LR, betas=BETAS, eps=EPS)
    losses, norms = [], []
    for _ in range(STEPS):
        opt.zero_grad()
        step_loss = loss_fn(model, ids, lens)
        step_loss.backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(list(trained.values()), CLIP)))
        opt.step()
        losses.append(float(step_loss))
    final = float(loss_fn(model, ids, lens))
    tensors |= {"after/" + n: p.detach().clone().contiguous() for n, p in trained.items()}
    save_file(tensors, os.path.join(d, "expected.safetensors"))
    json.dump({
        "ids": ids.tolist(), "patch_lengths": lens.tolist(), "loss": float(loss), "parameters_without_gradient": unused,
        "adamw": {"steps": STEPS, "lr": LR, "betas": BETAS, "eps": EPS, "clip_global_norm": CLIP,
                  "weight_decay": DECAY, "no_decay": "one-dimensional tensors and every embedding table"},
        "loss_before_each_step": losses, "gradient_norm_before_clipping": norms, "loss_after": final,
    }, open(os.path.join(d, "expected.json"), "w"), indent=1)
    print(name, "loss", float(loss), "->", final, "tensors", len(tensors), "unused", unused)


if __name__ == "__main__":
    a = argparse.ArgumentParser()
    a.add_argument("--out", default=os.path.dirname(os.path.abspath(__file__)))
    a.add_argument("--seed", type=int, default=11)
    a.add_argument("--prefix", default="")
    a = a.parse_args()
    for n in ("grad-main", "grad-entropy"):
        run(n, a.out, a.seed)
