"""Tenants, projects, members, keys and quotas at the native door."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query
from starlette.responses import Response

from usina.app import keys, tenants
from usina.core.llm import UNLIMITED
from usina.core.tenancy import Action
from usina.core.units import parse_instant
from usina.facades.native.answers import (
    FreshKeyOut,
    KeyOut,
    KeyPage,
    MemberOut,
    MemberPage,
    ProjectOut,
    ProjectPage,
    QuotaOut,
    TenantOut,
    TenantPage,
    WhoAmI,
)
from usina.facades.native.door import Cursor, Limit, Reader, RefPath, problems
from usina.facades.native.llm_answers import limits_of
from usina.facades.native.models import (
    REF,
    KeyIn,
    KeyRotate,
    MemberChange,
    MemberIn,
    ProjectIn,
    QuotaIn,
    Rename,
    RoleIn,
    TenantIn,
)
from usina.facades.native.views import (
    key_view,
    member_view,
    page,
    project_view,
    quota_view,
    reply,
    tenant_view,
)

router = APIRouter(tags=["identity"], responses=problems(401, 403, 404, 409, 413, 422))
TenantQuery = Annotated[str | None, Query(pattern=REF, max_length=64)]


@router.get("/whoami", response_model=WhoAmI, summary="Who this key is")
async def whoami(context: Reader) -> Response:
    actor = context.actor
    return reply(
        {
            "member": actor.member,
            "name": actor.name,
            "tenant": actor.tenant,
            "key": actor.key,
            "project": actor.only_project,
            "roles": {scope: role.word for scope, role in actor.roles.items()},
        }
    )


# --- tenants


@router.post("/tenants", status_code=201, response_model=TenantOut, summary="Create a tenant")
async def create_tenant(context: Reader, body: TenantIn) -> Response:
    return reply(tenant_view(await tenants.create_tenant(context, body.name)), 201)


@router.get("/tenants", response_model=TenantPage, summary="List tenants")
async def list_tenants(context: Reader, cursor: Cursor = "", limit: Limit = 100) -> Response:
    return page([tenant_view(t) for t in await tenants.list_tenants(context, cursor, limit)], limit)


@router.get("/tenants/{ref}", response_model=TenantOut, summary="Show a tenant")
async def show_tenant(context: Reader, ref: RefPath) -> Response:
    return reply(tenant_view((await tenants.find_tenant(context, ref))[0]))


@router.patch("/tenants/{ref}", response_model=TenantOut, summary="Rename a tenant")
async def rename_tenant(context: Reader, ref: RefPath, body: Rename) -> Response:
    return reply(tenant_view(await tenants.rename_tenant(context, ref, body.name)))


@router.delete("/tenants/{ref}", status_code=204, response_class=Response, summary="Delete a tenant")
async def delete_tenant(context: Reader, ref: RefPath) -> Response:
    """Refused while it has projects. Its members and their keys go with it."""
    await tenants.delete_tenant(context, ref)
    return Response(status_code=204)


# --- projects


@router.post("/projects", status_code=201, response_model=ProjectOut, summary="Create a project")
async def create_project(context: Reader, body: ProjectIn) -> Response:
    """It comes with a network and a security group called `default`."""
    return reply(project_view(await tenants.create_project(context, body.tenant, body.name)), 201)


@router.get("/projects", response_model=ProjectPage, summary="List projects")
async def list_projects(context: Reader, cursor: Cursor = "", limit: Limit = 100) -> Response:
    found = await context.visible_projects(after=cursor, limit=limit)
    return page([project_view(p) for p in found], limit)


@router.get("/projects/{ref}", response_model=ProjectOut, summary="Show a project")
async def show_project(context: Reader, ref: RefPath) -> Response:
    return reply(project_view((await tenants.find_project(context, ref))[0]))


@router.patch("/projects/{ref}", response_model=ProjectOut, summary="Rename a project")
async def rename_project(context: Reader, ref: RefPath, body: Rename) -> Response:
    return reply(project_view(await tenants.rename_project(context, ref, body.name)))


@router.delete("/projects/{ref}", status_code=204, response_class=Response, summary="Delete a project")
async def delete_project(context: Reader, ref: RefPath) -> Response:
    """Refused while it has resources other than its own default network and group."""
    await tenants.delete_project(context, ref)
    return Response(status_code=204)


# --- members


@router.post("/members", status_code=201, response_model=MemberOut, summary="Create a member")
async def create_member(context: Reader, body: MemberIn) -> Response:
    member = await tenants.create_member(
        context, body.name, body.tenant, email=body.email, ssh_keys=tuple(body.ssh_keys), roles=body.roles
    )
    return reply(member_view(member), 201)


@router.get("/members", response_model=MemberPage, summary="List members")
async def list_members(
    context: Reader, tenant: TenantQuery = None, cursor: Cursor = "", limit: Limit = 100
) -> Response:
    return page([member_view(m) for m in await tenants.list_members(context, tenant, cursor, limit)], limit)


@router.get("/members/{ref}", response_model=MemberOut, summary="Show a member")
async def show_member(context: Reader, ref: RefPath) -> Response:
    """`me` is oneself."""
    return reply(member_view((await tenants.find_member(context, ref, Action.MEMBER_VIEW))[0]))


@router.patch("/members/{ref}", response_model=MemberOut, summary="Change a member")
async def change_member(context: Reader, ref: RefPath, body: MemberChange) -> Response:
    member = await tenants.change_member(
        context,
        ref,
        email=body.email,
        ssh_keys=None if body.ssh_keys is None else tuple(body.ssh_keys),
        disabled=body.disabled,
    )
    return reply(member_view(member))


@router.put("/members/{ref}/roles", response_model=MemberOut, summary="Give or take a role")
async def set_role(context: Reader, ref: RefPath, body: RoleIn) -> Response:
    return reply(member_view(await tenants.set_role(context, ref, body.scope, body.role)))


@router.delete("/members/{ref}", status_code=204, response_class=Response, summary="Delete a member")
async def delete_member(context: Reader, ref: RefPath) -> Response:
    await tenants.delete_member(context, ref)
    return Response(status_code=204)


# --- keys


@router.post("/keys", status_code=201, response_model=FreshKeyOut, summary="Make a key")
async def create_key(context: Reader, body: KeyIn) -> Response:
    """The secret is shown in this answer and never again."""
    fresh = await keys.create(
        context,
        body.name,
        member=body.member,
        project=body.project,
        role=body.role,
        expires_at=_instant(body.expires_at),
        limits=limits_of(body.limits) if body.limits is not None else UNLIMITED,
    )
    return _fresh(fresh, 201)


@router.get("/keys", response_model=KeyPage, summary="List keys")
async def list_keys(context: Reader, member: TenantQuery = None, cursor: Cursor = "", limit: Limit = 100) -> Response:
    return page([key_view(k) for k in await keys.list_keys(context, member, cursor, limit)], limit)


@router.get("/keys/{ref}", response_model=KeyOut, summary="Show a key")
async def show_key(context: Reader, ref: RefPath) -> Response:
    return reply(key_view((await keys.find(context, ref))[0]))


@router.post("/keys/{ref}/rotate", response_model=FreshKeyOut, summary="Give a key a new secret")
async def rotate_key(context: Reader, ref: RefPath, body: KeyRotate) -> Response:
    """The old secret stops at once."""
    return _fresh(await keys.rotate(context, ref, _instant(body.expires_at)), 200)


@router.delete("/keys/{ref}", status_code=204, response_class=Response, summary="Revoke a key")
async def revoke_key(context: Reader, ref: RefPath) -> Response:
    await keys.revoke(context, ref)
    return Response(status_code=204)


def _instant(text: str | None) -> float | None:
    return parse_instant(text, "expires_at") if text is not None else None


def _fresh(fresh: keys.FreshKey, status: int) -> Response:
    body = key_view(fresh.key) | {"secret": fresh.secret, "token": fresh.token}
    return reply(body, status, {"Cache-Control": "no-store"})


# --- quotas


@router.get("/quotas/{ref}", response_model=QuotaOut, summary="Show a quota")
async def show_quota(context: Reader, ref: RefPath) -> Response:
    """Of a tenant or a project."""
    return reply(quota_view(await tenants.find_quota(context, ref)))


@router.put("/quotas/{ref}", response_model=QuotaOut, summary="Set a quota")
async def set_quota(context: Reader, ref: RefPath, body: QuotaIn) -> Response:
    """What exists already stays, even where it is more."""
    limits = {measure: getattr(body, measure) for measure in body.model_fields_set}
    return reply(quota_view(await tenants.set_quota(context, ref, limits)))
