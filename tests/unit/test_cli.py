"""The command line without a site: short forms, tables, the config file, errors, help, and the ssh command line."""

from __future__ import annotations

import json
import os
import stat
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from usina.cli import config, machine_inside, main, screen, short_forms
from usina.cli.screen import Output
from usina.cli.up import _roles
from usina.client import ApiError, CannotConnect, Card, DeviceWish, Resource, Rule, Window
from usina.core.errors import Invalid, Unauthenticated, Unavailable
from usina.core.units import GiB, MiB

NOW = datetime(2026, 5, 1, 12, 0, tzinfo=UTC)


def resource(**changes: Any) -> Resource:
    fields: dict[str, Any] = {
        "id": "mch-01m802kk9pvpmddbbmfnsky8jc",
        "kind": "machine",
        "tenant": "tnt-1",
        "project": "prj-1",
        "name": "hello",
        "phase": "running",
        "generation": 1,
        "observed": 1,
        "deleting": False,
        "host": None,
        "parent": None,
        "spec": {},
        "status": {},
        "conditions": (),
        "labels": {},
        "created_at": NOW,
        "updated_at": NOW,
    }
    return Resource(**(fields | changes))


class TestShortForms:
    @pytest.mark.parametrize(
        ("text", "wanted"),
        [
            ("in:tcp:22", Rule("in", "tcp", (22, 22))),
            ("in:tcp:8000-8100:10.0.0.0/8", Rule("in", "tcp", (8000, 8100), "10.0.0.0/8")),
            ("out:all", Rule("out", "all")),
            ("in:all:10.0.0.0/8", Rule("in", "all", None, "10.0.0.0/8")),
            ("in:icmp", Rule("in", "icmp")),
            ("in:udp:all:10.1.2.3", Rule("in", "udp", None, "10.1.2.3/32")),
            ("IN:TCP:22", Rule("in", "tcp", (22, 22))),
        ],
    )
    def test_a_rule(self, text: str, wanted: Rule) -> None:
        assert short_forms.rule(text) == wanted

    @pytest.mark.parametrize(
        "text",
        [
            *("", "in", "tcp:22", "up:tcp", "in:icmp:8", "in:tcp:0", "in:tcp:99999", "in:tcp:9-1"),
            *("in:tcp:22:10.0.0.1/8", "in:tcp:22:300.0.0.0/8", "in:tcp:10.0.0.0/8:22"),
            *("in:tcp:22:23", "in:tcp:22:10.0.0.0/8:x"),
        ],
    )
    def test_a_wrong_rule_says_how_one_looks(self, text: str) -> None:
        with pytest.raises(Invalid) as caught:
            short_forms.rule(text)
        assert caught.value.field == "rule"
        assert repr(text) in caught.value.message

    @pytest.mark.parametrize("text", ["in:tcp:22", "in:tcp:8000-8100:10.0.0.0/8", "out:all", "in:all:10.0.0.0/8"])
    def test_a_rule_is_shown_as_it_is_written(self, text: str) -> None:
        rule = short_forms.rule(text)
        told = {"direction": rule.direction, "protocol": rule.protocol, "ports": rule.ports, "remote": rule.remote}
        assert short_forms.show_rule(told) == text

    @pytest.mark.parametrize(
        ("text", "count", "model"),
        [("H100", 1, "H100"), ("H100:4", 4, "H100"), ("2", 2, None), ("any", 1, None), ("any:3", 3, None)],
    )
    def test_gpus(self, text: str, count: int, model: str | None) -> None:
        assert short_forms.gpu(text) == DeviceWish("gpu", count, model)

    def test_a_gpu_with_more_wishes(self) -> None:
        wish = short_forms.gpu("H100|H200:4,memory=80GiB,linked,trait=sxm,trait=ecc")
        assert wish == DeviceWish("gpu", 4, "H100|H200", memory=80 * GiB, linked=True, traits=("sxm", "ecc"))
        assert short_forms.gpu("any,memory=24GiB") == DeviceWish("gpu", 1, memory=24 * GiB)

    @pytest.mark.parametrize(("text", "wanted"), [("strict", ("strict", 0)), ("none", ("none", 0)), ("2", ("none", 2))])
    def test_numa(self, text: str, wanted: tuple[str, int]) -> None:
        assert short_forms.numa(text) == wanted
        with pytest.raises(Invalid, match="numa"):
            short_forms.numa("both")

    def test_a_window_is_in_utc_unless_it_says_otherwise(self) -> None:
        window = short_forms.window("2026-12-01T08:00/2026-12-01T14:00+02:00")
        assert window == Window(datetime(2026, 12, 1, 8, tzinfo=UTC), datetime(2026, 12, 1, 12, tzinfo=UTC))
        assert short_forms.show_window(window) == "2026-12-01T08:00Z/2026-12-01T12:00Z"
        assert short_forms.window(short_forms.show_window(window)) == window

    @pytest.mark.parametrize("text", ["", "2026-12-01T08:00", "now/then", "2026-12-01T08:00/"])
    def test_a_wrong_window_says_how_one_looks(self, text: str) -> None:
        with pytest.raises(Invalid, match="2026-12-01T08:00/2026-12-01T12:00") as caught:
            short_forms.window(text)
        assert caught.value.field == "maintenance"

    @pytest.mark.parametrize(
        "text", ["H100:0", "H100:x", "17", "H100:17", "H100,linked=yes", "H100,memory=", "H100,memory=big", "H100,x"]
    )
    def test_wrong_gpus(self, text: str) -> None:
        with pytest.raises(Invalid, match="gpu"):
            short_forms.gpu(text)

    def test_cards(self) -> None:
        assert short_forms.card("lab") == Card("lab")
        assert short_forms.card("lab:10.0.0.7", ["web"]) == Card("lab", ("web",), "10.0.0.7")
        with pytest.raises(Invalid, match="network"):
            short_forms.card(":10.0.0.7")

    def test_labels(self) -> None:
        assert short_forms.labels(["a=1", "b=x=y", "c="]) == {"a": "1", "b": "x=y", "c": ""}
        with pytest.raises(Invalid, match="label"):
            short_forms.labels(["novalue"])

    def test_host_options(self) -> None:
        found = short_forms.host_options(["uri=qemu:///system", "cores=64", "memory=256GiB", "delay=0.5", "fast=true"])
        assert found == {"uri": "qemu:///system", "cores": 64, "memory": 256 * GiB, "delay": 0.5, "fast": True}

    def test_limits(self) -> None:
        assert short_forms.limit(None, "cores") == {}
        assert short_forms.limit("none", "cores") == {"cores": None}
        assert short_forms.limit("8", "cores") == {"cores": 8}
        assert short_forms.limit("512MiB", "memory", sized=True) == {"memory": 512 * MiB}
        with pytest.raises(Invalid, match="cores"):
            short_forms.limit("many", "cores")

    def test_ssh_keys_come_from_files_line_by_line(self, tmp_path: Path) -> None:
        file = tmp_path / "keys"
        file.write_text("# mine\nssh-ed25519 AAAA a@b\n\nssh-rsa BBBB c\n")
        assert short_forms.ssh_keys([file]) == ["ssh-ed25519 AAAA a@b", "ssh-rsa BBBB c"]

    def test_a_private_key_never_leaves(self, tmp_path: Path) -> None:
        file = tmp_path / "id_ed25519"
        file.write_text("-----BEGIN OPENSSH PRIVATE KEY-----\nxyz\n")
        with pytest.raises(Invalid, match="private key"):
            short_forms.ssh_keys([file])

    def test_roles(self) -> None:
        assert _roles("api, engine") == {"api", "engine"}
        with pytest.raises(Invalid):
            _roles("api,cook")


