"""Endpoints of models: order, change, try a variant; their replicas, which are tasks."""

from __future__ import annotations

import builtins
from typing import Any

import msgspec

from usina.client.models import Resource, given
from usina.client.resources import Collection
from usina.client.wire import segment


class Runtime(msgspec.Struct, frozen=True):
    """What serves models."""

    name: str
    summary: str
    formats: tuple[str, ...]
    stacks: tuple[str, ...]
    options: dict[str, str]


class Endpoints(Collection):
    path = "/endpoints"

    def create(self, name: str, model: str, *, project: str | None = None, **wishes: Any) -> Resource:
        """Order an endpoint. `wishes` are the fields of the API's ``EndpointIn``; what is None is left out."""
        return self._create(given(name=name, model=model, **wishes), project)

    def change(self, ref: str, *, project: str | None = None, if_match: int | None = None, **wishes: Any) -> Resource:
        """`wishes` are the fields of the API's ``EndpointChange``; what is None stays as it is."""
        return self._one("PATCH", ref, project, body=given(**wishes), if_match=if_match)

    def canary(
        self,
        ref: str,
        model: str | None = None,
        *,
        revision: str | None = None,
        weight: float = 0.1,
        project: str | None = None,
    ) -> Resource:
        """Put a variant on trial, or give the one that is another share of the requests."""
        body = given(model=model, revision=revision, weight=weight)
        return self._one("POST", ref, project, "/canary", body=body)

    def promote(self, ref: str, project: str | None = None) -> Resource:
        return self._one("POST", ref, project, "/promote")

    def roll_back(self, ref: str, project: str | None = None) -> Resource:
        return self._one("POST", ref, project, "/rollback")

    def replicas(self, ref: str, project: str | None = None) -> builtins.list[Resource]:
        """Its tasks, the oldest first; also the last one that failed."""
        query = {"project": project or self._project}
        return list(self._wire.pages(Resource, f"{self.path}/{segment(ref)}/replicas", query))

    def runtimes(self) -> builtins.list[Runtime]:
        return list(self._wire.pages(Runtime, "/runtimes", {}))
