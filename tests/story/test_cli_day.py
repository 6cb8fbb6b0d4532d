"""A day with the command line: a real `usina up`, a pretended host, and every noun walked as people would."""

from __future__ import annotations

import contextlib
import io
import json
import os
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from usina.cli import main

pytestmark = pytest.mark.slow

PATIENCE = 60.0


@dataclass(frozen=True)
class Ran:
    code: int
    out: str
    err: str

    @property
    def data(self) -> Any:
        """Its standard output, which must be JSON and nothing more."""
        return json.loads(self.out)


def usina(*words: str, code: int = 0) -> Ran:
    """One command, in this process for speed: what it says, and its exit code, which must be `code`."""
    out, err = io.StringIO(), io.StringIO()
    ended = 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), mock.patch("sys.argv", ["usina", *words]):
        try:
            main.run()
        except SystemExit as exit:
            ended = int(exit.code or 0)
    ran = Ran(ended, out.getvalue(), err.getvalue())
    assert ran.code == code, f"usina {' '.join(words)}: {ran}"
    return ran


@dataclass(frozen=True)
class Up:
    port: int
    folder: Path
    first_words: str

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"


def start(folder: Path, port: int, *more: str) -> subprocess.Popen[str]:
    words = ["up", "--data-dir", str(folder), "--port", str(port), "--no-local-host", *more]
    return subprocess.Popen(
        [sys.executable, "-m", "usina.cli", *words],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=(folder.parent / f"{port}.log").open("w"),
        text=True,
    )


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def announcement(process: subprocess.Popen[str]) -> str:
    """What `up` says when its doors are open."""
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if "Ctrl-C stops it" in line:
            break
    return "".join(lines)


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    place = tmp_path_factory.mktemp("cli")
    folder, port = place / "site", free_port()
    config = {"USINA_CONFIG_DIR": str(place / "config"), "HOME": str(place), "COLUMNS": "200"}
    process = start(folder, port)
    try:
        with mock.patch.dict(os.environ, config):
            for name in ("USINA_ENDPOINT", "USINA_TOKEN", "USINA_PROJECT"):
                os.environ.pop(name, None)
            yield Up(port, folder, announcement(process))
    finally:
        process.terminate()
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        assert process.stdout is not None
        process.stdout.close()


@pytest.fixture(scope="module")
def site(up: Up) -> Up:
    """Logged in as the operator, with a host, a tenant, a project in use, and an image."""
    usina("login", "--admin-file", str(up.folder / "admin.json"))
    usina(
        "host",
        "add",
        "f1",
        "-d",
        "fake",
        "-O",
        "cores=16",
        "-O",
        "memory=64GiB",
        "-O",
        "gpus=2",
        "-O",
        "gpu_model=H100",
    )
    usina("tenant", "create", "acme")
    usina("project", "create", "research", "--tenant", "acme")
    usina("project", "use", "research")
    usina("image", "create", "tiny", "--recipe", "tiny", "--visibility", "public", "--timeout", str(PATIENCE))
    return up


@pytest.fixture(scope="module")
def hello(site: Up) -> str:
    usina("machine", "create", "hello", "--image", "tiny", "--memory", "256MiB", "--disk", "1GiB", "--label", "a=b")
    return "hello"


def test_up_founds_the_site_and_shows_the_key_once(up: Up) -> None:
    token = json.loads((up.folder / "admin.json").read_text())["token"]
    assert up.endpoint in up.first_words
    assert token in up.first_words
    assert "usina login" in up.first_words
    assert stat.S_IMODE((up.folder / "admin.json").stat().st_mode) == 0o600


def test_a_second_factory_on_the_same_folder_is_refused_in_one_line(up: Up) -> None:
    process = start(up.folder, free_port())
    out, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1
    assert out == ""
    assert "Traceback" not in next(up.folder.parent.glob(f"{process.args[-2]}.log")).read_text()  # type: ignore[index]


def test_login_keeps_the_key_private_and_says_who(site: Up) -> None:
    path = Path(os.environ["USINA_CONFIG_DIR"]) / "config.json"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert usina("whoami", "-o", "json").data["name"] == "admin"
    assert "operator of the site" in usina("whoami").out


def test_a_wrong_token_is_refused_and_changes_nothing(site: Up) -> None:
    ran = usina("login", site.endpoint, "--token", "usk-nobody-nothing", code=1)
    assert ran.err.startswith("error: ")
    assert usina("whoami", "-o", "json").data["name"] == "admin"


