"""Downloads: what may be reached, that the checked address is connected to, going on after a break."""

from __future__ import annotations

import asyncio
import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from usina.core.errors import Invalid, TooLarge, Unavailable
from usina.core.ids import Ids
from usina.core.units import MiB
from usina.services import reach as reaching
from usina.services.images import ImageLibrary, Reach
from usina.services.images import fetch as fetching
from usina.services.reach import is_public

DISK = b"\0" * 510 + b"\x55\xaa" + bytes(range(256)) * 8192
DIGEST = hashlib.sha256(DISK).hexdigest()
IMAGE = Ids(lambda: 1.0).new("image")


class Server(BaseHTTPRequestHandler):
    """Serves `DISK` at ``/disk``; the other paths misbehave."""

    protocol_version = "HTTP/1.1"
    breaks: int
    seen: list[tuple[str, str | None]]

    def do_GET(self) -> None:
        wanted = self.headers.get("Range")
        type(self).seen.append((self.path, wanted))
        if self.path.startswith("/to/"):
            self.head(302, Location=self.path.removeprefix("/to/"))
        elif self.path == "/loop":
            self.head(302, Location="/loop")
        elif self.path == "/down":
            self.head(503)
        elif self.path == "/disk":
            self.disk(int(wanted.removeprefix("bytes=").rstrip("-")) if wanted else 0)
        elif self.path == "/slow":
            self.send_response(200)
            self.send_header("Content-Length", "1000000")
            self.end_headers()
            self.wfile.write(b"x")
            self.wfile.flush()
            threading.Event().wait(5)
        else:
            self.head(404)

    def disk(self, start: int) -> None:
        body = DISK[start:]
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", '"one"')
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(DISK) - 1}/{len(DISK)}")
        self.end_headers()
        if type(self).breaks:
            type(self).breaks -= 1
            self.wfile.write(body[: len(body) // 2])
            self.wfile.flush()
            self.connection.close()
            self.close_connection = True
        else:
            self.wfile.write(body)

    def head(self, status: int, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def serving(breaks: int = 0) -> Iterator[tuple[str, type[Server]]]:
    handler = type("One", (Server,), {"breaks": breaks, "seen": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    server.block_on_close = False
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", handler
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetching, "_FIRST_PAUSE", 0.01)


def library(tmp_path: Path, reach: Reach | None = None) -> ImageLibrary:
    return ImageLibrary(tmp_path / "images", tmp_path / "cache", reach or Reach(allow_private=True))


async def test_a_download_becomes_an_image(tmp_path: Path) -> None:
    told: list[float] = []
    with serving() as (url, server):
        images = library(tmp_path)
        files = await images.fetch(IMAGE, f"{url}/disk", DIGEST, lambda share, _: told.append(share), limit=8 * MiB)
        assert files == await images.fetch(IMAGE, f"{url}/disk", DIGEST, limit=8 * MiB)
    assert (files.digest, files.format, files.virtual_size) == (DIGEST, "raw", len(DISK))
    assert Path(files.disk).read_bytes() == DISK
    assert told == sorted(told)
    assert len(server.seen) == 1


async def test_a_broken_download_goes_on_where_it_stopped(tmp_path: Path) -> None:
    with serving(breaks=2) as (url, server):
        files = await library(tmp_path).fetch(IMAGE, f"{url}/disk", DIGEST, limit=8 * MiB)
    assert files.digest == DIGEST
    starts = [wanted for _, wanted in server.seen]
    assert starts[0] is None
    assert len(starts) == 3
    assert all(starts[1:])


async def test_a_server_that_stays_down(tmp_path: Path) -> None:
    with serving() as (url, server), pytest.raises(Unavailable):
        await library(tmp_path).fetch(IMAGE, f"{url}/down", limit=MiB)
    assert len(server.seen) == 4


async def test_not_found_names_the_url(tmp_path: Path) -> None:
    with serving() as (url, _), pytest.raises(Invalid, match="404") as caught:
        await library(tmp_path).fetch(IMAGE, f"{url}/nothing", limit=MiB)
    assert caught.value.field == "url"


async def test_too_large_leaves_nothing(tmp_path: Path) -> None:
    images = library(tmp_path)
    with serving() as (url, _), pytest.raises(TooLarge):
        await images.fetch(IMAGE, f"{url}/disk", limit=1000)
    assert await images.upload_offset(IMAGE) == 0


async def test_a_wrong_checksum_is_refused_and_removed(tmp_path: Path) -> None:
    images = library(tmp_path)
    with serving() as (url, _), pytest.raises(Invalid) as caught:
        await images.fetch(IMAGE, f"{url}/disk", "0" * 64, limit=8 * MiB)
    assert caught.value.field == "sha256"
    assert images.files(IMAGE) is None
    assert await images.upload_offset(IMAGE) == 0


async def test_cancelled_in_the_middle(tmp_path: Path) -> None:
    images = library(tmp_path)
    with serving() as (url, _):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.5):
                await images.fetch(IMAGE, f"{url}/slow", limit=8 * MiB)
        assert images.files(IMAGE) is None
        assert (await images.fetch(IMAGE, f"{url}/disk", DIGEST, limit=8 * MiB)).digest == DIGEST


async def test_redirects_are_followed_but_not_for_ever(tmp_path: Path) -> None:
    with serving() as (url, _):
        files = await library(tmp_path).fetch(IMAGE, f"{url}/to//disk", limit=8 * MiB)
        assert files.digest == DIGEST
        await library(tmp_path).remove(IMAGE)
        with pytest.raises(Invalid, match="leads on"):
            await library(tmp_path).fetch(IMAGE, f"{url}/loop", limit=8 * MiB)


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1/disk",
        "http://localhost/disk",
        "http://127.1/disk",
        "http://2130706433/disk",
        "http://0x7f000001/disk",
        "http://0177.0.0.1/disk",
        "http://0.0.0.0/disk",
        "http://10.1.2.3/disk",
        "http://172.16.0.1/disk",
        "http://192.168.1.1/disk",
        "http://100.64.0.1/disk",
        "http://169.254.169.254/latest/meta-data",
        "http://224.0.0.1/disk",
        "http://[::1]/disk",
        "http://[::]/disk",
        "http://[::ffff:127.0.0.1]/disk",
        "http://[::ffff:a9fe:a9fe]/disk",
        "http://[::7f00:1]/disk",
        "http://[64:ff9b::7f00:1]/disk",
        "http://[2002:7f00:1::]/disk",
        "http://[fe80::1]/disk",
        "http://[fd00::1]/disk",
        "http://[ff02::1]/disk",
        "http://user:secret@203.0.113.1/disk",
        "ftp://example.org/disk",
        "file:///etc/passwd",
        "gopher://127.0.0.1:11211/x",
        "/etc/passwd",
        "http://",
        "http:///disk",
        "not a url",
        "http://exa mple/",
    ],
)
async def test_what_is_not_public_is_refused(tmp_path: Path, url: str) -> None:
    with pytest.raises(Invalid) as caught:
        await library(tmp_path, Reach()).fetch(IMAGE, url, limit=MiB)
    assert caught.value.field == "url"
    assert "secret" not in caught.value.message


async def test_a_name_that_stands_for_a_private_address_is_refused(tmp_path: Path) -> None:
    async def both(host: str, port: int) -> list[str]:
        return ["93.184.216.34", "10.0.0.7"]

    with pytest.raises(Invalid, match="not on the public internet"):
        await library(tmp_path, Reach(resolve=both)).fetch(IMAGE, "http://images.example/disk", limit=MiB)


async def test_a_redirect_into_the_house_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first server counts as public here; what it leads to does not."""
    with serving() as (url, server):
        port = url.rpartition(":")[2]

        async def names(host: str, port: int) -> list[str]:
            return ["127.0.0.1"]

        monkeypatch.setattr(reaching, "is_public", lambda address: len(server.seen) == 0)
        with pytest.raises(Invalid, match="not on the public internet"):
            await library(tmp_path, Reach(resolve=names)).fetch(
                IMAGE, f"http://images.example:{port}/to/http://127.0.0.1:{port}/disk", limit=8 * MiB
            )
    assert [path for path, _ in server.seen] == [f"/to/http://127.0.0.1:{port}/disk"]


async def test_the_checked_address_is_the_one_connected_to(tmp_path: Path) -> None:
    """A name is asked for once per request: a second answer cannot lead elsewhere."""
    asked: list[str] = []

    async def changing(host: str, port: int) -> list[str]:
        asked.append(host)
        return ["127.0.0.1"] if len(asked) == 1 else ["192.0.2.1"]

    with serving() as (url, _):
        port = url.rpartition(":")[2]
        images = library(tmp_path, Reach(allow_private=True, resolve=changing))
        files = await images.fetch(IMAGE, f"http://images.example:{port}/disk", limit=8 * MiB)
    assert files.digest == DIGEST
    assert asked == ["images.example"]


@pytest.mark.parametrize("address", ["8.8.8.8", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"])
def test_public_addresses(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize("address", ["", "x", "::ffff:10.0.0.1", "fe80::1%eth0", "240.0.0.1", "2001::1"])
def test_addresses_that_are_not_public(address: str) -> None:
    assert not is_public(address)
