"""Placement at the native door: why, and what it sees."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.responses import Response

from usina.app import placement
from usina.facades.native.answers import ExplanationOut
from usina.facades.native.door import ProjectQuery, Reader, RefPath, problems
from usina.facades.native.views import explanation_view, reply

router = APIRouter(tags=["placement"], responses=problems(401, 403, 404, 422))


@router.get("/machines/{ref}/placement", response_model=ExplanationOut, summary="Why a machine is there, or nowhere")
async def explain(context: Reader, ref: RefPath, project: ProjectQuery = None) -> Response:
    """As if it held nothing now. Names of hosts, and who could be preempted, are shown to operators only."""
    return reply(explanation_view(*await placement.explain_machine(context, ref, project)))


@router.get(
    "/placement/hosts",
    summary="The hosts as placement sees them",
    response_class=Response,
    responses={
        200: {"content": {"application/json": {"schema": {"type": "object"}}}, "description": "For simulations"}
    },
)
async def hosts(context: Reader) -> Response:
    """All hosts with what is held on them, as `usina placement simulate --hosts` reads them. For operators."""
    return Response(await placement.snapshot(context), media_type="application/json")
