"""The Hugging Face door, by the clients its users really use: `huggingface_hub` and `transformers`, over real HTTP."""

from __future__ import annotations

import hashlib
import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
from huggingface_hub import CommitOperationAdd, CommitOperationCopy, CommitOperationDelete, HfApi, HfFileSystem
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.file_download import http_get

from usina.testing.process import FactoryProcess, factory_process

Json = dict[str, Any]
MiB = 1 << 20


@dataclass
class Hub:
    """One member at the door."""

    site: FactoryProcess
    token: str
    cache: Path

    @property
    def endpoint(self) -> str:
        return f"{self.site.endpoint}/hf"

    @property
    def api(self) -> HfApi:
        return HfApi(endpoint=self.endpoint, token=self.token)

    def http(self, method: str, path: str, **more: Any) -> httpx2.Response:
        headers = {"Authorization": f"Bearer {self.token}"} | more.pop("headers", {})
        with httpx2.Client(base_url=self.endpoint, trust_env=False, timeout=30) as client:
            return client.request(method, path, headers=headers, **more)

    def fetch(self, repo: str, path: str, **more: Any) -> str:
        return self.api.hf_hub_download(repo, path, cache_dir=self.cache, **more)


@pytest.fixture(scope="module", autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Where `hf_xet` keeps its log and what it remembers; it reads this when it is first used."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HOME", str(tmp_path_factory.mktemp("home")))
        yield


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FactoryProcess]:
    with factory_process(tmp_path_factory.mktemp("hub") / "data", local_host=False) as site:
        yield site


@pytest.fixture(scope="module")
def tenants(site: FactoryProcess) -> dict[str, str]:
    """A member of each of two tenants, another of the first, and a viewer: name → token."""
    tokens = {}
    for tenant, project, people in (
        ("acme", "lab", {"ada": "member", "vera": "viewer"}),
        ("rival", "den", {"mallory": "member"}),
    ):
        tenant_id = site.call("POST", "/tenants", {"name": tenant})["id"]
        project_id = site.call("POST", "/projects", {"name": project, "tenant": tenant_id})["id"]
        for name, role in people.items():
            body = {"name": name, "tenant": tenant_id, "roles": {project_id: role}}
            member = site.call("POST", "/members", body)["id"]
            tokens[name] = site.call("POST", "/keys", {"name": "k", "member": member})["token"]
    return tokens | {"operator": site.token}


@pytest.fixture
def ada(site: FactoryProcess, tenants: dict[str, str], tmp_path: Path) -> Hub:
    return Hub(site, tenants["ada"], tmp_path / "cache")


@pytest.fixture
def mallory(site: FactoryProcess, tenants: dict[str, str], tmp_path: Path) -> Hub:
    return Hub(site, tenants["mallory"], tmp_path / "cache-m")


@pytest.fixture
def vera(site: FactoryProcess, tenants: dict[str, str], tmp_path: Path) -> Hub:
    return Hub(site, tenants["vera"], tmp_path / "cache-v")


@pytest.fixture
def operator(site: FactoryProcess, tmp_path: Path) -> Hub:
    return Hub(site, site.token, tmp_path / "cache-o")


def filled(hub: Hub, repo: str, **files: bytes) -> str:
    """A repository with files; `__` in a name is a slash, `_dot_` a dot. Its newest commit."""
    hub.api.create_repo(repo, exist_ok=True)
    operations = [
        CommitOperationAdd(name.replace("__", "/").replace("_dot_", "."), content) for name, content in files.items()
    ]
    return str(hub.api.create_commit(repo, operations, commit_message="files").oid)


def test_whoami(ada: Hub) -> None:
    me = ada.api.whoami()
    assert (me["name"], me["type"], [org["name"] for org in me["orgs"]]) == ("ada", "user", ["lab"])
    with pytest.raises(HfHubHTTPError, match="Invalid user token"):
        HfApi(endpoint=ada.endpoint, token="usk-wrong-wrong").whoami()


