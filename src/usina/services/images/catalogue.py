"""What images can be built here, by name."""

from __future__ import annotations

from typing import Final

from usina.core.errors import Invalid
from usina.services.images.recipe import Recipe
from usina.services.images.recipes import debian12, tiny

RECIPES: Final[dict[str, Recipe]] = {recipe.name: recipe for recipe in (tiny.RECIPE, debian12.RECIPE)}


def recipe_named(name: str) -> Recipe:
    """Raises `Invalid` naming the field "recipe" and what there is."""
    try:
        return RECIPES[name]
    except KeyError:
        raise Invalid(f"recipe: there is no {name!r}; there are {', '.join(RECIPES)}", field="recipe") from None
