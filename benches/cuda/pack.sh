#!/bin/sh
# Packs what benches/cuda/run.sh needs on a machine with a driver but no Rust: prebuilt tests and
# programs, the reference cases, the default model and the scripts.
#
#     benches/cuda/pack.sh OUT.tar.gz [FIXTURES]
#
# FIXTURES: reference cases, by default BLT_FIXTURES, else the subset in tests/data.
set -eu
out=$(realpath -m "${1:?usage: benches/cuda/pack.sh OUT.tar.gz [FIXTURES]}")
fixtures=${2:-${BLT_FIXTURES:-}}
fixtures=${fixtures:+$(realpath "$fixtures")}
cd "$(dirname "$0")/../.."
fixtures=${fixtures:-tests/data}
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT

# Builds with the feature and copies what was built; what else is given are cargo's arguments.
built() { # NAME CARGO-ARGUMENTS...
    name=$1
    shift
    cargo "$@" --release -p blt --features cuda --message-format=json 2> "$dir/log" > "$dir/json" ||
        { cat "$dir/log" >&2; exit 1; }
    program=$(sed -n 's/.*"executable":"\([^"]*\)".*/\1/p' "$dir/json" | grep "/$name[^/]*$" | tail -n 1)
    cp "$program" "$dir/$name"
    strip "$dir/$name" 2> /dev/null || true
}
built blt-bench build --bin blt-bench
built blt-info build --bin blt-info
built synthetic build --example synthetic
built cuda test --test cuda --no-run
mv "$dir/cuda" "$dir/test-model"
built blt test --lib --no-run
mv "$dir/blt" "$dir/test-kernels"
rm -f "$dir/log" "$dir/json"

mkdir "$dir/fixtures"
cp -r "$fixtures/." "$dir/fixtures"
cp models/default.safetensors "$dir"
cp benches/cuda/run.sh benches/cuda/torch_blt.py "$dir"
# The newest version of the C library that a program here asks for.
needs=$(cat "$dir"/blt-* "$dir"/synthetic "$dir"/test-* | grep -ao 'GLIBC_2\.[0-9]*' | sort -uV | tail -n 1 | tr _ ' ')
cat > "$dir/README" << END
Tests and timings of blt on an NVIDIA GPU: ./run.sh [FOLDER FOR MODELS]
Needs $(uname -sm) with $needs or later, a GPU of compute capability 8.0 or later, and a driver for CUDA 12.0 or
later (525; for Blackwell 12.8, 570). For the comparison: python3 with torch and transformers from pip.
Packed from commit $(git rev-parse --short HEAD).
END
cat "$dir/README"
tar -C "$dir" -czf "$out" .
ls -lh "$out"
