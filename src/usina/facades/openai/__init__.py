"""The door of models: OpenAI's protocol, and Anthropic's messages, at `/v1`.

A connection whose requests are for this door is served by `lane`, without a task or a queue between socket and gateway;
`asgi` serves the same requests where a connection is shared with other doors.
"""

from usina.facades.openai.asgi import serve
from usina.facades.openai.lane import lane
from usina.ports.facade import FacadePlugin

PLUGIN = FacadePlugin(
    name="openai", summary="OpenAI's API and Anthropic's messages, for models", mount="/v1", app=serve, lane=lane
)
