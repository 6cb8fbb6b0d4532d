"""Facts about a model from its files: GGUF headers, configuration, safetensors headers. Only headers are read.

Files come from tenants, and a header may be made to keep a reader busy for ever: `reader` runs this module as a process
of its own with limits. As a program it reads ``{path in the repository: place}`` as JSON on standard input and writes
the facts as JSON.
"""

from __future__ import annotations

import json
import re
import resource
import struct
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from math import prod
from pathlib import Path
from typing import Any

from usina.core.model import ModelFacts
from usina.core.units import GiB, MiB

CPU = 60  # seconds
MEMORY = 2 * GiB
LARGEST_CONFIG = 8 * MiB
LARGEST_HEADER = 64 * MiB
_SHARD = re.compile(r"-\d{5}-of-\d{5}\.gguf\Z")
_BESIDE = ("mmproj", "imatrix", "consolidated")  # weights of something else, or the same again
_ENCODERS = {"bert", "nomic-bert", "nomic-bert-moe", "jina-bert-v2", "xlm-roberta", "roberta", "mpnet", "modernbert"}
_POOLING = ("modules.json", "1_Pooling/config.json", "config_sentence_transformers.json")
_PACKED = {"I8", "I16", "I32", "I64", "U8", "U16", "U32", "U64"}  # what quantized weights are kept in


def read(files: Mapping[str, Path]) -> ModelFacts:
    """The facts that `files` tell; empty where there is nothing that tells any. Raises what broken files raise."""
    ggufs = sorted(path for path in files if path.endswith(".gguf") and not _beside(path))
    if ggufs:
        shards = [path for path in ggufs if _SHARD.sub("", path) == _SHARD.sub("", ggufs[0])]
        return _gguf([files[path] for path in shards])
    weights = [place for path, place in files.items() if path.endswith(".safetensors") and not _beside(path)]
    config = _json(files["config.json"]) if "config.json" in files else {}
    return _transformers(config, weights, any(path in files for path in _POOLING))


def tells(path: str) -> bool:
    return path.endswith((".gguf", ".safetensors")) or path in ("config.json", *_POOLING)


def _beside(path: str) -> bool:
    return "/" in path or path.startswith(_BESIDE)


# --- GGUF (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md)


LONG = 1024
"""An array of a header with more values than this is a vocabulary; only its length is of interest."""


def _opened(place: Path) -> Any:
    """A reader of the header that steps over vocabularies: the library makes several objects of each word of them."""
    import gguf  # an optional part of the house
    from gguf.constants import GGUFValueType

    class Headers(gguf.GGUFReader):
        data: Any  # the file, mapped into memory

        def _get_field_parts(self, orig_offs: int, raw_type: int) -> tuple[int, list[Any], list[int], list[Any]]:
            if raw_type == GGUFValueType.ARRAY:
                inner, length = struct.unpack_from("<IQ", memoryview(self.data), orig_offs)
                if length > LONG:
                    end = _past(self.data, orig_offs + 12, inner, length)
                    return end - orig_offs, [], range(length), [GGUFValueType.ARRAY]  # type: ignore[return-value]
            return super()._get_field_parts(orig_offs, raw_type)

    return Headers(place)


def _past(data: Any, at: int, kind: int, length: int) -> int:
    """Where an array of a header ends that has its first value at `at`."""
    view = memoryview(data)
    if kind != _STRING:
        at += _WIDTHS[kind] * length
        if at > len(view):
            raise ValueError("the header ends early")
        return at
    for _ in range(length):
        at += 8 + int.from_bytes(view[at : at + 8], "little")
        if at > len(view):
            raise ValueError("the header ends early")
    return at


_STRING = 8  # of GGUF's types of values
_WIDTHS = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}


