"""Ids as git counts them: of files, of trees, of commits (git's object format: sha1 over ``type size NUL content``).

A commit's id follows from its whole tree, its parent, its time and its words, so that nothing of it can be changed.
Large files are in the tree by their LFS pointer (https://github.com/git-lfs/git-lfs/blob/main/docs/spec.md).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from usina.core.repository import Entry

_FILE, _FOLDER = b"100644", b"40000"


def blob_hash(size: int) -> hashlib._Hash:
    """A hash to be fed with a file's `size` bytes; its hexdigest is git's id of the file."""
    return hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)


def blob_id(content: bytes) -> str:
    hasher = blob_hash(len(content))
    hasher.update(content)
    return hasher.hexdigest()


def pointer(digest: str, size: int) -> bytes:
    """What git keeps in place of a large file."""
    return b"version https://git-lfs.github.com/spec/v1\noid sha256:%s\nsize %d\n" % (digest.encode(), size)


def pointer_id(digest: str, size: int) -> str:
    return blob_id(pointer(digest, size))


def tree_ids(entries: Iterable[Entry]) -> dict[str, str]:
    """Folder → git's id of the tree below it; "" is the whole."""
    files: dict[str, list[tuple[bytes, bytes, str]]] = {"": []}
    for entry in entries:
        folder, _, name = entry.path.rpartition("/")
        while folder not in files:
            files[folder] = []
            folder = folder.rpartition("/")[0]
        files[entry.path.rpartition("/")[0]].append((name.encode(), _FILE, entry.oid))
    ids: dict[str, str] = {}
    for folder in sorted(files, key=lambda path: (-path.count("/") if path else 1, path)):
        ids[folder] = _tree_id(files[folder])
        if folder:
            above, _, name = folder.rpartition("/")
            files[above].append((name.encode(), _FOLDER, ids[folder]))
    return ids


def _tree_id(children: list[tuple[bytes, bytes, str]]) -> str:
    children.sort(key=lambda child: child[0] + (b"/" if child[1] == _FOLDER else b""))
    body = b"".join(mode + b" " + name + b"\0" + bytes.fromhex(oid) for name, mode, oid in children)
    return _id(b"tree", body)


def commit_id(tree: str, parent: str | None, author: str, at: int, message: str) -> str:
    """`at` in seconds since the epoch; `author` is a member's name."""
    who = f"{author} <{author}> {at} +0000"
    lines = [f"tree {tree}", *([f"parent {parent}"] if parent else []), f"author {who}", f"committer {who}"]
    return _id(b"commit", ("\n".join(lines) + f"\n\n{message}").encode())


def _id(kind: bytes, body: bytes) -> str:
    return hashlib.sha1(kind + b" %d\0" % len(body) + body, usedforsecurity=False).hexdigest()
