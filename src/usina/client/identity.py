"""Tenants, projects, members, keys and quotas; and the hosts, which are the operator's."""

from __future__ import annotations

import builtins
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec

from usina.client.models import (
    Claim,
    Exchange,
    FreshKey,
    Host,
    Key,
    Limits,
    Member,
    Project,
    Quota,
    Tenant,
    Window,
    given,
)
from usina.client.wire import Wire, segment


class Tenants:
    def __init__(self, wire: Wire) -> None:
        self._wire = wire

    def create(self, name: str) -> Tenant:
        return self._wire.one(Tenant, "POST", "/tenants", body={"name": name})

    def list(self) -> Iterator[Tenant]:
        return self._wire.pages(Tenant, "/tenants")

    def get(self, ref: str) -> Tenant:
        return self._wire.one(Tenant, "GET", f"/tenants/{segment(ref)}")

    def rename(self, ref: str, name: str) -> Tenant:
        return self._wire.one(Tenant, "PATCH", f"/tenants/{segment(ref)}", body={"name": name})

    def delete(self, ref: str) -> None:
        """Refused while it has projects. Its members and their keys go with it."""
        self._wire.call("DELETE", f"/tenants/{segment(ref)}")


class Projects:
    def __init__(self, wire: Wire) -> None:
        self._wire = wire

    def create(self, name: str, tenant: str) -> Project:
        """It comes with a network and a security group called ``default``."""
        return self._wire.one(Project, "POST", "/projects", body={"name": name, "tenant": tenant})

    def list(self) -> Iterator[Project]:
        return self._wire.pages(Project, "/projects")

    def get(self, ref: str) -> Project:
        return self._wire.one(Project, "GET", f"/projects/{segment(ref)}")

    def rename(self, ref: str, name: str) -> Project:
        return self._wire.one(Project, "PATCH", f"/projects/{segment(ref)}", body={"name": name})

    def keep_prompts(self, ref: str, days: int) -> Project:
        """Of requests at the gateway, with their answers; 0 forgets those there are, too."""
        return self._wire.one(Project, "PUT", f"/projects/{segment(ref)}/prompts", body={"days": days})

    def prompts(self, ref: str, since: str | None = None) -> Iterator[Exchange]:
        """Those that are kept, of the last day unless told otherwise; the oldest first."""
        return self._wire.pages(Exchange, f"/projects/{segment(ref)}/prompts", {"since": since})

    def delete(self, ref: str) -> None:
        """Refused while it has resources of its own."""
        self._wire.call("DELETE", f"/projects/{segment(ref)}")


class Members:
    def __init__(self, wire: Wire) -> None:
        self._wire = wire

    def create(
        self,
        name: str,
        tenant: str | None = None,
        *,
        email: str = "",
        ssh_keys: Sequence[str] = (),
        roles: Mapping[str, str] | None = None,
    ) -> Member:
        """`roles` is scope (tenant or project, by id or name, or ``*`` for the site) to role."""
        body = given(name=name, tenant=tenant, email=email, ssh_keys=ssh_keys, roles=roles)
        return self._wire.one(Member, "POST", "/members", body=body)

    def list(self, tenant: str | None = None) -> Iterator[Member]:
        return self._wire.pages(Member, "/members", {"tenant": tenant})

    def get(self, ref: str) -> Member:
        """``me`` is oneself."""
        return self._wire.one(Member, "GET", f"/members/{segment(ref)}")

    def change(
        self,
        ref: str,
        *,
        email: str | None = None,
        ssh_keys: Sequence[str] | None = None,
        disabled: bool | None = None,
    ) -> Member:
        body = given(email=email, ssh_keys=ssh_keys, disabled=disabled)
        return self._wire.one(Member, "PATCH", f"/members/{segment(ref)}", body=body)

    def set_role(self, ref: str, scope: str, role: str | None) -> Member:
        """Give a role in a scope; None takes it away."""
        body = {"scope": scope, "role": role}
        return self._wire.one(Member, "PUT", f"/members/{segment(ref)}/roles", body=body)

    def delete(self, ref: str) -> None:
        self._wire.call("DELETE", f"/members/{segment(ref)}")


class Keys:
    def __init__(self, wire: Wire) -> None:
        self._wire = wire

    def create(
        self,
        name: str,
        *,
        member: str = "me",
        project: str | None = None,
        role: str | None = None,
        expires_at: str | None = None,
        limits: Limits | None = None,
    ) -> FreshKey:
        """The secret is in this answer and in no later one."""
        told = msgspec.to_builtins(limits) if limits is not None else None
        body = given(name=name, member=member, project=project, role=role, expires_at=expires_at, limits=told)
        return self._wire.one(FreshKey, "POST", "/keys", body=body)

    def list(self, member: str | None = None) -> Iterator[Key]:
        return self._wire.pages(Key, "/keys", {"member": member})

    def get(self, ref: str) -> Key:
        return self._wire.one(Key, "GET", f"/keys/{segment(ref)}")

    def rotate(self, ref: str, expires_at: str | None = None) -> FreshKey:
        """A new secret; the old one stops at once."""
        body = given(expires_at=expires_at)
        return self._wire.one(FreshKey, "POST", f"/keys/{segment(ref)}/rotate", body=body)

    def limit(self, ref: str, limits: Limits) -> Key:
        """Replace its limits at the gateway of models."""
        return self._wire.one(Key, "PUT", f"/keys/{segment(ref)}/limits", body=msgspec.to_builtins(limits))

    def revoke(self, ref: str) -> None:
        self._wire.call("DELETE", f"/keys/{segment(ref)}")


