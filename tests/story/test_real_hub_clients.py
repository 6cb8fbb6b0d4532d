"""Clients of the hub as people still have them, each in an environment of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from usina.testing.process import FactoryProcess, factory_process

pytestmark = [pytest.mark.real, pytest.mark.timeout(300)]

DAY = """
import os, sys
from pathlib import Path
import huggingface_hub
from huggingface_hub import HfApi, hf_hub_download, snapshot_download
from huggingface_hub.utils import EntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError

assert huggingface_hub.__version__ == sys.argv[1]
repo, folder = sys.argv[2], Path(sys.argv[3])
api = HfApi()
assert "main" in [org["name"] for org in api.whoami()["orgs"]]
api.create_repo(repo)
(folder / "sub").mkdir(parents=True)
large = os.urandom(11 << 20)
(folder / "config.json").write_text("{}")
(folder / "sub" / "weights.bin").write_bytes(large)
api.upload_folder(repo_id=repo, folder_path=folder)
assert sorted(api.list_repo_files(repo)) == ["config.json", "sub/weights.bin"]
here = Path(snapshot_download(repo))
assert (here / "sub" / "weights.bin").read_bytes() == large
commit = api.model_info(repo).sha
assert here.name == commit
api.upload_file(path_or_fileobj=b"{1}", path_in_repo="config.json", repo_id=repo)
assert Path(hf_hub_download(repo, "config.json", revision=commit)).read_text() == "{}"
assert Path(hf_hub_download(repo, "config.json")).read_text() == "{1}"
for error, ask in (
    (EntryNotFoundError, lambda: hf_hub_download(repo, "none")),
    (RevisionNotFoundError, lambda: hf_hub_download(repo, "config.json", revision="none")),
    (RepositoryNotFoundError, lambda: hf_hub_download(repo + "-none", "config.json")),
):
    try:
        ask()
    except error:
        continue
    raise AssertionError(error)
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FactoryProcess]:
    with factory_process(tmp_path_factory.mktemp("clients") / "data", local_host=False) as site:
        yield site


@pytest.mark.parametrize("version", ["0.23.5", "0.36.2", "1.33.0"])
def test_an_older_client_uploads_and_downloads(version: str, site: FactoryProcess, tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    python = tmp_path / "venv" / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "-q", f"huggingface_hub=={version}"], check=True)
    settings = {"HF_ENDPOINT": f"{site.endpoint}/hf", "HF_TOKEN": site.token, "HF_HOME": str(tmp_path / "home")}
    command = [python, "-c", DAY, version, f"main/c{version.replace('.', '-')}", tmp_path / "folder"]
    done = subprocess.run(command, env=os.environ | settings, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
