"""The client of one site, for one key. Everything the native API can do, with types."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from functools import partial
from types import TracebackType
from typing import Self

from usina.client import waiting
from usina.client.endpoints import Endpoints
from usina.client.errors import ApiError
from usina.client.events import Events
from usina.client.hub import Models
from usina.client.identity import Hosts, Keys, Members, Projects, Quotas, Tenants
from usina.client.images import Images
from usina.client.llm import Budgets, UsageReports
from usina.client.models import Event, Resource, Site, UsageReport, WhoAmI
from usina.client.resources import Forwards, Machines, Networks, SecurityGroups, Volumes
from usina.client.streams import Stream, open_stream
from usina.client.tasks import Tasks
from usina.client.waiting import Watch
from usina.client.wire import Wire, segment

_PATHS = {
    "machine": "/machines",
    "volume": "/volumes",
    "network": "/networks",
    "image": "/images",
    "security_group": "/security-groups",
    "forward": "/forwards",
    "task": "/tasks",
    "endpoint": "/endpoints",
}


def _unwatched(resource: Resource, event: Event | None) -> None:
    """For those who only want the end."""


class Client:
    """A site at `endpoint`, opened with a key's `token`. Names are looked up in `project`, if one is given.

    with Client("http://127.0.0.1:8470", token) as site:
        machine = site.machines.create("hello", "debian-12", cores=2)
        site.wait(machine)
    """

    def __init__(self, endpoint: str, token: str, timeout: float = 30.0, *, project: str | None = None) -> None:
        self._wire = wire = Wire(endpoint, token, timeout)
        self.project = project
        self.machines = Machines(wire, project)
        self.volumes = Volumes(wire, project)
        self.networks = Networks(wire, project)
        self.security_groups = SecurityGroups(wire, project)
        self.forwards = Forwards(wire, project)
        self.images = Images(wire, project)
        self.models = Models(wire, project)
        self.tasks = Tasks(wire, project)
        self.endpoints = Endpoints(wire, project)
        self.tenants = Tenants(wire)
        self.projects = Projects(wire)
        self.members = Members(wire)
        self.keys = Keys(wire)
        self.quotas = Quotas(wire)
        self.budgets = Budgets(wire)
        self._usage = UsageReports(wire)
        self.hosts = Hosts(wire)
        self._events = Events(wire, project)

    @property
    def endpoint(self) -> str:
        return self._wire.endpoint

    def site(self) -> Site:
        return self._wire.one(Site, "GET", "/site")

    def whoami(self) -> WhoAmI:
        return self._wire.one(WhoAmI, "GET", "/whoami")

    def usage(
        self,
        by: Sequence[str] = ("endpoint",),
        *,
        since: str | None = None,
        until: str | None = None,
        every: float = 0,
        project: str | None = None,
    ) -> UsageReport:
        """What was used of models, summed by any of ``tenant``, ``project``, ``member``, ``key``, ``endpoint``,
        ``model``."""
        return self._usage.get(by, since=since, until=until, every=every, project=project)

    # --- what happened, what happens

    def story(self, ref: str, *, after: int = 0, project: str | None = None) -> Iterator[Event]:
        """Everything that happened to one object (id, or name in the project), also after its end."""
        return self._events.story(ref, after=after, project=project)

    def past_events(
        self, *, after: int = 0, project: str | None = None, subject: str | None = None, kind: str | None = None
    ) -> Iterator[Event]:
        return self._events.past(after=after, project=project, subject=subject, kind=kind)

    def events(
        self,
        *,
        after: int | None = None,
        project: str | None = None,
        subject: str | None = None,
        kind: str | None = None,
    ) -> Iterator[Event]:
        """Events as they happen, without end and, across breaks of the connection, without gaps."""
        return self._events.follow(after=after, project=project, subject=subject, kind=kind)

    def wait(
        self,
        resource: Resource,
        until: Collection[str] | None = None,
        *,
        timeout: float = 600.0,
        watch: Watch | None = None,
    ) -> Resource:
        """Wait until what `resource` wishes for is so, or its phase is one of `until`.

        Raises `ResourceFailed` when it fails, `WaitedTooLong` after `timeout` seconds.
        """
        look, story = partial(self._look, resource), self._told(resource, watch)
        return waiting.wait(look, story, resource, until, timeout, watch or _unwatched)

    def wait_gone(self, resource: Resource, *, timeout: float = 600.0, watch: Watch | None = None) -> None:
        """Wait until nothing of a resource that was deleted is left. Raises `WaitedTooLong`."""
        look, story = partial(self._look, resource), self._told(resource, watch)
        waiting.wait_gone(look, story, resource, timeout, watch or _unwatched)

    def _look(self, resource: Resource) -> Resource | None:
        try:
            return self._wire.one(Resource, "GET", f"{_PATHS[resource.kind]}/{resource.id}")
        except ApiError as error:
            if error.status == 404:
                return None
            raise

    def _told(self, resource: Resource, watch: Watch | None) -> waiting.Story | None:
        return None if watch is None else lambda after: self._events.story(resource.id, after=after)

    # --- into a machine

    def console(self, machine: str, project: str | None = None) -> Stream:
        """The guest's serial line."""
        return open_stream(self._wire, f"/machines/{segment(machine)}/console", project or self.project)

    def tunnel(self, machine: str, port: int, project: str | None = None) -> Stream:
        """A TCP stream to a port of the guest."""
        return open_stream(self._wire, f"/machines/{segment(machine)}/tunnel", project or self.project, {"port": port})

    def close(self) -> None:
        self._wire.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
