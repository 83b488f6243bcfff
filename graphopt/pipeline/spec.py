"""How pipelines are written down: pipeline strings, pipeline files, and options as typed values.

    pipeline = step {("," | space) step}
    step     = name ["{" options "}"]  |  "fixpoint(" pipeline ")" ["{limit=" int "}"]
    options  = option {("," | space) option}
    option   = key "=" value
    value    = word ["=" word] | "quoted" | "[" value {("," | space) value} "]" | "{" options "}"

A name is that of a registered pass or preset, `./file.py:Class`, or `package.module:Class`. Words are
typed by the dataclass field that they end up in, so `prune-weights{sparsity=0.5}` and
`PruneWeights(sparsity=0.5)` are the same thing.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from graphopt.errors import UserError

FIXPOINT = "fixpoint"
_TOKEN = re.compile(
    r'(?P<space>[\s,]+)|(?P<string>"(?:[^"\\]|\\.)*")|(?P<word>[^\s,(){}\[\]="]+)|(?P<mark>.)'
)
_PLAIN_WORD = re.compile(r'[^\s,(){}\[\]="]+')


class Quoted(str):
    """A value that was written in quotes: text, whatever it looks like."""

    __slots__ = ()


#: An option's value before its type is known: words, lists, and tables.
RawValue: TypeAlias = "str | bool | int | float | tuple[RawValue, ...] | Mapping[str, RawValue]"


@dataclass(frozen=True)
class PassSpec:
    """One pass or preset, as written: its name and its options, not yet typed."""

    name: str
    options: Mapping[str, RawValue] = field(default_factory=dict)


@dataclass(frozen=True)
class FixpointSpec:
    """Steps that are repeated until none of them changes anything, at most `limit` times."""

    steps: tuple[Spec, ...]
    limit: int | None = None


Spec: TypeAlias = "PassSpec | FixpointSpec"


# ---------------------------------------------------------------------------------------- reading


def parse_pipeline(text: str) -> tuple[Spec, ...]:
    """Read a pipeline string.

    Raises:
        UserError: the string is malformed; the message points at the place.
    """
    parser = _Parser(text)
    steps = tuple(parser.steps())
    if parser.kind != "end":
        raise parser.error(f"{parser.text!r} closes nothing")
    return steps


class _Parser:
    """Recursive descent over the grammar in the module's docstring, one token ahead."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.end = 0
        self.kind, self.text, self.start = "", "", 0
        self.after_space = True
        self.advance()

    def advance(self) -> None:
        """Step to the next token; separators are skipped but remembered."""
        self.after_space = False
        while match := _TOKEN.match(self.source, self.end):
            self.start, self.end = match.start(), match.end()
            self.kind, self.text = match.lastgroup or "", match.group()
            if self.kind != "space":
                return
            self.after_space = True
        self.kind, self.text, self.start = "end", "the end", len(self.source)

    def error(self, what: str) -> UserError:
        """A UserError that shows the pipeline with a caret under the current token."""
        line = self.source.replace("\n", " ").replace("\t", " ")
        caret = " " * self.start + "^"
        return UserError(f"the pipeline cannot be read: {what}", fix=f"{line}\n  {caret}")

    def is_mark(self, mark: str) -> bool:
        return self.kind == "mark" and self.text == mark

    def expect(self, mark: str) -> None:
        if not self.is_mark(mark):
            raise self.error(f"expected {mark!r}, found {self.text!r}")
        self.advance()

    def string(self) -> str:
        if self.kind == "word":
            value = self.text
        elif self.kind == "string":
            try:
                value = Quoted(json.loads(self.text))
            except ValueError as exc:
                raise self.error("not a valid quoted string") from exc
        else:
            raise self.error(f"expected a name or a value, found {self.text!r}")
        self.advance()
        return value

    def steps(self) -> Iterator[Spec]:
        while self.kind in ("word", "string"):
            name = self.string()
            if name == FIXPOINT and self.is_mark("("):
                self.advance()
                steps = tuple(self.steps())
                self.expect(")")
                yield _fixpoint(steps, self.options() if self.opens_options() else {})
            else:
                yield PassSpec(str(name), self.options() if self.opens_options() else {})

    def opens_options(self) -> bool:
        return self.is_mark("{") and not self.after_space

    def options(self) -> dict[str, RawValue]:
        self.expect("{")
        values: dict[str, RawValue] = {}
        while not self.is_mark("}"):
            if self.kind == "end":
                raise self.error("'{' is never closed")
            key = self.string()
            if key in values:
                raise self.error(f"option {key!r} is given twice")
            self.expect("=")
            values[key] = self.value()
        self.advance()
        return values

    def value(self) -> RawValue:
        if self.is_mark("{"):
            return self.options()
        if not self.is_mark("["):
            word = self.string()
            if self.is_mark("=") and not self.after_space:  # as in dims=[batch=1]
                self.advance()
                return Quoted(f"{word}={self.string()}")
            return word
        self.advance()
        items: list[RawValue] = []
        while not self.is_mark("]"):
            if self.kind == "end":
                raise self.error("'[' is never closed")
            items.append(self.value())
        self.advance()
        return tuple(items)