def test_nobody_there_is_exit_code_3() -> None:
    with mock.patch.dict(os.environ, {"USINA_ENDPOINT": "http://127.0.0.1:9", "USINA_TOKEN": "usk-a-b"}):
        ran = usina("machine", "list", code=3)
    assert "does not answer" in ran.err
    assert ran.out == ""


def test_members_and_keys(site: Up, tmp_path: Path) -> None:
    key_file = tmp_path / "ada.pub"
    key_file.write_text(f"ssh-ed25519 {'A' * 68} ada\n")
    usina("member", "create", "ada", "--tenant", "acme", "--role", "research=member", "--ssh-key", str(key_file))
    assert "ssh-ed25519" in usina("member", "show", "ada").out
    key = usina("key", "create", "nightly", "--member", "ada", "--project", "research", "-o", "json")
    token = key.data["token"]
    assert "only time" in key.err
    assert token not in usina("key", "list").out
    with mock.patch.dict(os.environ, {"USINA_TOKEN": token, "USINA_PROJECT": ""}):
        assert usina("whoami", "-o", "json").data["name"] == "ada"
        usina("tenant", "create", "evil", code=1)
    fresh = usina("key", "rotate", "nightly", "-o", "json").data["token"]
    assert fresh != token
    usina("key", "revoke", "nightly")
    with mock.patch.dict(os.environ, {"USINA_TOKEN": fresh}):
        assert "log in again" in usina("whoami", code=1).err
    usina("member", "role", "ada", "acme", "admin")
    assert "admin" in usina("member", "list", "--tenant", "acme").out
    usina("member", "change", "ada", "--disable")
    usina("member", "delete", "ada")


def test_a_machine_is_ordered_listed_and_shown(hello: str) -> None:
    machine = usina("machine", "show", hello, "-o", "json").data
    assert machine["phase"] == "running"
    assert machine["spec"]["memory"] == 256 << 20
    assert [one["name"] for one in usina("machine", "list", "-o", "json").data] == [hello]
    assert usina("machine", "list", "-o", "name").out == "hello\n"
    table = usina("machine", "list").out
    assert "running" in table
    assert "256MiB" in table
    assert "a=b" in usina("machine", "show", hello).out


def test_waiting_tells_phases_on_stderr_only(site: Up) -> None:
    ran = usina("machine", "create", "brief", "--image", "tiny", "--disk", "1GiB", "-o", "json")
    assert ran.data["phase"] == "running"
    assert "machine brief: running" in ran.err
    assert "is gone" in usina("machine", "delete", "brief", "--yes").err


def test_keys_of_the_account_are_used_when_the_member_has_none(site: Up) -> None:
    folder = Path.home() / ".ssh"
    folder.mkdir(exist_ok=True)
    line = f"ssh-ed25519 {'B' * 68} me"
    (folder / "id_ed25519.pub").write_text(line + "\n")
    ran = usina("machine", "create", "keyed", "--image", "tiny", "--disk", "1GiB", "-o", "json")
    assert ran.data["spec"]["ssh_keys"] == [line]
    assert "id_ed25519.pub" in ran.err
    usina("machine", "delete", "keyed", "--yes")


def test_power(hello: str) -> None:
    for deed, phase in (("stop", "stopped"), ("start", "running"), ("suspend", "suspended"), ("resume", "running")):
        assert f"is {phase}" in usina("machine", deed, hello).err
    usina("machine", "reboot", hello)


def test_resize_and_rebuild(hello: str) -> None:
    usina("machine", "resize", hello, "--cores", "2", "--memory", "512MiB")
    spec = usina("machine", "show", hello, "-o", "json").data["spec"]
    assert (spec["cores"], spec["memory"]) == (2, 512 << 20)
    usina("machine", "rebuild", hello)
    assert "shrink" in (ran := usina("machine", "resize", hello, "--disk", "20MiB", code=1)).err or "grow" in ran.err


def test_snapshots(hello: str) -> None:
    usina("machine", "snapshot", hello, "before")
    assert usina("machine", "snapshots", hello).out == "before\n"
    usina("machine", "restore", hello, "before")
    usina("machine", "drop-snapshot", hello, "before")
    assert usina("machine", "snapshots", hello, "-o", "json").data == []


