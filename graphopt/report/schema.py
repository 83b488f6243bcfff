"""The JSON form of a report as JSON Schema (2020-12), made from its dataclasses and their docstrings."""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import is_dataclass
from typing import Any, get_args, get_type_hints

DIALECT = "https://json-schema.org/draft/2020-12/schema"

#: Floats that JSON lacks are these words; see `document.plain`.
_WORDS = ["NaN", "Infinity", "-Infinity"]
_NUMBER = {"anyOf": [{"type": "number"}, {"enum": _WORDS}]}
_SECTION = re.compile(r"^(Attributes|Args|Returns|Raises):\n", re.M)
_ENTRY = re.compile(r"^(?P<names>\w+(?:, \w+)*): (?P<text>.*(?:\n[ ]{2,}.*)*)", re.M)


def schema_of(cls: type, name: str) -> dict[str, Any]:
    """The schema of what `to_json(value, name)` writes for a `value` of this class.

    Every field is required, since every field is written. Further fields are allowed: new ones may appear
    under the same name.

    Args:
        cls: a dataclass of plain values.
        name: name and number of the form, the constant value of the field `schema`.
    """
    from pydantic import TypeAdapter

    made = TypeAdapter(cls).json_schema(mode="serialization", schema_generator=_generator())
    definitions: dict[str, Any] = made.pop("$defs", {})
    classes = {found.__name__: found for found in _classes(cls)}
    for key, definition in definitions.items():
        if key in classes:
            _describe(definition, classes[key])
    _describe(made, cls)
    properties = {"schema": {"const": name, "description": "name and number of this form"}}
    properties |= made["properties"]
    result = {
        "$schema": DIALECT,
        "title": name,
        "description": made.get("description", ""),
        "type": "object",
        "properties": properties,
        "required": list(properties),
    }
    return result | ({"$defs": dict(sorted(definitions.items()))} if definitions else {})


def _generator() -> Any:
    from pydantic.json_schema import GenerateJsonSchema

    class Generator(GenerateJsonSchema):
        """Floats may be words."""

        def float_schema(self, schema: Any) -> dict[str, Any]:
            return dict(_NUMBER)

    return Generator


def _describe(definition: dict[str, Any], cls: type) -> None:
    """Require all fields, and say what they hold; pydantic's own titles and defaults say nothing."""
    what, fields = documentation(cls)
    definition.pop("title", None)
    definition["description"] = what
    properties: Mapping[str, dict[str, Any]] = definition.get("properties", {})
    for key, value in properties.items():
        value.pop("title", None)
        value.pop("default", None)
        if key in fields:
            value["description"] = fields[key]
    definition["required"] = list(properties)


def documentation(cls: type) -> tuple[str, dict[str, str]]:
    """What a class is, and what each of its attributes holds, as the docstring says."""
    doc = inspect.cleandoc(cls.__doc__ or "")
    parts = _SECTION.split(doc)
    fields: dict[str, str] = {}
    for title, text in zip(parts[1::2], parts[2::2], strict=True):
        if title == "Attributes":
            for entry in _ENTRY.finditer(textwrap.dedent(text)):
                words = " ".join(entry["text"].split())
                fields |= dict.fromkeys(entry["names"].split(", "), words)
    return " ".join(parts[0].split()), fields


def _classes(cls: type) -> Iterator[type]:
    """The dataclass and all that its fields hold."""
    seen: set[type] = set()
    stack: list[Any] = [cls]
    while stack:
        found = stack.pop()
        stack.extend(get_args(found))
        if isinstance(found, type) and is_dataclass(found) and found not in seen:
            seen.add(found)
            yield found
            stack.extend(get_type_hints(found).values())
