"""Prompts are kept where a project asks for it, and nowhere else: looked for in every file of a factory."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import openai
import pytest

from usina.testing.llm import Parrot, parrots
from usina.testing.process import FactoryProcess
from usina.testing.waiting import until

Usina = Callable[..., subprocess.CompletedProcess[str]]
HUSH, LOUD, SAID = "hush-7531", "loud-9642", "said-8520"


@pytest.fixture
def factory(tmp_path: Path) -> Iterator[FactoryProcess]:
    with FactoryProcess(tmp_path / "data", local_host=False, private_urls=True).start() as process:
        yield process


def files_with(factory: FactoryProcess, word: str) -> set[str]:
    paths = [path for path in factory.data_dir.rglob("*") if path.is_file()]
    found = {str(path.relative_to(factory.data_dir)) for path in paths if word.encode() in path.read_bytes()}
    return found | ({"log"} if word in factory.log.read_text() else set())


async def test_only_who_asks_for_it_has_prompts_kept(factory: FactoryProcess, usina: Usina) -> None:
    main = factory.call("GET", "/projects")["items"][0]
    quiet = factory.call("POST", "/projects", {"name": "quiet", "tenant": main["tenant"]})["id"]
    assert "not kept" in usina("project", "show", "main").stdout
    done = usina("project", "keep-prompts", "main", "30d")
    assert done.returncode == 0, done.stderr
    assert "kept for 30 days" in usina("project", "show", "main").stdout
    async with parrots(Parrot(words=(SAID,))) as [port]:
        for project, prompt in ((main["id"], LOUD), (quiet, HUSH)):
            order = {"name": "chat", "runtime": "external", "model": "parrot", "url": f"http://127.0.0.1:{port}/v1"}
            factory.call("POST", "/endpoints", order | {"project": project})
            key = factory.call("POST", "/keys", {"name": "k", "project": project})["token"]
            async with openai.AsyncOpenAI(base_url=f"{factory.endpoint}/v1", api_key=key, max_retries=2) as client:
                messages = [{"role": "user", "content": prompt}]
                await client.chat.completions.create(model="chat", messages=messages)
                stream = await client.chat.completions.create(model="chat", messages=messages, stream=True)
                assert [chunk async for chunk in stream]
                with pytest.raises(openai.NotFoundError):
                    await client.chat.completions.create(model="none", messages=messages)
    factory.stop()
    assert files_with(factory, HUSH) == set()
    assert {path.rpartition("/")[0] for path in files_with(factory, LOUD)} == {f"prompts/{main['id']}"}
    factory.start()

    kept = json.loads(usina("project", "prompts", "main", "-o", "json").stdout)
    assert [json.loads(one["asked"])["messages"][0]["content"] for one in kept] == [LOUD] * 2
    assert SAID in kept[0]["answered"] and SAID in kept[1]["answered"] and "[DONE]" in kept[1]["answered"]
    assert [(one["status"], one["prompt"], one["completion"]) for one in kept] == [(200, 7, 1)] * 2
    assert json.loads(usina("project", "prompts", "quiet", "-o", "json").stdout) == []
    assert LOUD in usina("project", "prompts", "main").stdout

    assert usina("project", "keep-prompts", "main", "1h").returncode != 0
    assert usina("project", "keep-prompts", "main", "off", "--yes").returncode == 0
    factory.stop()
    factory.start()  # tidying begins with a start

    def left() -> set[str]:
        try:
            return files_with(factory, LOUD)
        except FileNotFoundError:  # one was swept away while it was looked for: look again
            return {"some"}

    until(left, lambda found: not found)
