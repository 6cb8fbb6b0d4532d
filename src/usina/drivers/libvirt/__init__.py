"""libvirt: virtual machines on hosts with QEMU, this one or far ones, by the interface operators already run.

Read `driver.py` first: it is the port's verbs. The words they use are below it: `guests`, `storage`, `networks`,
`filters`, `devices`, `snapshots` command libvirt; the `*_xml` modules write its XML and are pure.
"""

from usina.drivers.libvirt.checks import diagnose
from usina.drivers.libvirt.driver import LibvirtDriver
from usina.drivers.libvirt.settings import OPTIONS, check
from usina.ports.driver import DriverPlugin

PLUGIN = DriverPlugin(
    name="libvirt",
    summary="Virtual machines by libvirt and QEMU, with KVM where it works",
    options=OPTIONS,
    check=check,
    open=LibvirtDriver,
    diagnose=diagnose,
)
