"""Downloads an image from the web without becoming a way into the house's own network.

Every address that a name stands for must be public, unless the operator allows private ones; the connection
is made to the address that was checked (so a name cannot change its mind in between), for the first request
and again for each redirect. Proxies of the environment are not used: they would choose the address
themselves.
"""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urljoin

import httpx2

from usina.core.errors import TooLarge, Unavailable
from usina.core.units import MiB, show_size
from usina.services.images.workshop import Progress
from usina.services.reach import Reach, bad_url

MAX_REDIRECTS = 5
_ATTEMPTS = 4
_FIRST_PAUSE = 0.5  # seconds, doubled each time
_CHUNK = MiB
_TIMEOUT = httpx2.Timeout(30.0, connect=10.0)
_MOVED = {301, 302, 303, 307, 308}


@dataclass(slots=True)
class Download:
    """One file on its way to `target`.

    What is there is kept on failure, and gone on from when `url` is asked again.
    """

    url: str
    target: Path
    limit: int  # bytes
    reach: Reach
    progress: Progress

    async def run(self) -> None:
        """Raises `Invalid` (field "url"), `TooLarge`, or `Unavailable` when the server keeps failing."""
        pause = _FIRST_PAUSE
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                await self._once()
                self._note.unlink(missing_ok=True)
                return
            except (httpx2.HTTPError, _Broken) as error:
                if attempt == _ATTEMPTS:
                    raise Unavailable("the image's server does not answer well", detail=repr(error)) from error
                self.progress(0.0, "the connection broke; trying again")
                await asyncio.sleep(pause)
                pause *= 2

    async def _once(self) -> None:
        have, mark = self._resumable()
        headers = {"Accept-Encoding": "identity", "User-Agent": "usina"}
        if have:
            headers |= {"Range": f"bytes={have}-", "If-Range": mark}
        async with self._opened(headers) as answer:
            start = self._judge(answer, have)
            total = start + int(answer.headers.get("content-length") or 0)
            if total > self.limit:
                raise self._too_large()
            if start == 0:
                self._remember(answer)
            await self._store(answer, start, total)

    async def _store(self, answer: httpx2.Response, start: int, total: int) -> None:
        done = start
        with self.target.open("r+b" if start else "wb") as stream:
            stream.truncate(start)
            stream.seek(start)
            async for chunk in answer.aiter_raw(_CHUNK):
                done += len(chunk)
                if done > self.limit:
                    raise self._too_large()
                await asyncio.to_thread(stream.write, chunk)
                if total > start:
                    self.progress(min(1.0, done / total), f"{show_size(done)} of {show_size(total)}")
                else:
                    self.progress(0.0, show_size(done))
        if total > start and done != total:
            raise _Broken(f"{done} of {total} bytes came")

    @asynccontextmanager
    async def _opened(self, headers: dict[str, str]) -> AsyncIterator[httpx2.Response]:
        """The answer to `url`, redirects followed by hand, each connection pinned to a checked address."""
        url = _parsed(self.url)
        async with httpx2.AsyncClient(trust_env=False, timeout=_TIMEOUT, verify=ssl.create_default_context()) as web:
            for _ in range(MAX_REDIRECTS + 1):
                address = await self.reach.address(url)
                request = web.build_request(
                    "GET",
                    url.copy_with(host=address),
                    headers={**headers, "Host": url.netloc.decode()},
                    extensions={"sni_hostname": url.host},
                )
                answer = await web.send(request, stream=True, follow_redirects=False)
                try:
                    if answer.status_code not in _MOVED:
                        yield answer
                        return
                    url = _next(url, answer)
                finally:
                    await answer.aclose()
        raise bad_url(f"it leads on more than {MAX_REDIRECTS} times")

    def _judge(self, answer: httpx2.Response, have: int) -> int:
        """The offset that the answer's body starts at."""
        status = answer.status_code
        if status == 206 and have and answer.headers.get("content-range", "").startswith(f"bytes {have}-"):
            return have
        if status == 200:
            return 0
        if status in (206, 416) or status == 429 or status >= 500:
            self._note.unlink(missing_ok=True)
            raise _Broken(f"status {status}")
        raise bad_url(f"the server answered {status}")

    def _resumable(self) -> tuple[int, str]:
        """Bytes that are here already and the server's mark for their version; (0, "") to begin anew."""
        try:
            note = json.loads(self._note.read_text())
            have = self.target.stat().st_size
        except (OSError, ValueError):
            return 0, ""
        if note.get("url") != self.url or not note.get("mark"):
            return 0, ""
        return have, str(note["mark"])

    def _remember(self, answer: httpx2.Response) -> None:
        """A strong mark only: without one, parts of two versions could be joined."""
        mark = answer.headers.get("etag", "")
        if mark.startswith("W/") or not mark:
            mark = answer.headers.get("last-modified", "")
        self._note.write_text(json.dumps({"url": self.url, "mark": mark}))

    @property
    def _note(self) -> Path:
        return self.target.with_name(f"{self.target.name}.from")

    def _too_large(self) -> TooLarge:
        self.target.unlink(missing_ok=True)
        self._note.unlink(missing_ok=True)
        return TooLarge(f"the image is larger than {show_size(self.limit)}", field="url")


class _Broken(Exception):
    """The answer ended early or cannot be used; trying again may help."""


def _parsed(text: str) -> httpx2.URL:
    try:
        return httpx2.URL(text)
    except (httpx2.InvalidURL, TypeError, ValueError):
        raise bad_url("it is not a URL") from None


def _next(url: httpx2.URL, answer: httpx2.Response) -> httpx2.URL:
    target = _parsed(urljoin(str(url), answer.headers.get("location", "")))
    if url.scheme == "https" and target.scheme == "http":
        raise bad_url("it leads from https to http")
    return target
