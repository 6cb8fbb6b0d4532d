"""The gateway of models on a real socket: its clients are OpenAI's and Anthropic's own, its replicas do as told."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path

import anthropic
import httpx2
import openai
import pytest

from usina.core.endpoint import Canary, Replica, ReplicaState, Shared, Variant
from usina.core.llm import Budget, Limits
from usina.core.tenancy import Key, Role
from usina.ports.llm import Call, Offered, Request, Sink, Streams
from usina.services.llm.journal import Journal
from usina.testing.llm import Parrot, RunningGateway, Site, parrots, running_gateway, token_of
from usina.testing.waiting import eventually

HI = [{"role": "user", "content": "hi"}]


class Day:
    """A gateway with an endpoint called chat, and a member's key."""

    def __init__(self, running: RunningGateway, key: Key) -> None:
        self.running, self.key, self.site = running, key, running.site
        self.gateway, self.ledger = running.gateway, running.ledger
        self.openai = openai.AsyncOpenAI(base_url=running.url, api_key=token_of(key), max_retries=0)

    @property
    def live(self):
        return self.gateway.lives["ept-chat"]

    async def chat(self, **more: object):
        return await self.openai.chat.completions.create(model="chat", messages=HI, **more)

    async def stream(self, **more: object) -> list[str]:
        stream = await self.chat(stream=True, **more)
        return [chunk.choices[0].delta.content async for chunk in stream if chunk.choices]

    async def settled(self, requests: int):
        """Usage, once so many requests are in the ledger."""

        async def ask() -> list:
            return list(self.ledger.usage)

        return await eventually(ask, lambda usage: sum(one.requests for one in usage) >= requests)


@asynccontextmanager
async def day(folder: Path, *birds: Parrot, limits: Limits | None = None, **spec: object) -> AsyncIterator[Day]:
    site = Site()
    site.project("lab")
    key = site.key("ann", project="prj-lab", limits=limits or Limits(), tnt_1=Role.MEMBER)
    async with parrots(*(birds or (Parrot(),))) as ports:
        site.endpoint("chat", "prj-lab", ports, **spec)
        async with running_gateway(folder / "gateway", site) as running:
            made = Day(running, key)
            yield made
            await made.openai.close()
            await eventually(_in_flight(made), lambda left: left == 0)
            assert not made.gateway._calls
            assert all(rates.running == 0 for rates in made.gateway._rates.values())
            assert all(purse.reserved == 0 for purse in made.gateway.purses.purses.values())


def _in_flight(made: Day):
    async def ask() -> int:
        return sum(live.in_flight + len(live.line) for live in made.gateway.lives.values())

    return ask


# --- the clients


async def test_openai_chats_streams_and_lists(tmp_path: Path) -> None:
    bird = Parrot()
    async with day(tmp_path, bird) as made:
        assert [model.id async for model in made.openai.models.list()] == ["chat"]
        assert (await made.openai.models.retrieve("chat")).id == "chat"
        answer = await made.chat()
        assert answer.choices[0].message.content == "hello there"
        assert await made.stream() == ["hello", " there"]
        chunks = [chunk async for chunk in await made.chat(stream=True, stream_options={"include_usage": True})]
        assert chunks[-1].usage is not None
        assert chunks[-1].usage.total_tokens == 9
        assert [body["model"] for body in bird.asked] == ["chat"] * 3
        usage = await made.settled(3)
        assert sum(one.prompt for one in usage) == 21
        assert sum(one.completion for one in usage) == 6


async def test_openai_without_asyncio(tmp_path: Path) -> None:
    async with day(tmp_path, Parrot(), Parrot()) as made:
        client = openai.OpenAI(base_url=made.running.url, api_key=token_of(made.key), max_retries=0)

        def talk() -> list[str]:
            words = [client.chat.completions.create(model="chat", messages=HI).choices[0].message.content]
            for chunk in client.chat.completions.create(model="chat", messages=HI, stream=True):
                words.append(chunk.choices[0].delta.content)
            client.close()
            return words

        assert await asyncio.to_thread(talk) == ["hello there", "hello", " there"]


async def test_a_request_id_is_told_and_the_clients_own_is_kept(tmp_path: Path) -> None:
    bird = Parrot()
    async with day(tmp_path, bird) as made:
        raw = await made.openai.chat.completions.with_raw_response.create(
            model="chat", messages=HI, extra_headers={"X-Request-Id": "mine-7"}
        )
        assert raw.headers["x-request-id"] == "mine-7"
        assert bird.heads[-1]["x-request-id"] == "mine-7"
        raw = await made.openai.chat.completions.with_raw_response.create(model="chat", messages=HI)
        assert raw.headers["x-request-id"].startswith("req-")


async def test_what_a_key_must_not_tell_replicas_is_not_told(tmp_path: Path) -> None:
    bird = Parrot()
    async with day(tmp_path, bird) as made:
        await made.chat(extra_headers={"Cookie": "a=b", "X-Api-Key": "", "Forwarded": "for=me"})
        assert {"authorization", "cookie", "x-api-key", "forwarded"}.isdisjoint(bird.heads[-1])


# --- errors


@pytest.mark.parametrize(
    ("order", "error", "code"),
    [
        ({"model": "nothing"}, openai.NotFoundError, "model_not_found"),
        ({"max_tokens": 99_999}, openai.BadRequestError, "context_length_exceeded"),
        ({"max_tokens": -1}, openai.BadRequestError, None),
        ({"messages": [{"role": "user", "content": "x" * 300_000}]}, openai.BadRequestError, "context_length_exceeded"),
    ],
)
async def test_errors_have_openais_shape(tmp_path: Path, order: dict, error: type, code: str | None) -> None:
    async with day(tmp_path, context=2048) as made:
        with pytest.raises(error) as caught:
            await made.openai.chat.completions.create(**({"model": "chat", "messages": HI} | order))
        assert caught.value.code == code
        assert caught.value.request_id


