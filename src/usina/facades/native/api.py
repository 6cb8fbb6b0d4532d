"""The native API as one ASGI application, mounted at ``/api``: routes under ``/v1``, its document beside them."""

from __future__ import annotations

from functools import cache
from typing import Any

from fastapi import APIRouter, FastAPI
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from usina import __version__
from usina.app.context import House
from usina.facades.native import (
    door,
    endpoint_routes,
    events,
    goods,
    hosts,
    hub,
    identity,
    llm,
    machines,
    placement,
    streams,
    tasks,
)
from usina.facades.native.answers import Problem, SiteOut
from usina.facades.native.orders import ShortWay
from usina.facades.native.pages import reference
from usina.facades.native.views import reply

_ABOUT = """One control plane for machines, networks, images and their owners.

Send your key as `Authorization: Bearer usk-…`. Orders answer at once; what is wanted is `spec`, what is seen is
`status`, and `phase` says how far apart they are. Errors are problem+json (RFC 9457) and name the `field`."""


_V1 = "/v1"
_ORDERED = (
    machines.router,
    tasks.router,
    endpoint_routes.router,
    goods.volumes,
    goods.networks,
    goods.groups,
    goods.forwards,
    goods.images_router,
)


def serve(house: House) -> ShortWay:
    """What is mounted: the application, told which house it serves, with a short way for orders."""
    return ShortWay(house, door.LargeBodies(application()), _V1, _ORDERED)


@cache
def application() -> FastAPI:
    """Every route. Requests bring their house along, so that one application does for all (`door.house_of`)."""
    app = FastAPI(
        title="Usina",
        version=__version__,
        description=_ABOUT,
        docs_url=None,  # ours, below: theirs would load scripts from elsewhere
        redoc_url=None,
        openapi_url="/openapi.json",
        max_body_size=door.BODY_LIMIT,
    )
    for kind, handler in door.HANDLERS.items():
        app.add_exception_handler(kind, handler)
    for router in (
        _about(),
        *_ORDERED,
        hosts.router,
        placement.router,
        tasks.blobs_router,
        endpoint_routes.runtimes,
        hub.router,
        identity.router,
        llm.router,
        events.router,
        streams.router,
    ):
        app.include_router(router, prefix=_V1)
    _describe(app)

    @app.get("/docs", include_in_schema=False)
    async def docs(request: Request) -> Response:
        return HTMLResponse(reference(app.openapi(), str(request.scope.get("root_path", ""))))

    return app


def _about() -> APIRouter:
    router = APIRouter(tags=["site"], responses=door.problems(401))

    @router.get("/site", response_model=SiteOut, summary="What this site offers")
    async def site(context: door.Reader) -> Response:
        house = context.house
        drivers = {name: {"summary": p.summary, "options": p.options} for name, p in house.plugins.items()}
        return reply({"version": __version__, "drivers": drivers, "recipes": sorted(house.recipes)})

    return router


def _describe(app: FastAPI) -> None:
    """The OpenAPI document: one way to authenticate, one shape of error."""
    plain = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = plain()
            schemas = document.setdefault("components", {}).setdefault("schemas", {})
            described = Problem.model_json_schema(ref_template="#/components/schemas/{model}")
            schemas.update(described.pop("$defs", {}))
            schemas["Problem"] = described
            for unused in ("HTTPValidationError", "ValidationError"):
                schemas.pop(unused, None)
            document["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
            document["security"] = [{"key": []}]
            document["servers"] = [{"url": "/api"}]
            app.openapi_schema = document
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]
