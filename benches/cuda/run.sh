#!/bin/sh
# Tests and timings on a machine with an NVIDIA driver, from what pack.sh packed: unpack and run.
#
#     ./run.sh [FOLDER FOR MODELS]
#
# Needs 25 GB there for the 1b and 7b shapes in 8 and 4 bits and the 1b in bf16; a shape for which there
# is no room is left out by name. For the comparison: python3 with torch and transformers. Prints one
# table. Meant to take less than ten minutes.
set -u
cd "$(dirname "$0")"
models=${1:-.}
table=$(mktemp)
trap 'rm -f "$table"' EXIT
row() { printf '%-28s %s\n' "$1" "$2" >> "$table"; }

./blt-info --devices || exit 1
row device "$(./blt-info --devices | head -n 1)"
for test in test-cuda "test-lib cuda::"; do
    # shellcheck disable=SC2086
    if BLT_FIXTURES=$PWD/fixtures timeout 200 ./$test --test-threads 1 > "$test.log" 2>&1; then
        row "$test" "$(grep 'test result' "$test.log")"
    else
        row "$test" "FAILED, see $PWD/$test.log"
    fi
done

bench() { # MODEL NAME
    timeout 100 ./blt-bench "$1" --device cuda --patch-length 4 -p 512 -n 128 -r 3 --quiet --csv > bench.csv ||
        { row "$2" "failed"; return; }
    # model,isa,threads,test,bytes,context,runs,median,...,weight_bytes_per_second,read_bandwidth
    row "$2" "$(awk -F, 'NR > 1 { printf "%s %.1f bytes/s", $4, $8
        if ($13 != "") printf ", %.1f GB/s = %.0f%% of copying", $13 / 1e9, 100 * $13 / $14
        printf "; " }' bench.csv)"
}
for shape in 1b 7b; do
    source=$models/blt-$shape.safetensors
    [ -e "$source" ] || ./synthetic "$source" "$shape" || { row "$shape" "no room"; rm -f "$source"; continue; }
    bench "$source" "$shape bf16"
    for format in q8_0 q4_0; do
        quantized=$models/blt-$shape-$format.safetensors
        [ -e "$quantized" ] || timeout 150 ./blt-quantize "$source" "$quantized" --type "$format" > /dev/null ||
            { row "$shape $format" "no room or time"; rm -f "$quantized"; continue; }
        bench "$quantized" "$shape $format"
    done
done
row "1b bf16, transformers" "$(timeout 150 python3 torch_blt.py 2>&1 | tail -n 1)"
cat "$table"