async def test_a_wrong_key_opens_nothing(tmp_path: Path) -> None:
    async with day(tmp_path) as made:
        stranger = made.openai.with_options(api_key="usk-ann-wrong")
        with pytest.raises(openai.AuthenticationError) as caught:
            await stranger.chat.completions.create(model="chat", messages=HI)
        assert caught.value.code == "invalid_api_key"
        with pytest.raises(openai.AuthenticationError):
            await stranger.models.list()


async def test_who_is_turned_away_leaves_nothing_behind(tmp_path: Path) -> None:
    """Not even for the look at who waits too long."""
    async with day(tmp_path) as made:
        for key, model in (("usk-x-y", "chat"), (token_of(made.key), "nothing")):
            with pytest.raises((openai.AuthenticationError, openai.NotFoundError)):
                await made.openai.with_options(api_key=key).chat.completions.create(model=model, messages=HI)
        made.gateway._sweep()
        assert not made.gateway._calls
        await made.chat()


async def test_what_was_made_a_moment_ago_is_looked_for_before_it_is_said_to_be_unknown(tmp_path: Path) -> None:
    async with day(tmp_path) as made:
        site, looks = made.site, 0

        async def look() -> None:
            nonlocal looks
            looks += 1
            made.running.publish()

        made.gateway._look = look
        await made.chat()
        assert not looks
        fresh = made.openai.with_options(api_key=token_of(site.key("bea", project="prj-lab", tnt_1=Role.MEMBER)))
        assert (await fresh.chat.completions.create(model="chat", messages=HI)).choices
        site.endpoints["ept-new"] = replace(site.endpoints["ept-chat"], id="ept-new", name="new")
        assert "new" in [model.id async for model in await fresh.models.list()]
        site.endpoints["ept-newer"] = replace(site.endpoints["ept-chat"], id="ept-newer", name="newer")
        assert (await fresh.chat.completions.create(model="newer", messages=HI)).choices
        assert looks == 3
        with pytest.raises(openai.NotFoundError):
            await fresh.chat.completions.create(model="newest", messages=HI)
        with pytest.raises(openai.AuthenticationError):
            await fresh.with_options(api_key="usk-cid-x").chat.completions.create(model="chat", messages=HI)
        assert looks == 5


async def test_where_nobody_can_look_what_is_known_decides(tmp_path: Path) -> None:
    async with day(tmp_path) as made:

        async def fails() -> None:
            raise OSError("the database is away")

        made.gateway._look = fails
        await made.chat()
        assert [model.id async for model in await made.openai.models.list()] == ["chat"]
        with pytest.raises(openai.NotFoundError):
            await made.openai.chat.completions.create(model="new", messages=HI)


async def test_who_leaves_while_it_is_looked_for_leaves_nothing_behind(tmp_path: Path) -> None:
    bird = Parrot()
    async with day(tmp_path, bird) as made:
        looking, go_on = asyncio.Event(), asyncio.Event()

        async def look() -> None:
            looking.set()
            await go_on.wait()

        begin, calls = made.gateway.begin, []

        def begun(request: Request, sink: Sink) -> Call:
            calls.append(begin(request, sink))
            return calls[-1]

        made.gateway._look, made.gateway.begin = look, begun
        asked = asyncio.create_task(made.openai.chat.completions.create(model="new", messages=HI))
        async with asyncio.timeout(10):
            await looking.wait()
        made.gateway._sweep()
        asked.cancel()
        await asyncio.gather(asked, return_exceptions=True)
        await eventually(lambda: asyncio.sleep(0, calls[0].over), bool)
        made.site.endpoints["ept-new"] = replace(made.site.endpoints["ept-chat"], id="ept-new", name="new")
        made.running.publish()
        go_on.set()
        await made.chat()
        assert len(bird.asked) == 1


async def test_a_fault_of_ours_is_an_error_and_not_a_silence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with day(tmp_path) as made:
        monkeypatch.setattr(type(made.gateway.book), "payer", lambda *_: 1 / 0)
        with pytest.raises(openai.InternalServerError) as caught:
            await made.chat()
        assert caught.value.status_code == 500
        monkeypatch.undo()
        await made.chat()


async def test_a_revoked_key_opens_nothing_from_the_next_look_on(tmp_path: Path) -> None:
    async with day(tmp_path) as made:
        await made.chat()
        made.site.keys[made.key.id] = replace(made.key, revoked_at=1.0)
        made.running.publish()
        with pytest.raises(openai.AuthenticationError):
            await made.chat()


async def test_errors_of_messages_have_anthropics_shape(tmp_path: Path) -> None:
    async with day(tmp_path) as made:
        base = made.running.url.removesuffix("/v1")
        async with anthropic.AsyncAnthropic(base_url=base, api_key=token_of(made.key), max_retries=0) as client:
            with pytest.raises(anthropic.NotFoundError) as caught:
                await client.messages.create(model="nothing", max_tokens=5, messages=HI)
            assert caught.value.body["error"]["type"] == "not_found_error"
            wrong = client.with_options(api_key="usk-x-y")
            with pytest.raises(anthropic.AuthenticationError):
                await wrong.messages.create(model="chat", max_tokens=5, messages=HI)


