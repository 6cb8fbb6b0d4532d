"""Volumes of tasks where there can be none: said clearly, and nothing is made."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from usina.core.goods import Form, VolumeSpec
from usina.core.machine import VolumePlan
from usina.core.resource import Kind
from usina.core.task import MountPlan, TaskPlan
from usina.drivers.process.driver import ProcessDriver
from usina.hardware.folders import mounts
from usina.hardware.folders.shelf import Shelf
from usina.ports.driver import DriverError, HostSettings
from usina.store import rows
from usina.testing.task_contract import silent


async def test_without_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    shelf = Shelf(tmp_path)
    assert await shelf.trouble() == "volumes need root"
    with pytest.raises(DriverError) as refused:
        await shelf.ensure(VolumePlan("vol-1", 1 << 24))
    assert refused.value.lasting and "need root" in refused.value.public
    driver = ProcessDriver(HostSettings("h", "h", "f", tmp_path))
    with pytest.raises(DriverError) as refused:
        await driver.start(TaskPlan("tsk-1.1", "p", command=("true",), volumes=(MountPlan("vol-1", "/data"),)), silent)
    assert refused.value.lasting and "need root" in refused.value.public
    assert not list(tmp_path.iterdir())


async def test_where_it_was_tried_and_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tries = 0

    def fails(folder: str) -> None:
        nonlocal tries
        tries += 1
        raise OSError(38, "no such thing here")

    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(mounts, "trial", fails)
    shelf = Shelf(tmp_path)
    assert [await shelf.trouble(), await shelf.trouble()] == ["no such thing here"] * 2
    monkeypatch.setattr(mounts, "trial", lambda folder: None)
    assert [await shelf.trouble(), tries] == ["", 2]


def test_what_the_machine_lacks_is_named() -> None:
    with pytest.raises(OSError) as lacking:
        mounts._run("no-such-program", keep=0)
    assert not isinstance(lacking.value, FileNotFoundError)
    assert lacking.value.strerror == "this machine has no no-such-program"


@pytest.mark.parametrize("handle", ["", "../x", "a/b", "a b", "x.img"])
async def test_a_handle_is_a_plain_name(tmp_path: Path, handle: str) -> None:
    with pytest.raises(DriverError):
        Shelf(tmp_path).image(handle)


async def test_removing_what_is_not_there(tmp_path: Path) -> None:
    await Shelf(tmp_path).remove("vol-1")


def test_users_on_a_mount_are_disjoint_and_all_of_them() -> None:
    first, count = mounts.OWNERS
    one = mounts.one_user(4711)
    assert one[0] == (first, 4711, 1) and sum(many for _, _, many in one) == count
    assert mounts.many_users(1_900_000_000) == ((first, 1_900_000_000, count),)


def test_what_was_stored_before_there_were_folders() -> None:
    volume, _ = rows._DECODERS[Kind.VOLUME]
    assert volume.decode(b'{"size":65536,"host":null}') == VolumeSpec(65536, None, Form.DISK)
    task, _ = rows._DECODERS[Kind.TASK]
    assert task.decode(b'{"on":"local","command":["true"]}').volumes == ()
