"""Models: what their files say, where they come from, and which ones a centre may want."""

from usina.services.models.reader import FileReader
from usina.services.models.upstream import Hub
from usina.services.models.xorbs import XorbFolder

__all__ = ["FileReader", "Hub", "XorbFolder"]
