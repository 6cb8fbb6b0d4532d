"""The directory as requests ask it: who holds a token, and which endpoint a name means to them.

A name is that of an endpoint of one's projects, or ``project/name``; ``name:adapter`` is the endpoint with one of its
adapters. What one may not use, and what is not there, look alike.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from usina.core.endpoint import Shared
from usina.core.tenancy import SITE, Actor, Key, Member, Role, Scope
from usina.ports.llm import Directory, Offered
from usina.services.llm.refusal import Refusal, unauthenticated, unknown_model

TOKEN = b"usk-"


@dataclass(slots=True)
class Caller:
    """A key that opens this door, and what follows from it."""

    key: Key
    member: Member
    secret: bytes
    names: Mapping[str, str]  # what endpoints are called for it -> endpoint id; "" where a name is not enough

    def is_open(self, now: float) -> bool:
        expires = self.key.expires_at
        return expires is None or now < expires


@dataclass(frozen=True, slots=True)
class Meant:
    """What a name stands for."""

    endpoint: str  # id
    adapter: str = ""


class Book:
    """A `Directory`, with what requests ask of it worked out once for each key."""

    def __init__(self, directory: Directory, secret: Callable[[Key], str]) -> None:
        self.directory = directory
        self._secret = secret
        self._callers: dict[str, Caller | None] = {}

    def caller(self, authorization: bytes | None, api_key: bytes | None, now: float) -> Caller:
        """Who asks. Raises `Refusal` 401, always in the same words."""
        token = api_key or b""
        if authorization is not None and authorization[:7].lower() == b"bearer ":
            token = authorization[7:].strip()
        id, _, secret = token[4:].partition(b"-")
        if token[:4] != TOKEN or not secret:
            raise unauthenticated()
        caller = self._known("key-" + id.decode("latin-1"))
        if caller is None or not hmac.compare_digest(caller.secret, secret) or not caller.is_open(now):
            raise unauthenticated()
        return caller

    def _known(self, id: str) -> Caller | None:
        if id in self._callers:
            return self._callers[id]
        key = self.directory.keys.get(id)
        if key is None:  # not remembered: there is no end to what could be asked for
            return None
        found = self._callers[id] = self._made(key)
        return found

    def _made(self, key: Key) -> Caller | None:
        member = self.directory.members.get(key.member)
        if key.revoked_at is not None or member is None or member.disabled:
            return None
        return Caller(key, member, self._secret(key).encode(), self._names(key, member))

    def _names(self, key: Key, member: Member) -> dict[str, str]:
        """Short names of what it may use, and with the project before them. In one's own project comes first; what two
        projects call alike has only its long name."""
        actor = Actor(member.id, member.name, member.roles, member.tenant, key.id, None, key.role or Role.OPERATOR)
        names: dict[str, str] = {}
        short: dict[str, list[Offered]] = {}
        for one in self.directory.endpoints.values():
            if self._may_use(actor, key, one):
                project = self.directory.projects.get(one.project)
                names[f"{project.name if project else one.project}/{one.name}"] = one.id
                short.setdefault(one.name, []).append(one)
        for name, found in short.items():
            own = [one for one in found if one.project == key.project] or found
            names[name] = own[0].id if len(own) == 1 else ""
        return names

    def _may_use(self, actor: Actor, key: Key, one: Offered) -> bool:
        if key.project == one.project or key.project is None:
            role = actor.role_in(Scope(one.tenant, one.project))
            if role is not None and role >= Role.MEMBER:
                return True
        if one.spec.shared is not Shared.TENANT or actor.ceiling < Role.MEMBER:
            return False
        if key.project is not None:
            home = self.directory.projects.get(key.project)
            role = actor.role_in(Scope(home.tenant, home.id)) if home else None
            return home is not None and home.tenant == one.tenant and role is not None and role >= Role.MEMBER
        return any(role >= Role.MEMBER and self._within(scope, one.tenant) for scope, role in actor.roles.items())

    def _within(self, scope: str, tenant: str) -> bool:
        project = self.directory.projects.get(scope)
        return scope in (SITE, tenant) or (project is not None and project.tenant == tenant)

    def meant(self, caller: Caller, name: str) -> Meant:
        """The endpoint that `name` is for a key. Raises `Refusal` 404."""
        plain, _, adapter = name.partition(":")
        id = caller.names.get(plain)
        if id == "":
            raise Refusal(
                404, f"several projects have a model '{plain}'; ask for project/{plain}", code="model_not_found",
                param="model",
            )  # fmt: skip
        if id is None:
            raise unknown_model(name)
        allowed = caller.key.limits.models
        if allowed and not {plain, name, self.directory.endpoints[id].name} & set(allowed):
            raise unknown_model(name)
        if adapter and adapter not in self.directory.endpoints[id].spec.adapters:
            raise unknown_model(name)
        return Meant(id, adapter)

    def listed(self, caller: Caller) -> list[tuple[str, Offered]]:
        """(name, endpoint) of everything it may ask for, adapters too; the short name where that is enough."""
        shortest: dict[str, str] = {}
        for name, id in sorted(caller.names.items(), key=lambda item: ("/" in item[0], item[0])):
            if id:
                shortest.setdefault(id, name)
        allowed = set(caller.key.limits.models)
        found = [
            (f"{name}:{adapter}" if adapter else name, self.directory.endpoints[id], name)
            for id, name in shortest.items()
            for adapter in ("", *self.directory.endpoints[id].spec.adapters)
        ]
        return sorted(
            ((name, one) for name, one, plain in found if not allowed or {plain, name, one.name} & allowed),
            key=lambda pair: pair[0],
        )

    def keeps(self, project: str) -> bool:
        """Whether a project wants prompts and answers kept."""
        found = self.directory.projects.get(project)
        return found is not None and found.keep_prompts > 0

    def payer(self, caller: Caller, endpoint: Offered) -> tuple[str, str]:
        """(project, tenant) that pay: the key's own, or those of the endpoint."""
        project = self.directory.projects.get(caller.key.project or endpoint.project)
        return (project.id, project.tenant) if project else (endpoint.project, endpoint.tenant)
