"""Archives of images, on their way to Podman under a name that we give.

An archive says itself what its image is called, and Podman believes it: a tenant's archive could take the place of a
name that others use. So what says names is written anew, and nothing else is let through that could.

Docker's form: https://github.com/moby/docker-image-spec, "Combined Image JSON + Filesystem Changeset Format"; OCI's:
https://github.com/opencontainers/image-spec/blob/main/image-layout.md.
"""

from __future__ import annotations

import json
import posixpath
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from usina.ports.driver import DriverError

CHUNK = 1 << 20
TOLD = 4 << 20
"""Bytes of what says names, at most."""

NAME = "org.opencontainers.image.ref.name"


def renamed(path: Path, name: str) -> Iterator[bytes]:
    """The tar of the one image (or the first) in an archive, squeezed or not, which is called `name` and nothing else.
    Raises `DriverError`, lasting, where it is no such archive."""
    try:
        with tarfile.open(path, "r|*") as archive:
            for member in archive:
                yield from _member(archive, member, name)
    except (tarfile.TarError, ValueError, TypeError, LookupError, RecursionError, EOFError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise _refused("it cannot be read") from error
    yield b"\0" * 1024


def _member(archive: tarfile.TarFile, member: tarfile.TarInfo, name: str) -> Iterator[bytes]:
    path = posixpath.normpath(member.name).lstrip("/")
    if path.split("/")[0] == "..":
        raise _refused(f"{member.name!r} leads out of it")
    says = _SAYS.get(posixpath.basename(path))
    if says is None:
        yield from _plain(archive, member, path)
        return
    source = archive.extractfile(member) if member.isreg() else None
    if "/" in path or source is None or member.size > TOLD:
        raise _refused(f"{member.name!r} is not what it should be")
    content = says(source.read(), name)
    if content:
        yield from _file(path, len(content), iter([content]))


def _plain(archive: tarfile.TarFile, member: tarfile.TarInfo, path: str) -> Iterator[bytes]:
    if member.isreg():
        source = archive.extractfile(member)
        assert source is not None
        yield from _file(path, member.size, iter(lambda: source.read(CHUNK), b""))
    elif member.isdir():
        entry = tarfile.TarInfo(path)
        entry.type, entry.mode = tarfile.DIRTYPE, 0o755
        yield entry.tobuf(tarfile.PAX_FORMAT)
    elif member.issym():  # how Docker said that two layers are the same
        entry = tarfile.TarInfo(path)
        entry.type, entry.linkname = tarfile.SYMTYPE, member.linkname
        yield entry.tobuf(tarfile.PAX_FORMAT)
    else:
        raise _refused(f"{member.name!r} is no plain file")


def _file(path: str, size: int, chunks: Iterator[bytes]) -> Iterator[bytes]:
    entry = tarfile.TarInfo(path)
    entry.size = size
    yield entry.tobuf(tarfile.PAX_FORMAT)
    yield from chunks
    yield b"\0" * (-size % 512)


def _docker(content: bytes, name: str) -> bytes:
    first: dict[str, Any] = json.loads(content)[0]
    return json.dumps([{**first, "RepoTags": [name]}]).encode()


def _oci(content: bytes, name: str) -> bytes:
    index: dict[str, Any] = json.loads(content)
    first: dict[str, Any] = index["manifests"][0]
    return json.dumps({**index, "manifests": [{**first, "annotations": {NAME: name}}]}).encode()


def _nothing(_content: bytes, _name: str) -> bytes:
    return b""


_SAYS: dict[str, Callable[[bytes, str], bytes]] = {
    "manifest.json": _docker,
    "index.json": _oci,
    "repositories": _nothing,  # the older way of Docker, which `manifest.json` took the place of
}


def _refused(why: str) -> DriverError:
    return DriverError(f"the archive is no container image: {why}", lasting=True)