async def test_errors_of_replicas_have_the_form_that_clients_expect(tmp_path: Path) -> None:
    """vLLM tells of a path that it does not have as its framework does."""
    bird = Parrot(status=404, trouble={"detail": "Not Found"})
    async with day(tmp_path, bird) as made:
        with pytest.raises(openai.NotFoundError, match="what serves this model has no /embeddings") as refused:
            await made.openai.embeddings.create(model="chat", input="hi")
        assert refused.value.type == "invalid_request_error"
        bird.trouble = {"error": {"message": "as told", "type": "odd", "code": 7}}
        with pytest.raises(openai.NotFoundError) as kept:
            await made.chat()
        assert kept.value.body == {"message": "as told", "type": "odd", "code": 7}
        base = made.running.url.removesuffix("/v1")
        async with anthropic.AsyncAnthropic(base_url=base, api_key=token_of(made.key), max_retries=0) as client:
            with pytest.raises(anthropic.NotFoundError) as turned:
                await client.messages.create(model="chat", max_tokens=5, messages=HI)
        assert turned.value.body == {"type": "error", "error": {"type": "not_found_error", "message": "as told"}}
        assert [one.failed for one in await made.settled(3)] == [3]


async def test_an_adapter_is_asked_for_as_the_runtime_has_it(tmp_path: Path) -> None:
    bird = Parrot()
    adapters = {"law": Variant("a/law"), "fr": Variant("a/fr")}
    async with day(tmp_path, bird, adapters=adapters) as made:
        await made.openai.chat.completions.create(model="lab/chat:law", messages=HI)
        made.site.endpoints["ept-chat"] = replace(made.site.endpoints["ept-chat"], adapters_by="lora")
        made.running.publish()
        for name, more in (("chat:law", {}), ("chat:fr", {}), ("chat", {"lora": [{"id": 1, "scale": 1}]})):
            await made.openai.chat.completions.create(model=name, messages=HI, extra_body=more)
        base = made.running.url.removesuffix("/v1")
        async with anthropic.AsyncAnthropic(base_url=base, api_key=token_of(made.key), max_retries=0) as client:
            await client.messages.create(model="chat:law", max_tokens=5, messages=HI)
            await client.messages.create(model="chat", max_tokens=5, messages=HI)
            with suppress(anthropic.APIResponseValidationError):
                await client.messages.count_tokens(model="chat:law", messages=HI)
        french, law, neither = ([{"id": 0, "scale": x}, {"id": 1, "scale": y}] for x, y in ((1, 0), (0, 1), (0, 0)))
        assert [body["model"] for body in bird.asked] == ["law", *["chat"] * 6]
        assert [body.get("lora") for body in bird.asked] == [None, law, french, neither, law, neither, neither]
        paths = [head[":path"].removeprefix("/v1") for head in bird.heads]
        assert paths == ["/chat/completions"] * 6 + ["/messages/count_tokens"]


async def test_while_adapters_change_nobody_gets_another(tmp_path: Path) -> None:
    """Replicas that were made with others number them otherwise, or do not have them."""
    old, new = Parrot(), Parrot()
    async with day(tmp_path, old, new, adapters={"fr": Variant("a/fr"), "law": Variant("a/law")}) as made:
        offered = replace(made.site.endpoints["ept-chat"], adapters_by="lora")
        was, now = offered.replicas
        made.site.endpoints["ept-chat"] = replace(offered, replicas=(replace(was, adapters=("law",)), now))
        made.running.publish()
        for name in ["chat:law", "chat:fr"] * 6:
            await made.openai.chat.completions.create(model=name, messages=HI)
        assert all(body["lora"] == [{"id": 0, "scale": 1.0}] for body in old.asked)
        french = [{"id": 0, "scale": 1.0}, {"id": 1, "scale": 0.0}]
        assert [body["lora"] for body in new.asked].count(french) == 6, "only the new one has it"
        assert len(old.asked) + len(new.asked) == 12
        made.site.endpoints["ept-chat"] = replace(offered, replicas=(replace(was, adapters=("law",)),))
        made.running.publish()
        with pytest.raises(openai.InternalServerError, match="no replica with the adapter fr is free") as caught:
            await made.openai.chat.completions.create(model="chat:fr", messages=HI)
        assert (caught.value.status_code, caught.value.response.headers["retry-after"]) == (503, "2")
        await made.openai.chat.completions.create(model="chat:law", messages=HI)
        spare = Parrot(words=("from elsewhere",))
        async with parrots(spare) as ports:
            made.site.endpoint("spare", "prj-lab", ports)
            law = made.site.endpoints["ept-chat"]
            made.site.endpoints["ept-chat"] = replace(law, spec=replace(law.spec, fallback=("spare",)))
            made.running.publish()
            for name, text in (("chat:fr", "from elsewhere"), ("chat:law", "hello there")):
                answer = await made.openai.chat.completions.create(model=name, messages=HI)
                assert answer.choices[0].message.content == text


