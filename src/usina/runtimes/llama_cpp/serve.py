"""The program of a replica: llama.cpp's own HTTP server, by the library xllamacpp. Runs alone, without Usina.

It takes the options of ``llama-server`` that recipes use, so that the same command serves where that is installed. At
SIGTERM it takes what is asked until it is idle, and ends: who sends requests has been told before.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import threading
import urllib.request
from typing import Any

IDLE_LOOK = 0.2  # seconds between two looks whether it is idle
LONGEST = 600.0  # seconds that it waits to be


def options(words: list[str]) -> argparse.Namespace:
    """What the command says."""
    parser = argparse.ArgumentParser(prog="llama.cpp", allow_abbrev=False)
    parser.add_argument("--library", default="")
    parser.add_argument("--model", required=True)
    parser.add_argument("--alias", default="")
    parser.add_argument("--host", default="0.0.0.0")  # noqa: S104 - in a network of its own
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--ctx-size", type=int, default=0)
    parser.add_argument("--parallel", type=int, default=1)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--n-gpu-layers", type=int, default=0)
    parser.add_argument("--cache-type-k", default="f16")
    parser.add_argument("--cache-type-v", default="f16")
    parser.add_argument("--cache-ram", type=int, default=0)
    parser.add_argument("--chat-template", default="")
    parser.add_argument("--batch-size", type=int, default=2048)
    parser.add_argument("--ubatch-size", type=int, default=512)
    parser.add_argument("--pooling", default="")
    parser.add_argument("--lora-scaled", default="")
    for flag in ("--metrics", "--slots", "--embedding", "--jinja", "--no-webui"):
        parser.add_argument(flag, action="store_true")
    return parser.parse_args(words)


def parameters(library: Any, given: argparse.Namespace) -> Any:
    """The same as the library takes it."""
    wanted = library.CommonParams()
    wanted.model.path = given.model
    if given.alias:
        wanted.model_alias = set(given.alias.split(","))
    wanted.hostnames, wanted.port = [given.host], given.port
    wanted.n_ctx, wanted.n_parallel = given.ctx_size, given.parallel
    wanted.n_gpu_layers = given.n_gpu_layers
    wanted.cache_ram_mib = given.cache_ram
    wanted.cache_type_k = _cache_type(library, given.cache_type_k)
    wanted.cache_type_v = _cache_type(library, given.cache_type_v)
    wanted.n_batch, wanted.n_ubatch = given.batch_size, given.ubatch_size
    if given.pooling:
        wanted.pooling_type = getattr(library.llama_pooling_type, f"LLAMA_POOLING_TYPE_{given.pooling.upper()}")
    wanted.lora_adapters = [_adapter(library, *text.rsplit(":", 1)) for text in given.lora_scaled.split(",") if text]
    if given.threads:
        wanted.cpuparams.n_threads = wanted.cpuparams_batch.n_threads = given.threads
    if given.chat_template:
        wanted.chat_template = given.chat_template
    wanted.endpoint_metrics, wanted.endpoint_slots = given.metrics, given.slots
    wanted.embedding, wanted.ui = given.embedding, False
    wanted.warmup = False  # the health check is answered by the first who is ready, not by the first answer
    wanted.fit_params = False  # memory is worked out beforehand
    return wanted


def _adapter(library: Any, path: str, scale: str) -> Any:
    found = library.CommonAdapterLoraInfo()
    found.path, found.scale = path, float(scale)
    return found


def _cache_type(library: Any, name: str) -> Any:
    return getattr(library.ggml_type, f"GGML_TYPE_{name.upper()}")


def idle(address: str) -> bool:
    """Whether none of its slots is at work."""
    with urllib.request.urlopen(f"{address}/slots", timeout=5) as answer:  # noqa: S310 - our own
        return not any(slot.get("is_processing") for slot in json.load(answer))


def main(words: list[str]) -> None:
    given = options(words)
    if given.library:
        sys.path.append(given.library)
    asked = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: asked.set())
    import xllamacpp

    server = xllamacpp.Server(parameters(xllamacpp, given))
    print(f"serves {given.model} at {server.listening_address}", flush=True)
    while not asked.wait(3600):
        pass
    local = f"http://127.0.0.1:{given.port}"
    for _ in range(int(LONGEST / IDLE_LOOK)):
        try:
            if not given.slots or idle(local):
                break
        except (OSError, ValueError):
            break
        threading.Event().wait(IDLE_LOOK)
    print("ends", flush=True)
    del server


if __name__ == "__main__":
    main(sys.argv[1:])