def test_volumes(hello: str) -> None:
    usina("volume", "create", "data", "1GiB")
    usina("volume", "attach", "data", hello)
    volume = usina("volume", "show", "data", "-o", "json").data
    assert usina("machine", "show", hello, "-o", "json").data["spec"]["volumes"] == [volume["id"]]
    assert "error: " in usina("volume", "delete", "data", code=1).err
    usina("volume", "detach", "data", hello)
    assert "2GiB" in usina("volume", "grow", "data", "2GiB").err
    usina("volume", "delete", "data")


def test_networks_groups_and_cards(hello: str) -> None:
    usina("network", "create", "lab", "--cidr", "10.99.0.0/24")
    usina("security-group", "create", "web", "-r", "in:tcp:80", "-r", "out:all")
    usina("machine", "attach-interface", hello, "lab:10.99.0.7", "--security-group", "web")
    cards = usina("machine", "show", hello, "-o", "json").data["spec"]["interfaces"]
    assert cards[1]["address"] == "10.99.0.7"
    changed = usina("security-group", "rules", "web", "in:tcp:8000-8100:10.0.0.0/8", "out:all").out
    assert "in:tcp:8000-8100:10.0.0.0/8" in changed
    usina("machine", "detach-interface", hello, cards[1]["mac"])
    usina("network", "delete", "lab")
    usina("security-group", "delete", "web")


def test_forwards(hello: str) -> None:
    forward = usina("forward", "create", hello, "80", "--name", "web", "-o", "json").data
    assert f"127.0.0.1:{forward['spec']['listen']}" in usina("forward", "list").out
    usina("forward", "delete", "web")


def test_logs(hello: str) -> None:
    usina("machine", "logs", hello)


def test_the_story_and_the_events(hello: str) -> None:
    kinds = [event["kind"] for event in usina("story", hello, "-o", "json").data]
    assert kinds[0] == "machine.ordered"
    assert "machine.running" in kinds
    assert "placed on f1" in usina("story", hello).out
    events = usina("events", "--kind", "machine.ordered", "-o", "json").data
    assert {event["kind"] for event in events} == {"machine.ordered"}


def test_events_are_followed_as_they_happen(hello: str) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "usina.cli", "events", "--follow", "--after", "0", "-o", "json"],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        deadline = time.monotonic() + PATIENCE
        for line in process.stdout:
            if json.loads(line)["kind"] == "machine.running":
                break
            assert time.monotonic() < deadline
        process.send_signal(2)
        assert process.wait(10) == 130
    finally:
        process.kill()
        process.wait()
        process.stdout.close()  # type: ignore[union-attr]


def test_a_quota_refuses_in_words(hello: str) -> None:
    usina("quota", "set", "research", "--cores", "4", "--memory", "8GiB")
    ran = usina("machine", "create", "big", "--image", "tiny", "--cores", "8", "--disk", "1GiB", code=1)
    lines = ran.err.splitlines()
    assert any(line.startswith("error: ") and "cores" in line for line in lines), lines
    assert any(line.startswith("hint:") and "usina quota show" in line for line in lines), lines
    assert "8GiB" in usina("quota", "show").out
    usina("quota", "set", "research", "--cores", "none", "--memory", "none")
    assert usina("quota", "show", "-o", "json").data["limits"]["cores"] is None


def test_what_no_host_can_hold_is_refused_with_counts(site: Up) -> None:
    ran = usina("machine", "create", "big", "--image", "tiny", "--disk", "1GiB", "--gpu", "H100:8", code=1)
    assert "no host can ever hold this" in ran.err


def test_wrong_sizes_are_usage_errors_and_send_nothing(site: Up) -> None:
    assert "memory" in usina("machine", "create", "x", "--image", "tiny", "--memory", "lots", code=2).err


def test_hosts(hello: str) -> None:
    claims = usina("host", "claims", "f1", "-o", "json").data
    machine = usina("machine", "show", hello, "-o", "json").data["id"]
    assert machine in [claim["resource"] for claim in claims]
    usina("host", "cordon", "f1")
    assert "cordoned" in usina("host", "list").out
    usina("host", "enable", "f1")
    address = usina("host", "show", "f1", "-o", "json").data["devices"][0]["address"]
    usina("host", "device", "cordon", "f1", address)
    assert "cordoned" in usina("host", "show", "f1").out
    usina("host", "device", "enable", "f1", address)
    assert "error: " in usina("host", "remove", "f1", code=1).err


