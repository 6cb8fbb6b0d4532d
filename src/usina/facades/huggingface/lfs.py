"""Large files come by LFS: a batch says which are wanted and where, each is put there, and a verify ends it.

Clients send no key with the bytes. The address they are given is theirs: it is signed, good for an hour, for one
content in one repository, and only as long as the key that asked for it holds.
(https://github.com/git-lfs/git-lfs/blob/main/docs/api/batch.md)
"""

from __future__ import annotations

from typing import Any
from urllib.parse import quote, urlencode

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from usina.app import model_commits, models
from usina.app.context import Context, House
from usina.core.errors import Forbidden, Invalid, TooLarge, Unauthenticated
from usina.core.repository import Repository, check_digest
from usina.core.tenancy import Action
from usina.core.units import show_size
from usina.facades.huggingface import wire
from usina.facades.huggingface.address import Address
from usina.facades.huggingface.wire import reply

OPEN = 3600  # seconds
MOST = 1000


class _Object(msgspec.Struct):
    oid: str
    size: int


class _Batch(msgspec.Struct):
    operation: str
    objects: list[_Object]


async def batch(request: Request, context: Context, at: Address) -> Response:
    sent = await wire.body(request, _Batch)
    if sent.operation != "upload":
        raise Invalid("operation: files are read at their own addresses", field="operation")
    if len(sent.objects) > MOST:
        raise TooLarge(f"at most {MOST} objects at a time", field="objects")
    for one in sent.objects:
        check_digest(one.oid, "oid")
    repository = await models.find(context, at.name)
    there = await model_commits.present(context, repository, [one.oid for one in sent.objects])
    said = [_told(request, context, repository, one, there) for one in sent.objects]
    return reply({"transfer": "basic", "objects": said, "hash_algo": "sha256"})


def _told(
    request: Request, context: Context, repository: Repository, wanted: _Object, there: dict[str, int]
) -> dict[str, Any]:
    answer: dict[str, Any] = {"oid": wanted.oid, "size": wanted.size}
    limit = context.house.upload_limit
    if wanted.size > limit or wanted.size < 0:
        return answer | {"error": {"code": 422, "message": f"at most {show_size(limit)}"}}
    if there.get(wanted.oid) == wanted.size:
        return answer
    git = f"{wire.here(request)}/{quote(repository.name)}.git"
    until = int(context.now) + OPEN
    asked = {"key": context.actor.key, "size": wanted.size, "until": until}
    asked["sign"] = context.house.doors.sign(_signed(repository.id, wanted.oid, context.actor.key, wanted.size, until))
    actions = {
        "upload": {"href": f"{git}/lfs/{wanted.oid}?{urlencode(asked | {'repository': repository.id})}", "header": {}},
        "verify": {"href": f"{git}/info/lfs/objects/verify", "header": {}},
    }
    return answer | {"authenticated": True, "actions": actions}


def _signed(repository: str, digest: str, key: str, size: int, until: int) -> str:
    return f"lfs-object:{repository}:{digest}:{key}:{size}:{until}"


async def receive(house: House, request: Request, at: Address) -> Response:
    """The bytes of one object, at the address that `batch` gave."""
    asked = request.query_params
    size, until = wire.number(request, "size", 0, 1 << 60), wire.number(request, "until", 0, 1 << 60)
    id, key = asked.get("repository", ""), asked.get("key", "")
    if not house.doors.signed(_signed(id, at.path, key, size, until), asked.get("sign", "")):
        raise Unauthenticated("this address was not given out here", code="signature")
    if house.clock.now() > until:
        raise Forbidden("this address is too old; ask again for another")
    context = Context(house, await house.doors.trusted(key))
    repository = await models.find(context, id)
    length = request.headers.get("content-length", str(size))
    if length != str(size):
        raise Invalid(f"{length} bytes come where {size} were told", field="size")
    await model_commits.receive(context, repository, at.path, request.stream())
    return Response(None, 200, {"ETag": f'"{at.path}"'})


async def verify(request: Request, context: Context, at: Address) -> Response:
    sent = await wire.body(request, _Object)
    repository = await models.find(context, at.name)
    models.allow(context, repository, Action.RESOURCE_CHANGE)
    there = await model_commits.present(context, repository, [check_digest(sent.oid, "oid")])
    if there.get(sent.oid) != sent.size:
        raise Invalid("the object did not come whole", field="oid")
    return reply({})
