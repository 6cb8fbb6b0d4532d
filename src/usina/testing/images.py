"""A container image for tests, made of one static program: busybox, from Debian's package, as an archive."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

NAME = "localhost/usina-test:1"
LABEL = "usina.test"
APPLETS = (
    "sh", "true", "echo", "cat", "sleep", "ls", "id", "env", "date", "head", "tail", "printf", "test", "mkdir", "ln",
    "nc", "kill", "tar", "wc", "seq", "dd", "find", "ps", "rm", "touch", "yes", "wget", "mount", "chmod", "httpd",
)  # fmt: skip


def archive(folder: Path, programs: Mapping[str, Path] | None = None) -> Path:
    """A Docker archive (what `podman save` writes by default) of an image called `NAME`, the file by its digest;
    `programs` are put into its ``/bin``. No two folders have the same image: who removes one removes its containers."""
    layer = _layer({"busybox": _busybox(folder), **(programs or {})})
    config = json.dumps(
        {
            "architecture": "amd64",
            "os": "linux",
            "config": {"Cmd": ["/bin/sh"], "Env": ["PATH=/bin"], "Labels": {LABEL: str(folder)}},
            "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(layer).hexdigest()}"]},
        }
    ).encode()
    name = f"{hashlib.sha256(config).hexdigest()}.json"
    manifest: list[dict[str, Any]] = [{"Config": name, "RepoTags": [NAME], "Layers": ["layer.tar"]}]
    path = folder / "image.tar"
    with tarfile.open(path, "w") as out:
        for member, content in ((name, config), ("layer.tar", layer), ("manifest.json", json.dumps(manifest).encode())):
            entry = tarfile.TarInfo(member)
            entry.size = len(content)
            out.addfile(entry, io.BytesIO(content))
    return called_by_digest(path)


def called_by_digest(path: Path) -> Path:
    """A file, renamed as those of blobs are called."""
    return path.rename(path.with_name(hashlib.sha256(path.read_bytes()).hexdigest()))


def drop(path: Path) -> None:
    """No image of an archive in this folder is left in Podman's store."""
    found = subprocess.run(
        ["podman", "images", "-q", "--filter", f"label={LABEL}={path.parent}"], capture_output=True, text=True
    )
    if ids := found.stdout.split():
        subprocess.run(["podman", "rmi", "-f", *ids], capture_output=True, check=True)


def _layer(programs: Mapping[str, Path]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as out:
        for name in ("bin", "etc", "tmp", "work"):
            folder = tarfile.TarInfo(name)
            folder.type, folder.mode = tarfile.DIRTYPE, 0o1777 if name == "tmp" else 0o755
            out.addfile(folder)
        for name, path in programs.items():
            program = tarfile.TarInfo(f"bin/{name}")
            program.size, program.mode = path.stat().st_size, 0o755
            with path.open("rb") as file:
                out.addfile(program, file)
        for applet in APPLETS:
            link = tarfile.TarInfo(f"bin/{applet}")
            link.type, link.linkname = tarfile.SYMTYPE, "busybox"
            out.addfile(link)
        users = b"root:x:0:0:root:/root:/bin/sh\n"
        passwd = tarfile.TarInfo("etc/passwd")
        passwd.size, passwd.mode = len(users), 0o644
        out.addfile(passwd, io.BytesIO(users))
    return buffer.getvalue()


def _busybox(folder: Path) -> Path:
    """The static program, without installing its package over another one."""
    kept = Path(tempfile.gettempdir()) / "usina-busybox-static"
    if not kept.exists():
        subprocess.run(["apt-get", "download", "-q", "busybox-static"], cwd=folder, check=True, capture_output=True)
        [package] = folder.glob("busybox-static*.deb")
        subprocess.run(["dpkg-deb", "-x", package, folder / "bb"], check=True, capture_output=True)
        scratch = kept.with_suffix(f".{folder.name}")
        shutil.copy(folder / "bb/bin/busybox", scratch)
        scratch.replace(kept)
        package.unlink()
        shutil.rmtree(folder / "bb")
    return kept


def compressed(path: Path) -> Path:
    """The same, squeezed, as registries and people keep them."""
    made = path.with_name("squeezed")
    made.write_bytes(gzip.compress(path.read_bytes(), 1, mtime=0))
    return called_by_digest(made)
