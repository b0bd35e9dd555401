#!/bin/sh
# Packs what benches/cuda/run.sh needs on a machine with a driver but no Rust: prebuilt tests and
# programs, the reference cases and the scripts.
#
#     benches/cuda/pack.sh OUT.tar [FIXTURES]
set -eu
cd "$(dirname "$0")/../.."
out=$1
fixtures=${2:-tests/data}
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
build() { cargo build --release --quiet -p blt --features cuda "$@"; }
build --bin blt-bench --bin blt-info --example synthetic
cargo build --release --quiet -p blt-quantize
cp "${CARGO_TARGET_DIR:-target}"/release/blt-bench "${CARGO_TARGET_DIR:-target}"/release/blt-info \
    "${CARGO_TARGET_DIR:-target}"/release/blt-quantize "${CARGO_TARGET_DIR:-target}"/release/examples/synthetic "$dir"
for kind in "--test cuda" --lib; do
    # shellcheck disable=SC2086
    test=$(cargo test -p blt --features cuda $kind --no-run --message-format=json 2> /dev/null |
        sed -n 's/.*"profile":{[^}]*"test":true}.*"executable":"\([^"]*\)".*/\1/p')
    cp "$test" "$dir/test-$(printf %s "$kind" | sed 's/.* //; s/^--//')"
done
cp -r "$fixtures" "$dir/fixtures"
cp benches/cuda/run.sh benches/cuda/torch_blt.py "$dir"
tar -C "$dir" -cf "$out" .