async def test_messages_are_made_chats_where_the_runtime_knows_nothing_else(tmp_path: Path) -> None:
    bird, deaf = Parrot(), Parrot(status=400)
    async with day(tmp_path, bird) as made, parrots(deaf) as ports:
        site = made.site
        site.endpoints["ept-chat"] = replace(site.endpoints["ept-chat"], messages=False)
        site.endpoints["ept-deaf"] = replace(site.endpoint("deaf", "prj-lab", ports), messages=False)
        made.running.publish()
        base = made.running.url.removesuffix("/v1")
        async with anthropic.AsyncAnthropic(base_url=base, api_key=token_of(made.key), max_retries=0) as client:
            answer = await client.messages.create(model="chat", max_tokens=5, system="Be short.", messages=HI)
            assert (answer.content[0].text, answer.stop_reason) == ("hello there", "end_turn")
            async with client.messages.stream(model="chat", max_tokens=5, messages=HI) as stream:
                assert [text async for text in stream.text_stream] == ["hello", " there"]
                final = await stream.get_final_message()
            assert (final.usage.input_tokens, final.usage.output_tokens) == (7, 2)
            with pytest.raises(anthropic.BadRequestError) as refused:
                await client.messages.create(model="deaf", max_tokens=5, messages=HI)
            assert refused.value.body["error"]["message"] == "as told"
            with pytest.raises(anthropic.BadRequestError, match="cannot count"):
                await client.messages.count_tokens(model="chat", messages=HI)
        assert [head[":path"] for head in bird.heads] == ["/v1/chat/completions"] * 2
        assert bird.asked[0]["messages"][0] == {"role": "system", "content": "Be short."}
        usage = await made.settled(3)
        assert (sum(one.prompt for one in usage), sum(one.completion for one in usage)) == (14, 4)


async def test_a_message_becomes_a_chat_when_it_falls_back_to_who_knows_only_those(tmp_path: Path) -> None:
    broken, other = Parrot(status=503), Parrot(words=("from", " elsewhere"))
    async with parrots(other) as ports, day(tmp_path, broken, fallback=("spare",)) as made:
        spare = made.site.endpoint("spare", "prj-lab", ports)
        made.site.endpoints[spare.id] = replace(spare, messages=False)
        made.running.publish()
        base = made.running.url.removesuffix("/v1")
        async with anthropic.AsyncAnthropic(base_url=base, api_key=token_of(made.key), max_retries=0) as client:
            answer = await client.messages.create(model="chat", max_tokens=5, messages=HI)
        assert answer.content[0].text == "from elsewhere"
        assert [bird.heads[0][":path"] for bird in (broken, other)] == ["/v1/messages", "/v1/chat/completions"]
        await made.settled(1)


