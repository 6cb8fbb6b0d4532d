"""Adapters (LoRA) of random numbers for SmolLM2-135M, in GGUF: with one it answers, but otherwise."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy

RANK, HIDDEN, LAYERS = 8, 576, 30
WIDTHS = {"attn_q": 576, "attn_v": 192}


def write_adapter(path: Path, seed: int) -> Path:
    """As llama.cpp's ``convert_lora_to_gguf.py`` names its parts."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", 2.0 * RANK)
    numbers = numpy.random.default_rng(seed)
    for layer in range(LAYERS):
        for name, width in WIDTHS.items():
            for half, shape in (("a", (RANK, HIDDEN)), ("b", (width, RANK))):
                values = (numbers.standard_normal(shape) * 0.05).astype("float32")
                writer.add_tensor(f"blk.{layer}.{name}.weight.lora_{half}", values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
