"""Short ways of writing things on a command line, read once, here. Each raises `Invalid` naming the option."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from usina.client import Card, DeviceWish, Rule, Window
from usina.core.errors import Invalid
from usina.core.units import parse_size

_DIRECTIONS = ("in", "out")
_NUMA = ("none", "preferred", "strict")
_PROTOCOLS = ("tcp", "udp", "icmp", "all")
_RULE = "a rule looks like in:tcp:22, in:tcp:8000-8100:10.0.0.0/8 or out:all"


def rule(text: str) -> Rule:
    """``DIRECTION:PROTOCOL[:PORT[-PORT]][:CIDR]``, for example ``in:tcp:8000-8100:10.0.0.0/8``."""
    parts = text.strip().lower().split(":")
    if len(parts) < 2:
        raise Invalid(f"rule: {text!r}: {_RULE}", field="rule")
    direction, protocol, *rest = parts
    if direction not in _DIRECTIONS or protocol not in _PROTOCOLS or len(rest) > 2:
        raise Invalid(f"rule: {text!r}: {_RULE}", field="rule")
    ports, remote = None, "0.0.0.0/0"
    for part in rest:
        if "/" in part or part.count(".") == 3:
            remote = _cidr(part, text)
        elif ports is None and protocol in ("tcp", "udp") and remote == "0.0.0.0/0":
            ports = _ports(part, text)
        else:
            raise Invalid(f"rule: {text!r}: {_RULE}", field="rule")
    return Rule(direction, protocol, ports, remote)


def _ports(text: str, rule: str) -> tuple[int, int] | None:
    if text in ("", "all"):
        return None
    first, _, last = text.partition("-")
    last = last or first
    if not (first.isdecimal() and last.isdecimal() and 1 <= int(first) <= int(last) <= 65535):
        raise Invalid(f"rule: {rule!r}: {text!r} is not a port or a range such as 8000-8100", field="rule")
    return int(first), int(last)


def _cidr(text: str, rule: str) -> str:
    try:
        return str(ipaddress.IPv4Network(text))
    except ValueError as error:
        raise Invalid(f"rule: {rule!r}: {error}", field="rule") from None


def show_rule(rule: dict[str, Any]) -> str:
    """A rule as the site tells it, in the short form."""
    first, last = rule.get("ports") or (0, 0)
    parts = [rule["direction"], rule["protocol"]]
    if first:
        parts.append(str(first) if first == last else f"{first}-{last}")
    if rule["remote"] != "0.0.0.0/0":
        parts.append(rule["remote"])
    return ":".join(parts)


def gpu(text: str) -> DeviceWish:
    """``MODEL``, ``N`` or ``MODEL:N``, and after commas what else each must be: ``H100|H200:4,memory=80GiB,linked``.

    ``any`` is any model, and ``A|B`` either of two; ``trait=NAME`` may be repeated.
    """
    first, *more = text.strip().split(",")
    model, colon, count = first.rpartition(":")
    if not colon:
        model, count = ("", first) if first.isdecimal() else (first, "1")
    if not count.isdecimal() or not 1 <= int(count) <= 16:
        raise Invalid(f"gpu: {text!r}: give a model, a number (1 to 16) or both, such as H100:4", field="gpu")
    model_or_any = None if model in ("", "any") else model
    return DeviceWish("gpu", int(count), model_or_any, **_device_wishes(text, more))


def _device_wishes(text: str, wishes: list[str]) -> dict[str, Any]:
    """What stands after the commas of a GPU, as fields of the wish."""
    found: dict[str, Any] = {}
    for wish in wishes:
        name, _, value = wish.partition("=")
        if wish == "linked":
            found["linked"] = True
        elif name == "memory" and value:
            found["memory"] = parse_size(value, "gpu")
        elif name == "trait" and value:
            found["traits"] = (*found.get("traits", ()), value)
        else:
            raise Invalid(f"gpu: {text!r}: after commas come memory=SIZE, linked and trait=NAME", field="gpu")
    return found


def numa(text: str) -> tuple[str, int]:
    """``none``, ``preferred`` or ``strict``: one NUMA node or anywhere; or over how many to spread: (word, nodes)."""
    if text.isdecimal():
        return "none", int(text)
    if text not in _NUMA:
        raise Invalid(f"numa: {text!r}: give {', '.join(_NUMA)}, or a number of nodes", field="numa")
    return text, 0


def window(text: str) -> Window:
    """``BEGIN/END``, each like ``2026-12-01T08:00``; UTC where no zone is given."""
    begins, slash, ends = text.partition("/")
    try:
        if slash:
            return Window(_moment(begins), _moment(ends))
    except ValueError:
        pass
    raise Invalid(
        f"maintenance: {text!r}: a window looks like 2026-12-01T08:00/2026-12-01T12:00", field="maintenance"
    ) from None


def _moment(text: str) -> datetime:
    moment = datetime.fromisoformat(text)
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment


def show_window(window: Window) -> str:
    """A window as it is written, in UTC."""
    return "/".join(f"{moment.astimezone(UTC):%Y-%m-%dT%H:%M}Z" for moment in (window.begins, window.ends))


def card(text: str, groups: Iterable[str] = ()) -> Card:
    """``NETWORK`` or ``NETWORK:ADDRESS``."""
    network, _, address = text.partition(":")
    if not network:
        raise Invalid(
            f"network: {text!r}: give a network, or a network and an address such as lab:10.0.0.7", field="network"
        )
    return Card(network, tuple(groups) or ("default",), address or None)


def labels(texts: Iterable[str]) -> dict[str, str]:
    """``KEY=VALUE``, each once."""
    found: dict[str, str] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not name or not equals:
            raise Invalid(f"label: {text!r}: a label looks like team=vision", field="label")
        found[name] = value
    return found


def host_options(texts: Iterable[str]) -> dict[str, Any]:
    """``KEY=VALUE``; whole numbers, decimals, true and false are taken as such, sizes with a unit as bytes."""
    found: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not name or not equals:
            raise Invalid(f"option: {text!r}: an option looks like uri=qemu:///system", field="option")
        found[name] = _plain(value)
    return found


def _plain(value: str) -> Any:
    if value in ("true", "false"):
        return value == "true"
    if re.fullmatch(r"-?\d+", value):
        return int(value)
    if re.fullmatch(r"-?\d+\.\d+", value):
        return float(value)
    return parse_size(value) if re.fullmatch(r"\d+(\.\d+)?[KMGT]i?B", value) else value


def limit(text: str | None, field: str, *, sized: bool = False) -> dict[str, int | None]:
    """A limit as an option gives it: a number, a size, or ``none`` for no limit; {} if it was not given."""
    if text is None:
        return {}
    if text.lower() in ("none", "unlimited"):
        return {field: None}
    if sized:
        return {field: parse_size(text, field)}
    if not text.isdecimal():
        raise Invalid(f"{field}: {text!r}: give a number, or none for no limit", field=field)
    return {field: int(text)}


def ssh_keys(files: Iterable[Path]) -> list[str]:
    """The public keys in files, line by line. A private key is refused before it goes anywhere."""
    found = []
    for file in files:
        try:
            text = file.expanduser().read_text()
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "not a text"
            raise Invalid(f"ssh-key: {file}: {reason}", field="ssh-key") from None
        if "PRIVATE KEY" in text:
            raise Invalid(f"ssh-key: {file} is a private key; give the .pub beside it", field="ssh-key")
        found += [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return found
