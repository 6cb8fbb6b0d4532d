"""The kinds of resource that a project owns, each a collection with the verbs that its API has."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from usina.client.models import Card, DeviceWish, Explanation, Resource, Rule, given
from usina.client.wire import Wire, segment
from usina.core.units import GiB


class Collection:
    """What every kind has alike: list, get, delete. Names are looked up in `project`."""

    path = ""

    def __init__(self, wire: Wire, project: str | None) -> None:
        self._wire, self._project = wire, project

    def list(
        self,
        *,
        project: str | None = None,
        phase: str | None = None,
        name: str | None = None,
        host: str | None = None,
        everywhere: bool = False,
    ) -> Iterator[Resource]:
        """Resources of one project, or (`everywhere`) of all that the key may see."""
        within = None if everywhere else project or self._project
        query = {"project": within, "phase": phase, "name": name, "host": host}
        return self._wire.pages(Resource, self.path, query)

    def get(self, ref: str, project: str | None = None) -> Resource:
        return self._one("GET", ref, project)

    def delete(self, ref: str, project: str | None = None, if_match: int | None = None) -> Resource:
        """Ask it to go. It is gone when `Client.wait_gone` returns."""
        return self._one("DELETE", ref, project, if_match=if_match)

    def _create(self, body: dict[str, Any], project: str | None) -> Resource:
        body |= given(project=project or self._project)
        return self._wire.one(Resource, "POST", self.path, body=body, order=True)

    def _one(
        self,
        method: str,
        ref: str,
        project: str | None,
        tail: str = "",
        *,
        body: Any = None,
        if_match: int | None = None,
    ) -> Resource:
        headers = {} if if_match is None else {"If-Match": f'"{if_match}"'}
        path = f"{self.path}/{segment(ref)}{tail}"
        query = {"project": project or self._project}
        return self._wire.one(Resource, method, path, query=query, body=body, headers=headers)


class Machines(Collection):
    path = "/machines"

    def explain(self, ref: str, project: str | None = None) -> Explanation:
        """Why it is where it is, or nowhere."""
        query = {"project": project or self._project}
        return self._wire.one(Explanation, "GET", f"{self.path}/{segment(ref)}/placement", query=query)

    def create(
        self,
        name: str,
        image: str,
        *,
        cores: int = 1,
        memory: int = GiB,
        disk: int = 10 * GiB,
        interfaces: Sequence[Card] = (Card(),),
        volumes: Sequence[str] = (),
        ssh_keys: Sequence[str] | None = None,
        user_data: str | None = None,
        hostname: str | None = None,
        pinned: bool = False,
        numa_nodes: int = 0,
        hugepage: int = 0,
        firmware: str = "bios",
        queues: int = 1,
        devices: Sequence[DeviceWish] = (),
        restart: str = "never",
        host: str | None = None,
        labels: Mapping[str, str] | None = None,
        numa: str = "none",
        whole_cores: bool = False,
        near: Sequence[str] = (),
        apart: Sequence[str] = (),
        group: str | None = None,
        spread_over: str | None = None,
        priority: int = 0,
        preemptible: bool = False,
        tasks: bool = True,
        project: str | None = None,
    ) -> Resource:
        """Order a machine; sizes in bytes. Without `ssh_keys`, the member's own are put in.

        `near` and `apart` name machines, or groups of the project; `spread_over` is a level of the topology, such as
        ``rack``, at which the members of `group` are kept apart.
        """
        body = given(
            name=name,
            image=image,
            cores=cores,
            memory=memory,
            disk=disk,
            interfaces=interfaces,
            volumes=volumes,
            ssh_keys=ssh_keys,
            user_data=user_data,
            hostname=hostname,
            pinned=pinned,
            numa_nodes=numa_nodes,
            hugepage=hugepage,
            firmware=firmware,
            queues=queues,
            devices=devices,
            restart=restart,
            host=host,
            labels=labels,
            numa=numa,
            whole_cores=whole_cores,
            near=near,
            apart=apart,
            group=group,
            spread_over=spread_over,
            priority=priority,
            preemptible=preemptible,
            tasks=tasks,
        )
        return self._create(body, project)

    def resize(
        self,
        ref: str,
        *,
        cores: int | None = None,
        memory: int | None = None,
        disk: int | None = None,
        labels: Mapping[str, str] | None = None,
        project: str | None = None,
        if_match: int | None = None,
    ) -> Resource:
        body = given(cores=cores, memory=memory, disk=disk, labels=labels)
        return self._one("PATCH", ref, project, body=body, if_match=if_match)

    def start(self, ref: str, project: str | None = None, if_match: int | None = None) -> Resource:
        return self._one("POST", ref, project, "/start", if_match=if_match)

    def stop(self, ref: str, project: str | None = None, if_match: int | None = None) -> Resource:
        return self._one("POST", ref, project, "/stop", if_match=if_match)

    def suspend(self, ref: str, project: str | None = None, if_match: int | None = None) -> Resource:
        return self._one("POST", ref, project, "/suspend", if_match=if_match)

    def resume(self, ref: str, project: str | None = None, if_match: int | None = None) -> Resource:
        return self._one("POST", ref, project, "/resume", if_match=if_match)

    def reboot(self, ref: str, project: str | None = None, if_match: int | None = None) -> Resource:
        return self._one("POST", ref, project, "/reboot", if_match=if_match)

    def rebuild(
        self, ref: str, image: str | None = None, project: str | None = None, if_match: int | None = None
    ) -> Resource:
        """A fresh root disk. What was on the old one, and its snapshots, are lost."""
        return self._one("POST", ref, project, "/rebuild", body=given(image=image), if_match=if_match)

    def snapshot(self, ref: str, name: str, project: str | None = None) -> Resource:
        return self._one("POST", ref, project, "/snapshots", body={"name": name})

    def restore(self, ref: str, name: str, project: str | None = None) -> Resource:
        return self._one("POST", ref, project, f"/snapshots/{segment(name)}/restore")

    def drop_snapshot(self, ref: str, name: str, project: str | None = None) -> Resource:
        return self._one("DELETE", ref, project, f"/snapshots/{segment(name)}")

    def attach_volume(self, ref: str, volume: str, project: str | None = None) -> Resource:
        return self._one("POST", ref, project, "/volumes", body={"volume": volume})

    def detach_volume(self, ref: str, volume: str, project: str | None = None) -> Resource:
        return self._one("DELETE", ref, project, f"/volumes/{segment(volume)}")

    def attach_interface(self, ref: str, card: Card, project: str | None = None) -> Resource:
        return self._one("POST", ref, project, "/interfaces", body=card)

    def detach_interface(self, ref: str, mac: str, project: str | None = None) -> Resource:
        return self._one("DELETE", ref, project, f"/interfaces/{segment(mac)}")

    def console_log(self, ref: str, project: str | None = None) -> str:
        """What the guest wrote to its serial console, the newest MiB at most."""
        query = {"project": project or self._project}
        return self._wire.call("GET", f"{self.path}/{segment(ref)}/console-log", query=query).text


class Volumes(Collection):
    path = "/volumes"

    def create(
        self,
        name: str,
        size: int,
        *,
        host: str | None = None,
        form: str | None = None,
        labels: Mapping[str, str] | None = None,
        project: str | None = None,
    ) -> Resource:
        """`form`: disk (a block device for one machine, the default) or folder (files, for tasks)."""
        return self._create(given(name=name, size=size, host=host, form=form, labels=labels), project)

    def grow(self, ref: str, size: int, project: str | None = None, if_match: int | None = None) -> Resource:
        return self._one("PATCH", ref, project, body={"size": size}, if_match=if_match)


class Networks(Collection):
    path = "/networks"

    def create(
        self,
        name: str,
        *,
        cidr: str | None = None,
        labels: Mapping[str, str] | None = None,
        project: str | None = None,
    ) -> Resource:
        return self._create(given(name=name, cidr=cidr, labels=labels), project)


class SecurityGroups(Collection):
    path = "/security-groups"

    def create(
        self,
        name: str,
        rules: Sequence[Rule] = (),
        *,
        labels: Mapping[str, str] | None = None,
        project: str | None = None,
    ) -> Resource:
        return self._create(given(name=name, rules=rules, labels=labels), project)

    def set_rules(
        self, ref: str, rules: Sequence[Rule], project: str | None = None, if_match: int | None = None
    ) -> Resource:
        """Replace the rules; takes effect on running machines."""
        return self._one("PUT", ref, project, "/rules", body={"rules": rules}, if_match=if_match)


class Forwards(Collection):
    path = "/forwards"

    def create(
        self,
        machine: str,
        port: int,
        *,
        listen: int | None = None,
        name: str | None = None,
        project: str | None = None,
    ) -> Resource:
        """Forward a port of the control plane (`listen`, or one that is free) to `port` of a machine."""
        return self._create(given(machine=machine, port=port, listen=listen, name=name), project)
