"""Guards at the gateway, as the clients of OpenAI and Anthropic see them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import openai
import pytest
from prometheus_client import REGISTRY

from usina.core.llm import Budget
from usina.core.tenancy import Role
from usina.guards.patterns import PLUGIN
from usina.ports.guard import Found, Placed, Side
from usina.services.reach import Reach
from usina.testing.llm import Parrot, RunningGateway, Site, parrots, running_gateway, token_of
from usina.testing.waiting import eventually

CARD = "4111 1111 1111 1111"
PII = Placed("pii", PLUGIN.make({"redact": ["email", "card"]}, Reach()))
STRICT = Placed("strict", PLUGIN.make({"deny": ["words"], "words": ["falcon"]}, Reach()))


class _Waits:
    """The same, asked of somebody who takes a moment."""

    waits = answers = True
    closed = False

    async def look(self, texts: Any, side: Side, behind: int = 0) -> Found:
        await asyncio.sleep(0)
        found = PII.guard.look(texts, side, behind)
        assert isinstance(found, Found)
        return found

    async def close(self) -> None:
        self.closed = True


SLOW = Placed("slow", _Waits())


@asynccontextmanager
async def guarded(
    folder: Path, bird: Parrot, *names: str, placed: tuple[Placed, ...] = (PII, STRICT, SLOW), **spec: Any
) -> AsyncIterator[tuple[RunningGateway, openai.AsyncOpenAI]]:
    site = Site()
    site.project("lab")
    key = site.key("ann", project="prj-lab", tnt_1=Role.MEMBER)
    site.budgets["key-ann"] = Budget("key-ann", 100_000)
    async with parrots(bird) as ports:
        site.endpoint("chat", "prj-lab", ports, guards=names, context=2048, **spec)
        async with running_gateway(folder / "gateway", site, guards={one.name: one for one in placed}) as running:
            client = openai.AsyncOpenAI(base_url=running.url, api_key=token_of(key), max_retries=0)
            yield running, client
            await client.close()
            assert not running.gateway._calls
            assert all(purse.reserved == 0 for purse in running.gateway.purses.purses.values())


def asked(text: str) -> dict[str, Any]:
    return {"model": "chat", "messages": [{"role": "user", "content": text}]}


async def read(stream: Any) -> str:
    return "".join([chunk.choices[0].delta.content or "" async for chunk in stream if chunk.choices])


@pytest.mark.parametrize("name", ["pii", "slow"])
async def test_what_is_redacted_reaches_neither_replica_nor_client(tmp_path: Path, name: str) -> None:
    bird = Parrot(words=("pay", " with 4111 11", "11 1111", " 1111 now", *[" word"] * 200))
    async with guarded(tmp_path, bird, name) as (running, client):
        answer = await client.chat.completions.create(**asked("I am ann@example.org"))
        assert bird.asked[-1]["messages"][0]["content"] == "I am [email]"
        whole = "pay with [card] now" + " word" * 200
        assert answer.choices[0].message.content == whole
        stream = await client.chat.completions.create(
            **asked("hi"), stream=True, stream_options={"include_usage": True}
        )
        chunks = [chunk async for chunk in stream]
        assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == whole
        assert chunks[-1].usage is not None and chunks[-1].usage.completion_tokens == 204
        response = await client.responses.create(model="chat", input="hi")
        assert response.output_text == whole
        async with client.responses.stream(model="chat", input="mail ann@example.org") as events:
            final = await events.get_final_response()
        assert final.output_text == whole
        assert bird.asked[-1]["messages"][0]["content"] == "mail [email]"
        await eventually(_requests(running), lambda usage: sum(one.requests for one in usage) == 4)
        assert sum(one.completion for one in running.ledger.usage) == 4 * 204
        assert not sum(one.failed for one in running.ledger.usage)


def _requests(running: RunningGateway) -> Any:
    async def ask() -> list[Any]:
        return list(running.ledger.usage)

    return ask


async def test_what_is_denied_goes_nowhere_and_costs_nothing(tmp_path: Path) -> None:
    bird = Parrot()
    before = REGISTRY.get_sample_value("usina_gateway_guarded_total", {"guard": "strict", "verdict": "denied"}) or 0
    async with guarded(tmp_path, bird, "strict") as (running, client):
        with pytest.raises(openai.BadRequestError) as caught:
            await client.chat.completions.create(**asked("the FALCON flies"))
        assert caught.value.code == "content_filter"
        assert "strict" in str(caught.value) and "falcon" not in str(caught.value).lower()
        assert not bird.asked
        usage = await eventually(_requests(running), lambda usage: bool(usage))
        assert (usage[0].failed, usage[0].prompt, usage[0].completion) == (1, 0, 0)
        assert running.ledger.spent("key-ann") == 0
    labels = {"guard": "strict", "verdict": "denied"}
    assert REGISTRY.get_sample_value("usina_gateway_guarded_total", labels) == before + 1


async def test_an_answer_that_is_denied_is_charged_and_does_not_go_out(tmp_path: Path) -> None:
    bird = Parrot(words=(*["so "] * 300, "fal", "con ", *["on "] * 300))
    async with guarded(tmp_path, bird, "strict") as (running, client):
        with pytest.raises(openai.BadRequestError) as caught:
            await client.chat.completions.create(**asked("hi"))
        assert caught.value.code == "content_filter"
        chunks = [chunk async for chunk in await client.chat.completions.create(**asked("hi"), stream=True)]
        assert chunks[-1].choices[0].finish_reason == "content_filter"
        told = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
        assert told.startswith("so so") and "fal" not in told
        usage = await eventually(_requests(running), lambda usage: sum(one.requests for one in usage) == 2)
        assert usage[0].completion > 601
        assert running.ledger.spent("key-ann") > 601


async def test_anthropics_client_is_refused_in_its_own_words(tmp_path: Path) -> None:
    import anthropic

    async with guarded(tmp_path, Parrot(), "strict") as (running, client):
        base = running.url.removesuffix("/v1")
        async with anthropic.AsyncAnthropic(base_url=base, api_key=client.api_key, max_retries=0) as claude:
            with pytest.raises(anthropic.BadRequestError) as caught:
                await claude.messages.create(
                    model="chat", max_tokens=5, system="falcon", messages=[{"role": "user", "content": "hi"}]
                )
    assert caught.value.body["error"]["type"] == "invalid_request_error"


async def test_in_every_dialect_it_is_the_same(tmp_path: Path) -> None:
    """Messages, here made of chats; completions; and embeddings, whose texts only go in."""
    import anthropic

    bird = Parrot(
        words=(
            "pay with 4111 1111",
            " 1111 1111 now",
        )
    )
    hi: Any = [{"role": "user", "content": "mail ann@example.org"}]
    async with guarded(tmp_path, bird, "pii") as (running, client):
        endpoint = running.site.endpoints["ept-chat"]
        running.site.endpoints["ept-chat"] = replace(endpoint, messages=False)
        running.publish()
        base = running.url.removesuffix("/v1")
        async with anthropic.AsyncAnthropic(base_url=base, api_key=client.api_key, max_retries=0) as claude:
            message = await claude.messages.create(model="chat", max_tokens=5, messages=hi)
            assert message.content[0].text == "pay with [card] now"
            async with claude.messages.stream(model="chat", max_tokens=5, messages=hi) as stream:
                assert await stream.get_final_text() == "pay with [card] now"
                assert (await stream.get_final_message()).usage.output_tokens == 2
        await client.completions.create(model="chat", prompt="mail ann@example.org")
        await client.embeddings.with_raw_response.create(model="chat", input=["ann@example.org", "x"])
    told = [
        asked.get("messages", [{}])[0].get("content") or asked.get("prompt") or asked["input"] for asked in bird.asked
    ]
    assert told == ["mail [email]", "mail [email]", "mail [email]", ["[email]", "x"]]


async def test_guards_that_are_everywhere_need_not_be_asked_for_and_fallback_is_no_way_around(tmp_path: Path) -> None:
    everywhere = Placed("all", PII.guard, everywhere=True)
    bird, spare = Parrot(status=503), Parrot()
    async with parrots(spare) as ports:
        async with guarded(tmp_path, bird, placed=(everywhere, STRICT), fallback=("spare",)) as (running, client):
            running.site.endpoint("spare", "prj-lab", ports, guards=("strict",), context=2048)
            running.publish()
            await client.chat.completions.create(**asked("I am ann@example.org"))
            assert spare.asked[-1]["messages"][0]["content"] == "I am [email]"
            with pytest.raises(openai.BadRequestError):
                await client.chat.completions.create(**asked("falcon"))


async def test_a_guard_that_is_no_more_closes_the_endpoint_unless_it_was_to_be_open(tmp_path: Path) -> None:
    async with guarded(tmp_path, Parrot(), "old") as (running, client):
        with pytest.raises(openai.InternalServerError) as caught:
            await client.chat.completions.create(**asked("hi"))
        assert caught.value.code == "guard_unavailable"
        running.replace("ept-chat", guards_open=True)
        await client.chat.completions.create(**asked("hi"))


async def test_guards_are_closed_as_the_gateway_stops_whatever_they_make_of_it(tmp_path: Path) -> None:
    class Fails(_Waits):
        async def close(self) -> None:
            raise OSError("no")

    guard = _Waits()
    async with guarded(tmp_path, Parrot(), placed=(Placed("fails", Fails()), Placed("last", guard))):
        assert not guard.closed
    assert guard.closed


async def test_a_client_that_leaves_while_a_guard_is_asked_takes_nothing_with_it(tmp_path: Path) -> None:
    class Never(_Waits):
        async def look(self, texts: Any, side: Side, behind: int = 0) -> Found:
            if side is Side.ANSWER:
                reached.set()
                await asyncio.Event().wait()
            return Found()

    reached, bird = asyncio.Event(), Parrot()
    async with guarded(tmp_path, bird, "never", placed=(Placed("never", Never(), timeout=30),)) as (running, client):
        call = asyncio.create_task(client.chat.completions.create(**asked("hi")))
        await reached.wait()
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)
        usage = await eventually(_requests(running), lambda usage: bool(usage))
        assert usage[0].failed == 1


async def test_members_choose_guards_by_name(tmp_path: Path) -> None:
    from dataclasses import replace

    from usina.testing.factory import running as factory_running

    file = tmp_path / "guards.toml"
    file.write_text("[guards.pii]\nplugin = 'patterns'\nredact = ['email']\n")
    tune = lambda settings: replace(settings, guards=file, allow_private_urls=True)  # noqa: E731
    async with factory_running(tmp_path / "data", plugins={}, tune=tune) as factory, factory.client() as client:
        order = {"name": "far", "model": "m", "runtime": "external", "url": "http://127.0.0.1:9/v1"}
        wrong = await client.post("/endpoints", json=order | {"guards": ["nope"]})
        assert wrong.status_code == 422 and "there are pii" in wrong.text
        made = await client.post("/endpoints", json=order | {"guards": ["pii"]})
        assert made.json()["spec"]["guards"] == ["pii"], made.text
        wrong = await client.patch("/endpoints/far", json={"guards": ["pii", "nope"]})
        assert wrong.status_code == 422 and "guards[1]" in wrong.text
