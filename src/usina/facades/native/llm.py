"""What may be used of models, and what was, at the native door."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query
from starlette.responses import Response

from usina.app import llm, tenants
from usina.core.units import parse_instant
from usina.facades.native.answers import KeyOut, ProjectOut
from usina.facades.native.door import Limit, ProjectQuery, Reader, RefPath, problems
from usina.facades.native.llm_answers import (
    BudgetList,
    BudgetOut,
    ExchangePage,
    UsageReport,
    budget_view,
    limits_of,
    report_view,
)
from usina.facades.native.models import BudgetIn, LimitsIn, PromptsIn
from usina.facades.native.views import key_view, project_view, reply

router = APIRouter(tags=["models"], responses=problems(401, 403, 404, 409, 413, 422))
DAY = 86_400.0
Time = Annotated[str | None, Query(max_length=40, description="RFC 3339.")]


@router.put("/keys/{ref}/limits", response_model=KeyOut, summary="Set what a key may do at the gateway")
async def set_limits(context: Reader, ref: RefPath, body: LimitsIn) -> Response:
    return reply(key_view(await llm.set_limits(context, ref, limits_of(body))))


@router.get("/budgets", response_model=BudgetList, summary="List budgets of tokens")
async def list_budgets(context: Reader) -> Response:
    """Of the projects that you see, their tenants, and your own keys; of everybody for operators."""
    found = await llm.budgets(context)
    return reply({"items": [budget_view(one) for one in found]})


@router.get("/budgets/{ref}", response_model=BudgetOut, summary="Show a budget")
async def show_budget(context: Reader, ref: RefPath) -> Response:
    """Of a key by id, or a project or tenant by id or name."""
    return reply(budget_view(await llm.budget(context, ref)))


@router.put("/budgets/{ref}", response_model=BudgetOut, summary="Set a budget")
async def set_budget(context: Reader, ref: RefPath, body: BudgetIn) -> Response:
    """What is spent in the period under way stays spent."""
    return reply(budget_view(await llm.set_budget(context, ref, body.tokens, body.every)))


@router.delete("/budgets/{ref}", status_code=204, response_class=Response, summary="Take a budget away")
async def drop_budget(context: Reader, ref: RefPath) -> Response:
    await llm.drop_budget(context, ref)
    return Response(status_code=204)


@router.put("/projects/{ref}/prompts", response_model=ProjectOut, summary="Set how long prompts are kept")
async def keep_prompts(context: Reader, ref: RefPath, body: PromptsIn) -> Response:
    """Of requests at the gateway that the project pays for, with their answers. 0 forgets those there are, too."""
    return reply(project_view(await tenants.keep_prompts(context, ref, body.days)))


@router.get("/projects/{ref}/prompts", response_model=ExchangePage, summary="List kept prompts")
async def list_prompts(
    context: Reader,
    ref: RefPath,
    since: Time = None,
    cursor: Annotated[str, Query(max_length=40, description="`next` of the page before.")] = "",
    limit: Limit = 100,
) -> Response:
    """Of the last day unless told otherwise, the oldest first. For admins of the project."""
    first = parse_instant(since, "since") if since else context.now - DAY
    kept = await tenants.kept_prompts(context, ref, first, cursor, limit)
    return reply({"items": kept.items, "next": kept.next})


@router.get("/usage", response_model=UsageReport, summary="What was used of models")
async def usage(
    context: Reader,
    since: Time = None,
    until: Time = None,
    by: Annotated[list[str], Query(max_length=6)] = ["endpoint"],  # noqa: B006 - FastAPI copies it
    every: Annotated[float, Query(ge=0, le=llm.LONGEST, description="Seconds of one step of time; 0: all in one.")] = 0,
    project: ProjectQuery = None,
) -> Response:
    """The last day unless told otherwise, to the minute. Of the projects that you see; admins see their tenants."""
    last = parse_instant(until, "until") if until else context.now
    first = parse_instant(since, "since") if since else last - DAY
    rows = await llm.usage(context, first, last, by, project=project, every=every)
    return reply(report_view(first, last, rows))