async def _raw(made: Day, data: bytes) -> bytes:
    """All that is answered until the gateway closes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", made.running.port)
    writer.write(data)
    answer = b""
    try:
        with suppress(ConnectionResetError):  # as it closes without having read all
            async with asyncio.timeout(10):
                while more := await reader.read(1 << 20):
                    answer += more
        return answer
    finally:
        writer.close()


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"NONSENSE\r\n\r\n", 400),
        (b"GET /v1/models HTTP/1.1\r\nConnection: close\r\n" + b"X: " + b"y" * 70_000 + b"\r\n\r\n", 431),
        (b"POST /v1/chat/completions HTTP/1.1\r\nContent-Length: 99999999999\r\n\r\n", 413),
        (b"POST /v1/chat/completions HTTP/1.1\r\nContent-Length: 999999\r\n\r\n" + b"x" * 200_000, 401),
        (b"GET /v1/" + b"a" * 9000 + b" HTTP/1.1\r\n\r\n", 414),
        (b"GET /v1/../api HTTP/1.1\r\nConnection: close\r\n\r\n", 401),
        (b"DELETE /v1/models HTTP/1.1\r\nConnection: close\r\n\r\n", 401),
    ],
)
async def test_a_hostile_client_gets_a_status_and_no_more(tmp_path: Path, data: bytes, status: int) -> None:
    async with day(tmp_path) as made:
        answer = await _raw(made, data)
        assert answer.startswith(b"HTTP/1.1 %d " % status)


async def test_two_requests_at_once_on_a_connection_are_answered_in_order(tmp_path: Path) -> None:
    async with day(tmp_path) as made:
        one = f"GET /v1/models/chat HTTP/1.1\r\nAuthorization: Bearer {token_of(made.key)}\r\n"
        two = one.replace("/chat ", "/none ")
        data = (one + "\r\n" + two + "\r\n" + one + "Connection: close\r\n\r\n").encode()
        answer = await _raw(made, data)
        assert [part.split()[0] for part in answer.split(b"HTTP/1.1 ")[1:]] == [b"200", b"404", b"200"]


# --- limits


async def test_requests_per_minute_and_what_is_left(tmp_path: Path) -> None:
    async with day(tmp_path, limits=Limits(requests=2, tokens=10_000)) as made:
        raw = await made.openai.chat.completions.with_raw_response.create(model="chat", messages=HI, max_tokens=5)
        assert raw.headers["x-ratelimit-limit-requests"] == "2"
        assert raw.headers["x-ratelimit-remaining-requests"] == "1"
        await made.chat()
        with pytest.raises(openai.RateLimitError) as caught:
            await made.chat()
        assert caught.value.code == "rate_limit_exceeded"
        assert 1 <= int(caught.value.response.headers["retry-after"]) <= 30


async def test_concurrency_is_of_requests_that_are_open(tmp_path: Path) -> None:
    gate = asyncio.Event()
    async with day(tmp_path, Parrot(gate=gate), limits=Limits(concurrency=1)) as made:
        first = asyncio.create_task(made.chat())
        await eventually(_in_flight(made), lambda n: n == 1)
        with pytest.raises(openai.RateLimitError):
            await made.chat()
        gate.set()
        await first
        await made.chat()


async def test_a_key_for_some_models_sees_only_those(tmp_path: Path) -> None:
    async with day(tmp_path, limits=Limits(models=("other",))) as made:
        assert [model.id async for model in made.openai.models.list()] == []
        with pytest.raises(openai.NotFoundError):
            await made.chat()


# --- budgets


async def test_a_budget_is_used_to_its_end_and_not_beyond(tmp_path: Path) -> None:
    async with day(tmp_path, context=2048) as made:
        made.site.budgets["prj-lab"] = Budget("prj-lab", 1000)
        made.running.publish()
        done = 0

        async def until_refused() -> None:
            nonlocal done
            while done < 200:
                await made.chat(max_tokens=10)
                done += 1

        with pytest.raises(openai.RateLimitError) as caught:
            await until_refused()
        assert caught.value.code == "insufficient_quota"
        assert "project's budget" in str(caught.value)
        usage = await made.settled(done + 1)
        assert sum(one.prompt + one.completion for one in usage) == made.ledger.spent("prj-lab") == done * 9
        assert 1000 - 9 - 350 < done * 9 <= 1000


async def test_many_at_once_never_overspend(tmp_path: Path) -> None:
    async with day(tmp_path, Parrot(words=("word",) * 40), Parrot(words=("word",) * 40), context=512) as made:
        for scope, tokens in {"key-ann": 9000, "prj-lab": 7000, "tnt-1": 8000}.items():
            made.site.budgets[scope] = Budget(scope, tokens)
        made.running.publish()

        async def one(n: int) -> int:
            """Until it is refused; so many were served."""
            for done in range(100):
                try:
                    await (made.stream() if n % 2 else made.chat(max_tokens=40))
                except openai.RateLimitError:
                    return done
            return 100

        done = sum(await asyncio.gather(*(one(n) for n in range(10))))
        await made.settled(done + 10)
        assert done * 47 == made.ledger.spent("prj-lab") == made.ledger.spent("key-ann") <= 7000
        assert done * 47 > 7000 - 10 * 512  # all that is left was reserved by others when the last one was refused


async def test_the_rest_of_a_budget_is_the_limit_of_who_sets_none(tmp_path: Path) -> None:
    bird = Parrot()
    async with day(tmp_path, bird, context=100_000) as made:
        made.site.budgets["key-ann"] = Budget("key-ann", 2000)
        made.running.publish()
        await made.chat()
        assert 1000 < bird.asked[-1]["max_tokens"] < 2000


async def test_a_stream_cut_in_the_middle_is_charged_for_what_was_made(tmp_path: Path) -> None:
    gate = asyncio.Event()
    gate.set()
    bird = Parrot(words=[f"w{n} " for n in range(50)], gate=gate)
    async with day(tmp_path, bird, context=2048) as made:
        made.site.budgets["key-ann"] = Budget("key-ann", 10_000)
        made.running.publish()
        stream = await made.chat(stream=True)
        got = 0
        async for _ in stream:
            got += 1
            if got == 5:
                gate.clear()
                break
        await stream.close()
        usage = await made.settled(1)
        gate.set()
        assert 5 <= usage[0].completion < 50
        assert usage[0].failed == 1
        assert made.ledger.spent("key-ann") == usage[0].prompt + usage[0].completion

        async def left() -> int:
            return bird.gone

        await eventually(left, lambda gone: gone == 1)


class Witness:
    """A sink that looks, whenever it is given something, whether a gateway killed now would be charged for it."""

    full = False

    def __init__(self, made: Day, folder: Path) -> None:
        self._made, self._folder = made, folder
        self.seen: list[bool] = []
        self.over = asyncio.Event()

    def start(self, *head: object) -> None:
        pass

    def write(self, data: bytes) -> None:
        self.seen.append(bool(self._made.ledger.usage or Journal(self._folder).left(0).sums.usage()))

    def end(self) -> None:
        self.over.set()

    abort = end


@pytest.mark.parametrize("path", ["/chat/completions", "/responses", "/messages"])
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
async def test_nobody_has_the_last_of_an_answer_before_it_is_on_record(tmp_path: Path, path: str, stream: bool) -> None:
    async with day(tmp_path) as made:
        witness = Witness(made, tmp_path / "gateway")
        order = {"model": "chat", "messages": HI, "input": "hi", "stream": stream, "max_tokens": 5}
        head = {b"authorization": f"Bearer {token_of(made.key)}".encode()}
        made.gateway.begin(Request(b"POST", path, head, json.dumps(order).encode()), witness)
        await witness.over.wait()
        assert witness.seen[-1]


async def test_a_batch_whose_answer_was_lost_is_not_counted_twice(tmp_path: Path) -> None:
    async with day(tmp_path, context=2048) as made:
        made.site.budgets["key-ann"] = Budget("key-ann", 10_000)
        made.running.publish()
        made.ledger.deaf = 2
        for _ in range(3):
            await made.chat(max_tokens=5)
            await made.gateway._report()

        async def handed_over() -> bool:
            await made.gateway._report()
            return not made.gateway._batches

        await eventually(handed_over)
        assert sum(one.requests for one in made.ledger.usage) == 3
        assert made.ledger.spent("key-ann") == 27


async def test_a_clean_stop_leaves_no_lease_and_charges_what_is_open(tmp_path: Path) -> None:
    gate = asyncio.Event()
    bird = Parrot(words=("a", "b"), gate=gate)
    async with parrots(bird) as ports:
        site = Site()
        site.project("lab")
        key = site.key("ann", project="prj-lab", tnt_1=Role.MEMBER)
        site.endpoint("chat", "prj-lab", ports, context=2048)
        site.budgets["key-ann"] = Budget("key-ann", 10_000)
        async with running_gateway(tmp_path / "gateway", site) as running:
            made = Day(running, key)
            call = asyncio.create_task(made.chat())
            await eventually(_in_flight(made), lambda n: n == 1)
        ledger = running.ledger
        assert not ledger.leased
        assert [one.failed for one in ledger.usage] == [1]
        assert 0 < ledger.spent("key-ann") < 100  # its prompt, and not all that it had reserved
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)
        await made.openai.close()


# --- replicas


async def test_a_replica_that_fails_is_left_out_and_nobody_notices(tmp_path: Path) -> None:
    bad, good = Parrot(status=503), Parrot()
    async with day(tmp_path, bad, good) as made:
        for n in range(20):
            await made.openai.chat.completions.create(model="chat", messages=[{"role": "user", "content": f"{n}"}])
        assert len(good.asked) == 20
        assert 1 <= len(bad.asked) <= 5


async def test_a_replica_that_is_not_there_is_passed_over(tmp_path: Path) -> None:
    async with day(tmp_path, Parrot(), Parrot()) as made:
        offered = made.site.endpoints["ept-chat"]
        gone = replace(offered.replicas[0], port=1)
        made.site.endpoints["ept-chat"] = replace(offered, replicas=(gone, offered.replicas[1]))
        made.running.publish()
        for n in range(10):
            await made.openai.chat.completions.create(model="chat", messages=[{"role": "user", "content": f"{n}"}])


async def test_a_connection_closed_meanwhile_is_made_anew(tmp_path: Path) -> None:
    async with day(tmp_path, Parrot(one_answer=True)) as made:
        for _ in range(5):
            await made.chat()


async def test_a_slow_reader_slows_only_itself(tmp_path: Path) -> None:
    """What it does not take waits at the replica; and the connection serves the next one."""
    bird = Parrot(words=["x" * 50_000] * 400)
    async with day(tmp_path, bird) as made:
        body = json.dumps({"model": "chat", "messages": HI, "stream": True}).encode()
        head = f"POST /v1/chat/completions HTTP/1.1\r\nAuthorization: Bearer {token_of(made.key)}\r\n"
        reader, writer = await asyncio.open_connection("127.0.0.1", made.running.port)
        writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        await reader.read(1000)

        async def paused() -> bool:
            return any(one._paused for seat in made.live.seats.values() for one in seat.pool._all)

        await eventually(paused)
        assert bird.said < 400
        got = 0
        while got < 400 * 50_000:
            got += len(await reader.read(1 << 20))
        await made.settled(1)
        bird.words = ["ok"]
        assert await made.stream() == ["ok"]
        writer.close()


async def test_a_stream_that_breaks_off_is_not_tried_again(tmp_path: Path) -> None:
    bird, other = Parrot(words=["a", "b", "c"], cut_after=1), Parrot(words=["a", "b", "c"], cut_after=1)
    async with day(tmp_path, bird, other) as made:
        with pytest.raises((openai.APIError, httpx2.RemoteProtocolError)):
            await made.stream()
        assert len(bird.asked) + len(other.asked) == 1
        usage = await made.settled(1)
        assert (usage[0].completion, usage[0].failed) == (1, 1)


async def test_when_all_are_busy_one_waits_in_turns(tmp_path: Path) -> None:
    gate = asyncio.Event()
    async with day(tmp_path, Parrot(gate=gate), slots=1, waiting=3) as made:
        calls = [asyncio.create_task(made.chat()) for _ in range(4)]

        async def waiting() -> int:
            return len(made.live.line)

        await eventually(waiting, lambda n: n == 3)
        with pytest.raises(openai.InternalServerError) as caught:
            await made.chat()
        assert caught.value.status_code == 503
        assert caught.value.response.headers["retry-after"]
        gate.set()
        await asyncio.gather(*calls)


async def test_who_waits_and_leaves_takes_no_seat(tmp_path: Path) -> None:
    gate = asyncio.Event()
    bird = Parrot(gate=gate)
    async with day(tmp_path, bird, slots=1) as made:
        first = asyncio.create_task(made.chat())
        await eventually(_in_flight(made), lambda n: n == 1)
        second = asyncio.create_task(made.chat())
        await eventually(_in_flight(made), lambda n: n == 2)
        second.cancel()
        await eventually(_in_flight(made), lambda n: n == 1)
        gate.set()
        await first
        assert len(bird.asked) == 1


async def test_requests_wait_for_the_first_replica(tmp_path: Path) -> None:
    async with day(tmp_path) as made:
        offered = made.site.endpoints["ept-chat"]
        made.site.endpoints["ept-chat"] = replace(offered, replicas=())
        made.running.publish()
        call = asyncio.create_task(made.chat())

        async def told() -> int:
            load = made.ledger.loads.get("ept-chat")
            return load.waiting if load else 0

        await eventually(told, lambda n: n == 1)  # whoever scales knows
        made.site.endpoints["ept-chat"] = offered
        made.running.publish()
        assert (await call).choices[0].message.content == "hello there"


async def test_who_has_waited_too_long_is_told_when_to_come_again(tmp_path: Path) -> None:
    async with day(tmp_path, patience=0.5) as made:
        made.site.endpoints["ept-chat"] = replace(made.site.endpoints["ept-chat"], replicas=())
        made.running.publish()
        with pytest.raises(openai.InternalServerError) as caught:
            await made.chat()
        assert caught.value.status_code == 503
        assert caught.value.response.headers["retry-after"] == "5"


async def test_requests_under_way_at_an_endpoint_that_goes_are_told(tmp_path: Path) -> None:
    gate = asyncio.Event()
    async with day(tmp_path, Parrot(gate=gate)) as made:
        plain, streamed = asyncio.create_task(made.chat()), asyncio.create_task(made.stream())
        await eventually(_in_flight(made), lambda n: n == 2)
        live = made.live
        del made.site.endpoints["ept-chat"]
        made.running.publish()
        with pytest.raises(openai.InternalServerError):
            await plain
        with pytest.raises((openai.APIError, httpx2.RemoteProtocolError)):
            await streamed
        assert live.in_flight == 0


async def test_another_url_is_reached_by_other_connections(tmp_path: Path) -> None:
    """Above all because the secret that goes along may be for the other one only."""
    old, new = Parrot(), Parrot()

    async def connect(endpoint: Offered, replica: Replica) -> Streams:
        return await asyncio.open_connection("127.0.0.1", int(endpoint.spec.url.rpartition(":")[2]))

    site = Site()
    site.project("lab")
    key = site.key("ann", project="prj-lab", tnt_1=Role.MEMBER)
    async with parrots(old, new) as ports:
        site.endpoint("chat", "prj-lab", [0], runtime="external", url=f"http://one:{ports[0]}")
        async with running_gateway(tmp_path / "gateway", site, connect=connect) as running:
            made = Day(running, key)
            await made.chat()
            offered = site.endpoints["ept-chat"]
            site.endpoints["ept-chat"] = replace(offered, secret="only-for-two")
            running.replace("ept-chat", url=f"http://two:{ports[1]}")
            await made.chat()
            await made.openai.close()
    assert (len(old.asked), len(new.asked)) == (1, 1)
    assert "authorization" not in old.heads[0]
    assert new.heads[0]["authorization"] == "Bearer only-for-two"


async def test_a_draining_replica_gets_nothing_new(tmp_path: Path) -> None:
    one, two = Parrot(), Parrot()
    async with day(tmp_path, one, two) as made:
        offered = made.site.endpoints["ept-chat"]
        leaving = replace(offered.replicas[0], state=ReplicaState.DRAINING)
        made.site.endpoints["ept-chat"] = replace(offered, replicas=(leaving, offered.replicas[1]))
        made.running.publish()
        for n in range(8):
            await made.openai.chat.completions.create(model="chat", messages=[{"role": "user", "content": f"{n}"}])
        assert (len(one.asked), len(two.asked)) == (0, 8)


async def test_the_next_endpoint_of_the_chain_takes_over(tmp_path: Path) -> None:
    broken, other = Parrot(status=503), Parrot(words=("from", " elsewhere"))
    async with parrots(other) as ports, day(tmp_path, broken, fallback=("spare",)) as made:
        made.site.endpoint("spare", "prj-lab", ports)
        made.running.publish()
        assert (await made.chat()).choices[0].message.content == "from elsewhere"
        assert other.asked[-1]["model"] == "spare"
        assert (await made.settled(1))[0].endpoint == "ept-spare"


async def test_a_larger_endpoint_of_the_chain_uses_no_more_than_was_reserved(tmp_path: Path) -> None:
    broken, other = Parrot(status=503), Parrot()
    async with parrots(other) as ports, day(tmp_path, broken, fallback=("spare",), context=1024) as made:
        made.site.endpoint("spare", "prj-lab", ports, context=100_000)
        made.site.budgets["key-ann"] = Budget("key-ann", 5000)
        made.running.publish()
        await made.chat()
        assert 0 < other.asked[-1]["max_tokens"] < 1024
        await made.chat(max_tokens=20)  # fits as it is
        assert other.asked[-1]["max_tokens"] == 20
        long = [{"role": "user", "content": "x" * 5000}]
        with pytest.raises(openai.InternalServerError):  # there it might be 5,000 tokens long
            await made.openai.chat.completions.create(model="chat", messages=long, max_tokens=20)
        assert len(other.asked) == 2


async def test_a_canary_gets_its_share(tmp_path: Path) -> None:
    old, new = Parrot(), Parrot()
    trial = Variant("lab/cockatoo", "r2")
    async with day(tmp_path, old, new, canary=Canary(trial, 0.25)) as made:
        offered = made.site.endpoints["ept-chat"]
        replicas = (offered.replicas[0], replace(offered.replicas[1], variant=trial))
        made.site.endpoints["ept-chat"] = replace(offered, replicas=replicas)
        made.running.publish()
        for n in range(120):
            await made.openai.chat.completions.create(model="chat", messages=[{"role": "user", "content": f"{n}"}])
        assert 10 <= len(new.asked) <= 55
        usage = await made.settled(120)
        assert sum(one.requests for one in usage if one.model == trial.model) == len(new.asked)


async def test_what_a_tenant_shares_its_other_projects_use_and_pay_for(tmp_path: Path) -> None:
    async with day(tmp_path, shared=Shared.TENANT) as made:
        made.site.project("other")
        made.site.project("far", tenant="tnt-2")
        near = made.site.key("ben", project="prj-other", prj_other=Role.MEMBER)
        far = made.site.key("far", project="prj-far", prj_far=Role.MEMBER)
        made.running.publish()
        friend = made.openai.with_options(api_key=token_of(near))
        await friend.chat.completions.create(model="chat", messages=HI)
        assert (await made.settled(1))[0].project == "prj-other"
        with pytest.raises(openai.NotFoundError):
            await made.openai.with_options(api_key=token_of(far)).chat.completions.create(model="chat", messages=HI)


# --- a crash

LIFE = """
import asyncio, json, os, sys
from pathlib import Path
from usina.core.llm import Budget
from usina.testing import llm

