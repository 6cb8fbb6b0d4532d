"""Http: asks a service of the operator's.

It gets ``POST {"side": "request" | "answer", "texts": ["…"]}`` and answers 200 with ``{"verdict": "allow"}``,
``{"verdict": "deny", "reason": "…"}``, or ``{"verdict": "change", "texts": ["…"]}`` with as many texts as it got.
Anything else, and an answer of more than twice what was sent and 64 KiB, is a failure. A reason is told to clients.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import httpx2
import msgspec

from usina.core.errors import Invalid
from usina.ports.guard import ALLOWED, Change, Found, GuardPlugin, Outside, Side

MOST = 8 << 20  # bytes of a question
LONGEST = 200  # characters of a reason


class _Answer(msgspec.Struct):
    verdict: str
    reason: str = ""
    texts: list[str] = []


_DECODE = msgspec.json.Decoder(_Answer).decode


class Asks:
    waits = True

    def __init__(self, url: str, headers: Mapping[str, str], answers: bool, outside: Outside) -> None:
        self._url, self._headers, self.answers, self._outside = httpx2.URL(url), dict(headers), answers, outside
        self._client: httpx2.AsyncClient | None = None

    async def look(self, texts: Sequence[str], side: Side, behind: int = 0) -> Found:
        question = msgspec.json.encode({"side": side.value, "texts": [text[behind:] for text in texts]})
        if len(question) > MOST:
            raise ValueError("there is too much to ask about")
        told = _DECODE(await self._ask(question))
        if told.verdict == "allow":
            return ALLOWED
        if told.verdict == "deny":
            reason = "".join(sign for sign in told.reason[:LONGEST] if sign.isprintable())
            return Found(reason or "it may not pass")
        if told.verdict != "change" or len(told.texts) != len(texts):
            raise ValueError("this is no verdict")
        return Found(
            changes=tuple(_between(old[behind:], new, behind) for old, new in zip(texts, told.texts, strict=True))
        )

    async def close(self) -> None:
        if self._client is not None:
            await self._client.aclose()
            self._client = None

    async def _ask(self, question: bytes) -> bytes:
        if self._client is None:  # made where the event loop is
            self._client = httpx2.AsyncClient(timeout=None, trust_env=False)
        address = await self._outside.of_url(str(self._url))
        host = self._url.netloc.decode("ascii")
        request = self._client.build_request(
            "POST",
            self._url.copy_with(host=address),
            content=question,
            headers={"content-type": "application/json", **self._headers, "host": host},
            extensions={"sni_hostname": self._url.host},
        )
        most, parts, size = 2 * len(question) + 65536, [], 0
        answer = await self._client.send(request, stream=True)
        try:
            if answer.status_code != 200:
                raise ValueError(f"the service answered {answer.status_code}")
            async for part in answer.aiter_bytes():
                size += len(part)
                if size > most:
                    raise ValueError("the service's answer is too large")
                parts.append(part)
        finally:
            await answer.aclose()
        return b"".join(parts)


def _between(old: str, new: str, behind: int) -> tuple[Change, ...]:
    """The change from one to the other: everything between what they begin and end with alike."""
    if old == new:
        return ()
    start = _alike(old, new)
    tail = _alike(old[start:][::-1], new[start:][::-1])
    return (Change(behind + start, behind + len(old) - tail, new[start : len(new) - tail]),)


def _alike(one: str, other: str) -> int:
    """Characters that both begin with."""
    pairs = zip(one, other, strict=False)
    return next((n for n, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))


def make(given: Mapping[str, Any], outside: Outside) -> Asks:
    """Raises `Invalid` naming the setting."""
    url, header, file = given.get("url"), given.get("header", "Authorization"), given.get("secret_file")
    if not isinstance(url, str) or not url.startswith(("http://", "https://")):
        raise Invalid("url: must be like https://host/path", field="url")
    try:
        parts = httpx2.URL(url)
    except httpx2.InvalidURL as error:
        raise Invalid(f"url: {error}", field="url") from None
    if not parts.host or parts.userinfo:
        raise Invalid("url: must have a host, and no name or password", field="url")
    if not isinstance(header, str) or not header.replace("-", "").isalnum() or not header.isascii():
        raise Invalid("header: must be the name of a header", field="header")
    if not isinstance(given.get("answers", True), bool):
        raise Invalid("answers: must be true or false", field="answers")
    headers = {header: _secret(file)} if file is not None else {}
    return Asks(url, headers, given.get("answers", True), outside)


def _secret(file: Any) -> str:
    """Without a word of what the file holds in an error."""
    try:
        with open(str(file), encoding="ascii") as opened:
            found = opened.read(8192).strip()
    except (OSError, UnicodeDecodeError):
        raise Invalid("secret_file: it cannot be read", field="secret_file") from None
    if not found or not found.isprintable():
        raise Invalid("secret_file: it holds no secret", field="secret_file")
    return found


PLUGIN = GuardPlugin(
    name="http",
    summary="Asks a service of yours about every text.",
    settings={
        "url": "Where to ask.",
        "secret_file": "File with what is sent as the secret header.",
        "header": "The secret header; Authorization unless said otherwise.",
        "answers": "Whether answers are looked at too; true unless said otherwise.",
    },
    make=make,
)
