"""The client describes the same shapes as the native door, without importing it; here one is held against the other."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from pydantic import BaseModel

from usina.client import hub, models
from usina.facades.native import answers, llm_answers, model_answers

Schema = dict[str, Any]

PAIRS: dict[type[msgspec.Struct], type[BaseModel]] = {
    struct: getattr(door, f"{name}Out")
    for client, door in ((models, answers), (models, llm_answers), (hub, model_answers))
    for name, struct in vars(client).items()
    if isinstance(struct, type) and issubclass(struct, msgspec.Struct) and hasattr(door, f"{name}Out")
}


def shape(schema: Schema, names: Schema) -> Any:
    """A JSON schema without what is said for people: titles, formats, defaults, what is required."""
    if "$ref" in schema:
        return shape(names[schema["$ref"].rpartition("/")[2]], names)
    if "anyOf" in schema:
        return frozenset(shape(one, names) for one in schema["anyOf"])
    match schema.get("type"):
        case "object" if "properties" in schema:
            return tuple(sorted((name, shape(one, names)) for name, one in schema["properties"].items()))
        case "object":
            values = schema.get("additionalProperties", True)
            return ("map", shape(values, names) if isinstance(values, dict) else "anything")
        case "array":
            return ("list", shape(schema.get("items", {}), names))
        case None:
            return "anything"
        case one:
            return one


@pytest.mark.parametrize("struct", PAIRS, ids=lambda struct: struct.__name__)
def test_the_client_reads_what_the_door_writes(struct: type[msgspec.Struct]) -> None:
    mine, theirs = msgspec.json.schema(struct), PAIRS[struct].model_json_schema()
    assert shape(mine, mine["$defs"]) == shape(theirs, theirs.get("$defs", {}))


def test_every_shape_has_its_pair() -> None:
    doors = [*vars(answers).items(), *vars(llm_answers).items(), *vars(model_answers).items()]
    written = {name.removesuffix("Out") for name, one in doors if name.endswith("Out") and one}
    assert written - {"Offset"} == {struct.__name__ for struct in PAIRS}  # an upload counts for itself
