"""The native door: REST with OpenAPI 3.1, events as SSE, consoles and tunnels as WebSockets."""

from usina.facades.native.api import serve
from usina.ports.facade import FacadePlugin

PLUGIN = FacadePlugin(name="native", summary="REST, OpenAPI 3.1, SSE and WebSockets", mount="/api", app=serve)