def _fixpoint(steps: tuple[Spec, ...], options: Mapping[str, RawValue]) -> FixpointSpec:
    """A fixpoint group with its one option, `limit`."""
    unknown = set(options) - {"limit"}
    if unknown:
        raise UserError(
            f"a fixpoint group has no option {min(unknown)!r}", fix="its only option is limit=<rounds>"
        )
    if "limit" not in options:
        return FixpointSpec(steps)
    try:
        limit = int(str(options["limit"]))
    except ValueError:
        limit = 0
    if limit < 1:
        raise UserError(f"the limit of a fixpoint group is a positive integer, not {options['limit']!r}")
    return FixpointSpec(steps, limit)


# ---------------------------------------------------------------------------------------- writing


def format_pipeline(steps: Iterable[Spec]) -> str:
    """The pipeline string of `steps`; `parse_pipeline` reads it back as it was."""
    return ",".join(_format_step(step) for step in steps)


def _format_step(step: Spec) -> str:
    if isinstance(step, PassSpec):
        return format_value(step.name) + (format_value(step.options) if step.options else "")
    limit = "" if step.limit is None else f"{{limit={step.limit}}}"
    return f"{FIXPOINT}({format_pipeline(step.steps)}){limit}"


def format_value(value: RawValue) -> str:
    """One option's value as a pipeline string writes it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, str):
        if isinstance(value, Quoted) or not _PLAIN_WORD.fullmatch(value):
            return json.dumps(value, ensure_ascii=False)
        return value
    if isinstance(value, Mapping):
        return (
            "{" + " ".join(f"{format_value(key)}={format_value(item)}" for key, item in value.items()) + "}"
        )
    return "[" + ",".join(format_value(item) for item in value) + "]"


# ---------------------------------------------------------------------------------------- files


@dataclass(frozen=True)
class PipelineFile:
    """What a pipeline file says: the steps (None: it names none), and other options of a run."""

    steps: tuple[Spec, ...] | None
    settings: Mapping[str, Any]


def read_pipeline_file(path: str | Path, *, settings: Iterable[str] = ()) -> PipelineFile:
    """Read a TOML pipeline file.

        target = "ort-cpu"                   # any option of a run, by its name
        [[pass]]
        name = "fold-constants"
        options = { max_bytes = 65536 }
        [[pass]]
        fixpoint = ["dead-nodes", { name = "cse" }]

    Instead of `[[pass]]` tables, `pipeline = "fold-constants,cse"` is as good.

    Args:
        path: the file.
        settings: names that may stand beside the passes.

    Raises:
        UserError: the file is missing, is not TOML, or says something that is not known here.
    """
    where = str(path)
    try:
        data = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as exc:
        raise UserError(f"the pipeline file cannot be read: {exc.strerror}", where=where) from exc
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as exc:
        raise UserError(f"not a TOML file: {exc}", where=where) from exc
    tables, text = data.pop("pass", None), data.pop("pipeline", None)
    if tables is not None and text is not None:
        raise UserError("it has both [[pass]] tables and a pipeline string", where=where, fix="keep one")
    known = sorted(settings)
    for key in data:
        if key not in known:
            raise UserError(
                f"unknown key {key!r}",
                where=where,
                fix="a pipeline file has [[pass]] tables or a pipeline string"
                + (f", and: {', '.join(known)}" if known else ""),
            )
    try:
        if text is not None:
            if not isinstance(text, str):
                raise UserError("`pipeline` is a string")
            return PipelineFile(parse_pipeline(text), data)
        if tables is None:
            return PipelineFile(None, data)
        return PipelineFile(tuple(_from_toml(tables, "[[pass]]")), data)
    except UserError as exc:
        raise UserError(exc.what, where=where, fix=exc.fix) from exc


def _from_toml(tables: object, what: str) -> Iterator[Spec]:
    """The steps of a TOML array; strings in it are pipeline strings."""
    if not isinstance(tables, list):
        raise UserError(f"{what} is a list of tables")
    for table in tables:
        if isinstance(table, str):
            yield from parse_pipeline(table)
            continue
        if not isinstance(table, dict) or len({"name", FIXPOINT} & table.keys()) != 1:
            raise UserError(f"a table of {what} has either a name or a fixpoint list")
        unknown = table.keys() - {"name", "options", FIXPOINT, "limit"}
        if unknown:
            raise UserError(
                f"unknown key {min(unknown)!r} in a table of {what}",
                fix="a pass's options stand in `options = { ... }` or in [pass.options]",
            )
        if FIXPOINT in table:
            options = {"limit": table["limit"]} if "limit" in table else {}
            yield _fixpoint(tuple(_from_toml(table[FIXPOINT], "a fixpoint list")), options)
        else:
            options = {key: _raw(value) for key, value in dict(table.get("options", {})).items()}
            yield PassSpec(str(table["name"]), options)


def _raw(value: object) -> RawValue:
    """A TOML value as an option's value: text stays text, whatever it looks like."""
    if isinstance(value, list):
        return tuple(_raw(item) for item in value)
    if isinstance(value, dict):
        return {str(key): _raw(item) for key, item in value.items()}
    if isinstance(value, str):
        return Quoted(value)
    if isinstance(value, bool | int | float):
        return value
    raise UserError(f"an option cannot be a {type(value).__name__}")
