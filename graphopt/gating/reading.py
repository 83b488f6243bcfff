"""Reading a policy: everything that is wrong with one is said before any work, with file, line and key."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from graphopt.errors import UserError
from graphopt.gating.policy import Policy, Table
from graphopt.pipeline.options import suggestion
from graphopt.pipeline.toml_lines import key_lines

Key = tuple[str | int, ...]

# pydantic's kinds of errors -> what the value has to be.
_KINDS = {
    "float_type": "a number",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "string_type": "text",
    "bool_type": "true or false",
    "list_type": "a list",
    "dict_type": "a table",
    "model_type": "a table",
    "finite_number": "a finite number",
}
_BOUNDS = {
    "greater_than": ("gt", "more than"),
    "greater_than_equal": ("ge", "at least"),
    "less_than": ("lt", "less than"),
    "less_than_equal": ("le", "at most"),
}
_SHOWN = 4


@dataclass(frozen=True)
class PolicyFile:
    """A policy, and where its keys stand.

    Attributes:
        policy: what it asks for.
        path: the file.
        lines: line of each key, counted from 1.
    """

    policy: Policy
    path: Path
    lines: Mapping[Key, int]

    @property
    def name(self) -> str:
        """What the policy calls itself."""
        return self.policy.name or self.path.stem

    def line(self, *key: str | int) -> int | None:
        """The line of a key, or of the nearest table around it."""
        return _line(self.lines, key)

    def where(self, *key: str | int) -> str:
        """File and line of a key."""
        line = self.line(*key)
        return f"{self.path}:{line}" if line else str(self.path)

    def beside(self, name: str) -> str:
        """A file, or a function in one, that the policy names relative to its folder; modules stay."""
        place, _, attribute = name.rpartition(":")
        if len(place) > 1 and attribute.isidentifier():  # a drive letter is no module
            if not place.endswith(".py"):
                return name
            return f"{self.path.parent / Path(place).expanduser()}:{attribute}"
        if name.startswith("synthetic"):
            return name
        return str(self.path.parent / Path(name).expanduser())


def load_policy(path: str | Path) -> PolicyFile:
    """Read a policy file.

    Raises:
        UserError: it cannot be read, is no TOML, or asks for what there is not; `where` has the line.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as exc:
        raise UserError(
            "there is no such policy", where=str(path), fix="a first one: graphopt gate --init > gate.toml"
        ) from exc
    except OSError as exc:
        raise UserError(f"the policy cannot be read: {exc.strerror}", where=str(path)) from exc
    except UnicodeDecodeError as exc:
        raise UserError("the policy is not UTF-8 text", where=str(path)) from exc
    return parse_policy(text, path)


def parse_policy(text: str, path: Path) -> PolicyFile:
    """Read a policy from its text; `path` is for messages, and for the files that it names.

    Raises:
        UserError: as for `load_policy`.
    """
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as exc:
        place = re.search(r"\(at line (\d+), column \d+\)", str(exc))
        line = place[1] if place else str(text.count("\n") + 1)
        said = str(exc).partition(" (at ")[0]
        raise UserError(f"this is not TOML: {said}", where=f"{path}:{line}") from exc
    lines = key_lines(text)
    try:
        policy = Policy.model_validate(data)
    except ValidationError as exc:
        raise _as_user_error(exc, lines, path) from None
    read = PolicyFile(policy, path, lines)
    _check_asks(read)
    return read


def _check_asks(read: PolicyFile) -> None:
    """Refuse tables that ask for nothing: whoever wrote them thinks that they do."""
    for key, table in _tables(read.policy, ()):
        if not any(table.limits()):
            known = [k for k in type(table).model_fields if k not in table.settings]
            what = f"[{_dotted(key)}]" if key else "the policy"
            raise UserError(
                f"{what} asks for nothing", where=read.where(*key), fix=f"it can have: {', '.join(known)}"
            )
    for key, versions in _ranges(read.policy):
        if versions.min is not None and versions.max is not None and versions.min > versions.max:
            raise UserError(
                f"no version is at least {versions.min} and at most {versions.max}",
                where=read.where(*key, "max"),
            )


def _tables(table: Table, key: Key) -> list[tuple[Key, Table]]:
    """All tables that are in the file and hold limits, with where they stand."""
    found: list[tuple[Key, Table]] = [(key, table)]
    for name in table.model_fields_set:
        value = getattr(table, name)
        if name == "measure" or isinstance(value, list):
            continue
        if isinstance(value, Table):
            found += _tables(value, (*key, name))
        elif isinstance(value, dict):
            for inner, item in value.items():
                if isinstance(item, Table):
                    found += _tables(item, (*key, name, inner))
    return sorted(found, key=lambda item: -len(item[0]))  # the innermost says it best


