"""Slurm by slurmrestd. May speak HTTP, and read the key that tokens are signed with.

Every request carries a token of a few minutes for the one it concerns: the member for submitting and cancelling, the
option `reader` for listing. The key is read for each token, so that an operator may change it; neither key nor token is
ever put into an error, a log or a fact.

The newest version that both sides know is used (see `documents`), as slurmrestd's own description says.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import httpx2
import msgspec

from usina.drivers.slurm import documents
from usina.drivers.slurm.identity import Person
from usina.drivers.slurm.records import JobRecord, NodeRecord, PartitionRecord, PastRecord
from usina.drivers.slurm.request import JobRequest
from usina.drivers.slurm.settings import Settings
from usina.drivers.slurm.wire import failure, is_over
from usina.ports.driver import DriverError, HostUnreachable

_LIFE = 300  # seconds that a token is good for


def token(key: bytes, user: str, now: float) -> str:
    """A JSON Web Token (RFC 7519) as Slurm's auth/jwt wants it: HS256, with `sun` for the user's name."""
    claims = {"iat": int(now), "exp": int(now) + _LIFE, "sun": user}
    signed = f"{_packed({'alg': 'HS256', 'typ': 'JWT'})}.{_packed(claims)}"
    return f"{signed}.{_base64(hmac.new(key, signed.encode(), hashlib.sha256).digest())}"


class Rest:
    name = "slurmrestd"

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        parts = urlsplit(settings.url)
        local = parts.scheme == "unix"
        far = httpx2.AsyncHTTPTransport(verify=parts.scheme == "https")  # reading certificates takes a while
        transport = httpx2.AsyncHTTPTransport(uds=parts.path) if local else far
        self._client = httpx2.AsyncClient(
            transport=transport, base_url="http://localhost" if local else settings.url.rstrip("/"), timeout=30
        )
        self._version = ""
        self._slurm = ""

    async def version(self) -> str:
        await self._ask("GET", "slurm", "ping")
        return f"{self._slurm} ({self._version})"

    async def jobs(self) -> Sequence[JobRecord]:
        body = await self._body("GET", "slurm", "jobs")
        return await asyncio.to_thread(_jobs, body, self._settings.factory)

    async def past(self, jobs: Sequence[int], name: str = "") -> Sequence[PastRecord]:
        try:
            if name:
                found = await self._ask("GET", "slurmdb", f"jobs?job_name={quote(name)}")
                rows = found.get("jobs") or []
            else:
                rows = [
                    row for job in jobs for row in (await self._ask("GET", "slurmdb", f"job/{job}")).get("jobs") or []
                ]
        except DriverError:
            return ()  # no accounting, or it does not answer: nothing is known
        return [record for record in map(documents.past_of, rows) if not name or record.job.name == name]

    async def nodes(self) -> Sequence[NodeRecord]:
        return [documents.node_of(row) for row in (await self._ask("GET", "slurm", "nodes")).get("nodes") or []]

    async def partitions(self) -> Sequence[PartitionRecord]:
        found = await self._ask("GET", "slurm", "partitions")
        return [documents.partition_of(row) for row in found.get("partitions") or []]

    async def topology(self) -> str:
        return ""  # no version has it

    async def submit(self, person: Person, request: JobRequest) -> int:
        body = documents.submission(request, await self._negotiated())
        answer = await self._ask("POST", "slurm", "job/submit", user=person.name, body=body, doing="the job")
        job = answer.get("job_id") or (answer.get("result") or {}).get("job_id")
        if not job:
            raise failure(str(answer.get("job_submit_user_msg") or "it gave no job id"), "the job")
        return int(job)

    async def cancel(self, person: str, jobs: Sequence[str], signal: str = "") -> None:
        query = f"?signal={signal}" if signal else ""
        for job in jobs:
            try:
                await self._ask("DELETE", "slurm", f"job/{job}{query}", user=person, doing="to cancel it")
            except HostUnreachable:
                raise
            except DriverError as error:
                if not is_over(error.public):
                    raise

    async def close(self) -> None:
        await self._client.aclose()

    async def _negotiated(self) -> str:
        """The newest version that both know, asked once."""
        if not self._version:
            answer = await self._send("GET", "/openapi/v3", self._settings.reader)
            offered = set(re.findall(rb'"(?:/|\\/)slurm(?:/|\\/)(v\d+\.\d+\.\d+)(?:/|\\/)ping', answer.content))
            known = [version for version in documents.VERSIONS if version.encode() in offered]
            if not known:
                raise HostUnreachable(f"slurmrestd speaks none of {documents.VERSIONS[-1]} to {documents.VERSIONS[0]}")
            self._version = known[0]
        return self._version

    async def _ask(self, method: str, part: str, path: str, **more: Any) -> dict[str, Any]:
        document: dict[str, Any] = msgspec.json.decode(await self._body(method, part, path, **more))
        slurm = (document.get("meta") or {}).get("slurm") or (document.get("meta") or {}).get("Slurm") or {}
        self._slurm = slurm.get("release", self._slurm)
        return document

    async def _body(
        self, method: str, part: str, path: str, *, user: str = "", body: Any = None, doing: str = ""
    ) -> bytes:
        version = await self._negotiated()
        answer = await self._send(method, f"/{part}/{version}/{path}", user or self._settings.reader, body)
        problems = _problems(answer)
        if problems and all(documents.VAGUE in problem for problem in problems):
            raise HostUnreachable(f"slurmctld does not answer slurmrestd, or takes no token of ours: {problems[0]}")
        if problems or answer.status_code >= 300:
            raise failure("; ".join(problems) or f"it answered {answer.status_code}", doing or f"to tell of {path}")
        return answer.content

    async def _send(self, method: str, path: str, user: str, body: Any = None) -> httpx2.Response:
        try:
            headers = {"X-SLURM-USER-NAME": user, "X-SLURM-USER-TOKEN": self._token(user)}
            answer = await self._client.request(method, path, headers=headers, json=body)
        except (httpx2.TransportError, httpx2.InvalidURL) as error:
            raise HostUnreachable("slurmrestd does not answer", detail=type(error).__name__) from None
        if answer.status_code in (401, 403) or answer.content[:64] == b"Authentication failure":
            raise HostUnreachable(f"slurmrestd does not accept our token for {user}; is jwt_key the cluster's key?")
        if answer.status_code in (502, 503, 504):
            raise HostUnreachable(f"slurmrestd does not answer: {answer.status_code}")
        return answer

    def _token(self, user: str) -> str:
        try:
            key = Path(self._settings.jwt_key).read_bytes()
        except OSError as error:
            raise HostUnreachable(f"jwt_key cannot be read: {error.strerror}") from None
        return token(key, user, time.time())


def _jobs(body: bytes, factory: str) -> list[JobRecord]:
    document = msgspec.json.decode(body)
    if not isinstance(document.get("jobs"), list):
        raise HostUnreachable("slurmrestd gave no list of jobs")
    return [documents.job_of(job) for job in document["jobs"] if documents.is_ours(job, factory)]


class _Answer(msgspec.Struct):
    """The part of an answer that tells of problems; the rest, which may be long, is passed over."""

    errors: list[dict[str, Any]] | None = None


def _problems(answer: httpx2.Response) -> list[str]:
    try:
        return documents.problems(msgspec.json.decode(answer.content, type=_Answer).errors)
    except msgspec.MsgspecError:
        return [answer.text[:200]] if answer.status_code >= 300 else []


def _packed(claims: dict[str, Any]) -> str:
    return _base64(json.dumps(claims, separators=(",", ":")).encode())


def _base64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
