"""Stories and events at the native door; events also as a stream (SSE) that can be resumed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Header, Query
from starlette.responses import Response, StreamingResponse

from usina.app import resources
from usina.app.context import Context
from usina.core.errors import UsinaError
from usina.facades.native.answers import EventPage
from usina.facades.native.door import Limit, ProjectQuery, Reader, RefPath, problems
from usina.facades.native.models import REF
from usina.facades.native.views import encode, event_view, reply

router = APIRouter(tags=["events"], responses=problems(401, 403, 404, 413, 422))

SeqQuery = Annotated[int, Query(ge=0, le=1 << 53, description="Only events past this sequence number.")]
SubjectQuery = Annotated[str | None, Query(pattern=REF, max_length=64, description="Only events of one object.")]
KindQuery = Annotated[str | None, Query(pattern=r"^[a-z_.-]{1,64}$", description="For example machine.running.")]

HEARTBEAT = 15.0
POLL = 1.0  # seconds between looks for what another control plane wrote


@router.get("/stories/{ref}", response_model=EventPage, summary="The story of one object")
async def story(
    context: Reader, ref: RefPath, after: SeqQuery = 0, limit: Limit = 1000, project: ProjectQuery = None
) -> Response:
    """Everything that ever happened to it, also after its end: orders, steps, refusals, sights, and their causes."""
    id = await resources.find_story(context, ref, project)
    found = await resources.story(context, id, after, limit)
    return reply({"items": [event_view(e) for e in found], "next": str(found[-1].seq) if len(found) == limit else None})


@router.get("/events", response_model=EventPage, summary="Events, in order")
async def events(
    context: Reader,
    project: ProjectQuery = None,
    subject: SubjectQuery = None,
    kind: KindQuery = None,
    after: SeqQuery = 0,
    limit: Limit = 500,
) -> Response:
    found = await resources.events(context, after, project=project, subject=subject, kind=kind, limit=limit)
    return reply({"items": [event_view(e) for e in found], "next": str(found[-1].seq) if len(found) == limit else None})


@router.get(
    "/events/stream",
    summary="Events as they happen",
    response_class=StreamingResponse,
    responses={200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}, "description": "SSE"}},
)
async def stream(
    context: Reader,
    project: ProjectQuery = None,
    subject: SubjectQuery = None,
    kind: KindQuery = None,
    after: Annotated[int | None, Query(ge=0, le=1 << 53, description="Where to begin; absent: now.")] = None,
    last_event_id: Annotated[str | None, Header(pattern=r"^\d{1,16}$", description="Resume after this event.")] = None,
) -> Response:
    """Server-sent events; the id of each is its sequence number. `Last-Event-ID` resumes without a gap."""
    await resources.scope_of_events(context, project)  # refuse before the stream begins
    start = int(last_event_id) if last_event_id else after
    if start is None:
        start = await resources.newest(context)
    body = _stream(context, start, project, subject, kind)
    return StreamingResponse(
        body, media_type="text/event-stream", headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    )


async def _stream(
    context: Context, after: int, project: str | None, subject: str | None, kind: str | None
) -> AsyncIterator[bytes]:
    loop = asyncio.get_running_loop()
    spoke = loop.time()
    yield b"retry: 2000\n\n"
    while True:
        try:
            found = await resources.events(context, after, project=project, subject=subject, kind=kind)
            await context.still_allowed()
        except UsinaError:
            return  # the role or the key is gone
        for event in found:
            after = event.seq
            yield b"id: %d\nevent: %b\ndata: %b\n\n" % (
                event.seq,
                event.kind.encode(),
                encode(event_view(event)),
            )
            spoke = loop.time()
        if loop.time() - spoke > HEARTBEAT:
            yield b": still here\n\n"
            spoke = loop.time()
        if not found:
            await resources.next_commit(context, POLL)
