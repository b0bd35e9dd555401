#!/usr/bin/env bash
# Install what benches/peers/run.py times beside blt into FOLDER: llama.cpp (its sources are in PyPI's package
# llama-cpp-python), PyTorch with transformers, and candle. Needs Python 3.10 or later, cargo and a C++ compiler;
# pip and cargo fetch the rest. About 12 GB and, on two idle cores, a quarter of an hour. What is there already is
# left as it is.
set -euo pipefail
(($# == 1)) || { echo "usage: setup.sh FOLDER" >&2; exit 2; }
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$1" && cd "$1"

[ -x py/bin/python ] || python3 -m venv py
py/bin/pip install -q cmake ninja scikit-build-core numpy gguf torch 'transformers==5.23.*' safetensors
PATH=$PWD/py/bin:$PATH

if [ ! -d llama ]; then
    # To read the package's metadata pip needs its build tool, scikit-build-core, which is installed by now.
    pip download -q --no-deps --no-build-isolation --no-binary :all: llama-cpp-python==0.3.36
    mkdir -p llama.part
    tar -xzf llama_cpp_python-*.tar.gz -C llama.part --strip-components 1
    mv llama.part llama
fi
source=llama/vendor/llama.cpp
cmake -G Ninja -S $source -B build -DCMAKE_BUILD_TYPE=Release -DGGML_NATIVE=ON -DGGML_CCACHE=OFF \
    -DLLAMA_BUILD_COMMON=OFF -DLLAMA_BUILD_TOOLS=OFF -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF >/dev/null
ninja -C build llama
cc -O2 -o llama_peer "$here/llama_peer.c" -I$source/include -I$source/ggml/include \
    -Lbuild/bin -lllama -lggml -lggml-base -Wl,-rpath,"$PWD/build/bin"
python "$here/shapes.py" gguf

mkdir -p candle
cp -r "$here/candle/." candle
RUSTFLAGS="-C target-cpu=native" cargo build --release --manifest-path candle/Cargo.toml
