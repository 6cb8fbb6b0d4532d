"""The OpenAPI document: what it says is what is served. Checked by schemathesis against a running factory."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import schemathesis
import uvicorn
from hypothesis import HealthCheck, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.checks import CHECKS

from usina.testing.factory import running
from usina.testing.postgres import free_port
from usina.testing.waiting import until

EXAMPLES = 8


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """A factory on a real port, served from a thread: (endpoint, token)."""
    data_dir: Path = tmp_path_factory.mktemp("openapi")
    port, loop = free_port(), asyncio.new_event_loop()
    found: list[str] = []
    stop = asyncio.Event()

    async def serve() -> None:
        async with running(data_dir) as factory:
            async with factory.client() as client:
                await client.post("/hosts", json={"name": "h1", "driver": "fake"})
            await factory.ready_image()
            server = uvicorn.Server(uvicorn.Config(factory.app, port=port, log_config=None, lifespan="off"))
            task = asyncio.create_task(server._serve())
            while not server.started:
                await asyncio.sleep(0.01)
            found.append(factory.token)
            await stop.wait()
            server.should_exit = server.force_exit = True
            await task

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()))
    thread.start()
    until(lambda: found or not thread.is_alive(), limit=30)
    yield f"http://127.0.0.1:{port}/api", found[0]
    loop.call_soon_threadsafe(stop.set)
    thread.join()
    loop.close()


@pytest.fixture
def schema(site: tuple[str, str]) -> schemathesis.BaseSchema:
    endpoint, _ = site
    return schemathesis.openapi.from_url(f"{endpoint}/openapi.json")


@pytest.mark.slow
@pytest.mark.timeout(110)
@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
def test_no_server_error_and_no_schema_violation(
    schema: schemathesis.BaseSchema, site: tuple[str, str], mode: GenerationMode
) -> None:
    """Every operation with generated requests, good ones and bad ones."""
    checks = [c for c in CHECKS.get_all() if c.__name__ in _CHECKS]
    assert {c.__name__ for c in checks} == _CHECKS
    headers = {"Authorization": f"Bearer {site[1]}"}
    tried = 0
    for result in schema.get_all_operations():
        operation = result.ok()
        if operation.path.endswith("/events/stream"):
            continue  # endless; tested with a client of its own
        tried += 1

        @settings(max_examples=EXAMPLES, deadline=None, database=None, suppress_health_check=list(HealthCheck))
        @given(case=operation.as_strategy(generation_mode=mode))
        def probe(case: schemathesis.Case) -> None:
            case.call_and_validate(headers=headers, checks=checks, timeout=20)

        try:
            probe()
        except Unsatisfiable:
            assert mode is GenerationMode.NEGATIVE  # nothing in this operation can be wrong
    assert tried > 70


# Not "negative_data_rejection": it takes the key sent here for a wrong header, and unknown query parameters for wrong
# data. That bad input is refused, field by field, is held by `test_bad_input`.
_CHECKS = {
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_schema_conformance",
    "response_headers_conformance",
}


@pytest.mark.slow
def test_the_document_is_openapi_3_1_and_describes_every_error(schema: schemathesis.BaseSchema) -> None:
    raw = schema.raw_schema
    assert raw["openapi"].startswith("3.1")
    assert raw["info"]["title"] == "Usina"
    for path, item in raw["paths"].items():
        for method, operation in item.items():
            assert operation["summary"], (method, path)
            assert "401" in operation["responses"], (method, path)
            body = operation["responses"]["401"]["content"]["application/problem+json"]
            assert body["schema"]["$ref"] == "#/components/schemas/Problem"
