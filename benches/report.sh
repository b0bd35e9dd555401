#!/usr/bin/env bash
# Measures all that README.md and benches/README.md show, and writes it there: benches/report.sh [FOLDER]
#
# FOLDER (default: benches/data, which git ignores) keeps models, peers and results: 35 GB of disk with all. Peers
# are compared with where `benches/peers/setup.sh FOLDER/peers` has been run. Takes about half an hour; nothing
# else should run meanwhile. One part anew: benches/report.py FOLDER PART --write README.md
set -euo pipefail
cd "$(dirname "$0")/.."
folder=${1:-benches/data}
cargo build --release --workspace --bins --examples
mkdir -p "$folder"
benches/report.py "$folder" convert opening memory cold context default quality
if [ -d "$folder/peers" ]; then
    benches/peers/run.py "$folder" generate prompt transformers matmul
fi
benches/report.py "$folder" --write README.md --write benches/README.md
