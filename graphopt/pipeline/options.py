"""Options as typed values: between what a pipeline string says and the fields of a pass's dataclass."""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

from graphopt.errors import UserError
from graphopt.pipeline.spec import Quoted, RawValue, format_value

T = TypeVar("T")

# More names than this are not worth reading when one of them comes close.
_MANY = 12


@dataclass(frozen=True)
class Option:
    """One option of a pass: its name, its type in words, and its default as a pipeline string writes it.

    `default` is None for an option that must be given. `help` comes from the field's metadata.
    """

    name: str
    type: str
    default: str | None
    help: str


def describe_options(cls: type) -> tuple[Option, ...]:
    """The options of a dataclass, in the order in which they are declared."""
    hints = typing.get_type_hints(cls)
    return tuple(
        Option(
            f.name,
            _in_words(hints[f.name]),
            None if _default(f) is dataclasses.MISSING else format_value(to_raw(_default(f))),
            str(f.metadata.get("help", "")),
        )
        for f in _option_fields(cls)
    )


def build(cls: type[T], raw: Mapping[str, RawValue], *, owner: str) -> T:
    """An instance of dataclass `cls` from untyped options.

    Args:
        cls: a dataclass; its init fields are the options.
        raw: option name -> value as written.
        owner: what the options belong to, for messages: "pass 'insert-qdq'".

    Raises:
        UserError: an option is unknown, missing, or has a value that its type does not admit.
    """
    fields = {f.name: f for f in _option_fields(cls)}
    for key in raw:
        if key not in fields:
            raise UserError(
                f"{owner} has no option {key!r}", fix=suggestion(key, list(fields), "its options")
            )
    hints = typing.get_type_hints(cls)
    values = {}
    for key, value in raw.items():
        try:
            values[key] = coerce(value, hints[key])
        except ValueError:
            raise UserError(
                f"option {key!r} of {owner} wants {_in_words(hints[key])}, not {format_value(value)}"
            ) from None
    missing = [
        name for name, f in fields.items() if name not in values and _default(f) is dataclasses.MISSING
    ]
    if missing:
        raise UserError(f"{owner} needs the option {missing[0]!r}", fix=f"write it as {{{missing[0]}=...}}")
    try:
        return cls(**values)
    except ValueError as exc:  # a __post_init__ that checks ranges
        raise UserError(f"{owner}: {exc}") from exc


def options_of(instance: object) -> dict[str, RawValue]:
    """The options of a pass that differ from their defaults, in a form that `build` reads back."""
    cls = type(instance)
    if not dataclasses.is_dataclass(cls):
        return {}
    given = {}
    for f in _option_fields(cls):
        value = getattr(instance, f.name)
        if _default(f) is dataclasses.MISSING or value != _default(f):
            given[f.name] = to_raw(value)
    return given


def to_raw(value: object) -> RawValue:
    """A typed value as an untyped one: enums by name, None as the word `none`."""
    if value is None:
        return "none"
    if isinstance(value, Enum):
        return value.name.lower()
    if isinstance(value, bool | int | float):
        return value
    if isinstance(value, str):
        return Quoted(value) if _looks_typed(value) else value
    if isinstance(value, Mapping):
        return {str(key): to_raw(item) for key, item in value.items()}
    if isinstance(value, Sequence | frozenset | set):
        items = sorted(value) if isinstance(value, frozenset | set) else value
        return tuple(to_raw(item) for item in items)
    return str(value)


def _looks_typed(word: str) -> bool:
    """An unquoted `word` would be read as something other than text where its field admits that."""
    if word.lower() in ("none", "true", "false"):
        return True
    try:
        float(word)
    except ValueError:
        return word[:2].lower() in ("0x", "0o", "0b")
    return True


def coerce(value: RawValue, annotation: Any) -> Any:
    """`value` as what `annotation` asks for.

    Knows bool, int, float, str, Path, enums (by name), Literal, X | Y, X | None, tuple, list, frozenset and
    Mapping of these. One value where a list is wanted is a list of one.

    Raises:
        ValueError: it is not one.
    """
    origin, args = get_origin(annotation), get_args(annotation)
    if annotation is Any:
        return value
    if origin in (Union, types.UnionType):
        return _coerce_union(value, args)
    if origin is Literal:
        for choice in args:
            if format_value(to_raw(choice)) == format_value(value) or choice == value:
                return choice
        raise ValueError
    if origin in _COLLECTIONS:
        return _coerce_collection(value, origin, args)
    if origin is not None and issubclass(origin, Mapping):
        if not isinstance(value, Mapping):
            raise ValueError
        return {coerce(key, args[0]): coerce(item, args[1]) for key, item in value.items()}
    if isinstance(annotation, type):
        if issubclass(annotation, Enum):
            return _coerce_enum(value, annotation)
        if annotation in _SCALARS:
            return _SCALARS[annotation](value)
    raise TypeError(f"options of type {annotation} are not supported")


