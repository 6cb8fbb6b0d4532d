"""A gateway of models by itself: a ledger in memory, replicas that are ports of this machine, and a socket to call."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from usina.core.endpoint import EndpointSpec, Load, Replica, ReplicaState, Variant
from usina.core.llm import UNLIMITED, Budget, Limits, Usage, period
from usina.core.tenancy import Key, Member, Project, Role
from usina.facades.openai.lane import lane
from usina.ports.llm import Dial, Directory, Offered, Slice, Spend, Streams
from usina.services.llm.gateway import LlmGateway

VARIANT = Variant("lab/parrot", "r1")


class MemoryLedger:
    """A ledger without a database, as exact as the real one."""

    def __init__(self, budgets: dict[str, Budget] | None = None, now: Callable[[], float] = lambda: 1e9) -> None:
        self.budgets = budgets if budgets is not None else {}
        self.batches: dict[int, tuple[Sequence[Usage], Sequence[Spend]]] = {}
        self.loads: Mapping[str, Load] = {}
        self.leased: dict[str, int] = {}
        self.asked = 0
        self.deaf = 0  # so many writes are done, and their answer is lost
        self._now = now

    @property
    def usage(self) -> list[Usage]:
        return [one for usage, _ in self.batches.values() for one in usage]

    def spent(self, scope: str) -> int:
        return sum(one.tokens for _, spent in self.batches.values() for one in spent if one.scope == scope)

    async def begin(self) -> int:
        return max(self.batches, default=0)

    async def write(
        self, batch: int, usage: Sequence[Usage], spent: Sequence[Spend], loads: Mapping[str, Load]
    ) -> None:
        if batch > max(self.batches, default=0):
            self.batches[batch] = (usage, spent)
            for one in spent:
                self.leased[one.scope] = self.leased.get(one.scope, 0) - one.tokens
        self.loads = loads
        if self.deaf:
            self.deaf -= 1
            raise ConnectionError("the answer was lost")

    async def lease(self, wanted: Mapping[str, int]) -> Sequence[Slice]:
        self.asked += 1
        await asyncio.sleep(0)
        return [self._lease(self.budgets[scope], least) for scope, least in wanted.items() if scope in self.budgets]

    def _lease(self, budget: Budget, least: int) -> Slice:
        began_at, ends_at = period(budget.every, self._now())
        left = max(0, budget.tokens - self.spent(budget.scope) - self.leased.get(budget.scope, 0))
        tokens = min(left, max(least, left // 2))
        self.leased[budget.scope] = self.leased.get(budget.scope, 0) + tokens
        return Slice(budget.scope, began_at, ends_at, tokens)

    async def dry(self, scopes: Sequence[str]) -> Sequence[str]:
        used = {scope: self.spent(scope) + self.leased.get(scope, 0) for scope in scopes}
        return [scope for scope in scopes if scope in self.budgets and used[scope] >= self.budgets[scope].tokens]

    async def give_back(self, slices: Sequence[Slice]) -> None:
        for one in slices:
            self.leased[one.scope] -= one.tokens

    async def give_back_all(self) -> None:
        self.leased.clear()


def secret_of(key: Key) -> str:
    return sha256(f"{key.id}:{key.version}".encode()).hexdigest()


def token_of(key: Key) -> str:
    return f"usk-{key.id.removeprefix('key-')}-{secret_of(key)}"


@dataclass(slots=True)
class Site:
    """What the directory says; change it and `publish`."""

    keys: dict[str, Key] = field(default_factory=dict)
    members: dict[str, Member] = field(default_factory=dict)
    projects: dict[str, Project] = field(default_factory=dict)
    endpoints: dict[str, Offered] = field(default_factory=dict)
    budgets: dict[str, Budget] = field(default_factory=dict)

    def project(self, name: str, tenant: str = "tnt-1") -> Project:
        project = self.projects[f"prj-{name}"] = Project(f"prj-{name}", tenant, name, 0.0)
        return project

    def key(self, name: str, project: str | None = None, limits: Limits = UNLIMITED, **roles: Role) -> Key:
        """A key of a member of its own; `roles` by scope, "_" for "-"."""
        held = {scope.replace("_", "-"): role for scope, role in roles.items()}
        self.members[f"mbr-{name}"] = Member(f"mbr-{name}", "tnt-1", name, 0.0, roles=held)
        key = self.keys[f"key-{name}"] = Key(f"key-{name}", f"mbr-{name}", name, 0.0, project=project, limits=limits)
        return key

    def endpoint(self, name: str, project: str, ports: Sequence[int], **spec: Any) -> Offered:
        variant, adapters = spec.get("variant", VARIANT), tuple(sorted(spec.get("adapters", ())))
        replicas = tuple(
            Replica(f"tsk-{name}-{n}", ReplicaState.READY, variant, handle=f"{n}", port=port, adapters=adapters)
            for n, port in enumerate(ports)
        )
        wish = replace(EndpointSpec(VARIANT, "parrot", maximum=4, slots=1000), **spec)
        owner = self.projects[project]
        offered = Offered(f"ept-{name}", owner.tenant, project, name, wish, replicas)
        self.endpoints[offered.id] = offered
        return offered

    def directory(self) -> Directory:
        return Directory(
            dict(self.keys), dict(self.members), dict(self.projects), dict(self.endpoints), dict(self.budgets)
        )


@dataclass(slots=True)
class Parrot:
    """An upstream that does what a test tells it: says `words`, with a status, slowly, or only so far."""

    words: Sequence[str] = ("hello", " there")
    prompt: int = 7  # tokens that it says it was asked
    status: int = 200
    trouble: object = field(default_factory=lambda: {"error": {"message": "as told", "type": "server_error"}})  # else
    cut_after: int = -1  # words, after which it closes the connection
    gate: asyncio.Event | None = None  # held before each word of a stream, and before a plain answer
    tells_usage: bool = True
    one_answer: bool = False  # for each connection, though it says nothing of closing
    asked: list[dict[str, Any]] = field(default_factory=list)
    heads: list[dict[str, str]] = field(default_factory=list)
    said: int = 0  # words of streams
    gone: int = 0  # clients that left in the middle
    port: int = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await self._one(reader, writer) and not self.one_answer:
                pass
        except (ConnectionError, asyncio.IncompleteReadError):
            self.gone += 1
        except asyncio.CancelledError:
            pass  # the test is over, and nobody waits for this
        finally:
            writer.close()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        except asyncio.IncompleteReadError:
            return False
        headers = dict(line.split(": ", 1) for line in head[1:] if line)
        body = json.loads(await reader.readexactly(int(headers["content-length"])))
        self.asked.append(body)
        self.heads.append({":path": head[0].split()[1], **headers})
        if self.status != 200:
            self._plain(writer, self.status, self.trouble)
        elif body.get("stream"):
            return await self._stream(body, writer)
        else:
            await self._pass()
            self._plain(writer, 200, self._answer())
        await writer.drain()
        return True

    def _answer(self) -> dict[str, Any]:
        message = {"role": "assistant", "content": "".join(self.words)}
        answer: dict[str, Any] = {"id": "c1", "object": "chat.completion", "created": 1, "model": "parrot"}
        answer["choices"] = [{"index": 0, "message": message, "finish_reason": "stop"}]
        return answer | ({"usage": self._usage()} if self.tells_usage else {})

    def _usage(self) -> dict[str, Any]:
        made = len(self.words)
        return {"prompt_tokens": self.prompt, "completion_tokens": made, "total_tokens": self.prompt + made}

    @staticmethod
    def _plain(writer: asyncio.StreamWriter, status: int, answer: object) -> None:
        data = json.dumps(answer).encode()
        head = f"HTTP/1.1 {status} X\r\ncontent-type: application/json\r\ncontent-length: {len(data)}\r\n\r\n"
        writer.write(head.encode() + data)

    async def _pass(self) -> None:
        if self.gate is not None:
            await self.gate.wait()

    async def _stream(self, body: dict[str, Any], writer: asyncio.StreamWriter) -> bool:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
        for n, word in enumerate(self.words):
            await self._pass()
            if n == self.cut_after:
                return False
            self._event(writer, {"choices": [{"index": 0, "delta": {"content": word}, "finish_reason": None}]})
            await writer.drain()
            self.said += 1
            await asyncio.sleep(0)
        if self.tells_usage and (body.get("stream_options") or {}).get("include_usage"):
            self._event(writer, {"choices": [], "usage": self._usage()})
        writer.write(b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n")
        await writer.drain()
        return True

    @staticmethod
    def _event(writer: asyncio.StreamWriter, content: dict[str, Any]) -> None:
        told = {"id": "c1", "object": "chat.completion.chunk", "created": 1, "model": "parrot"} | content
        data = b"data: " + json.dumps(told).encode() + b"\n\n"
        writer.write(b"%x\r\n%b\r\n" % (len(data), data))


@asynccontextmanager
async def parrots(*wanted: Parrot) -> AsyncIterator[list[int]]:
    """Each on a port of its own."""
    servers = [await asyncio.start_server(one.serve, "127.0.0.1", 0) for one in wanted]
    for one, server in zip(wanted, servers, strict=True):
        one.port = server.sockets[0].getsockname()[1]
    try:
        yield [one.port for one in wanted]
    finally:
        for server in servers:
            server.close()


async def dial(endpoint: Offered, replica: Replica) -> Streams:
    return await asyncio.open_connection("127.0.0.1", replica.port)


@dataclass(slots=True)
class RunningGateway:
    gateway: LlmGateway
    site: Site
    ledger: MemoryLedger
    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def publish(self) -> None:
        self.gateway.refresh(self.site.directory())

    def replace(self, endpoint: str, **spec: Any) -> None:
        """The same endpoint with another wish."""
        old = self.site.endpoints[endpoint]
        self.site.endpoints[endpoint] = replace(old, spec=replace(old.spec, **spec))
        self.publish()


@asynccontextmanager
async def running_gateway(
    folder: Path,
    site: Site,
    ledger: MemoryLedger | None = None,
    connect: Dial = dial,
    **options: Any,
) -> AsyncIterator[RunningGateway]:
    """A gateway on a port of this machine; ended afterwards."""
    ledger = ledger or MemoryLedger(site.budgets)
    gateway = LlmGateway(ledger, connect, secret_of, folder, **options)
    await gateway.start()
    gateway.refresh(site.directory())
    server = await asyncio.get_running_loop().create_server(lane(gateway), "127.0.0.1", 0)
    standing = asyncio.create_task(gateway.run())
    try:
        yield RunningGateway(gateway, site, ledger, server.sockets[0].getsockname()[1])
    finally:
        server.close()
        if standing.done():
            standing.result()  # it never ends by itself
        standing.cancel()
        await asyncio.gather(standing, return_exceptions=True)
        await gateway.stop()
