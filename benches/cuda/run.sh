#!/bin/sh
# Tests and timings on a machine with an NVIDIA driver, from what pack.sh packed: unpack and run.
#
#     ./run.sh [FOLDER FOR MODELS] [SHAPES [TYPES [BATCHES]]]
#
# By default the shapes "1b 7b" in the types "bf16 q8_0 q4_0", for "1 8 32" sessions together. A file of
# random weights is made for each, used, and removed: the largest takes 21 GB. For the comparison: python3
# with torch and transformers. Prints one table. Meant to take less than ten minutes; what takes too long is
# left out by name. BLT_BENCH: sizes other than "-p 512 -n 128 -r 3", for a trial on the emulated driver.
set -u
cd "$(dirname "$0")"
mkdir -p "${1:-.}"
models=${1:-.} shapes=${2:-1b 7b} types=${3:-bf16 q8_0 q4_0} batches=${4:-1 8 32}
export LC_ALL=C
table=$(mktemp)
trap 'rm -f "$table"' EXIT
begun=$(date +%s)
row() {
    printf '%-26s %s\n' "$1" "$2" | tee -a "$table" >&2
}
seconds_left() { echo $((begun + ${BLT_SECONDS:-600} - $(date +%s))); }

devices=$(./blt-info --devices 2>&1)
row device "$(echo "$devices" | head -n 1)"
case $devices in
    *cuda:*) ;;
    *) row "" "no CUDA device: nothing was measured"; echo; cat "$table"; exit 1 ;;
esac

export BLT_FIXTURES="$PWD/fixtures" BLT_DEFAULT_MODEL="$PWD/default.safetensors" BLT_CUDA="${BLT_CUDA:-1}"
for test in model kernels; do
    filter=
    [ "$test" = model ] || filter=cuda::
    # shellcheck disable=SC2086
    timeout 200 ./test-$test $filter --ignored --skip faults:: --nocapture > "test-$test.log" 2>&1
    status=$?
    if [ $status -eq 0 ]; then
        row "test-$test" "$(grep 'test result' "test-$test.log" | sed 's/; 0 measured.*//')"
        ! grep -q ' models, ' "test-$test.log" || row "" "$(grep ' models, ' "test-$test.log")"
    elif [ $status -eq 124 ]; then
        row "test-$test" "did not end in 200 s, see $PWD/test-$test.log"
    else
        row "test-$test" "FAILED, see $PWD/test-$test.log"
    fi
done

bench() { # MODEL NAME BATCH ARGUMENTS
    # shellcheck disable=SC2086
    if ! timeout 100 ./blt-bench "$1" --device cuda --patch-length 4 $4 --batch "$3" --quiet --csv > bench.csv 2> bench.log; then
        row "$2 x $3" "failed: $(tail -n 1 bench.log)"
        return
    fi
    row "$2 x $3" "$(awk -F, '
        NR == 1 { for (i = 1; i <= NF; i++) column[$i] = i; next }
        {
            printf "%s %.1f bytes/s", $column["test"], $column["median"]
            operations = $column["prompt_operations_per_second"]
            if (operations != "") printf ", %.1f TFLOP/s; ", operations / 1e12
            read = $column["weight_bytes_per_second"]
            copied = $column["read_bandwidth"]
            if (read != "") printf ", %.1f GB/s of weights = %.0f%% of copying", read / 1e9, 100 * read / copied
        }' bench.csv)"
}
sizes=${BLT_BENCH:--p 512 -n 128 -r 3}
for shape in $shapes; do
    for type in $types; do
        name="$shape $type" model=$models/blt-$shape-$type.safetensors
        if [ "$(seconds_left)" -lt 60 ]; then
            row "$name" "no time"
        elif timeout "$(seconds_left)" ./synthetic "$model" "$shape" "$type" 2> synthetic.log; then
            for batch in $batches; do
                bench "$model" "$name" "$batch" "$sizes"
            done
        else
            row "$name" "no file: $(tail -n 1 synthetic.log)"
        fi
        rm -f "$model"
    done
    # The same shape and batches in PyTorch, on the same card.
    timeout 150 python3 torch_blt.py --shape "$shape" --batch "$(echo "$batches" | tr ' ' ,)" > torch.log 2>&1 ||
        echo "did not end: $(tail -n 1 torch.log)" >> torch.log
    grep -E '^(batch|did not end)' torch.log | while read -r line; do row "$shape bf16, PyTorch" "$line"; done
done
row "" "$(($(date +%s) - begun)) s in all"
echo
cat "$table"