def _gguf(shards: list[Path]) -> ModelFacts:
    readers = [_opened(place) for place in shards]
    fields = readers[0].fields

    def said(key: str) -> Any:
        field = fields.get(key)
        return None if field is None else field.contents()

    architecture = str(said("general.architecture") or "")

    def number(key: str) -> int:
        value = said(f"{architecture}.{key}")
        numbers = value if isinstance(value, list) else [value]  # some differ from layer to layer
        return max((int(one) for one in numbers if isinstance(one, int)), default=0)

    heads, hidden = number("attention.head_count"), number("embedding_length")
    tokens = fields.get("tokenizer.ggml.tokens")
    return ModelFacts(
        architecture=architecture,
        parameters=sum(int(tensor.n_elements) for reader in readers for tensor in reader.tensors),
        dtype=_file_type(said("general.file_type"), [t.tensor_type.name for t in readers[0].tensors]),
        layers=number("block_count"),
        heads=heads,
        kv_heads=number("attention.head_count_kv") or heads,
        head_size=number("attention.key_length") or (hidden // heads if heads else 0),
        hidden=hidden,
        vocabulary=number("vocab_size") or (len(tokens.data) if tokens is not None else 0),
        context=number("context_length"),
        embeddings=architecture in _ENCODERS or number("pooling_type") > 0,
    )


def _file_type(number: Any, tensors: list[str]) -> str:
    """``MOSTLY_Q4_1`` → ``q4_1``; where the file does not say it, what most of its tensors are."""
    from gguf import LlamaFileType

    if isinstance(number, int):
        try:
            return LlamaFileType(number).name.removeprefix("ALL_").removeprefix("MOSTLY_").lower()
        except ValueError:
            pass
    return Counter(tensors).most_common(1)[0][0].lower() if tensors else ""


# --- transformers


def _transformers(config: Mapping[str, Any], weights: list[Path], pooled: bool) -> ModelFacts:
    text = config.get("text_config")  # of models that see as well
    inner: Mapping[str, Any] = {**config, **text} if isinstance(text, dict) else config

    def number(*keys: str) -> int:
        return next((v for key in keys if isinstance(v := inner.get(key), int) and v > 0), 0)

    elements: Counter[str] = Counter()
    for place in weights:
        elements.update(_safetensors(place))
    heads, hidden = number("num_attention_heads", "n_head", "num_heads"), number("hidden_size", "n_embd", "d_model")
    packed = sum(count for dtype, count in elements.items() if dtype in _PACKED)
    return ModelFacts(
        architecture=str(config.get("model_type") or "")[:64],
        parameters=0 if packed * 2 > elements.total() else elements.total() - packed,
        dtype=_dtype(config, elements),
        layers=number("num_hidden_layers", "n_layer", "num_layers"),
        heads=heads,
        kv_heads=number("num_key_value_heads", "num_kv_heads") or heads,
        head_size=number("head_dim") or (hidden // heads if heads else 0),
        hidden=hidden,
        vocabulary=number("vocab_size"),
        context=number("max_position_embeddings", "n_positions", "max_seq_len", "seq_length"),
        embeddings=pooled or _is_encoder(config),
    )


def _is_encoder(config: Mapping[str, Any]) -> bool:
    names = config.get("architectures")
    named = [str(name) for name in names] if isinstance(names, list) else []
    return config.get("model_type") in _ENCODERS and any(name.endswith("Model") for name in named)


def _dtype(config: Mapping[str, Any], elements: Counter[str]) -> str:
    quantized = config.get("quantization_config")
    if isinstance(quantized, dict) and quantized.get("quant_method"):
        return str(quantized["quant_method"])[:32].lower()
    if elements:
        return elements.most_common(1)[0][0].lower()
    said = str(config.get("dtype") or config.get("torch_dtype") or "")
    return {"bfloat16": "bf16", "float16": "f16", "float32": "f32"}.get(said, said[:32])


def _safetensors(place: Path) -> Counter[str]:
    """dtype → elements. The header: 8 bytes of length, little endian, then JSON
    (https://github.com/huggingface/safetensors)."""
    with place.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        if size > LARGEST_HEADER:
            raise ValueError("the header is too long")
        header = json.loads(file.read(size))
    elements: Counter[str] = Counter()
    for name, tensor in header.items():
        if name != "__metadata__":
            elements[str(tensor["dtype"])] += prod(int(length) for length in tensor["shape"])
    return elements


def _json(place: Path) -> dict[str, Any]:
    with place.open("rb") as file:
        found = json.loads(file.read(LARGEST_CONFIG))
    return found if isinstance(found, dict) else {}


def main() -> None:
    resource.setrlimit(resource.RLIMIT_CPU, (CPU, CPU))
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    files = json.load(sys.stdin)
    json.dump(asdict(read({path: Path(place) for path, place in files.items()})), sys.stdout)


if __name__ == "__main__":
    main()
