"""The typed client of the native API. Knows of the house only `core.errors` and `core.units`.

Read `client.py` first; `wire.py` is how it speaks, `resources.py` what it can say.
"""

from usina.client.client import Client
from usina.client.errors import ApiError, CannotConnect, ResourceFailed, WaitedTooLong
from usina.client.models import (
    Budget,
    Card,
    Claim,
    Device,
    DeviceWish,
    Event,
    Exchange,
    Explanation,
    FreshKey,
    Host,
    Key,
    Limits,
    Member,
    ModelUsage,
    Project,
    Quota,
    Resource,
    Rule,
    Score,
    Site,
    Tenant,
    Usage,
    UsageReport,
    Victim,
    WhoAmI,
    Window,
)
from usina.client.streams import Command, Stream
from usina.client.tasks import LogLine

__all__ = [
    "ApiError",
    "Budget",
    "CannotConnect",
    "Card",
    "Claim",
    "Client",
    "Command",
    "Device",
    "DeviceWish",
    "Event",
    "Exchange",
    "Explanation",
    "FreshKey",
    "Host",
    "Key",
    "Limits",
    "LogLine",
    "Member",
    "ModelUsage",
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
    "UsageReport",
    "Victim",
    "WaitedTooLong",
    "WhoAmI",
    "Window",
]
