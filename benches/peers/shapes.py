"""Write the GGUF files that llama.cpp is timed with: shapes.py FOLDER

Each of the four transformers of the blt-1b shape as a Llama model of its own, with random weights and no
tokenizer. What BLT has beside them (cross-attention, hash tables, pooling) no Llama has, so llama.cpp is
spared it.
"""

import pathlib
import sys

import gguf
import numpy

# layers, width, heads, feed-forward width
STACKS = {
    "global": (25, 2048, 16, 5632),
    "decoder": (9, 1024, 16, 2816),
    "encoder": (1, 1024, 16, 2816),
    "entropy": (14, 768, 12, 2048),
}
TYPES = {
    "bf16": (gguf.GGMLQuantizationType.BF16, gguf.LlamaFileType.MOSTLY_BF16),
    "q8_0": (gguf.GGMLQuantizationType.Q8_0, gguf.LlamaFileType.MOSTLY_Q8_0),
    "q4_0": (gguf.GGMLQuantizationType.Q4_0, gguf.LlamaFileType.MOSTLY_Q4_0),
}
VOCABULARY = 260


def write(path: pathlib.Path, stack: str, name: str) -> None:
    layers, width, heads, hidden = STACKS[stack]
    dtype, file_type = TYPES[name]
    random = numpy.random.default_rng(7)
    encoded = {}

    def matrix(rows: int, cols: int) -> numpy.ndarray:
        # Where the numbers lie in memory costs time, not what they are: one set for each shape.
        if (rows, cols) not in encoded:
            values = random.uniform(-1.7, 1.7, (rows, cols)).astype(numpy.float32) / numpy.float32(cols**0.5)
            encoded[rows, cols] = gguf.quants.quantize(values, dtype)
        return encoded[rows, cols]

    out = gguf.GGUFWriter(path, "llama")
    out.add_file_type(file_type)
    out.add_tokenizer_model("no_vocab")
    out.add_vocab_size(VOCABULARY)
    out.add_context_length(8192)
    out.add_block_count(layers)
    out.add_embedding_length(width)
    out.add_feed_forward_length(hidden)
    out.add_head_count(heads)
    out.add_head_count_kv(heads)
    out.add_rope_dimension_count(width // heads)
    out.add_rope_freq_base(5e5)
    out.add_layer_norm_rms_eps(1e-5)

    ones = numpy.ones(width, dtype=numpy.float32)
    shapes = {"token_embd": (VOCABULARY, width), "output": (VOCABULARY, width)}
    norms = ["output_norm"]
    for layer in range(layers):
        block = f"blk.{layer}."
        norms += [block + "attn_norm", block + "ffn_norm"]
        shapes |= {block + f"attn_{x}": (width, width) for x in ("q", "k", "v", "output")}
        shapes |= {block + "ffn_gate": (hidden, width), block + "ffn_up": (hidden, width), block + "ffn_down": (width, hidden)}
    for norm in norms:
        out.add_tensor(norm + ".weight", ones)
    for tensor, shape in shapes.items():
        out.add_tensor(tensor + ".weight", matrix(*shape), raw_dtype=dtype)
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()


def main() -> None:
    folder = pathlib.Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for stack in STACKS:
        for name in TYPES:
            path = folder / f"{stack}.{name}.gguf"
            if not path.exists():
                part = path.with_suffix(".part")
                write(part, stack, name)
                part.rename(path)


main()