def _ranges(policy: Policy) -> list[tuple[Key, Any]]:
    found: list[tuple[Key, Any]] = []
    if policy.opset is not None:
        found += [(("opset",), policy.opset)]
        found += [(("opset", "domains", name), limits) for name, limits in policy.opset.domains.items()]
    if policy.ir_version is not None:
        found.append((("ir_version",), policy.ir_version))
    return found


# ---------------------------------------------------------------------------------------- messages


def _as_user_error(exc: ValidationError, lines: Mapping[Key, int], path: Path) -> UserError:
    """All that is wrong, in the order of the file: the first as the message, the others below it."""
    found = []
    for error in exc.errors(include_url=False, include_context=True):
        key = _in_file(error["loc"], lines)
        found.append((_line(lines, key) or 0, *_explain(dict(error), key)))
    found = sorted(dict.fromkeys(found))
    line, what, fix = found[0]
    more = [f"line {n}: {text}{f' ({hint})' if hint else ''}" for n, text, hint in found[1 : 1 + _SHOWN]]
    if len(found) > 1 + _SHOWN:
        more.append(f"and {len(found) - 1 - _SHOWN} more")
    where = f"{path}:{line}" if line else str(path)
    return UserError(what, where=where, fix="\n  ".join([*([fix] if fix else []), *more]) or None)


def _in_file(loc: Sequence[str | int], lines: Mapping[Key, int]) -> Key:
    """The place that pydantic names, without what it adds for members of unions."""
    key: Key = ()
    for part in loc:
        if (*key, part) in lines or part not in ("int", "str", "[key]"):
            key = (*key, part)
    return key


def _explain(error: Mapping[str, Any], key: Key) -> tuple[str, str]:
    """What is wrong, and what to do."""
    kind, value, context = error["type"], error["input"], error.get("ctx", {})
    owner = f"[{_dotted(key[:-1])}]" if key[:-1] else "a policy"
    if kind == "extra_forbidden":
        known = _keys_of(key[:-1])
        return f"{owner} has no key {str(key[-1])!r}", suggestion(str(key[-1]), known, "its keys")
    if kind == "missing":
        return f"{owner} lacks `{key[-1]}`", ""
    name = f"`{_dotted(key)}`"
    if kind in _BOUNDS:
        mark, words = _BOUNDS[kind]
        return f"{name} cannot be {value}", f"it is {words} {context[mark]:g}"
    if kind == "literal_error":
        return f"{name} cannot be {value!r}", f"one of: {', '.join(_choices(key))}"
    if kind == "too_short":
        return f"{name} is empty", ""
    if kind == "string_pattern_mismatch":
        return f"{name} is no SHA-256", "64 hexadecimal digits, as sha256sum prints them"
    if kind in _KINDS:
        return f"{name} is {_KINDS[kind]}, not {_as_toml(value)}", ""
    return f"{name}: {error['msg']}", ""


def _as_toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return f"the text {value!r}"
    return "a table" if isinstance(value, dict) else "a list" if isinstance(value, list) else str(value)


def _keys_of(key: Key) -> list[str]:
    """The keys of the table that stands at `key`."""
    model = _model_at(key)
    return list(model.model_fields) if model is not None else []


def _model_at(key: Key) -> type[BaseModel] | None:
    model: type[BaseModel] | None = Policy
    part_of: Any = None  # the value type of a dict or list that was stepped into
    for part in key:
        if part_of is None:
            field = model.model_fields.get(str(part)) if model is not None else None
            if field is None:
                return None
            model, part_of = _models_in(field.annotation)
        else:
            model, part_of = part_of, None
    return model if part_of is None else None


def _models_in(annotation: Any) -> tuple[type[BaseModel] | None, type[BaseModel] | None]:
    """The table that a field holds, or the one that the elements of its list or dict are."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation, None
    container = getattr(annotation, "__origin__", None) in (list, dict)
    for inner in get_args(annotation):
        own, element = _models_in(inner)
        if own is not None or element is not None:
            return (None, own) if container else (own, element)
    return None, None


def _choices(key: Key) -> list[str]:
    model = _model_at(key[:-1])
    field = model.model_fields.get(str(key[-1])) if model is not None else None
    found: list[str] = []
    stack = [field.annotation if field is not None else None]
    while stack:
        annotation = stack.pop()
        inner = get_args(annotation)
        if inner and all(isinstance(v, str) for v in inner):
            found += [f'"{v}"' for v in inner]
        else:
            stack += inner
    return found


def _line(lines: Mapping[Key, int], key: Sequence[str | int]) -> int | None:
    path = tuple(key)
    while path and path not in lines:
        path = path[:-1]
    return lines.get(path)


def _dotted(key: Sequence[str | int]) -> str:
    return ".".join(f'"{k}"' if "." in str(k) else str(k) for k in key)
