#!/usr/bin/env bash
# Prints the figures of the README's performance section: benches/report.sh [FOLDER]
#
# FOLDER keeps the synthetic 1b checkpoint (9.3 GB, written once); default: benches/data, which git
# ignores. Takes some minutes. Run it while nothing else uses the machine.
set -euo pipefail
cd "$(dirname "$0")/.."
folder=${1:-benches/data}
model=$folder/1b.safetensors
cargo build --release --quiet --bins --examples
mkdir -p "$folder"
[ -f "$model" ] || target/release/examples/synthetic "$model" 1b

grep -m1 'model name' /proc/cpuinfo || true
echo "commit $(git rev-parse --short HEAD)"
echo
echo "== opening the 1b shape (seconds); one byte after BOS, with the memory it took"
TIMEFORMAT="blt-info: %R s"
for run in 1 2 3; do
    time target/release/blt-info "$model" >/dev/null
done
target/release/blt-run "$model" -p "" -n 1 2>&1 >/dev/null | tail -1
echo
echo "== generating with so much context, patches of 4 bytes"
for context in 64 512 4096; do
    target/release/blt-bench "$model" -p 0 -n 32 -r 3 --context "$context" --patch-length 4 --quiet
    echo
done
echo "== a prompt of 512 bytes, patches of 4 bytes"
target/release/blt-bench "$model" -p 512 -n 1 -r 3 --patch-length 4 --quiet
echo
echo "== the default model"
target/release/blt-bench -r 5 --quiet
