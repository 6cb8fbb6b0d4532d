"""Operations on images: from a recipe, an address or an upload; shared or not."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from urllib.parse import urlsplit

from usina.app.context import Context
from usina.app.machine_changes import expect
from usina.core.errors import Conflict, Invalid
from usina.core.goods import Image, ImageSpec, ImageStatus, Source, Visibility
from usina.core.names import check_labels, check_member_name, check_name
from usina.core.resource import Kind, Resource
from usina.core.tenancy import Action, Scope


@dataclass(frozen=True, slots=True)
class ImageOrder:
    """Exactly one of `recipe`, `url` and `upload`."""

    name: str
    project: str | None = None
    recipe: str | None = None
    url: str | None = None
    upload: bool = False
    sha256: str | None = None
    visibility: Visibility = Visibility.PROJECT
    user: str | None = None
    labels: dict[str, str] = field(default_factory=dict)


async def create(context: Context, order: ImageOrder) -> Image:
    """Order an image. Phase ``ready`` when machines can be made of it."""
    check_name(order.name)
    spec = _spec(context, order)
    owner = await context.project(order.project)
    scope = Scope(owner.tenant, owner.id)
    grant = context.require(Action.RESOURCE_CREATE, scope, "project")
    _require_visibility(context, order.visibility, scope)
    earlier = await context.repeated(order)
    if earlier is not None:
        return earlier[0]
    image: Image = Resource(
        id=context.house.ids.new(Kind.IMAGE.value),
        kind=Kind.IMAGE,
        tenant=owner.tenant,
        project=owner.id,
        name=order.name,
        spec=spec,
        status=ImageStatus(),
        created_at=context.now,
        updated_at=context.now,
        labels=check_labels(order.labels),
    )
    work = context.work()
    context.order(work, image, grant)
    return await context.commit_order(work, image, order, grant)


def _spec(context: Context, order: ImageOrder) -> ImageSpec:
    if sum([order.recipe is not None, order.url is not None, order.upload]) != 1:
        raise Invalid("give exactly one of recipe, url and upload", field="recipe")
    sha256 = (order.sha256 or "").lower()
    if sha256 and (len(sha256) != 64 or set(sha256) - set("0123456789abcdef")):
        raise Invalid("sha256: must be 64 hexadecimal digits", field="sha256")
    user = check_member_name(order.user, "user") if order.user else None
    if order.recipe is not None:
        recipes = context.house.recipes
        if order.recipe not in recipes:
            raise Invalid(f"recipe: must be one of {', '.join(sorted(recipes))}", field="recipe")
        return ImageSpec(
            Source.RECIPE,
            recipe=order.recipe,
            visibility=order.visibility,
            user=user or recipes[order.recipe],
        )
    if order.url is not None:
        _check_url(order.url)
        return ImageSpec(Source.URL, url=order.url, sha256=sha256, visibility=order.visibility, user=user or "debian")
    return ImageSpec(Source.UPLOAD, sha256=sha256, visibility=order.visibility, user=user or "debian")


def _check_url(url: str) -> None:
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and len(url) <= 2000
        clean = url.isprintable() and " " not in url and parts.username is None and parts.password is None
        parts.port  # noqa: B018 - raises ValueError when it is not a port
    except ValueError:
        good = clean = False
    if not good:
        raise Invalid("url: must be an http or https address", field="url")
    if not clean:
        raise Invalid("url: must not carry a user name or password", field="url")


def _require_visibility(context: Context, visibility: Visibility, scope: Scope) -> None:
    if visibility is Visibility.TENANT:
        context.require(Action.IMAGE_SHARE, scope, "image")
    elif visibility is Visibility.PUBLIC:
        context.require(Action.IMAGE_PUBLISH, scope, "image")


async def share(
    context: Context,
    ref: str,
    visibility: Visibility,
    project: str | None = None,
    if_match: int | None = None,
) -> Image:
    """Change who may use an image."""
    image, grant = await context.find(Kind.IMAGE, ref, Action.RESOURCE_CHANGE, project)
    expect(image, if_match)
    scope = Scope(image.tenant, image.project)
    _require_visibility(context, visibility, scope)
    _require_visibility(context, image.spec.visibility, scope)
    work = context.work()
    changed: Image = image.wishing(replace(image.spec, visibility=visibility), context.now)
    work.wish(changed, grant)
    context.tell(work, changed, "changed", f"made visible to {visibility.value} by {context.actor.name}")
    await context.commit(work)
    context.house.near.forget()
    return changed


async def _awaiting_upload(context: Context, ref: str, project: str | None) -> Image:
    image, _ = await context.find(Kind.IMAGE, ref, Action.RESOURCE_CHANGE, project)
    if image.spec.source is not Source.UPLOAD or image.spec.uploaded or image.deleting:
        raise Conflict("the image does not wait for an upload", code="no-upload")
    return image


async def upload_offset(context: Context, ref: str, project: str | None = None) -> int:
    """Bytes received so far."""
    image = await _awaiting_upload(context, ref, project)
    return await context.house.library.upload_offset(image.id)


async def append(
    context: Context, ref: str, offset: int, chunks: AsyncIterator[bytes], project: str | None = None
) -> int:
    """Add bytes at `offset`; the new offset. Raises `Conflict` with the right offset, `TooLarge`."""
    image = await _awaiting_upload(context, ref, project)
    return await context.house.library.append(image.id, offset, chunks, limit=context.house.upload_limit)


async def complete(context: Context, ref: str, sha256: str | None = None, project: str | None = None) -> Image:
    """Declare an upload complete; it is then checked and becomes ready, or failed with the reason."""
    image = await _awaiting_upload(context, ref, project)
    _, grant = await context.find(Kind.IMAGE, image.id, Action.RESOURCE_CHANGE)
    if sha256 is not None and (len(sha256) != 64 or set(sha256.lower()) - set("0123456789abcdef")):
        raise Invalid("sha256: must be 64 hexadecimal digits", field="sha256")
    work = context.work()
    spec = replace(image.spec, uploaded=True, sha256=(sha256 or image.spec.sha256).lower())
    changed: Image = image.wishing(spec, context.now)
    work.wish(changed, grant)
    context.tell(work, changed, "uploaded", f"upload completed by {context.actor.name}")
    await context.commit(work)
    return changed
