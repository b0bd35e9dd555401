#!/usr/bin/env bash
# Measures every figure in README.md, benches/README.md and docs/training.md, and writes it there:
#
#   benches/report.sh [FOLDER [PART...]]
#
# FOLDER (default: benches/data, which git ignores) keeps models, peers and results: 35 GB of disk with everything.
# PART is a part of benches/report.py or benches/peers/run.py (their --help lists them), or `none`, which only
# writes the tables of kept results. The default is all parts. Peers are measured where
# `benches/peers/setup.sh FOLDER/peers` has been run, and `quality` where BLT_TEXT and BLT_MODELS are set.
# All parts take about half an hour; nothing else should run meanwhile.
set -euo pipefail
cd "$(dirname "$0")/.."
folder=${1:-benches/data}
shift || true
alone="convert opening memory cold context default quality training"
beside="generate prompt transformers matmul"
# shellcheck disable=SC2086 # the lists are split on purpose
(($#)) || set -- $alone $beside

ours=() theirs=()
for part; do
    if [ "$part" = quality ] && [ -z "${BLT_TEXT:-}" ]; then
        echo "report.sh: left out quality: BLT_TEXT and BLT_MODELS are not set" >&2
    elif [[ " $alone " == *" $part "* ]]; then
        ours+=("$part")
    elif [[ " $beside " != *" $part "* ]]; then
        [ "$part" = none ] || { echo "report.sh: expected one of $alone $beside none, found $part" >&2; exit 2; }
    elif [ -d "$folder/peers" ]; then
        theirs+=("$part")
    else
        echo "report.sh: left out $part: $folder/peers is missing" >&2
    fi
done

mkdir -p "$folder"
if ((${#ours[@]} + ${#theirs[@]})); then
    cargo build --release --workspace --bins --examples
fi
# blt alone first: benches/peers/run.py uses the models that benches/report.py makes.
((${#ours[@]} == 0)) || benches/report.py "$folder" "${ours[@]}"
((${#theirs[@]} == 0)) || benches/peers/run.py "$folder" "${theirs[@]}"
benches/report.py "$folder" --write README.md --write benches/README.md --write docs/training.md
