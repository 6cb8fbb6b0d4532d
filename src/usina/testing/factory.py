"""A whole factory inside the test's own process: real store, real engine, real doors, pretended hosts."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx2

from usina.app.context import Context
from usina.core.goods import ImageStatus
from usina.core.machine import ImageFiles
from usina.core.resource import Kind, Phase
from usina.core.tenancy import Actor, Role
from usina.ports.driver import DriverPlugin
from usina.ports.runtime import RuntimePlugin
from usina.server import discovery
from usina.server.factory import Factory, open_factory
from usina.server.founding import found_site
from usina.server.settings import Settings
from usina.server.web import make_app
from usina.store.rows import resource_values
from usina.store.tables import resources
from usina.testing.waiting import eventually

Json = dict[str, Any]


@dataclass(slots=True)
class Running:
    """A factory at work, and a way to speak to it as anybody."""

    factory: Factory
    app: Any
    token: str

    def client(self, token: str | None = None) -> httpx2.AsyncClient:
        """An HTTP client of the native door; by default the first operator's."""
        return httpx2.AsyncClient(
            transport=httpx2.ASGITransport(app=self.app, raise_app_exceptions=False),
            base_url="http://factory/api/v1",
            headers={"Authorization": f"Bearer {token or self.token}"},
            timeout=60,
        )

    def context(self, role: Role = Role.OPERATOR) -> Context:
        """A context for calling operations directly, as an operator of the site."""
        return Context(self.factory.house, Actor("mbr-test", "test", {"*": role}))

    async def ready_image(self, name: str = "ready", project: str | None = None) -> str:
        """An image that is ready without having been built, for hosts that run nothing. Returns its id."""
        async with self.client() as client:
            body = {"name": name, "upload": True, "visibility": "public"} | ({"project": project} if project else {})
            image = (await client.post("/images", json=body)).raise_for_status().json()
        await pretend_ready(self.factory, image["id"])
        return str(image["id"])

    async def phase(self, id: str, *phases: Phase, limit: float = 15.0) -> Json:
        """Wait until a machine is in one of `phases`."""
        async with self.client() as client:

            async def ask() -> Json:
                return dict((await client.get(f"/machines/{id}")).raise_for_status().json())

            return await eventually(ask, lambda machine: machine["phase"] in phases, limit)

    async def gone(self, id: str, path: str = "machines", limit: float = 15.0) -> None:
        async with self.client() as client:

            async def ask() -> int:
                return (await client.get(f"/{path}/{id}")).status_code

            await eventually(ask, lambda status: status == 404, limit)


async def pretend_ready(factory: Factory, image: str) -> None:
    """Make an image ready with files that exist nowhere; only the fake driver accepts such."""
    store = factory.store
    found = await store.resources.get(image)
    assert found is not None and found.kind is Kind.IMAGE
    files = ImageFiles(digest=image.removeprefix("img-") * 2, disk="", format="raw")
    ready = replace(found, status=ImageStatus(files, 1.0, "ready"), phase=Phase.READY, observed=found.generation)
    values = resource_values(ready)
    idle = resources.update().where(
        resources.c.id == image, resources.c.due_at.is_(None), resources.c.lease_owner.is_(None)
    )

    async def written() -> int:  # the engine looks at a new image once; not while it does
        return await store.database.transact(lambda connection: connection.execute(idle.values(**values)).rowcount)

    await eventually(written)
    factory.house.near.forget()


@asynccontextmanager
async def running(
    data_dir: Path,
    *,
    database: str = "",
    plugins: Mapping[str, DriverPlugin] | None = None,
    runtimes: Mapping[str, RuntimePlugin] | None = None,
    tune: Callable[[Settings], Settings] = lambda settings: settings,
) -> AsyncIterator[Running]:
    """A factory at work in `data_dir`; everything of it has ended afterwards."""
    settings = tune(Settings(data_dir, database=database, local_host=False))
    drivers = plugins if plugins is not None else discovery.drivers().plugins
    async with open_factory(settings, drivers, runtimes=runtimes) as factory:
        admin = await found_site(factory.house, settings)
        token = admin["token"] if admin else ""
        async with factory.at_work():
            app = make_app(factory.house, discovery.facades().plugins.values(), "http://factory")
            yield Running(factory, app, token)


@asynccontextmanager
async def furnished(folder: Path) -> AsyncIterator[Running]:
    """A factory with one host of four GPUs on two NUMA nodes, and an image called ``ready``."""
    async with running(folder) as factory:
        async with factory.client() as client:
            options = {"cores": 64, "gpus": 4, "numa_nodes": 2, "hugepages": 8}
            answer = await client.post("/hosts", json={"name": "h1", "driver": "fake", "options": options})
            answer.raise_for_status()
        await factory.ready_image()
        yield factory
