#!/bin/sh
# Makes models/default.safetensors again, from text to file.
#
#   sh models/reproduce.sh DATA [RUN]
#
# DATA holds tinystories.train.txt and tinystories.valid.txt (documents separated by lines that hold
# only <|endoftext|>); RUN is a folder for checkpoints (default: run-default). Stop it with Ctrl-C and
# start it again whenever you like: it goes on where it was. The result depends on the seed and on
# --shards, not on the number of threads. Set THREADS to use fewer than all.
set -eu

data=${1:?usage: sh models/reproduce.sh DATA [RUN]}
run=${2:-run-default}
cd "$(dirname "$0")/.."
cargo build --release --bin blt-train
train=target/release/blt-train
text="--data $data/tinystories.train.txt --valid $data/tinystories.valid.txt"
threads=${THREADS:+--threads $THREADS}

# 1. The entropy model: 0.27 M parameters, 450 steps of 8192 ids, and the threshold for 4.5 bytes a
#    patch.
if [ ! -e "$run/entropy/done" ]; then
    resume=; [ ! -e "$run/entropy/state.safetensors" ] || resume=--resume
    $train entropy $text --out "$run/entropy" --preset small \
        --steps 450 --lr 5e-3 --warmup 40 --save-every 150 --valid-every 450 $threads $resume
    touch "$run/entropy/done"
fi

# 2. All the rest: 7.06 M parameters, of which 5.2 M are hash tables.
resume=; [ ! -e "$run/main/state.safetensors" ] || resume=--resume
$train main $text --entropy-model "$run/entropy" --out "$run/main" --preset small \
    --steps 2200 --batch 4096 --decay trapezoid --cooldown 0.55 --lr 4e-3 --lr-floor 0.02 --beta2 0.97 \
    --warmup 60 --save-every 150 --valid-every 300 --valid-bytes 60000 \
    --plot "$run/curve.svg" $threads $resume

cp "$run/main/model.safetensors" models/default.safetensors
