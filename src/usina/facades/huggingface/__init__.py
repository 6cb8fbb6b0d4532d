"""The Hugging Face door: the hub's protocol, so that ``HF_ENDPOINT=http://site:8470/hf`` is all its clients need."""

from usina.facades.huggingface.door import serve
from usina.ports.facade import FacadePlugin

PLUGIN = FacadePlugin(name="huggingface", summary="the Hugging Face hub's protocol, for models", mount="/hf", app=serve)
