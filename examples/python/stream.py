"""Continues a prompt: python3 stream.py MODEL PROMPT [N_BYTES [SEED]]"""

import sys

import blt


def main(model: str, prompt: str, n_bytes: str = "200", seed: str = "0") -> None:
    with blt.Model(model) as model_, blt.Session(model_, seed=int(seed)) as session:
        session.feed(prompt.encode())
        for byte in session.stream(int(n_bytes)):
            sys.stdout.buffer.write(byte)
            sys.stdout.buffer.flush()


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])