class FileLedger(llm.MemoryLedger):
    '''Keeps what it was told in a file, as a database would.'''
    def __init__(self, path, budgets):
        super().__init__(budgets)
        self.path = path
        self.lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    def spent(self, scope):
        return sum(n for _, spent in self.lines for s, n in spent if s == scope)
    async def begin(self):
        return max((batch for batch, _ in self.lines), default=0)
    async def write(self, batch, usage, spent, loads):
        if batch > await self.begin() and (spent or usage):
            self.lines.append([batch, [[one.scope, one.tokens] for one in spent]])
            for one in spent:
                self.leased[one.scope] = self.leased.get(one.scope, 0) - one.tokens
            with self.path.open("a") as file:
                file.write(json.dumps(self.lines[-1]) + "\\n")

async def main(folder, port):
    site = llm.Site()
    site.project("lab")
    key = site.key("ann", project="prj-lab", tnt_1=llm.Role.MEMBER)
    site.endpoint("chat", "prj-lab", [port], context=512)
    site.budgets["key-ann"] = Budget("key-ann", 30000)
    ledger = FileLedger(folder / "ledger", site.budgets)
    async with llm.running_gateway(folder / "gateway", site, ledger) as running:
        print("ready", running.port, ledger.spent("key-ann"), flush=True)
        await asyncio.Event().wait()