def _coerce_union(value: RawValue, members: tuple[Any, ...]) -> Any:
    if types.NoneType in members and value == "none" and not isinstance(value, Quoted):
        return None
    # str takes any word: what is narrower goes first.
    for member in sorted((m for m in members if m is not types.NoneType), key=lambda m: m is str):
        try:
            return coerce(value, member)
        except ValueError:
            continue
    raise ValueError


_COLLECTIONS: dict[Any, Callable[[Any], Any]] = {
    tuple: tuple,
    list: list,
    frozenset: frozenset,
    Sequence: tuple,
}


def _coerce_collection(value: RawValue, origin: Any, args: tuple[Any, ...]) -> Any:
    items = value if isinstance(value, tuple) else (value,)
    if origin is tuple and args and args[-1] is not Ellipsis:
        if len(items) != len(args):
            raise ValueError
        return tuple(coerce(item, arg) for item, arg in zip(items, args, strict=True))
    return _COLLECTIONS[origin](coerce(item, args[0]) for item in items)


def _coerce_enum(value: RawValue, enum: type[Enum]) -> Enum:
    word = str(value).lower().replace("-", "_")
    for member in enum:
        if member.name.lower() == word or str(member.value).lower() == str(value).lower():
            return member
    raise ValueError


def _to_bool(value: RawValue) -> bool:
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.lower() in ("true", "false"):
        return value.lower() == "true"
    raise ValueError


def _to_int(value: RawValue) -> int:
    if isinstance(value, bool | Quoted) or not isinstance(value, int | str):
        raise ValueError
    return int(value, 0) if isinstance(value, str) else value


def _to_float(value: RawValue) -> float:
    if isinstance(value, bool | Quoted) or not isinstance(value, int | float | str):
        raise ValueError
    return float(value)


def _to_str(value: RawValue) -> str:
    if not isinstance(value, str):
        raise ValueError
    return str(value)


_SCALARS: dict[type, Callable[[RawValue], Any]] = {
    bool: _to_bool,
    int: _to_int,
    float: _to_float,
    str: _to_str,
    Path: lambda value: Path(_to_str(value)),
}

_WORDS: dict[Any, str] = {
    bool: "true or false",
    int: "an integer",
    float: "a number",
    str: "text",
    Path: "a path",
    types.NoneType: "none",
    Any: "any value",
}


def _in_words(annotation: Any) -> str:
    """A type, as people say it."""
    origin, args = get_origin(annotation), get_args(annotation)
    if annotation in _WORDS:
        return _WORDS[annotation]
    if origin in (Union, types.UnionType):
        return " or ".join(_in_words(a) for a in args)
    if origin is Literal:
        return "one of " + ", ".join(format_value(to_raw(a)) for a in args)
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        return "one of " + ", ".join(member.name.lower() for member in annotation)
    if origin is tuple and args and args[-1] is not Ellipsis:
        return "[" + ", ".join(_in_words(a) for a in args) + "]"
    if origin in _COLLECTIONS:
        return f"a list, each {_in_words(args[0])}"
    if origin is not None and issubclass(origin, Mapping):
        return f"a table, each {_in_words(args[1])}"
    return str(annotation)


def suggestion(word: str, known: Sequence[str], what: str) -> str:
    """What to try instead of an unknown word: the names that come close, and all of them where they are few.

    Args:
        word: what was written.
        known: what could have been meant.
        what: what `known` are, in the plural, for the list after it.
    """
    close = difflib.get_close_matches(word, known, n=3, cutoff=0.6)
    text = f"did you mean {' or '.join(map(repr, close))}?" if close else ""
    if len(known) > _MANY:
        return text or f"{what}: {', '.join(known[:_MANY])}, ..."
    return f"{text} {what}: {', '.join(known) or 'none'}".strip()


def _option_fields(cls: type) -> list[dataclasses.Field[Any]]:
    return [f for f in dataclasses.fields(cls) if f.init] if dataclasses.is_dataclass(cls) else []


def _default(f: dataclasses.Field[Any]) -> Any:
    if f.default_factory is not dataclasses.MISSING:
        return f.default_factory()
    return f.default
