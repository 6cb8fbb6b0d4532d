"""Models: what their files say, where they come from, and which ones a centre may want."""

from usina.services.models.reader import FileReader
from usina.services.models.upstream import Hub

__all__ = ["FileReader", "Hub"]
