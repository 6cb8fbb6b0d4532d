"""The NoCloud seed: an ISO image that cloud-init finds by its volume name. Pure: text in, bytes out.

https://cloudinit.readthedocs.io/en/latest/reference/datasources/nocloud.html
"""

from __future__ import annotations

from io import BytesIO
from typing import Final

import pycdlib

from usina.core.machine import MachinePlan
from usina.core.units import KiB

_LEAST_SIZE: Final = 256 * KiB


def seed_iso(plan: MachinePlan) -> bytes:
    """An ISO 9660 image with Joliet and Rock Ridge names, labelled ``cidata``.

    Padded, because busybox looks for a label only in what is larger than 68 KiB.
    """
    documents = {
        "meta-data": plan.meta_data,
        "user-data": plan.user_data,
        "network-config": plan.network_config,
    }
    iso = pycdlib.PyCdlib()
    iso.new(interchange_level=3, joliet=3, rock_ridge="1.09", vol_ident="cidata")
    for number, (name, text) in enumerate(documents.items()):
        if name == "network-config" and not text:
            continue  # cloud-init would take an empty one for a wish to have no network
        data = text.encode()
        iso.add_fp(BytesIO(data), len(data), f"/F{number}.;1", rr_name=name, joliet_path=f"/{name}")
    image = BytesIO()
    iso.write_fp(image)
    iso.close()
    return image.getvalue().ljust(_LEAST_SIZE, b"\0")
