#!/bin/sh
# Ends every program that writes, again and again, at random moments, and checks that nothing is lost and nothing left
# over:
#
#     tests/kills.sh [FOLDER OF THE PROGRAMS [ROUNDS [SIGNALS [PROGRAM]]]]      (default: target/release 200 "KILL TERM")
#
# For each of KILL and TERM and each program, one line with counts: rounds, how many of them the signal ended, and how
# many files were checked. The first thing that is wrong ends the script.
set -eu
cd "$(dirname "$0")/.."
bin=$(cd "${1:-target/release}" && pwd)
rounds=${2:-200}
signals=${3:-KILL TERM}
only=${4:-blt-}
model=$PWD/models/default.safetensors
bolmo=$PWD/tests/data/bolmo-sliding
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
mkdir out
i=0
while [ $i -lt 60 ]; do
    echo "$i little stars and $((i * i % 97)) moons"
    i=$((i + 1))
done > text.txt

fail() { echo "kills.sh: $*" >&2; exit 1; }
leftovers() { find out -name '.*' | wc -l; }
# A moment of up to $1 milliseconds.
moment() { awk -v seed="$2" -v most="$1" 'BEGIN { srand(seed); printf "%.3f", rand() * most / 1000 }'; }
step() { head -c 65536 "$1" | tr -d '\\' | grep -ao '"step":[0-9]*' | head -n 1 | cut -d: -f2; }

# rounds SIGNAL NAME MILLISECONDS: `run` is ended each time, within so long (0: as long as a whole run takes); `check`
# follows; `whole` must come to its end, at the start and at the end.
rounds() {
    signal=$1 name=$2 most=$3
    case $name in
    "$only"*) ;;
    *) return 0 ;;
    esac
    start=$(date +%s%N)
    whole > log 2>&1 || fail "$name: $(cat log)"
    [ "$most" != 0 ] || most=$((($(date +%s%N) - start) / 1000000))
    check
    n=0 ended=0
    while [ $n -lt "$rounds" ]; do
        n=$((n + 1))
        before
        run > log 2>&1 &
        pid=$!
        sleep "$(moment "$most" $n$$)"
        kill "-$signal" $pid 2> kill.log || true
        code=0
        # The shell reports each killed process there.
        wait $pid 2> kill.log || code=$?
        case $code in
        0) ;;
        137 | 143) ended=$((ended + 1)) ;;
        *) fail "$name: exit code $code: $(cat log)" ;;
        esac
        if grep -q panicked log; then fail "$name: $(cat log)"; fi
        check
        # TERM lets a program clean up; what a killed one leaves goes with the next.
        if [ "$signal" = TERM ] && [ "$(leftovers)" != 0 ]; then fail "$name: left over: $(find out -name '.*')"; fi
    done
    before
    whole > log 2>&1 || fail "$name: $(cat log)"
    check
    [ "$(leftovers)" = 0 ] || fail "$name: left over: $(find out -name '.*')"
    echo "$signal $name: $n rounds, $ended ended by the signal; nothing lost, nothing left over"
}

for signal in $signals; do
    # exec: the process that is ended is the program, not a shell around it.
    before() { :; }
    whole() { (run); }

    run() { exec "$bin/blt-quantize" "$model" out/model.safetensors --type q8_0 --quiet; }
    check() { "$bin/blt-info" out/model.safetensors --check --quiet > info || fail "a damaged model"; }
    rounds $signal blt-quantize 0

    before() { rm -rf out/hf; }
    before
    run() { exec "$bin/blt-quantize" "$model" out/hf --to hf --quiet --allow-loss; }
    check() { [ ! -e out/hf ] || "$bin/blt-info" out/hf --check --quiet > info || fail "a damaged folder"; }
    rounds $signal "blt-quantize --to hf" 0
    before() { :; }

    run() {
        exec "$bin/blt-merge" "$bolmo/model" "$bolmo/model" "$bolmo/model" out/merged.safetensors \
            --tokenizer "$bolmo/tokenizer/tokenizer.json" --quiet
    }
    check() { "$bin/blt-info" out/merged.safetensors --check --quiet > info || fail "a damaged model"; }
    rounds $signal blt-merge 0

    run() {
        exec "$bin/blt-score" -f text.txt --per-byte out/table.csv --html out/page.html \
            --dump out/dump.safetensors --quiet
    }
    check() {
        size=$(wc -c < out/dump.safetensors)
        [ "$size" = "${whole_size:=$size}" ] || [ "$signal" = TERM ] || fail "a damaged dump"
        lines=$(wc -l < out/table.csv)
        [ "$lines" = "${whole_lines:=$lines}" ] || [ "$signal" = TERM ] || fail "a damaged table"
        tail -c 9 out/page.html | grep -q '</html>' || fail "a damaged page"
    }
    rounds $signal blt-score 0

    rm -rf out/run
    last=0
    "$bin/blt-train" main --data text.txt --patching space --preset toy --seq-len 256 --batch 512 --threads 1 \
        --out out/run --steps 1 --quiet
    train() { exec "$bin/blt-train" main --resume --out out/run --save-every 1 --quiet --steps "$1"; }
    run() { train 1000000; }
    whole() { (train $((last + 2))); }
    check() {
        now=$(step out/run/state.safetensors)
        [ "$now" -ge $last ] || fail "step $now after step $last"
        last=$now
    }
    rounds $signal blt-train 400
done
