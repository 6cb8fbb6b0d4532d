"""ssh: tasks inside the machines of a host, by SSH and systemd.

Read `driver.py` first, then `scripts.py`, which is what is done in a machine.
"""

from usina.drivers.ssh.checks import diagnose
from usina.drivers.ssh.driver import MachineTasks
from usina.drivers.ssh.inventory import STACK
from usina.drivers.ssh.settings import OPTIONS, check
from usina.ports.driver import DriverPlugin

PLUGIN = DriverPlugin(
    name="ssh",
    summary="Tasks inside the machines of a host, by SSH and systemd",
    options=OPTIONS,
    check=check,
    diagnose=diagnose,
    tasks=MachineTasks,
    stack=STACK,
    inside=True,
    here=dict,
)
