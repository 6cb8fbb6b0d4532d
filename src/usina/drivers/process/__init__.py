"""process: tasks as sandboxed processes of this host.

Read `driver.py` first, then `client.py`, which speaks with the warden; all that is done to the host is in `warden/`.
"""

from usina.drivers.process.checks import diagnose
from usina.drivers.process.driver import ProcessDriver
from usina.drivers.process.options import OPTIONS, check
from usina.ports.driver import DriverPlugin

PLUGIN = DriverPlugin(
    name="process",
    summary="Tasks as sandboxed processes of this host",
    options=OPTIONS,
    check=check,
    diagnose=diagnose,
    tasks=ProcessDriver,
    stack="local",
    networks=True,
    volumes=True,
    here=dict,
)
