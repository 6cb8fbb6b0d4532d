"""Which thing of the hub a request is for, by its raw path: a quoted slash belongs to a name, a plain one does not.

| path | verb |
|---|---|
| ``/api/models`` | ``models`` |
| ``/api/models/{ns}/{name}`` | ``info`` |
| ``/api/models/{ns}/{name}/{verb}/{revision}/{path…}`` | the verb's own name |
| ``/api/{word}`` and ``/api/{word}/{word}`` | ``{word}`` and ``{word}/{word}`` |
| ``/{ns}/{name}/resolve/{revision}/{path…}`` | ``resolve`` |
| ``/{ns}/{name}.git/info/lfs/objects/batch`` | ``lfs-batch`` |
| ``/{ns}/{name}.git/info/lfs/objects/verify`` | ``lfs-verify`` |
| ``/{ns}/{name}.git/lfs/{digest}`` | ``lfs-object``, with the digest as its path |
| ``/xet/v1/{word}/{path…}`` | ``xet/{word}`` |
"""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import unquote

from usina.core.errors import Invalid, NotFound

_OTHERS = {"datasets", "spaces", "kernels", "buckets"}
_LFS = ["info", "lfs", "objects"]


@dataclass(frozen=True, slots=True)
class Address:
    verb: str
    name: str = ""  # "namespace/name"
    revision: str = ""
    path: str = ""


def read(raw: bytes) -> Address:
    """The address at a raw path below the door's mount. Raises `NotFound`, and `Invalid` for what is not UTF-8."""
    try:
        parts = [unquote(part, errors="strict") for part in raw.decode("ascii").split("/")[1:]]
    except UnicodeDecodeError:
        raise Invalid("path: it is not UTF-8", field="path") from None
    if parts and parts[0] == "api":
        return _api(parts[1:])
    if parts and parts[0] in _OTHERS:
        raise _no_repository()
    return _page(parts)


def _api(parts: list[str]) -> Address:
    match parts:
        case ["models"]:
            return Address("models")
        case ["models", namespace, name]:
            return Address("info", f"{namespace}/{name}")
        case ["models", namespace, name, verb]:
            return Address(verb, f"{namespace}/{name}")
        case ["models", namespace, name, verb, revision, *path]:
            return Address(verb, f"{namespace}/{name}", revision, "/".join(path))
        case [other, *_] if other in _OTHERS:
            raise _no_repository()
        case [word] | [word, ""]:
            return Address(word)
        case [first, second]:
            return Address(f"{first}/{second}")
    raise _no_repository()


def _page(parts: list[str]) -> Address:
    match parts:
        case ["xet", "v1", "xorbs" | "shards" | "chunks" as word, *path]:
            return Address(f"xet/{word}", path="/".join(path))
        case [namespace, name, "resolve", revision, *path] if path:
            return Address("resolve", f"{namespace}/{name}", revision, "/".join(path))
        case [namespace, name, *rest] if name.endswith(".git"):
            whole = f"{namespace}/{name.removesuffix('.git')}"
            if rest[:-1] == _LFS and rest[-1] in ("batch", "verify"):
                return Address(f"lfs-{rest[-1]}", whole)
            if len(rest) == 2 and rest[0] == "lfs":
                return Address("lfs-object", whole, path=rest[1])
    raise _no_repository()


def _no_repository() -> NotFound:
    return NotFound("Repository not found")
