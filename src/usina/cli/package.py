"""A working directory as one file: what git would ignore is left out, and the same content is always the same file."""

from __future__ import annotations

import gzip
import os
import stat
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pathspec import GitIgnoreSpec

from usina.core.errors import Invalid
from usina.core.units import GiB, show_size

LARGEST = 4 * GiB
IGNORED = (".gitignore", ".usinaignore")
NEVER = (".git", ".venv", "__pycache__", "node_modules")
"""Left out whatever is said, but where `.usinaignore` names them with ``!``."""


@dataclass(frozen=True, slots=True)
class Package:
    path: Path
    files: int
    size: int  # bytes of the content, unpacked


@contextmanager
def packed(folder: Path) -> Iterator[Package]:
    """A tar.gz of a folder, gone afterwards. Raises `Invalid` for what is no folder, or too large."""
    if not folder.is_dir():
        raise Invalid(f"package: {folder} is not a folder", field="package")
    with tempfile.NamedTemporaryFile(prefix="usina-", suffix=".tar.gz") as file:
        with (
            gzip.GzipFile("", "wb", 6, file, mtime=0) as squeezed,
            tarfile.open(fileobj=squeezed, mode="w", format=tarfile.PAX_FORMAT) as archive,
        ):
            files, size = _fill(archive, folder)
        file.flush()
        yield Package(Path(file.name), files, size)


def _fill(archive: tarfile.TarFile, folder: Path) -> tuple[int, int]:
    files = size = 0
    for path in contents(folder):
        entry = archive.gettarinfo(path, arcname=str(path.relative_to(folder)))
        if entry is None or not (entry.isreg() or entry.issym()):
            continue  # sockets and the like
        entry.uid = entry.gid = 0
        entry.uname = entry.gname = ""
        entry.mtime = int(entry.mtime)
        files, size = files + 1, size + entry.size
        if size > LARGEST:
            raise Invalid(f"package: {folder} has more than {show_size(LARGEST)}; see .usinaignore", field="package")
        if entry.isreg():
            with path.open("rb") as source:
                archive.addfile(entry, source)
        else:
            archive.addfile(entry)
    return files, size


def contents(folder: Path) -> Iterator[Path]:
    """Files and links below a folder that are not ignored, in order of name."""
    yield from _below(folder, folder, ())


def _below(root: Path, folder: Path, rules: tuple[tuple[Path, GitIgnoreSpec], ...]) -> Iterator[Path]:
    mine = [line for name in IGNORED for line in _lines(folder / name)]
    if mine or folder == root:
        ours = GitIgnoreSpec.from_lines([*(NEVER if folder == root else ()), *mine])
        rules = (*rules, (folder, ours))
    for entry in sorted(os.scandir(folder), key=lambda one: one.name):
        path = Path(entry.path)
        is_folder = entry.is_dir(follow_symlinks=False)
        if _ignored(path, is_folder, rules):
            continue
        if is_folder:
            yield from _below(root, path, rules)
        elif stat.S_ISREG(mode := entry.stat(follow_symlinks=False).st_mode) or stat.S_ISLNK(mode):
            yield path


def _ignored(path: Path, is_folder: bool, rules: tuple[tuple[Path, GitIgnoreSpec], ...]) -> bool:
    """As git decides: the deepest file of rules that says anything about it has the word."""
    for folder, spec in reversed(rules):
        name = path.relative_to(folder).as_posix() + ("/" if is_folder else "")
        said = spec.check_file(name).include
        if said is not None:
            return said
    return False


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(errors="replace").splitlines()
    except OSError:
        return []
