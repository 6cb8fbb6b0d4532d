"""External: a model that somebody else serves, behind an OpenAI-compatible URL. There is no task; how it is, the
gateway finds out."""

from __future__ import annotations

from urllib.parse import urlsplit

from usina.core.endpoint import EndpointSpec
from usina.core.errors import Invalid
from usina.ports.runtime import RuntimePlugin

LONGEST = 2000


def check(spec: EndpointSpec) -> None:
    """The form of the address; where it leads is checked by who can look names up."""
    try:
        parts = urlsplit(spec.url)
        _ = parts.port
    except ValueError:
        raise Invalid("url: not a URL", field="url") from None
    bad = parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment
    if bad or "@" in parts.netloc or len(spec.url) > LONGEST or not spec.url.isprintable():
        raise Invalid("url: must be like https://host/v1, without a name, password or query in it", field="url")
    for name in ("devices", "cores", "memory", "adapters", "on"):
        if getattr(spec, name):
            raise Invalid(f"{name}: an external endpoint has no replicas of its own", field=name)


PLUGIN = RuntimePlugin(
    name="external",
    summary="A model that somebody else serves, behind an OpenAI-compatible URL.",
    formats=(),
    stacks=(),
    options={},
    settings={},
    check=check,
)
