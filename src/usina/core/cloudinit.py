"""NoCloud documents for a guest. JSON is YAML, so nothing a member writes can break out of its string.

Source: cloud-init, "NoCloud" data source and "Networking config Version 2".
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from usina.core.machine import Interface

EMPTY_USER_DATA = "#cloud-config\n{}\n"
USER_DATA_LIMIT = 64 * 1024
"""Bytes of user-data that a machine may carry."""


def meta_data(instance: str, hostname: str, ssh_keys: Sequence[str]) -> str:
    """Identity of the guest: a new `instance` makes cloud-init run anew."""
    return json.dumps({"instance-id": instance, "local-hostname": hostname, "public-keys": list(ssh_keys)})


def network_config(interfaces: Sequence[Interface]) -> str:
    """Every card by its MAC address, all by DHCP; only the first may set the default route."""
    cards = {
        f"nic{number}": {
            "match": {"macaddress": card.mac},
            "set-name": f"eth{number}",
            "dhcp4": True,
            **({"dhcp4-overrides": {"use-routes": False}} if number else {}),
        }
        for number, card in enumerate(interfaces)
    }
    return json.dumps({"version": 2, "ethernets": cards})
