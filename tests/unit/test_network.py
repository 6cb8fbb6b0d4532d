"""Addresses and what follows from them."""

from __future__ import annotations

from usina.core.network import candidates, mac_of


def test_a_card_follows_from_its_address() -> None:
    assert mac_of("10.80.1.5") == "52:54:0a:50:01:05"
    macs = {mac_of(address) for address in candidates("10.80.0.0/22", "any")}
    assert len(macs) == 1024 - 3
    assert all(int(mac[:2], 16) & 0b11 == 0b10 for mac in macs)  # locally administered, unicast