def test_a_repository_from_its_making_to_its_end(ada: Hub, tmp_path: Path) -> None:
    api = ada.api
    url = api.create_repo("lab/first")
    assert (url.repo_id, url.namespace, url.endpoint) == ("lab/first", "lab", ada.endpoint)
    with pytest.raises(HfHubHTTPError):
        api.create_repo("LAB/First")
    assert api.create_repo("lab/first", exist_ok=True).repo_id == "lab/first"
    assert api.create_repo("nameless").repo_id == "ada/nameless"

    folder = tmp_path / "model"
    (folder / "sub").mkdir(parents=True)
    (folder / "README.md").write_text("---\nlicense: mit\ntags: [tiny]\nlanguage: en\n---\n# First\n")
    (folder / "config.json").write_text('{"model_type": "llama", "num_hidden_layers": 2}')
    (folder / "sub" / "note.txt").write_text("a note")
    (folder / "empty.txt").touch()
    info = api.upload_folder(repo_id="lab/first", folder_path=folder, commit_message="all of it")
    assert api.list_repo_files("lab/first") == ["README.md", "config.json", "empty.txt", "sub/note.txt"]

    model = api.model_info("lab/first", files_metadata=True)
    assert (model.id, model.sha, model.private, model.gated) == ("lab/first", info.oid, True, False)
    assert {"license:mit", "tiny", "en"} <= set(model.tags or [])
    assert model.card_data is not None and model.card_data.license == "mit"
    sizes = {sibling.rfilename: sibling.size for sibling in model.siblings or []}
    assert sizes["sub/note.txt"] == 6

    local = Path(api.snapshot_download("lab/first", cache_dir=ada.cache))
    assert (local / "sub/note.txt").read_text() == "a note"
    assert local.name == info.oid
    again = api.upload_folder(repo_id="lab/first", folder_path=folder)
    assert again.oid == info.oid  # nothing had changed

    api.delete_file("empty.txt", "lab/first")
    api.delete_folder("sub", "lab/first")
    assert api.list_repo_files("lab/first") == ["README.md", "config.json"]
    titles = [commit.title for commit in api.list_repo_commits("lab/first")]
    assert titles[-1] == "initial commit" and titles[2] == "all of it"
    with pytest.raises(RemoteEntryNotFoundError):
        api.delete_file("empty.txt", "lab/first")
    api.delete_repo("lab/first")
    with pytest.raises(RepositoryNotFoundError):
        api.model_info("lab/first")
    api.delete_repo("lab/first", missing_ok=True)


