"""Opens the site that this person is logged in to."""

from __future__ import annotations

from usina.cli import config
from usina.client import Client
from usina.core.errors import Conflict, NotFound, Unauthenticated


def client(project: str | None = None, timeout: float = 60.0) -> Client:
    """The client for every command. Raises `Unauthenticated` when nobody is logged in."""
    known = config.effective()
    if not known.endpoint or not known.token:
        raise Unauthenticated("you are not logged in", code="not-logged-in")
    return Client(known.endpoint, known.token, timeout, project=project or known.project)


def member_id(site: Client, ref: str) -> str:
    """A member's id from an id, a name or ``me``; the API knows members by id only. Raises `NotFound`, `Conflict`."""
    if ref == "me" or ref.startswith("mbr-"):
        return ref
    return _only("member", ref, [one.id for one in site.members.list() if one.name == ref])


def key_id(site: Client, ref: str) -> str:
    """A key's id from an id, or from the name of a key that is still valid. Raises `NotFound`, `Conflict`."""
    if ref.startswith("key-"):
        return ref
    return _only("key", ref, [one.id for one in site.keys.list() if one.name == ref and one.revoked_at is None])


def _only(what: str, ref: str, ids: list[str]) -> str:
    if not ids:
        raise NotFound(f"{what} {ref} not found")
    if len(ids) > 1:
        raise Conflict(f"several {what}s are called {ref}; give the id: {', '.join(ids)}", code="ambiguous")
    return ids[0]