def test_the_terms_of_a_host(site: Up) -> None:
    window = "2026-12-01T08:00/2026-12-01T12:00"
    words = ("--rack", "r1", "--block", "b1", "--site", "lisbon", "--nvlink", "nvl-3", "--group", "gpu")
    more = ("--cpu-ratio", "4", "--memory-ratio", "1.2", "--dedicate", "acme", "--maintenance", window)
    assert "lisbon" in usina("host", "set", "f1", *words, *more, "--price", "3600000").out
    host = usina("host", "show", "f1", "-o", "json").data
    assert host["topology"] == {"site": "lisbon", "block": "b1", "rack": "r1", "nvlink": "nvl-3"}
    assert (host["group"], host["cpu_ratio"], host["memory_ratio"], host["price"]) == ("gpu", 4, 1.2, 3_600_000)
    shown = usina("host", "show", "f1").out
    for term in ("site lisbon, block b1, rack r1", "gpu", "1.2 for memory", "acme (tnt-", "3.6 credits an hour"):
        assert term in shown
    assert "2026-12-01T08:00Z/2026-12-01T12:00Z" in shown
    assert "rack r1" in usina("story", host["id"]).out
    usina("host", "set", "f1", "--rack", "none", "--dedicate", "none", "--maintenance", "none", "--group", "none")
    host = usina("host", "show", "f1", "-o", "json").data
    assert host["topology"] == {"site": "lisbon", "block": "b1", "nvlink": "nvl-3"}
    assert (host["group"], host["tenants"], host["maintenance"], host["price"]) == ("", [], [], 3_600_000)
    assert "nothing to set" in usina("host", "set", "f1", code=2).err
    assert "stands alone" in usina("host", "set", "f1", "--dedicate", "none", "--dedicate", "acme", code=2).err
    assert "maintenance" in usina("host", "set", "f1", "--maintenance", "soon", code=2).err
    assert "nobody" in (ran := usina("host", "set", "f1", "--dedicate", "nobody", code=1)).err or "tenant" in ran.err


def test_wishes_for_the_place_of_a_machine(site: Up) -> None:
    plain = ("--image", "tiny", "--disk", "1GiB", "--no-wait", "-o", "json")
    usina("machine", "create", "one", *plain, "--group", "web")
    words = ("--numa", "preferred", "--whole-cores", "--near", "web", "--group", "db", "--spread-over", "host")
    machine = usina("machine", "create", "two", *plain, *words, "--priority", "3", "--preemptible").data
    spec = machine["spec"]
    assert (spec["numa"], spec["numa_nodes"], spec["whole_cores"], spec["near"]) == ("preferred", 0, True, ["web"])
    assert (spec["group"], spec["spread_over"], spec["priority"], spec["preemptible"]) == ("db", "host", 3, True)
    shown = usina("machine", "show", "two").out
    for term in ("whole cores", "db, spread over host", "web", "3, preemptible"):
        assert term in shown
    assert "apart[0]" in usina("machine", "create", "three", *plain, "--apart", "nobody", code=1).err
    usina("machine", "delete", "one", "two", "--yes")


def test_an_image_is_sent_up(site: Up, tmp_path: Path) -> None:
    file = tmp_path / "disk.raw"
    file.write_bytes(b"\0" * 510 + b"\x55\xaa" + b"\0" * (1 << 20))  # a boot sector and room
    ran = usina("image", "create", "mine", "--file", str(file), "-o", "json")
    assert ran.data["phase"] == "ready"
    usina("image", "share", "mine", "tenant")
    assert "mine" in usina("image", "list", "-o", "name").out
    usina("image", "delete", "mine")


def test_in_the_end_it_is_gone(hello: str) -> None:
    id = usina("machine", "show", hello, "-o", "json").data["id"]
    usina("machine", "delete", hello, "--yes")
    assert usina("machine", "list", "-o", "json").data == []
    assert "not found" in usina("machine", "show", hello, code=1).err
    assert usina("story", id, "-o", "json").data[-1]["kind"] == "machine.deleted"
    usina("image", "delete", "tiny")
    usina("project", "delete", "research")
    usina("tenant", "rename", "acme", "acme-labs")
    usina("tenant", "delete", "acme-labs")
    usina("host", "remove", "f1")
    usina("logout")
    assert "not logged in" in usina("machine", "list", code=2).err