class Quotas:
    def __init__(self, wire: Wire) -> None:
        self._wire = wire

    def get(self, ref: str) -> Quota:
        """Of a tenant or a project."""
        return self._wire.one(Quota, "GET", f"/quotas/{segment(ref)}")

    def set(self, ref: str, limits: Mapping[str, int | None]) -> Quota:
        """Set limits; None lifts one, and what is absent stays as it is."""
        return self._wire.one(Quota, "PUT", f"/quotas/{segment(ref)}", body=dict(limits))


class _Claims(msgspec.Struct):
    items: tuple[Claim, ...]


class _HostItems(msgspec.Struct):
    items: list[Host]


class Identity(msgspec.Struct, frozen=True):
    member: str
    name: str


class _Identities(msgspec.Struct):
    items: tuple[Identity, ...]


class Hosts:
    def __init__(self, wire: Wire) -> None:
        self._wire = wire

    def add(
        self,
        name: str,
        driver: str,
        options: Mapping[str, Any] | None = None,
        cpu_ratio: float | None = None,
        also: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> Host:
        """Take a host into service. It is probed first; one that does not answer is not added."""
        body = given(name=name, driver=driver, options=options, cpu_ratio=cpu_ratio, also=also)
        return self._wire.one(Host, "POST", "/hosts", body=body)

    def adopt(self, name: str, driver: str, options: Mapping[str, Any] | None = None) -> builtins.list[Host]:
        """Take all parts of a cluster into service, each as a host of its own."""
        body = given(name=name, driver=driver, options=options)
        return self._wire.one(_HostItems, "POST", "/hosts/adopt", body=body).items

    def identities(self, ref: str) -> dict[str, str]:
        """Who members are on the host, where its stack knows people: member id to Unix name."""
        found = self._wire.one(_Identities, "GET", f"/hosts/{segment(ref)}/identities").items
        return {one.member: one.name for one in found}

    def map_identity(self, ref: str, member: str, name: str) -> None:
        """Say who a member (by id) is on the host, and on all that share its accounts; ``""``: nobody."""
        path = f"/hosts/{segment(ref)}/identities/{segment(member)}"
        self._wire.call("PUT", path, body={"name": name})

    def list(self) -> Iterator[Host]:
        return self._wire.pages(Host, "/hosts")

    def get(self, ref: str) -> Host:
        return self._wire.one(Host, "GET", f"/hosts/{segment(ref)}")

    def snapshot(self) -> bytes:
        """All hosts with what is held on them, as JSON that `usina placement simulate` reads."""
        return self._wire.call("GET", "/placement/hosts").content

    def change(
        self,
        ref: str,
        *,
        topology: Mapping[str, str] | None = None,
        group: str | None = None,
        cpu_ratio: float | None = None,
        memory_ratio: float | None = None,
        tenants: Sequence[str] | None = None,
        maintenance: Sequence[Window] | None = None,
        price: int | None = None,
        also: Mapping[str, Mapping[str, Any] | None] | None = None,
    ) -> Host:
        """Say where a host stands, and on what terms; what is None stays as it is.

        `topology` is level (site, block, rack, nvlink) to domain; ``""`` takes a domain, or the group, away. `tenants`
        are those it is dedicated to, by name or id. `price` is in micro-credits an hour. `also` adds further drivers
        with their options; None takes one away.
        """
        body = given(
            topology=topology,
            group=group,
            cpu_ratio=cpu_ratio,
            memory_ratio=memory_ratio,
            tenants=tenants,
            maintenance=maintenance,
            price=price,
            also=also,
        )
        return self._wire.one(Host, "PATCH", f"/hosts/{segment(ref)}", body=body)

    def claims(self, ref: str) -> tuple[Claim, ...]:
        """What is held on a host."""
        return self._wire.one(_Claims, "GET", f"/hosts/{segment(ref)}/claims").items

    def cordon(self, ref: str) -> Host:
        return self._wire.one(Host, "POST", f"/hosts/{segment(ref)}/cordon")

    def drain(self, ref: str) -> Host:
        return self._wire.one(Host, "POST", f"/hosts/{segment(ref)}/drain")

    def enable(self, ref: str) -> Host:
        return self._wire.one(Host, "POST", f"/hosts/{segment(ref)}/enable")

    def cordon_device(self, ref: str, address: str) -> Host:
        return self._wire.one(Host, "POST", f"/hosts/{segment(ref)}/devices/{segment(address)}/cordon")

    def enable_device(self, ref: str, address: str) -> Host:
        return self._wire.one(Host, "POST", f"/hosts/{segment(ref)}/devices/{segment(address)}/enable")

    def remove(self, ref: str) -> None:
        """Refused while anything is on it."""
        self._wire.call("DELETE", f"/hosts/{segment(ref)}")
