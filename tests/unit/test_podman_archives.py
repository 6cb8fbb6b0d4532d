"""Archives of images get the name that we give, and no other way to have one of their own."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from usina.drivers.podman.archives import NAME, renamed
from usina.ports.driver import DriverError

OURS = "localhost/usina-archive:0123"
DOCKER = [{"Config": "c.json", "RepoTags": ["docker.io/library/debian:12"], "Layers": ["a/layer.tar"]}]
INDEX = {
    "schemaVersion": 2,
    "manifests": [
        {"digest": "sha256:00", "size": 1, "annotations": {NAME: "debian:12", "io.containerd.image.name": "x"}}
    ],
}


def tar(*members: tuple[str, bytes] | tarfile.TarInfo) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as out:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                out.addfile(member)
            else:
                entry = tarfile.TarInfo(member[0])
                entry.size = len(member[1])
                out.addfile(entry, io.BytesIO(member[1]))
    return buffer.getvalue()


def link(name: str, target: str, type: bytes = tarfile.SYMTYPE) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.type, entry.linkname = type, target
    return entry


def after(folder: Path, content: bytes) -> dict[str, Any]:
    """What Podman is given: JSON decoded, other files as they are, links by their target."""
    path = folder / "archive"
    path.write_bytes(content)
    found: dict[str, Any] = {}
    with tarfile.open(fileobj=io.BytesIO(b"".join(renamed(path, OURS)))) as archive:
        for member in archive:
            file = archive.extractfile(member) if member.isreg() else None
            data = file.read() if file else member.linkname
            found[member.name] = json.loads(data) if member.name in ("manifest.json", "index.json") else data
    return found


@pytest.mark.parametrize("squeeze", [bytes, gzip.compress])
def test_a_docker_archive_has_our_name_only(tmp_path: Path, squeeze: Any) -> None:
    other = {"Config": "d.json", "RepoTags": ["other:1"], "Layers": []}
    content = tar(
        ("c.json", b"{}"),
        ("a/layer.tar", b"x" * 3_000_000),
        link("b/layer.tar", "../a/layer.tar"),
        ("manifest.json", json.dumps([*DOCKER, other]).encode()),
        ("repositories", b'{"debian": {"12": "a"}}'),
    )
    assert after(tmp_path, squeeze(content)) == {
        "c.json": b"{}",
        "a/layer.tar": b"x" * 3_000_000,
        "b/layer.tar": "../a/layer.tar",
        "manifest.json": [{"Config": "c.json", "RepoTags": [OURS], "Layers": ["a/layer.tar"]}],
    }


@pytest.mark.parametrize("name", ["index.json", "./index.json", "/index.json", "x/../index.json", ".//index.json"])
def test_an_archive_of_oci_has_our_name_only(tmp_path: Path, name: str) -> None:
    content = tar(("oci-layout", b"{}"), (name, json.dumps(INDEX).encode()), ("blobs/sha256/00", b"x"))
    manifest = {"digest": "sha256:00", "size": 1, "annotations": {NAME: OURS}}
    assert after(tmp_path, content) == {
        "oci-layout": b"{}",
        "index.json": {"schemaVersion": 2, "manifests": [manifest]},
        "blobs/sha256/00": b"x",
    }


MANIFEST = ("manifest.json", json.dumps(DOCKER).encode())
HOSTILE: Mapping[str, bytes] = {
    "the manifest is a link": tar(("other", b"[]"), link("manifest.json", "other")),
    "the index is a hard link": tar(("other", b"{}"), link("index.json", "other", tarfile.LNKTYPE)),
    "any hard link": tar(MANIFEST, link("x", "manifest.json", tarfile.LNKTYPE)),
    "a device": tar(MANIFEST, link("x", "", tarfile.CHRTYPE)),
    "a manifest by way of a folder that is a link": tar(MANIFEST, link("a", "."), ("a/manifest.json", b"[]")),
    "out of the archive": tar(("../manifest.json", b"[]")),
    "out of it, later": tar(("a/../../x", b"[]")),
    "too large to be a manifest": tar(("manifest.json", b" " * (4 << 20) + b"[{}]")),
    "no manifest in it": tar(("manifest.json", b"[]")),
    "no object": tar(("manifest.json", b"[7]")),
    "an object": tar(("manifest.json", b'{"a": 1}')),
    "no JSON": tar(("index.json", b"{")),
    "too deep": tar(("index.json", b"[" * 100_000)),
    "an index without manifests": tar(("index.json", b"{}")),
    "no tar": b"hello",
    "a cut tar": tar(("a", b"x" * 5000))[:2000],
    "a cut gzip": gzip.compress(tar(("a", bytes(range(256)) * 500)))[:300],
    "nothing": b"",
}


@pytest.mark.parametrize("which", HOSTILE)
def test_what_could_have_another_name_is_refused(tmp_path: Path, which: str) -> None:
    with pytest.raises(DriverError) as failure:
        after(tmp_path, HOSTILE[which])
    assert failure.value.lasting
    assert "no container image" in failure.value.public


BEGINNINGS = (
    b"",
    tar(MANIFEST)[:1024],
    gzip.compress(b"x")[:10],
    bz2.compress(b"x" * 99)[:10],
    lzma.compress(b"x")[:12],
)


@given(st.sampled_from(BEGINNINGS), st.binary(max_size=2000))
def test_any_bytes_are_passed_on_or_refused(
    tmp_path_factory: pytest.TempPathFactory, beginning: bytes, content: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "any"
    path.write_bytes(beginning + content)
    try:
        list(renamed(path, OURS))
    except DriverError as error:
        assert error.lasting
