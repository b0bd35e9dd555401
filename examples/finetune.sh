#!/bin/sh
# Adapts the default model to another text and shows how much that helps.
#
#   sh examples/finetune.sh DATA
#
# DATA holds shakespeare.train.txt and shakespeare.valid.txt ("tiny shakespeare"). Takes some minutes
# on two cores; STEPS=100 for a first look.
set -eu

data=${1:?usage: sh examples/finetune.sh DATA}
cd "$(dirname "$0")/.."
cargo build --release --bin blt-train --bin blt-score --bin blt-run
out=${OUT:-run-shakespeare}

echo "before:"
target/release/blt-score models/default.safetensors -f "$data/shakespeare.valid.txt"
start=$(date +%s)
target/release/blt-train finetune models/default.safetensors \
    --data "$data/shakespeare.train.txt" --valid "$data/shakespeare.valid.txt" --out "$out" \
    --steps "${STEPS:-400}" --batch 4096 --lr 1e-3 --warmup 20 --log-every 50 --valid-every 200
echo "after $(($(date +%s) - start)) seconds:"
target/release/blt-score "$out/model.safetensors" -f "$data/shakespeare.valid.txt"
target/release/blt-run "$out/model.safetensors" -p "ROMEO:" -n 300 --seed 1