class TestScreen:
    @pytest.mark.parametrize(
        ("ago", "shown"), [(0, "0s"), (119, "119s"), (120, "2m"), (7199, "119m"), (7200, "2h"), (86400 * 3, "3d")]
    )
    def test_ages(self, ago: int, shown: str) -> None:
        assert screen.age(NOW, NOW + timedelta(seconds=ago)) == shown

    def test_an_unknown_age(self) -> None:
        assert screen.age(None) == "–"

    def test_text_from_elsewhere_cannot_command_the_terminal(self) -> None:
        assert screen.clean("a\x1b[31mred\x1b[0m\x1b]0;title\x07b\x08\x9bc\r\nd\te") == "aredbc\nd\te"

    def test_a_list_as_a_table(self, capsys: pytest.CaptureFixture[str]) -> None:
        columns: screen.Columns[Resource] = [("name", lambda r: r.name), ("phase", lambda r: screen.phase(r.phase))]
        screen.show_list([resource(), resource(name="web[bold]", phase="failed")], columns, Output.TABLE)
        lines = capsys.readouterr().out.splitlines()
        assert lines[0].split() == ["name", "phase"]
        assert lines[2].split() == ["hello", "running"]
        assert lines[3].split() == ["web[bold]", "failed"]  # markup from elsewhere is text

    def test_a_list_as_json_is_json_and_nothing_more(self, capsys: pytest.CaptureFixture[str]) -> None:
        screen.show_list([resource()], [], Output.JSON)
        assert json.loads(capsys.readouterr().out)[0]["name"] == "hello"
        screen.show_list([], [], Output.JSON)
        assert json.loads(capsys.readouterr().out) == []

    def test_a_list_as_names(self, capsys: pytest.CaptureFixture[str]) -> None:
        screen.show_list([resource(), resource(name="web")], [], Output.NAME)
        assert capsys.readouterr().out == "hello\nweb\n"

    def test_an_empty_table_leaves_stdout_empty(self, capsys: pytest.CaptureFixture[str]) -> None:
        screen.show_list([], [], Output.TABLE)
        caught = capsys.readouterr()
        assert caught.out == ""
        assert "there are none" in caught.err


