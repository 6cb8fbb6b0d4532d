"""Reads models' files, away from the house: headers are parsed in a process of their own that cannot take long or much.

Where it fails, or the `llm` extra is missing, the facts stay empty and the log says why.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Mapping
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

import msgspec
import structlog

from usina.core.model import ModelFacts
from usina.core.repository import Card
from usina.services.models import card, facts

log = structlog.get_logger()

LIMIT = 120.0  # seconds
_AT_ONCE = 2


class FileReader:
    """See `ports.models.ModelReader`."""

    def __init__(self) -> None:
        self._room = asyncio.Semaphore(_AT_ONCE)

    def tells(self, path: str) -> bool:
        return facts.tells(path)

    def card(self, text: str) -> Card:
        return card.read(text)

    async def facts(self, files: Mapping[str, Path]) -> ModelFacts:
        telling = {path: str(place) for path, place in files.items() if facts.tells(path)}
        if not telling:
            return ModelFacts()
        if any(path.endswith(".gguf") for path in telling) and find_spec("gguf") is None:
            log.warning("models' headers are not read", reason="install usina[llm]")
            return ModelFacts()
        async with self._room:
            try:
                async with asyncio.timeout(LIMIT):
                    return await _read(telling)
            except (TimeoutError, msgspec.MsgspecError) as error:
                log.info("a model's headers could not be read", reason=repr(error))
                return ModelFacts()


async def _read(files: dict[str, str]) -> ModelFacts:
    environment = {"PATH": os.environ.get("PATH", ""), "PYTHONPATH": os.pathsep.join(sys.path)}
    environment |= {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", facts.__file__),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=environment,
    )
    try:
        said, errors = await process.communicate(json.dumps(files).encode())
    finally:
        if process.returncode is None:
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()
    if process.returncode != 0:
        last = errors.decode(errors="replace").strip().rsplit("\n", 1)[-1]
        log.info("a model's headers could not be read", code=process.returncode, reason=last[:200])
        return ModelFacts()
    return msgspec.json.decode(said, type=ModelFacts)
