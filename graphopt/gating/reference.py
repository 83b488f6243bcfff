"""The keys of a policy for people and for editors, from the models that check them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from pydantic.fields import FieldInfo

from graphopt.gating.policy import Policy, Table

_PLAIN = {float: "number", int: "whole number", str: "text", bool: "true or false"}
_BOUNDS = ((Gt, "gt", ">"), (Ge, "ge", ">="), (Lt, "lt", "<"), (Le, "le", "<="))


def policy_tables() -> str:
    """All tables of a policy in Markdown, in the policy's order."""
    places: dict[type[Table], list[str]] = {}
    for heading, table in _tables(Policy, ""):
        places.setdefault(table, []).append(f"`[{heading}]`")
    blocks = [_block("At the top", "", Policy)]
    blocks += [_block(", ".join(headings), _about(table), table) for table, headings in places.items()]
    return "\n".join(blocks)


def policy_schema() -> dict[str, Any]:
    """A JSON Schema of policies, with which editors of TOML complete keys and mark mistakes."""
    found = _plain(Policy.model_json_schema())
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "A policy of graphopt gate",
        **found,
    }


def _plain(schema: Any) -> Any:
    """The schema without null, which TOML does not have, and without titles that repeat the keys."""
    if isinstance(schema, list):
        return [_plain(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    if "anyOf" in schema:
        kinds = [kind for kind in schema["anyOf"] if kind != {"type": "null"}]
        rest = {key: value for key, value in schema.items() if key != "anyOf"}
        schema = {**kinds[0], **rest} if len(kinds) == 1 else {**rest, "anyOf": kinds}
    return {
        key: {name: _plain(value) for name, value in item.items()}
        if key in ("properties", "$defs")
        else _plain(item)
        for key, item in schema.items()
        if not (key == "title" or (key == "default" and item is None))
    }


def _tables(table: type[Table], prefix: str) -> Iterator[tuple[str, type[Table]]]:
    """(heading, table) of everything below a table."""
    for name, field in table.model_fields.items():
        for inner in _tables_in(field.annotation):
            by_name = ".NAME" if _is_by_name(field.annotation) else ""
            heading = f"{prefix}{name}{by_name}"
            if _is_list(field.annotation):
                heading = f"[{heading}]"
            yield heading, inner
            yield from _tables(inner, f"{heading}.")


def _about(table: type[Table]) -> str:
    """The first paragraph of a table's docstring, without its name."""
    doc = " ".join((table.__doc__ or "").partition("\n\n")[0].split())
    _, colon, rest = doc.partition("`: ")
    text = rest if colon else doc
    return text[:1].upper() + text[1:]


def _block(heading: str, about: str, table: type[Table]) -> str:
    rows = [
        f"| `{name}` | {_type(field)} | {_description(field)} |"
        for name, field in table.model_fields.items()
        if not _tables_in(field.annotation)
    ]
    lines = [f"### {heading}", "", *([about, ""] if about else [])]
    return "\n".join([*lines, "| key | value | |", "|---|---|---|", *rows, ""])


def _description(field: FieldInfo) -> str:
    text = (field.description or "").replace("|", "\\|")
    default = field.default
    if default in (None, "") or field.is_required() or isinstance(default, bool):
        return text
    if not isinstance(default, str | int | float):  # lists and tables are empty by default
        return text
    shown = f'`"{default}"`' if isinstance(default, str) else f"`{default}`"
    return f"{text} (default: {shown})"


def _type(field: FieldInfo) -> str:
    words = _words(field.annotation)
    bounds = [
        f"{sign} {getattr(mark, name):g}"
        for mark in _marks(field)
        for cls, name, sign in _BOUNDS
        if isinstance(mark, cls)
    ]
    return f"{words}, {' and '.join(bounds)}" if bounds and words in ("number", "whole number") else words


def _marks(field: FieldInfo) -> Iterator[Any]:
    """Constraints of a field, those of the type inside of an optional one included."""
    yield from field.metadata
    for inner in get_args(field.annotation):
        for mark in getattr(inner, "__metadata__", ()):
            yield from getattr(mark, "metadata", [mark])


def _words(annotation: Any) -> str:
    if annotation in _PLAIN:
        return _PLAIN[annotation]
    parts = [part for part in get_args(annotation) if part is not type(None)]
    origin = get_origin(annotation)
    if origin is list:
        return f"list of {_words(parts[0])}s" if parts[0] in (str, float) else f"list: {_words(parts[0])}"
    if origin is dict:
        return f"table: name = {_words(parts[1])}"
    if hasattr(annotation, "__metadata__"):
        return _words(parts[0])
    if parts and all(isinstance(part, str) for part in parts):
        return " or ".join(f'`"{part}"`' for part in parts)
    return " or ".join(dict.fromkeys(map(_words, parts)))


def _tables_in(annotation: Any) -> list[type[Table]]:
    if isinstance(annotation, type) and issubclass(annotation, Table):
        return [annotation]
    return [table for inner in get_args(annotation) for table in _tables_in(inner)]


def _is_by_name(annotation: Any) -> bool:
    return get_origin(annotation) is dict


def _is_list(annotation: Any) -> bool:
    return any(get_origin(part) is list for part in (annotation, *get_args(annotation)))
