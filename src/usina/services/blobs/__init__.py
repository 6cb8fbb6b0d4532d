"""Content by digest, in a folder."""

from usina.services.blobs.folder import BlobFolder

__all__ = ["BlobFolder"]
