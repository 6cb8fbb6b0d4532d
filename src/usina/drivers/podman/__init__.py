"""podman: tasks as containers, by Podman's REST socket.

Read `driver.py` first, then `body.py`, which says what a container of ours may and may not do.
"""

from usina.drivers.podman.checks import diagnose
from usina.drivers.podman.driver import STACK, PodmanDriver
from usina.drivers.podman.settings import OPTIONS, check
from usina.ports.driver import DriverPlugin

PLUGIN = DriverPlugin(
    name="podman",
    summary="Tasks as containers, by Podman on this machine",
    options=OPTIONS,
    check=check,
    diagnose=diagnose,
    tasks=PodmanDriver,
    stack=STACK,
    networks=True,
    volumes=True,
    here=dict,
)
