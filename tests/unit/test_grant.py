"""A grant is a proof: it is made in one place, and only for who may."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import usina
from usina.core.errors import NotFound
from usina.core.grant import permit_home, permit_own
from usina.core.tenancy import Action, Actor, Member, Role, Scope

ME = Member("mbr-me", "tnt-1", "ana", 0.0)


def actor(roles: dict[str, Role]) -> Actor:
    return Actor("mbr-me", "ana", roles, "tnt-1", "key-1")


def test_grants_are_made_nowhere_else() -> None:
    makers = set()
    for file in Path(usina.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Grant":
                makers.add(file.name)
    assert makers == {"grant.py"}


@pytest.mark.parametrize("action", list(Action))
def test_a_member_may_see_and_change_itself_and_its_keys_and_no_more(action: Action) -> None:
    own = {Action.MEMBER_VIEW, Action.MEMBER_CHANGE, Action.KEY_MANAGE}
    if action in own:
        assert permit_own(actor({}), action, ME).scope == Scope("tnt-1")
    else:
        with pytest.raises(NotFound):
            permit_own(actor({}), action, ME)
    with pytest.raises(NotFound):
        permit_own(actor({"tnt-1": Role.ADMIN}), action, Member("mbr-other", "tnt-1", "bob", 0.0))


def test_a_tenant_is_seen_by_who_belongs_to_it_or_has_a_role_in_it() -> None:
    assert permit_home(actor({}), "tnt-1").action is Action.TENANT_VIEW
    assert permit_home(actor({"tnt-2": Role.VIEWER}), "tnt-2").scope == Scope("tnt-2")
    with pytest.raises(NotFound):
        permit_home(actor({}), "tnt-2")
