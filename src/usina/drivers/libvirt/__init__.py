"""libvirt: virtual machines on hosts with QEMU, this one or far ones, by the interface operators already run.

Read `driver.py` first: it is the port's verbs. The words they use are below it: `guests`, `storage`, `networks`,
`filters`, `devices`, `snapshots` command libvirt; the `*_xml` modules write its XML and are pure.
"""

import os

from usina.drivers.libvirt.checks import diagnose
from usina.drivers.libvirt.driver import LibvirtDriver
from usina.drivers.libvirt.settings import OPTIONS, check
from usina.ports.driver import DriverPlugin


def here() -> dict[str, str]:
    """The system's libvirt where we may use it, else the user's own."""
    system = os.geteuid() == 0 or os.access("/run/libvirt/libvirt-sock", os.W_OK)
    return {"uri": "qemu:///system" if system else "qemu:///session"}


PLUGIN = DriverPlugin(
    name="libvirt",
    summary="Virtual machines by libvirt and QEMU, with KVM where it works",
    options=OPTIONS,
    check=check,
    open=LibvirtDriver,
    diagnose=diagnose,
    here=here,
)