asyncio.run(main(Path(sys.argv[1]), int(sys.argv[2])))
"""


@pytest.mark.slow
async def test_killed_in_the_middle_of_load_it_never_lets_a_key_overspend(tmp_path: Path) -> None:
    """Three lives, each killed while requests come and go; what replicas have made is never more than the budget, and
    what was answered in full is in the ledger."""
    bird = Parrot(words=("w",) * 20, prompt=5)
    site = Site()
    key = site.key("ann")
    answered = 0
    async with parrots(bird) as ports:
        for _ in range(4):
            process = _life(tmp_path, ports[0])
            try:
                assert process.stdout is not None
                port, spent = (await asyncio.to_thread(_first_words, process)).split()
                assert int(spent) >= answered * 25
                client = openai.AsyncOpenAI(
                    base_url=f"http://127.0.0.1:{port}/v1", api_key=token_of(key), max_retries=0
                )
                enough, done = asyncio.Event(), 0

                async def one(client: openai.AsyncOpenAI = client, enough: asyncio.Event = enough) -> int:
                    nonlocal done
                    finished = 0
                    with suppress(openai.APIError, OSError):
                        while True:
                            stream = await client.chat.completions.create(model="chat", messages=HI, stream=True)
                            if len([chunk async for chunk in stream]) == 20:
                                finished += 1
                                done += 1
                            if done >= 60:
                                enough.set()
                    return finished

                calls = [asyncio.create_task(one()) for _ in range(8)]
                waiting = asyncio.create_task(enough.wait())
                await asyncio.wait([waiting, *calls], return_when=asyncio.FIRST_COMPLETED)
                process.send_signal(signal.SIGKILL)
                process.wait()
                answered += sum(await asyncio.gather(*calls))
                waiting.cancel()
                await client.close()
            finally:
                process.kill()
                process.wait()
        ledger = [json.loads(line) for line in (tmp_path / "ledger").read_text().splitlines()]
        assert answered >= 200
        assert len(bird.asked) * 5 + bird.said <= 30_000
        assert sum(tokens for _, spent in ledger for _, tokens in spent) <= 30_000


def _life(folder: Path, port: int) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", LIFE, str(folder), str(port)], stdout=subprocess.PIPE, text=True)


def _first_words(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return next(line.removeprefix("ready ") for line in process.stdout if line.startswith("ready "))


# --- responses


async def test_a_response_is_made_of_a_chat(tmp_path: Path) -> None:
    bird = Parrot()
    async with day(tmp_path, bird) as made:
        answer = await made.openai.responses.create(model="chat", input="hi", instructions="be short")
        assert (answer.output_text, answer.status) == ("hello there", "completed")
        assert answer.usage is not None
        assert (answer.usage.input_tokens, answer.usage.output_tokens) == (7, 2)
        assert bird.heads[-1][":path"] == "/v1/chat/completions"
        assert bird.asked[-1]["messages"] == [
            {"role": "system", "content": "be short"},
            {"role": "user", "content": "hi"},
        ]


async def test_a_response_streams_every_event_that_the_client_counts_on(tmp_path: Path) -> None:
    async with day(tmp_path, Parrot()) as made:
        async with made.openai.responses.stream(model="chat", input="hi") as stream:
            kinds = [event.type async for event in stream]
            final = await stream.get_final_response()
        assert kinds == [
            "response.created",
            "response.in_progress",
            "response.output_item.added",
            "response.content_part.added",
            "response.output_text.delta",
            "response.output_text.delta",
            "response.output_text.done",
            "response.content_part.done",
            "response.output_item.done",
            "response.completed",
        ]
        assert final.output_text == "hello there"
        assert final.usage is not None
        assert final.usage.total_tokens == 9
        assert sum(one.completion for one in await made.settled(1)) == 2


@pytest.mark.parametrize(
    ("order", "param"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"input": [{"type": "computer_call_output"}]}, "input[0].type"),
    ],
)
async def test_what_a_response_cannot_be_made_of_is_named(tmp_path: Path, order: dict, param: str) -> None:
    async with day(tmp_path) as made:
        with pytest.raises(openai.BadRequestError) as caught:
            await made.openai.responses.create(**({"model": "chat", "input": "hi"} | order))
        assert caught.value.param == param


async def test_a_client_that_leaves_at_the_last_event_has_not_failed(tmp_path: Path) -> None:
    async with day(tmp_path) as made:
        for _ in range(3):
            await made.stream()
        assert sum(one.failed for one in await made.settled(3)) == 0
