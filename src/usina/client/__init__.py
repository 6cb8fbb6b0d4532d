"""The typed client of the native API. Knows of the house only `core.errors` and `core.units`.

Read `client.py` first; `wire.py` is how it speaks, `resources.py` what it can say.
"""

from usina.client.client import Client
from usina.client.errors import ApiError, CannotConnect, ResourceFailed, WaitedTooLong
from usina.client.models import (
    Card,
    Claim,
    Device,
    DeviceWish,
    Event,
    Explanation,
    FreshKey,
    Host,
    Key,
    Member,
    Project,
    Quota,
    Resource,
    Rule,
    Score,
    Site,
    Tenant,
    Usage,
    Victim,
    WhoAmI,
    Window,
)
from usina.client.streams import Command, Stream
from usina.client.tasks import LogLine

__all__ = [
    "ApiError",
    "CannotConnect",
    "Card",
    "Claim",
    "Client",
    "Command",
    "Device",
    "DeviceWish",
    "Event",
    "Explanation",
    "FreshKey",
    "Host",
    "Key",
    "LogLine",
    "Member",
    "Project",
    "Quota",
    "Resource",
    "ResourceFailed",
    "Rule",
    "Score",
    "Site",
    "Stream",
    "Tenant",
    "Usage",
    "Victim",
    "WaitedTooLong",
    "WhoAmI",
    "Window",
]
