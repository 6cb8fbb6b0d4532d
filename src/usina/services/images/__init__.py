"""Images: where the disks and kernels that machines start from are built, fetched, taken in and kept.

`ImageLibrary` is the door; `RECIPES` lists what can be built here. Knows files and processes, nothing of
tenants.
"""

from usina.services.images.cache import default_cache
from usina.services.images.catalogue import RECIPES
from usina.services.images.inspect import ImageInfo, inspect
from usina.services.images.library import ImageLibrary
from usina.services.images.recipe import Recipe
from usina.services.images.workshop import Progress
from usina.services.reach import Reach

__all__ = [
    "RECIPES",
    "ImageInfo",
    "ImageLibrary",
    "Progress",
    "Reach",
    "Recipe",
    "default_cache",
    "inspect",
]