@pytest.fixture
def own_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    place = tmp_path / "config"
    monkeypatch.setenv("USINA_CONFIG_DIR", str(place))
    for name in ("USINA_ENDPOINT", "USINA_TOKEN", "USINA_PROJECT"):
        monkeypatch.delenv(name, raising=False)
    return place


class TestConfig:
    def test_only_its_owner_may_read_it(self, own_config: Path) -> None:
        own_config.mkdir()
        (own_config / "config.json").write_text("{}")
        (own_config / "config.json").chmod(0o644)  # from elsewhere, and too open
        path = config.store(config.Config("http://127.0.0.1:1", "usk-a-b", "research"))
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert config.stored() == config.Config("http://127.0.0.1:1", "usk-a-b", "research")
        assert os.listdir(own_config) == ["config.json"]

    def test_the_environment_comes_first(self, own_config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        config.store(config.Config("http://127.0.0.1:1", "usk-a-b", "research"))
        monkeypatch.setenv("USINA_PROJECT", "other")
        assert config.effective() == config.Config("http://127.0.0.1:1", "usk-a-b", "other")

    def test_a_file_that_is_not_ours_is_an_error(self, own_config: Path) -> None:
        own_config.mkdir()
        (own_config / "config.json").write_text("[1]")
        with pytest.raises(Invalid, match=r"config\.json"):
            config.stored()

    def test_a_token_is_in_no_repr(self) -> None:
        assert "usk" not in repr(config.Config("http://127.0.0.1:1", "usk-a-b"))

    def test_forgetting(self, own_config: Path) -> None:
        config.store(config.Config("http://127.0.0.1:1", "usk-a-b"))
        assert config.forget()
        assert not config.forget()
        assert config.stored() == config.Config()


class TestErrors:
    def test_a_refusal_is_one_line_and_a_hint(self, capsys: pytest.CaptureFixture[str]) -> None:
        error = ApiError(409, "cores: 8 more would pass the quota of 4", code="quota-exceeded", field="cores")
        assert main.explain(error) == 1
        lines = capsys.readouterr().err.splitlines()
        assert lines[0] == "error: cores: 8 more would pass the quota of 4"
        assert lines[1].startswith("hint:")
        assert "usina quota show" in lines[1]

    def test_the_field_is_named_where_the_message_does_not(self, capsys: pytest.CaptureFixture[str]) -> None:
        main.explain(ApiError(404, "not there", field="image"))
        assert capsys.readouterr().err.splitlines()[0] == "error: image: not there"

    def test_every_wrong_field_is_told(self, capsys: pytest.CaptureFixture[str]) -> None:
        wrong = ({"field": "a", "message": "too long"}, {"field": "b", "message": "too short"})
        main.explain(ApiError(422, "a: too long", field="a", errors=wrong))
        assert "error: b: too short" in capsys.readouterr().err

    @pytest.mark.parametrize(
        ("error", "code"),
        [
            (ApiError(404, "no"), 1),
            (Invalid("no", field="x"), 2),
            (Unauthenticated("no", code="not-logged-in"), 2),
            (CannotConnect("no"), 3),
            (Unavailable("port 1 cannot be used"), 1),
        ],
    )
    def test_exit_codes(self, error: Any, code: int, capsys: pytest.CaptureFixture[str]) -> None:
        assert main.explain(error) == code

    def test_a_command_cannot_be_used_logged_out(self, own_config: Path) -> None:
        result = CliRunner().invoke(main.app, ["machine", "list"])
        assert isinstance(result.exception, Unauthenticated)


@dataclass(frozen=True)
class Found:
    words: str
    command: Any


def all_commands() -> Iterator[Found]:
    def walk(command: Any, words: tuple[str, ...]) -> Iterator[Found]:
        yield Found(" ".join(words), command)
        for word, below in getattr(command, "commands", {}).items():
            yield from walk(below, (*words, word))

    return walk(typer.main.get_command(main.app), ("usina",))


class TestHelp:
    @pytest.mark.parametrize("found", all_commands(), ids=lambda found: found.words)
    def test_every_command_has_help_with_examples(self, found: Found) -> None:
        text = found.command.help or ""
        assert "Examples:" in text
        examples = text.partition("Examples:")[2]
        assert "usina" in examples or "ssh" in examples
        for parameter in found.command.params:
            if parameter.name not in ("help", "install_completion", "show_completion"):
                assert parameter.help, parameter.name

    def test_examples_keep_their_lines(self) -> None:
        result = CliRunner().invoke(main.app, ["machine", "create", "--help"], env={"COLUMNS": "140"})
        assert result.exit_code == 0
        lines = [line.strip() for line in result.output.splitlines()]
        assert "usina machine create hello --image debian-12" in lines

    def test_a_wrong_option_is_exit_code_2(self) -> None:
        assert CliRunner().invoke(main.app, ["machine", "list", "--nonsense"]).exit_code == 2

    def test_a_misspelt_noun_is_guessed(self) -> None:
        result = CliRunner().invoke(main.app, ["machin", "list"])
        assert result.exit_code == 2
        assert "machine" in result.output


class TestSsh:
    def test_the_command_line(self, own_config: Path) -> None:
        words = machine_inside.ssh_command(resource(), "debian", True, ["uname", "-a"], ["8888:localhost:8888"])
        assert words[0] == "ssh"
        assert f"HostKeyAlias={resource().id}" in words
        assert "StrictHostKeyChecking=accept-new" in words
        assert words[-6:] == ["-l", "debian", "--", "hello", "uname", "-a"]
        assert words[words.index("-L") : words.index("-L") + 2] == ["-L", "8888:localhost:8888"]

    def test_host_keys_that_do_not_last_are_not_kept(self, own_config: Path) -> None:
        words = machine_inside.ssh_command(resource(), "root", False)
        assert "UserKnownHostsFile=/dev/null" in words
        assert "StrictHostKeyChecking=no" in words

    def test_no_name_reaches_a_shell(self, own_config: Path, tmp_path: Path) -> None:
        """Even a site that lies about ids cannot run anything here: the proxy command is quoted word by word."""
        trap = tmp_path / "trap"
        evil = resource(id=f"x'; touch {trap}; echo '%h $(touch {trap})", name="-oProxyCommand=touch")
        words = machine_inside.ssh_command(evil, "-oProxyCommand=touch", True)
        proxy = next(word for word in words if word.startswith("ProxyCommand=")).removeprefix("ProxyCommand=")
        shown = proxy.replace("%%", "%").replace(" -m usina.cli", " -c 'import sys; print(sys.argv)'", 1)
        ran = subprocess.run(["sh", "-c", shown], capture_output=True, text=True, check=True)
        assert str(["-c", "machine", "tunnel", evil.id, "22"]) == ran.stdout.strip()
        assert not trap.exists()
        assert words[-2:] == ["--", "-oProxyCommand=touch"]
        assert words[words.index("-l") + 1] == "-oProxyCommand=touch"  # the value of -l, not an option
