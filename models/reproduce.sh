#!/bin/sh
# Makes models/default.safetensors again, from text to file.
#
#   sh models/reproduce.sh DATA [RUN]
#
# DATA holds tinystories.train.txt and tinystories.valid.txt (documents separated by lines that hold
# only <|endoftext|>); RUN is a folder for checkpoints (default: run-default). Stop it with Ctrl-C and
# start it again whenever you like: it continues where it was. The result depends on the seed and on
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
#    patch. PRECISION=f32 for CPUs without AVX-512 BF16, about half as fast.
precision="--precision ${PRECISION:-bf16}"
if [ ! -e "$run/entropy/done" ]; then
    resume=; [ ! -e "$run/entropy/state.safetensors" ] || resume=--resume
    $train entropy $text --out "$run/entropy" --preset small $precision \
        --steps 450 --lr 5e-3 --warmup 40 --save-every 150 --valid-every 450 $threads $resume
    touch "$run/entropy/done"
fi

# 2. All the rest: 7.6 M parameters, of which 1.5 M are hash tables. First at the full learning rate...
main="$train main $text --entropy-model $run/entropy --out $run/main --preset small --batch 8192 $precision
    --beta2 0.97 --warmup 150 --save-every 100 --valid-every 1000 --valid-bytes 1000000 $threads"
high="--lr 3e-3 --lr-floor 0.02"
if [ ! -e "$run/main/warm" ]; then
    resume=; [ ! -e "$run/main/state.safetensors" ] || resume=--resume
    $main $high --steps 5000 --decay constant --dropout 0.05 --hash-dropout 0.1 $resume
    touch "$run/main/warm"
fi

# ... then, when the text has been read five times, with more dropout and, from step 6000 on, falling...
if [ ! -e "$run/main/cool" ]; then
    $main $high --steps 10000 --decay trapezoid --cooldown 0.4 --dropout 0.15 --hash-dropout 0.3 --resume
    touch "$run/main/cool"
fi

# ... and then up again, falling slowly.
$main --lr 2.5e-3 --lr-floor 0.01 --weight-decay 0.15 --steps 25500 --decay trapezoid --cooldown 0.6078 \
    --dropout 0.1 --hash-dropout 0.3 --plot "$run/curve.svg" --resume

cp "$run/main/model.safetensors" models/default.safetensors
