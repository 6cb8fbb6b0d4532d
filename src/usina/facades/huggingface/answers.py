"""What the hub's clients read: repositories, trees, refs and commits as its JSON. What we do not count is 0."""

from __future__ import annotations

from typing import Any

from usina.core import git
from usina.core.goods import Visibility
from usina.core.repository import Entry, Ref, RefKind, Repository, Revision, Summary, folders_of
from usina.core.tenancy import Actor, Project, Role, Scope
from usina.core.units import iso


def model(repository: Repository, revision: Revision | None = None, *, blobs: bool = False) -> dict[str, Any]:
    """A repository at its newest commit on `main`, or at `revision`, then with its files."""
    at = repository.main if revision is None else Summary.of(revision)
    said: dict[str, Any] = {
        "_id": repository.id,
        "id": repository.name,
        "modelId": repository.name,
        "author": repository.name.partition("/")[0],
        "sha": at.commit,
        "lastModified": iso(at.at),
        "createdAt": iso(repository.created_at),
        "private": repository.visibility is not Visibility.PUBLIC,
        "gated": "auto" if repository.gated else False,
        "disabled": False,
        "downloads": 0,
        "likes": 0,
        "tags": tags(repository, at),
        "usedStorage": at.size,
        "cardData": dict(revision.card.data if revision else {}) | _licence(repository),
        "spaces": [],
    }
    if revision is not None:
        said["siblings"] = [_sibling(e) if blobs else {"rfilename": e.path} for e in revision.entries]
    facts = at.facts
    if at.card.library:
        said["library_name"] = at.card.library
    if at.card.task:
        said["pipeline_tag"] = at.card.task
    if facts.architecture:
        said["config"] = {"model_type": facts.architecture}
    if facts.parameters and "gguf" in at.kinds:
        said["gguf"] = {
            "total": facts.parameters,
            "architecture": facts.architecture,
            "context_length": facts.context,
        }
    elif facts.parameters:
        said["safetensors"] = {"parameters": {facts.dtype.upper(): facts.parameters}, "total": facts.parameters}
    return said


def _licence(repository: Repository) -> dict[str, str]:
    return {"license": repository.licence} if repository.licence else {}


def tags(repository: Repository, at: Summary) -> list[str]:
    """As the hub gives them: the card's own, and what can be told from files and licence."""
    licence = [f"license:{repository.licence}"] if repository.licence else []
    bases = [f"base_model:{name}" for name in at.card.base_models]
    card = at.card
    library = [word for word in (card.library, card.task) if word]
    return list(dict.fromkeys([*library, *at.kinds, *card.tags, *card.languages, *bases, *licence]))


def _lfs(entry: Entry, name: str) -> dict[str, Any]:
    pointer = len(git.pointer(entry.digest, entry.size))
    return {"lfs": {name: entry.digest, "size": entry.size, "pointerSize": pointer}} if entry.large else {}


def _sibling(entry: Entry) -> dict[str, Any]:
    return {"rfilename": entry.path, "size": entry.size, "blobId": entry.oid} | _lfs(entry, "sha256")


def file(entry: Entry, last: Revision | None = None) -> dict[str, Any]:
    found = {"type": "file", "path": entry.path, "size": entry.size, "oid": entry.oid} | _lfs(entry, "oid")
    return found | _last(last)


def _last(last: Revision | None) -> dict[str, Any]:
    return {} if last is None else {"lastCommit": {"id": last.commit, "title": last.title, "date": iso(last.at)}}


def folder(path: str, oid: str, last: Revision | None = None) -> dict[str, Any]:
    return {"type": "directory", "path": path, "size": 0, "oid": oid} | _last(last)


def tree(revision: Revision, path: str, recursive: bool) -> list[str]:
    """The paths of files and folders below `path`, in order."""
    below = f"{path}/" if path else ""
    inside = [entry.path for entry in revision.entries if entry.path.startswith(below)]
    found = {one for each in inside for one in (*folders_of(each), each) if one.startswith(below) and one != path}
    return sorted(one for one in found if recursive or "/" not in one[len(below) :])


def refs(found: list[Ref]) -> dict[str, Any]:
    def told(kind: RefKind, prefix: str) -> list[dict[str, str]]:
        return [
            {"name": one.name, "ref": f"refs/{prefix}/{one.name}", "targetCommit": one.commit}
            for one in found
            if one.kind is kind
        ]

    branches, named = told(RefKind.BRANCH, "heads"), told(RefKind.TAG, "tags")
    return {"branches": branches, "converts": [], "tags": named, "pullRequests": []}


def commit(revision: Revision) -> dict[str, Any]:
    return {
        "id": revision.commit,
        "title": revision.title,
        "message": revision.message,
        "authors": [{"user": revision.author}],
        "date": iso(revision.at),
    }


def user(actor: Actor, projects: list[Project]) -> dict[str, Any]:
    """Projects are to the hub's clients what organizations are there: `create_repo("project/name")` makes one in it."""
    roles = {project.id: actor.role_in(Scope(project.tenant, project.id)) or Role.VIEWER for project in projects}
    role = "write" if any(role >= Role.MEMBER for role in roles.values()) else "read"
    return {
        "type": "user",
        "id": actor.member,
        "name": actor.name,
        "fullname": actor.name,
        "isPro": False,
        "orgs": [
            {"type": "org", "id": one.id, "name": one.name, "fullname": one.name, "roleInOrg": roles[one.id].word}
            for one in projects
        ],
        "auth": {"type": "access_token", "accessToken": {"displayName": actor.key, "role": role}},
    }
