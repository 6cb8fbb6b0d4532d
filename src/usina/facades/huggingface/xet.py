"""Uploads by Xet, which clients with `hf_xet` use for every large file that lies on a disk, whatever the hub prefers.

A token is asked for with the key, and says for which repository it is; it is signed, good for an hour, and only as long
as the key holds. Downloads are plain: nothing of Xet is told with a file. That a chunk is here already is told to
nobody, as it would tell what others have. (https://huggingface.co/docs/xet, pages "auth" and "api")
"""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from usina.app import model_xet, models
from usina.app.context import Context, House
from usina.core.errors import Invalid, NotFound, TooLarge, Unauthenticated
from usina.core.repository import Repository
from usina.core.tenancy import Action
from usina.core.units import MiB, show_size
from usina.facades.huggingface import wire
from usina.facades.huggingface.address import Address
from usina.facades.huggingface.wire import reply

OPEN = 3600  # seconds
LARGEST_SHARD = 64 * MiB


async def write_token(request: Request, context: Context, at: Address) -> Response:
    repository = await models.find(context, at.name)
    models.allow(context, repository, Action.RESOURCE_CHANGE)
    until = int(context.now) + OPEN
    said = f"{repository.id}:{context.actor.key}:{until}"
    token, url = f"{said}:{context.house.doors.sign(_signed(said))}", f"{wire.here(request)}/xet"
    headers = {"X-Xet-Cas-Url": url, "X-Xet-Access-Token": token, "X-Xet-Token-Expiration": str(until)}
    return reply({"casUrl": url, "accessToken": token, "exp": until}, headers=headers)


def _signed(said: str) -> str:
    return f"xet-write:{said}"


async def serve(house: House, request: Request, at: Address) -> Response:
    context, repository = await _let_in(house, request)
    match request.method, at.verb:
        case "POST", "xet/xorbs":
            prefix, _, name = at.path.partition("/")
            if prefix != "default":
                raise NotFound("there is no such place for xorbs", code="not-offered")
            new = await model_xet.keep_xorb(context, repository, name, request.stream())
            return reply({"was_inserted": new})
        case "POST", "xet/shards":
            await model_xet.make_files(context, repository, await _whole(request))
            return reply({"result": 1})
    raise NotFound("not known here", code="not-offered")


async def _let_in(house: House, request: Request) -> tuple[Context, Repository]:
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    said, _, mark = token.rpartition(":")
    if scheme.lower() != "bearer" or not house.doors.signed(_signed(said), mark):
        raise Unauthenticated("this token was not given out here", code="signature")
    id, key, until = said.split(":")
    if house.clock.now() > int(until):
        raise Unauthenticated("this token is too old; ask again for another", code="signature")
    context = Context(house, await house.doors.trusted(key))
    return context, await models.find(context, id)


async def _whole(request: Request) -> bytes:
    gathered = bytearray()
    async for chunk in request.stream():
        gathered += chunk
        if len(gathered) > LARGEST_SHARD:
            raise TooLarge(f"shard: at most {show_size(LARGEST_SHARD)}", field="shard")
    if not gathered:
        raise Invalid("shard: it is empty", field="shard")
    return bytes(gathered)
