"""Three processes of one factory serve models on its port: what holds in one holds over all of them."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest

from usina.client import Client
from usina.testing.llm import Parrot, parrots
from usina.testing.process import FactoryProcess
from usina.testing.waiting import eventually, until

pytestmark = pytest.mark.slow

WORKERS, CLIENTS = 3, 10
HI = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 64}
MOST = 64 + 16 + 256 + 40  # tokens that such a request reserves, at most
Json = dict[str, Any]


@pytest.fixture(scope="module")
def factory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FactoryProcess]:
    folder = tmp_path_factory.mktemp("workers") / "data"
    with FactoryProcess(folder, local_host=False, private_urls=True, workers=WORKERS).start() as process:
        yield process


def pids(factory: FactoryProcess) -> list[int]:
    """The workers beside the main process."""
    found = Path(f"/proc/{factory.pid}/task").glob("*/children")
    children = [pid for file in found for pid in file.read_text().split()]
    return sorted(int(pid) for pid in children if b"usina.server.worker" in Path(f"/proc/{pid}/cmdline").read_bytes())


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes() != b""  # a dead one that nobody has buried has none
    except OSError:
        return False


def new_key(factory: FactoryProcess, name: str, **limits: int) -> Json:
    return factory.call("POST", "/keys", {"name": name, "project": "main", "limits": limits})


@asynccontextmanager
async def upstream(factory: FactoryProcess, name: str, bird: Parrot, slots: int = 1000) -> AsyncIterator[str]:
    """An endpoint of that name whose replica is `bird`."""
    async with parrots(bird) as (port,):
        order = {"name": name, "runtime": "external", "model": "parrot", "url": f"http://127.0.0.1:{port}/v1",
                 "context": 8192, "slots": slots}  # fmt: skip
        made = await asyncio.to_thread(factory.call, "POST", "/endpoints", order)
        await asyncio.to_thread(factory.phase, f"/endpoints/{made['id']}", "ready")
        yield name


@asynccontextmanager
async def lines(factory: FactoryProcess, count: int) -> AsyncIterator[list[httpx2.AsyncClient]]:
    """Clients, each with one connection."""
    limits = httpx2.Limits(max_connections=1)
    found = [httpx2.AsyncClient(base_url=factory.endpoint, limits=limits, trust_env=False) for _ in range(count)]
    try:
        yield found
    finally:
        for one in found:
            await one.aclose()


async def chat(line: httpx2.AsyncClient, key: Json, model: str) -> httpx2.Response:
    headers = {"Authorization": f"Bearer {key['token']}"}
    return await line.post("/v1/chat/completions", json=HI | {"model": model}, headers=headers, timeout=30)


async def known(factory: FactoryProcess, key: Json, count: int = 20) -> None:
    """Wait until every worker knows a key that was just made."""
    async with lines(factory, count) as clients:

        async def ask() -> set[int]:
            headers = {"Authorization": f"Bearer {key['token']}"}
            return {answer.status_code for answer in [await one.get("/v1/models", headers=headers) for one in clients]}

        await eventually(ask, lambda found: found == {200})


def served_by(answers: list[httpx2.Response]) -> set[str]:
    """What processes have answered: each begins its ids of requests differently."""
    return {answer.headers["x-request-id"][:16] for answer in answers}


async def test_all_of_them_serve_and_every_door_is_reached_through_any(factory: FactoryProcess) -> None:
    key = new_key(factory, "plain")
    await known(factory, key)
    async with upstream(factory, "chat", Parrot()) as model:
        clients = [
            openai.AsyncOpenAI(base_url=f"{factory.endpoint}/v1", api_key=key["token"], max_retries=0)
            for _ in range(40)
        ]
        ids = set()
        for client in clients:
            made = client.chat.completions.with_raw_response
            answer = await made.create(model=model, messages=HI["messages"])
            assert answer.parse().choices[0].message.content == "hello there"
            ids.add(answer.headers["x-request-id"][:16])
            stream = await client.chat.completions.create(model=model, messages=HI["messages"], stream=True)
            assert [part.choices[0].delta.content async for part in stream if part.choices] == ["hello", " there"]
            await client.close()
        assert len(ids) == WORKERS
    bearer = {"Authorization": f"Bearer {factory.token}"}
    async with lines(factory, 30) as clients:
        for one in clients:  # from door to door on one connection
            got = []
            for path in ("/v1/models", "/healthz", "/v1/models", "/api/v1/whoami", "/nowhere"):
                got.append((await one.get(path, headers=bearer)).status_code)
            assert got == [200, 200, 200, 200, 404]
        note = "n" * 300_000  # more than is read at once
        refused = await asyncio.gather(
            *(one.post("/api/v1/projects", json={"name": note}, headers=bearer) for one in clients)
        )
        assert {answer.status_code for answer in refused} <= {400, 413, 422}
    async with lines(factory, 30) as clients:  # the very first bytes are for another door
        assert {(await one.get("/api/v1/whoami", headers=bearer)).status_code for one in clients} == {200}
        page = (await clients[0].get("/metrics", headers=bearer)).text
    counts = [line for line in page.splitlines() if line.startswith("gen_ai_client_operation_duration_seconds_count")]
    assert sum(float(line.rpartition(" ")[2]) for line in counts) == 80
    assert page.count("# TYPE gen_ai_client_operation_duration_seconds histogram") == 1


async def test_a_console_is_reached_through_any(factory: FactoryProcess) -> None:
    """A WebSocket: a connection that is handed over and then speaks another protocol."""

    def speak() -> None:
        factory.call("POST", "/hosts", {"name": "stage", "driver": "fake"})
        factory.call("POST", "/images", {"name": "tiny", "recipe": "tiny"})
        factory.phase("/images/tiny", "ready", limit=90)
        machine = factory.call("POST", "/machines", {"name": "m1", "image": "tiny"})
        factory.phase(f"/machines/{machine['id']}", "running")
        with Client(factory.endpoint, factory.token) as client, ExitStack() as open:
            consoles = [open.enter_context(client.console(machine["id"])) for _ in range(24)]
            for number, console in enumerate(consoles):
                assert b"login: " in console.read(10)
                console.write(b"x" * 50_000 + b"%d" % number)
            for number, console in enumerate(consoles):
                assert console.read(10) == b"x" * 50_000 + b"%d" % number
        factory.delete(f"/machines/{machine['id']}")

    await asyncio.to_thread(speak)


async def test_rates_hold_over_all_of_them(factory: FactoryProcess) -> None:
    bird = Parrot()
    async with upstream(factory, "rated", bird) as model, lines(factory, 40) as clients:
        key = new_key(factory, "thirty", requests=30)
        await known(factory, key)
        answers = await asyncio.gather(*(chat(one, key, model) for one in clients for _ in range(2)))
        served = [answer for answer in answers if answer.status_code == 200]
        assert 30 <= len(served) <= 32  # a burst, and what came again meanwhile
        assert {answer.status_code for answer in answers} == {200, 429}
        assert len(served_by(served)) > 1
        few = new_key(factory, "three", concurrency=3)
        await known(factory, few)
        bird.gate = asyncio.Event()
        began = len(bird.asked)
        calls = [asyncio.create_task(chat(one, few, model)) for one in clients]

        async def waiting() -> int:
            return sum(not call.done() for call in calls)

        assert await eventually(waiting, lambda left: left <= 3) == 3
        assert len(bird.asked) - began == 3
        bird.gate.set()
        assert sorted([call.result().status_code for call in calls if (await call)])[:4] == [200, 200, 200, 429]
        bird.gate = None
        again = await asyncio.gather(*(chat(one, few, model) for one in clients[:3]))
        assert [answer.status_code for answer in again] == [200, 200, 200]


async def test_a_replica_gets_no_more_at_a_time_than_it_has_slots(factory: FactoryProcess) -> None:
    bird = Parrot(gate=asyncio.Event())
    assert bird.gate is not None
    async with upstream(factory, "narrow", bird, slots=2) as model, lines(factory, 17) as (other, *clients):
        key = new_key(factory, "many")
        await known(factory, key)
        calls: list[asyncio.Task[httpx2.Response]] = []

        async def asked() -> int:
            return len(bird.asked)

        for n, one in enumerate(clients[:2], 1):  # two that come at the very same time may both find the last slot
            calls.append(asyncio.create_task(chat(one, key, model)))
            await eventually(asked, lambda found, n=n: found == n)
        calls += [asyncio.create_task(chat(one, key, model)) for one in clients[2:]]

        async def waiting() -> float:
            page = (await other.get("/metrics", headers={"Authorization": f"Bearer {factory.token}"})).text
            found = [line for line in page.splitlines() if line.startswith("usina_gateway_waiting{")]
            return sum(float(line.rpartition(" ")[2]) for line in found)

        await eventually(waiting, lambda found: found == len(clients) - 2)
        assert len(bird.asked) == 2
        bird.gate.set()  # those that wait, wherever they do, are called when any process has made room
        assert {answer.status_code for answer in await asyncio.gather(*calls)} == {200}
        assert len(served_by([call.result() for call in calls])) > 1


async def test_a_budget_is_used_up_and_no_more_and_a_revoked_key_is_shut(factory: FactoryProcess) -> None:
    budget, each = 60_000, 202
    async with upstream(factory, "bought", Parrot(prompt=each - 2)) as model, lines(factory, 12) as clients:
        key = new_key(factory, "buyer")
        factory.call("PUT", f"/budgets/{key['id']}", {"tokens": budget, "every": "month"})
        await known(factory, key)
        answers: list[httpx2.Response] = []

        async def use(one: httpx2.AsyncClient) -> None:
            """Until it was refused for some seconds."""
            last = time.monotonic()
            while time.monotonic() - last < 4:
                answer = await chat(one, key, model)
                if answer.status_code == 200:
                    answers.append(answer)
                    last = time.monotonic()
                else:
                    assert answer.json()["error"]["code"] == "insufficient_quota"
                    await asyncio.sleep(0.2)

        await asyncio.gather(*map(use, clients))
        assert budget - 2 * MOST < len(answers) * each <= budget
        assert len(served_by(answers)) > 1

        def spent() -> int:
            return int(factory.call("GET", f"/budgets/{key['id']}")["spent"])

        await asyncio.to_thread(until, spent, lambda found: found == len(answers) * each)

        other = new_key(factory, "shut")
        await known(factory, other)
        assert {(await chat(one, other, model)).status_code for one in clients} == {200}
        factory.call("DELETE", f"/keys/{other['id']}")

        async def statuses() -> set[int]:
            return {(await chat(one, other, model)).status_code for one in clients}

        await eventually(statuses, lambda found: found == {401}, limit=5)


async def test_killed_one_after_the_other_they_lose_no_count(factory: FactoryProcess) -> None:
    """A worker in the middle of load, then the main process; what was answered counts, and no budget is overspent."""
    budget, each = 2_000_000, 12
    async with upstream(factory, "killed", Parrot(prompt=each - 2)) as model:
        key = new_key(factory, "survivor")
        factory.call("PUT", f"/budgets/{key['id']}", {"tokens": budget, "every": "month"})
        await known(factory, key)
        answered, asked, going = 0, 0, True

        async def use() -> None:
            nonlocal answered, asked
            async with lines(factory, 1) as (line,):
                while going:
                    with suppress(httpx2.TransportError):
                        asked += 1
                        answer = await chat(line, key, model)
                        assert answer.status_code == 200
                        answered += 1

        async def served() -> int:
            return answered

        calls = [asyncio.create_task(use()) for _ in range(CLIENTS)]
        await eventually(served, lambda found: found > 200)
        before = pids(factory)
        assert len(before) == WORKERS - 1
        os.kill(before[0], signal.SIGKILL)
        so_far = answered
        await eventually(served, lambda found: found > so_far + 200)

        async def back() -> list[int]:
            return pids(factory)

        after = await eventually(back, lambda now: len(now) == WORKERS - 1 and before[0] not in now, limit=30)
        log = factory.log.read_text()
        assert "a gateway worker has ended" in log
        so_far = answered
        await eventually(served, lambda found: found > so_far + 200)
        factory.kill()
        going = False
        await asyncio.gather(*calls)

        async def left() -> list[int]:
            return [pid for pid in after if is_alive(pid)]

        await eventually(left, lambda found: not found)

    def used() -> int:
        rows = factory.call("GET", "/usage", by="key")["items"]
        return sum(row["requests"] for row in rows if row["key"] == key["id"])

    factory.workers = 1  # whose successors do not come
    await asyncio.to_thread(factory.start)
    assert not pids(factory)
    assert not list((factory.data_dir / "gateway").glob("[0-9]*"))
    assert answered <= used() <= asked
    spent = int((await asyncio.to_thread(factory.call, "GET", f"/budgets/{key['id']}"))["spent"])
    assert answered * each <= spent <= budget