def test_binary_and_large_files(ada: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    small, large = os.urandom(300_000), os.urandom(11 * MiB)
    place = tmp_path / "large.bin"
    place.write_bytes(large)
    ada.api.create_repo("lab/large")
    ada.api.upload_file(path_or_fileobj=small, path_in_repo="model.safetensors", repo_id="lab/large")
    ada.api.upload_file(path_or_fileobj=place, path_in_repo="weights/large.bin", repo_id="lab/large")
    first = ada.api.upload_file(path_or_fileobj=place, path_in_repo="weights/large.bin", repo_id="lab/large")
    assert first.oid == ada.api.model_info("lab/large").sha

    tree = {one.path: one for one in ada.api.list_repo_tree("lab/large", recursive=True)}
    assert set(tree) == {"model.safetensors", "weights", "weights/large.bin"}
    assert tree["weights/large.bin"].lfs.sha256 == hashlib.sha256(large).hexdigest()
    assert tree["model.safetensors"].lfs.size == len(small)
    assert tree["model.safetensors"].xet_hash is None
    for path, content in (("model.safetensors", small), ("weights/large.bin", large)):
        assert Path(ada.fetch("lab/large", path)).read_bytes() == content
    copied = ada.api.create_commit(
        "lab/large", [CommitOperationCopy("weights/large.bin", "copy.bin")], commit_message="copy"
    )
    assert ada.api.get_paths_info("lab/large", ["copy.bin"], revision=copied.oid)[0].size == len(large)
    verified = ada.api.verify_repo_checksums("lab/large", cache_dir=ada.cache, revision=first.oid)
    assert not verified.mismatches


def test_a_stream_goes_up_without_xet(ada: Hub) -> None:
    """A file object never takes the other protocol, whatever is installed."""
    content = os.urandom(11 * MiB)
    ada.api.create_repo("lab/stream")
    ada.api.upload_file(path_or_fileobj=io.BytesIO(content), path_in_repo="w.gguf", repo_id="lab/stream")
    assert Path(ada.fetch("lab/stream", "w.gguf")).read_bytes() == content


def test_large_files_go_up_by_xet(ada: Hub, tmp_path: Path) -> None:
    """As clients do it that have `hf_xet`: chunks, packed in the way that suits floats, and only those that are new."""
    content = np.random.default_rng(1).normal(size=3_000_000).astype("float32").tobytes()
    place = tmp_path / "w.safetensors"
    settings = {"HF_ENDPOINT": ada.endpoint, "HF_TOKEN": ada.token, "HF_HOME": str(tmp_path / "home")}

    def upload(name: str) -> None:
        hf = Path(sys.executable).with_name("hf")
        command = [str(hf), "upload", "lab/xet", str(place), name]
        done = subprocess.run(command, env=os.environ | settings, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr

    place.write_bytes(content)
    ada.api.create_repo("lab/xet")
    upload("w.safetensors")
    assert Path(ada.fetch("lab/xet", "w.safetensors")).read_bytes() == content
    [member] = (ada.site.data_dir / "xet").iterdir()
    sent = sum(path.stat().st_size for path in member.iterdir())
    assert sent < len(content)
    place.write_bytes(content[:5_000_000] + b"changed" + content[5_000_000:])
    upload("v.safetensors")
    assert Path(ada.fetch("lab/xet", "v.safetensors")).read_bytes() == place.read_bytes()
    assert sum(path.stat().st_size for path in member.iterdir()) < sent + MiB
    assert {one.path: one.xet_hash for one in ada.api.list_repo_tree("lab/xet") if "w" in one.path} == {
        "w.safetensors": None
    }


def test_a_token_of_xet_is_for_one_repository_and_one_member(ada: Hub, vera: Hub, mallory: Hub) -> None:
    filled(ada, "lab/tokens", a_dot_txt=b"1")
    path = "/api/models/lab/tokens/xet-write-token/main"
    assert [hub.http("GET", path).status_code for hub in (vera, mallory)] == [403, 404]
    told = ada.http("GET", path).json()
    id, key, until, mark = told["accessToken"].split(":")
    name = "0" * 64

    def status(token: str, url: str = f"/xet/v1/xorbs/default/{name}", method: str = "POST") -> int:
        return ada.http(method, url, content=b"", headers={"Authorization": f"Bearer {token}"}).status_code

    assert told["casUrl"] == f"{ada.endpoint}/xet"
    for wrong in (ada.token, f"{id}:{key}:{int(until) + 1}:{mark}", f"{id}:{key}:{until}:{'0' * 64}", ":"):
        assert status(wrong) == 401
    assert status(told["accessToken"]) == 200
    assert status(told["accessToken"], "/xet/v1/xorbs/default/..%2Fx") == 400
    assert status(told["accessToken"], "/xet/v1/xorbs/other/" + name) == 404
    assert status(told["accessToken"], "/xet/v1/shards") == 400
    assert status(told["accessToken"], f"/xet/v1/chunks/default-merkledb/{name}", "GET") == 404


def test_revisions_are_pinned(ada: Hub) -> None:
    one = filled(ada, "lab/pinned", a_dot_txt=b"1")
    two = filled(ada, "lab/pinned", a_dot_txt=b"2")
    api = ada.api
    api.create_tag("lab/pinned", tag="v1", revision=one, tag_message="the first")
    api.create_branch("lab/pinned", branch="feature/x", revision=one)
    with pytest.raises(HfHubHTTPError):
        api.create_tag("lab/pinned", tag="v1", revision=two)
    api.create_tag("lab/pinned", tag="v1", revision=two, exist_ok=True)  # and it has not moved
    for revision, content in ((one, "1"), (two, "2"), ("v1", "1"), ("main", "2"), ("feature/x", "1")):
        assert Path(ada.fetch("lab/pinned", "a.txt", revision=revision)).read_text() == content
        assert api.list_repo_files("lab/pinned", revision=revision) == ["a.txt"]
    api.upload_file(path_or_fileobj=b"3", path_in_repo="b.txt", repo_id="lab/pinned", revision="feature/x")
    assert api.list_repo_files("lab/pinned", revision="feature/x") == ["a.txt", "b.txt"]
    assert api.list_repo_files("lab/pinned", revision=one) == ["a.txt"]
    refs = api.list_repo_refs("lab/pinned")
    assert [branch.name for branch in refs.branches] == ["feature/x", "main"]
    assert [(tag.name, tag.target_commit) for tag in refs.tags] == [("v1", one)]
    api.delete_branch("lab/pinned", branch="feature/x")
    api.delete_tag("lab/pinned", tag="v1")
    with pytest.raises(HfHubHTTPError):
        api.delete_branch("lab/pinned", branch="main")
    with pytest.raises(RevisionNotFoundError):
        api.delete_tag("lab/pinned", tag="v1")
    operations = [CommitOperationAdd("c.txt", b"c")]
    with pytest.raises(HfHubHTTPError) as stale:
        api.create_commit("lab/pinned", operations, commit_message="late", parent_commit=one)
    assert stale.value.response.status_code == 412


def test_errors_are_the_hubs_own(ada: Hub) -> None:
    filled(ada, "lab/errors", a_dot_txt=b"1")
    with pytest.raises(RepositoryNotFoundError):
        ada.api.model_info("lab/none")
    with pytest.raises(RepositoryNotFoundError):
        ada.api.dataset_info("lab/errors")
    with pytest.raises(RevisionNotFoundError):
        ada.api.model_info("lab/errors", revision="none")
    with pytest.raises(RevisionNotFoundError):
        ada.fetch("lab/errors", "a.txt", revision="0" * 40)
    with pytest.raises(RemoteEntryNotFoundError):
        ada.fetch("lab/errors", "b.txt")
    with pytest.raises(RepositoryNotFoundError):
        HfApi(endpoint=ada.endpoint, token=False).model_info("lab/errors")
    with pytest.raises(ValueError, match="Invalid metadata"):
        ada.api.upload_file(path_or_fileobj=b"---\na: [\n---\n", path_in_repo="README.md", repo_id="lab/errors")
    missing = ada.http("HEAD", "/lab/errors/resolve/main/b.txt")
    assert missing.status_code == 404
    assert missing.headers["X-Error-Code"] == "EntryNotFound"
    assert missing.headers["X-Repo-Commit"] == ada.api.model_info("lab/errors").sha


def test_another_tenants_repository_is_as_if_it_were_not(ada: Hub, mallory: Hub) -> None:
    filled(ada, "lab/secret", a_dot_txt=b"1")

    def seen(repo: str) -> list[tuple[int, str, str]]:
        asked = [
            ("GET", f"/api/models/{repo}"),
            ("GET", f"/api/models/{repo}/revision/main"),
            ("GET", f"/api/models/{repo}/tree/main"),
            ("GET", f"/api/models/{repo}/refs"),
            ("GET", f"/api/models/{repo}/commits/main"),
            ("GET", f"/api/models/{repo}/auth-check"),
            ("POST", f"/api/models/{repo}/paths-info/main"),
            ("POST", f"/api/models/{repo}/preupload/main"),
            ("POST", f"/api/models/{repo}/commit/main"),
            ("POST", f"/api/models/{repo}/branch/x"),
            ("POST", f"/api/models/{repo}/tag/main"),
            ("PUT", f"/api/models/{repo}/settings"),
            ("HEAD", f"/{repo}/resolve/main/a.txt"),
            ("GET", f"/{repo}/resolve/main/a.txt"),
            ("POST", f"/{repo}.git/info/lfs/objects/batch"),
        ]
        bodies = {"preupload": {"files": []}, "tag": {"tag": "x"}, "batch": {"operation": "upload", "objects": []}}
        found = []
        for method, path in asked:
            body = next((value for word, value in bodies.items() if word in path), None)
            answer = mallory.http(method, path, **({"json": body} if body else {}))
            found.append((answer.status_code, answer.headers.get("X-Error-Code", ""), answer.text))
        return found

    assert seen("lab/secret") == seen("lab/never-made")
    assert {(status, code) for status, code, _ in seen("lab/secret")} == {(404, "RepoNotFound")}
    assert [one.id for one in mallory.api.list_models(author="lab")] == []
    with pytest.raises(RepositoryNotFoundError):
        mallory.api.delete_repo("lab/secret")
    assert mallory.api.create_repo("lab/secret").repo_id == "lab/secret"  # their own of that name
    assert mallory.api.list_repo_files("lab/secret") == []
    assert ada.api.list_repo_files("lab/secret") == ["a.txt"]


def test_knowing_a_digest_gives_nobody_its_content(ada: Hub, mallory: Hub) -> None:
    content = os.urandom(1000)
    filled(ada, "lab/digests", w_dot_bin=content)
    mallory.api.create_repo("den/thief")
    digest = hashlib.sha256(content).hexdigest()
    batch = {"operation": "upload", "objects": [{"oid": digest, "size": len(content)}]}
    answer = mallory.http("POST", "/den/thief.git/info/lfs/objects/batch", json=batch).json()
    assert "upload" in answer["objects"][0]["actions"]  # it must be sent, as if it were nowhere
    lines = [
        {"key": "header", "value": {"summary": "steal"}},
        {"key": "lfsFile", "value": {"path": "w.bin", "algo": "sha256", "oid": digest, "size": len(content)}},
    ]
    body = b"".join(json.dumps(line).encode() + b"\n" for line in lines)
    refused = mallory.http("POST", "/api/models/den/thief/commit/main", content=body)
    assert refused.status_code == 400
    href = answer["objects"][0]["actions"]["upload"]["href"]
    with httpx2.Client(trust_env=False) as client:
        for bad in (href.replace(digest, "0" * 64), href.replace("until=", "until=9"), href + "0"):
            assert client.put(bad, content=content).status_code == 401
        assert client.put(href, content=content[:-1] + b"x").status_code == 400
        assert client.put(href, content=content + b"x").status_code == 400
        assert client.put(href, content=content).status_code == 200
    assert mallory.http("POST", "/api/models/den/thief/commit/main", content=body).status_code == 200


def test_viewers_read_and_do_not_write(ada: Hub, vera: Hub) -> None:
    filled(ada, "lab/viewed", a_dot_txt=b"1")
    assert vera.api.list_repo_files("lab/viewed") == ["a.txt"]
    vera.api.auth_check("lab/viewed")
    for attempt in (
        lambda: vera.api.upload_file(path_or_fileobj=b"2", path_in_repo="a.txt", repo_id="lab/viewed"),
        lambda: vera.api.create_branch("lab/viewed", branch="x"),
        lambda: vera.api.delete_repo("lab/viewed"),
        lambda: vera.api.update_repo_settings("lab/viewed", gated="auto"),
        lambda: vera.api.auth_check("lab/viewed", write=True),
    ):
        with pytest.raises(HfHubHTTPError) as refused:
            attempt()
        assert refused.value.response.status_code == 403
    with pytest.raises(HfHubHTTPError):
        ada.api.update_repo_settings("lab/viewed", private=False)  # only an operator publishes


def test_gated(ada: Hub, vera: Hub, mallory: Hub, operator: Hub) -> None:
    filled(ada, "lab/gated", a_dot_txt=b"1", README_dot_md=b"---\nlicense: custom\n---\n")
    ada.api.update_repo_settings("lab/gated", gated="auto")
    operator.api.update_repo_settings("lab/gated", private=False)
    assert ada.api.model_info("lab/gated").gated == "auto"
    assert Path(ada.fetch("lab/gated", "a.txt")).read_text() == "1"  # the keepers read their own
    for reader in (vera, mallory):
        assert reader.api.model_info("lab/gated").id == "lab/gated"
        with pytest.raises(GatedRepoError):
            reader.api.auth_check("lab/gated")
        with pytest.raises(GatedRepoError, match="usina model accept lab/gated"):
            reader.fetch("lab/gated", "a.txt")
    gated = ada.site.call("GET", "/models", token=mallory.token, name="lab/gated")["items"][0]
    ada.site.call("POST", f"/models/{gated['id']}/accept", token=mallory.token)
    assert Path(mallory.fetch("lab/gated", "a.txt")).read_text() == "1"
    with pytest.raises(GatedRepoError):
        vera.api.auth_check("lab/gated")


def test_ranges_and_conditions(ada: Hub, tmp_path: Path) -> None:
    content = os.urandom(3 * MiB)
    commit = filled(ada, "lab/ranges", w_dot_bin=content)
    path = f"/lab/ranges/resolve/{commit}/w.bin"
    head = ada.http("HEAD", path)
    digest = hashlib.sha256(content).hexdigest()
    assert head.headers["ETag"] == head.headers["X-Linked-ETag"] == f'"{digest}"'
    assert head.headers["Content-Length"] == head.headers["X-Linked-Size"] == str(len(content))
    assert head.headers["X-Repo-Commit"] == commit
    assert not [name for name in head.headers if "xet" in name.lower()]
    part = ada.http("GET", path, headers={"Range": "bytes=1000-1999"})
    assert (part.status_code, part.content) == (206, content[1000:2000])
    assert part.headers["Content-Range"] == f"bytes 1000-1999/{len(content)}"
    assert ada.http("GET", path, headers={"Range": f"bytes={len(content)}-"}).status_code == 416
    assert ada.http("GET", path, headers={"If-None-Match": f'"{digest}"'}).status_code == 304
    place = tmp_path / "half"
    place.write_bytes(content[: 1 << 20])
    with place.open("ab") as file:  # as the client goes on after a break
        headers = {"Authorization": f"Bearer {ada.token}"}
        http_get(ada.endpoint + path, file, resume_size=1 << 20, headers=headers, expected_size=len(content))
    assert place.read_bytes() == content


def test_what_tenants_upload_is_no_page(ada: Hub) -> None:
    filled(ada, "lab/page", x_dot_html=b"<script>alert(1)</script>", y_dot_svg=b"<svg/>")
    for name in ("x.html", "y.svg"):
        answer = ada.http("GET", f"/lab/page/resolve/main/{name}")
        assert answer.headers["Content-Type"] == "application/octet-stream"
        assert answer.headers["Content-Disposition"].startswith("attachment")
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert "sandbox" in answer.headers["Content-Security-Policy"]


@pytest.mark.parametrize(
    "path", ["../../master.key", "..%2f..%2fmaster.key", "%2e%2e/%2e%2e/usina.db", "/etc/passwd", "%2fetc%2fpasswd",
             "a%00b", "a%0d%0aX-Evil:%201", "%ff", "a/../a.txt", ".git/config"]
)  # fmt: skip
def test_paths_lead_nowhere_else(ada: Hub, path: str) -> None:
    import socket

    filled(ada, "lab/paths", a_dot_txt=b"1")
    request = f"GET /hf/lab/paths/resolve/main/{path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {ada.token}\r\n"
    with socket.create_connection(("127.0.0.1", ada.site.port)) as line:  # a client would tidy the path up
        line.sendall(f"{request}Connection: close\r\n\r\n".encode())
        answer = b"".join(iter(lambda: line.recv(65536), b""))
    assert answer.split(b" ", 2)[1] in (b"404", b"400")
    assert b"X-Evil" not in answer.split(b"\r\n\r\n")[0]


@pytest.mark.parametrize("path", ["../x", "a/../../x", "/x", "a//x", "a\0b", ".git/config", "a\r\nb"])
def test_commits_cannot_name_other_places(ada: Hub, path: str) -> None:
    ada.api.create_repo("lab/places", exist_ok=True)
    lines: list[Json] = [
        {"key": "header", "value": {"summary": "x"}},
        {"key": "file", "value": {"path": path, "content": "MQ==", "encoding": "base64"}},
    ]
    body = b"".join(json.dumps(line).encode() + b"\n" for line in lines)
    refused = ada.http("POST", "/api/models/lab/places/commit/main", content=body)
    assert refused.status_code == 400, refused.text
    assert ada.api.list_repo_files("lab/places") == []


def test_malformed_bodies_are_told(ada: Hub) -> None:
    ada.api.create_repo("lab/bodies", exist_ok=True)
    for path in ("commit/main", "preupload/main", "tag/main"):
        for body in (b"", b"{", b"[]", b'{"key": "file"}', b'{"key":"nothing","value":{}}', b"\xff\xfe"):
            answer = ada.http("POST", f"/api/models/lab/bodies/{path}", content=body)
            assert answer.status_code in (400, 200), (path, body)
    assert ada.api.list_repo_files("lab/bodies") == []
    long = b'{"key":"file","value":{"path":"x","content":"' + b"A" * (15 * MiB) + b'"}}\n'
    assert ada.http("POST", "/api/models/lab/bodies/commit/main", content=long).status_code == 413


def test_lists(ada: Hub) -> None:
    for number in range(5):
        filled(ada, f"lists/m{number}", README_dot_md=b"---\ntags: [listed]\n---\n" + b"%d" % number)
    names = [f"lists/m{number}" for number in range(5)]
    assert [one.id for one in ada.api.list_models(author="lists")] == names
    assert [one.id for one in ada.api.list_models(author="lists", limit=2)] == names[:2]
    assert [one.id for one in ada.api.list_models(search="LISTS/M3")] == names[3:4]
    assert {one.id for one in ada.api.list_models(filter="listed")} == set(names)
    found, url = [], "/api/models?author=lists&limit=2"
    while url:
        answer = ada.http("GET", url)
        found += [one["id"] for one in answer.json()]
        url = answer.links.get("next", {}).get("url", "").removeprefix(ada.endpoint)
    assert found == names


def test_the_file_system(ada: Hub) -> None:
    filled(ada, "lab/system", a_dot_txt=b"hello", d__b_dot_txt=b"there", d__e__c_dot_txt=b"!")
    system = HfFileSystem(endpoint=ada.endpoint, token=ada.token)
    assert sorted(one["name"] for one in system.ls("lab/system")) == ["lab/system/a.txt", "lab/system/d"]
    assert system.read_text("lab/system/d/b.txt") == "there"
    assert sorted(system.glob("lab/system/**/*.txt")) == [
        f"lab/system/{path}" for path in ("a.txt", "d/b.txt", "d/e/c.txt")
    ]
    assert not system.exists("lab/system/nothing")
    with system.open("lab/system/a.txt", "rb") as file:
        file.seek(1)
        assert file.read(3) == b"ell"
    system.write_text("lab/system/new.txt", "written")
    assert system.read_text("lab/system/new.txt") == "written"
    detail = system.info("lab/system/a.txt", expand_info=True)
    assert detail["last_commit"].title == "files"


def test_large_trees_come_in_pages(ada: Hub) -> None:
    ada.api.create_repo("lab/many")
    operations = [CommitOperationAdd(f"d{number % 10}/f{number:04}", b"%d" % number) for number in range(1500)]
    ada.api.create_commit("lab/many", operations, commit_message="many")
    tree = list(ada.api.list_repo_tree("lab/many", recursive=True))
    assert len(tree) == 1510
    assert len(list(ada.api.list_repo_tree("lab/many"))) == 10
    assert len(list(ada.api.list_repo_tree("lab/many", "d3"))) == 150
    ada.api.create_commit("lab/many", [CommitOperationDelete("d3/")], commit_message="fewer")
    assert len(ada.api.list_repo_files("lab/many")) == 1350


def test_transformers(ada: Hub, tmp_path: Path) -> None:
    """A tokenizer and a configuration, made here, through `from_pretrained`."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.BpeTrainer(vocab_size=100, special_tokens=["[UNK]"], show_progress=False)
    tokenizer.train_from_iterator(["usina is a works", "a power plant"], trainer)
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    (folder / "config.json").write_text(
        '{"model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}'
    )
    ada.api.create_repo("lab/tokenizer")
    ada.api.upload_folder(repo_id="lab/tokenizer", folder_path=folder)
    program = (
        "from transformers import AutoConfig, AutoTokenizer\n"
        "t = AutoTokenizer.from_pretrained('lab/tokenizer')\n"
        "c = AutoConfig.from_pretrained('lab/tokenizer')\n"
        "print(t.decode(t('a power plant')['input_ids']), c.hidden_size, c.num_hidden_layers)\n"
    )
    environment = {**os.environ, "HF_ENDPOINT": ada.endpoint, "HF_TOKEN": ada.token, "HF_HOME": str(tmp_path / "home")}
    environment |= {"HF_HUB_DISABLE_TELEMETRY": "1", "NO_PROXY": "127.0.0.1"}
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        environment.pop(name, None)
    said = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=100, check=False
    )
    assert said.returncode == 0, said.stderr[-2000:]
    assert said.stdout.split()[-2:] == ["64", "2"]
    assert said.stdout.replace(" ", "").startswith("apowerplant")


def test_a_revoked_key_closes_open_addresses(ada: Hub, operator: Hub) -> None:
    member = ada.api.whoami()["id"]
    key = operator.site.call("POST", "/keys", {"name": "brief", "member": member})
    brief = Hub(ada.site, key["token"], ada.cache)
    ada.api.create_repo("lab/brief")
    content = b"x" * 100
    batch = {"operation": "upload", "objects": [{"oid": hashlib.sha256(content).hexdigest(), "size": len(content)}]}
    answer = brief.http("POST", "/lab/brief.git/info/lfs/objects/batch", json=batch).json()
    operator.site.call("DELETE", f"/keys/{key['id']}")
    deadline = time.monotonic() + 5
    with httpx2.Client(trust_env=False) as client:
        assert client.put(answer["objects"][0]["actions"]["upload"]["href"], content=content).status_code == 401
    assert time.monotonic() < deadline
