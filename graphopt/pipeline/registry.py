"""Which passes and presets there are, found by their entry points and imported only when used.

A package plugs in by declaring, in its own metadata:

    [project.entry-points."graphopt.passes"]
    my-pass = "my_package.my_module:MyPass"
    [project.entry-points."graphopt.presets"]
    my-preset = "my_package.presets:MY_PRESET"     # a pipeline string, or a function that returns one
"""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Literal, TypeAlias

from graphopt.budget import Gate
from graphopt.errors import PassError, UserError
from graphopt.pipeline.options import build, options_of, suggestion
from graphopt.pipeline.spec import FIXPOINT, FixpointSpec, PassSpec, Spec, format_pipeline, parse_pipeline

if TYPE_CHECKING:
    from graphopt.pipeline.base import Pass

PASS_GROUP = "graphopt.passes"
PRESET_GROUP = "graphopt.presets"

#: The name that stands for the target's default pipeline.
DEFAULT = "default"
#: The name that stands for no pass at all.
NONE = "none"


@dataclass(frozen=True)
class Fixpoint:
    """Passes that are repeated until none of them changes anything, at most `limit` rounds (None: the
    manager's own limit).
    """

    steps: tuple[Step, ...]
    limit: int | None = None


@dataclass(frozen=True)
class Stage:
    """A part of a recipe: steps that run once, and what is asked of the model after them.

    Attributes:
        name: what people call it.
        steps: what runs.
        passes: the same as it was written.
        gate: what the model has to keep; None: it is only measured.
        on_fail: what happens otherwise: the run ends ("stop"), goes on as if the stage were not there
            ("skip"), or goes on ("warn").
        where, gate_where: the places in the recipe that say so.
    """

    name: str
    steps: tuple[Step, ...]
    passes: str = ""
    gate: Gate | None = None
    on_fail: OnFail = "stop"
    where: str | None = None
    gate_where: str | None = None


OnFail: TypeAlias = Literal["stop", "skip", "warn"]
Step: TypeAlias = "Pass | Fixpoint | Stage"


@dataclass(frozen=True)
class Entry:
    """A name that some package offers.

    Attributes:
        name: the pass's or preset's name.
        value: where it is defined: "module:attribute".
        source: the distribution that offers it, with its version.
        load: imports it.
    """

    name: str
    value: str
    source: str
    load: Callable[[], object]


class Registry:
    """Passes and presets by name. Two packages that offer the same name make that name unusable.

    Args:
        passes: entries of passes.
        presets: entries of presets.
    """

    def __init__(self, passes: Iterable[Entry] = (), presets: Iterable[Entry] = ()) -> None:
        self._passes = _by_name(passes)
        self._presets = _by_name(presets)

    def pass_names(self) -> list[str]:
        """All pass names, sorted; nothing is imported."""
        return sorted(self._passes)

    def preset_names(self) -> list[str]:
        """All preset names, sorted; nothing is imported."""
        return sorted(self._presets)

    def source(self, name: str) -> str:
        """The distribution that offers pass or preset `name`."""
        return self._entry(name, self._passes if name in self._passes else self._presets).source

    def pass_class(self, name: str) -> type[Pass]:
        """The class of pass `name`: a registered name, `./file.py:Class`, or `package.module:Class`.

        Raises:
            UserError: there is no such pass, two packages offer it, or it cannot be imported.
            PassError: what is registered is not a pass of that name.
        """
        if ":" in name or name.endswith(".py"):
            return _load_reference(name)
        entry = self._entry(name, self._passes)
        cls = _require_pass(_load(entry), entry.name)
        if cls.name != name:
            raise PassError(
                name, f"{entry.source} registers it as {name!r}, but it calls itself {cls.name!r}"
            )
        return cls

    def preset(self, name: str) -> str:
        """The pipeline string of preset `name`."""
        entry = self._entry(name, self._presets)
        text = _load(entry)
        if callable(text):
            text = text()
        if not isinstance(text, str):
            raise PassError(
                name, f"preset of {entry.source} is not a pipeline string but {type(text).__name__}"
            )
        return text

    def presets_in(self, passes: str | Sequence[str | Step | Spec] | None) -> list[str]:
        """The presets that `passes`, as given to `resolve`, names."""
        items = [passes] if isinstance(passes, str) else list(passes or ())
        specs = [s for i in items for s in (parse_pipeline(i) if isinstance(i, str) else [i])]
        return [s.name for s in specs if isinstance(s, PassSpec) and s.name in self._presets]

    def resolve(
        self,
        passes: str | Sequence[str | Step | Spec] | None,
        *,
        default: str | None = None,
        target: str = "",
    ) -> tuple[Step, ...]:
        """The passes to run, with presets replaced by what they stand for.

        Args:
            passes: a pipeline string, or a list of such strings, passes, groups, and parsed specs. None and
                the name "default" stand for the default pipeline, "none" for nothing.
            default: the target's default pipeline; None: the preset "default".
            target: a preset `NAME-TARGET` takes the place of the preset `NAME`.

        Raises:
            UserError: a name or an option is not known.
            PassError: as for `pass_class`.
        """
        if passes is None:
            passes = DEFAULT
        steps: list[Step] = []
        for item in [passes] if isinstance(passes, str) else passes:
            if isinstance(item, str):
                steps += self._expand(parse_pipeline(item), default, target)
            elif isinstance(item, PassSpec | FixpointSpec):
                steps += self._expand((item,), default, target)
            else:
                steps.append(item)
        return tuple(steps)

    def _expand(
        self, specs: Iterable[Spec], default: str | None, target: str, inside: tuple[str, ...] = ()
    ) -> list[Step]:
        steps: list[Step] = []
        for spec in specs:
            if isinstance(spec, FixpointSpec):
                steps.append(Fixpoint(tuple(self._expand(spec.steps, default, target, inside)), spec.limit))
                continue
            name = spec.name
            is_preset = name in (DEFAULT, NONE) or (name in self._presets and name not in self._passes)
            if not is_preset:
                steps.append(build(self.pass_class(name), spec.options, owner=f"pass {name!r}"))
                continue
            if spec.options:
                raise UserError(f"preset {name!r} takes no options", fix="give them to the passes in it")
            if name in inside:
                raise UserError(f"preset {name!r} contains itself: {' -> '.join((*inside, name))}")
            if name == NONE:
                continue
            special = f"{name}-{target}" if f"{name}-{target}" in self._presets else name
            text = default if name == DEFAULT and default is not None else self.preset(special)
            steps += self._expand(parse_pipeline(text), default, target, (*inside, name))
        return steps

    def spell(self, item: Pass) -> str:
        """The name under which `resolve` finds the class of `item` again.

        That is its registered name, or else `file:Class` or `module:Class`.
        """
        cls = type(item)
        entries = self._passes.get(item.name, ())
        if any(entry.value == f"{cls.__module__}:{cls.__qualname__}" for entry in entries):
            return item.name
        file: str | None = getattr(sys.modules.get(cls.__module__), _USER_FILE, None)
        return f"{file or cls.__module__}:{cls.__qualname__}"

    def format(self, steps: Iterable[Step]) -> str:
        """The pipeline string of `steps`, without options that have their default."""
        return format_pipeline(self._to_specs(steps)) or NONE

    def _to_specs(self, steps: Iterable[Step]) -> Iterator[Spec]:
        for step in steps:
            if isinstance(step, Stage):
                yield from self._to_specs(step.steps)
            elif isinstance(step, Fixpoint):
                yield FixpointSpec(tuple(self._to_specs(step.steps)), step.limit)
            else:
                yield PassSpec(self.spell(step), options_of(step))

    def _entry(self, name: str, table: Mapping[str, tuple[Entry, ...]]) -> Entry:
        entries = table.get(name)
        if not entries:
            known = sorted(
                {*self._passes, *self._presets, DEFAULT, NONE} if table is self._passes else self._presets
            )
            kind = "pass" if table is self._passes else "preset"
            raise UserError(
                f"there is no {kind} {name!r}",
                fix=suggestion(name, known, "there are") + "\n  `graphopt passes` lists them all",
            )
        if len(entries) > 1:
            sources = " and ".join(f"{entry.source} ({entry.value})" for entry in entries)
            raise UserError(
                f"two packages offer a pass named {name!r}: {sources}", fix="uninstall one of them"
            )
        return entries[0]


@functools.cache
def installed() -> Registry:
    """The registry of everything that is installed; read once per process."""
    found = importlib.metadata.entry_points()
    titles: dict[object, str] = {}  # each look at a distribution parses its metadata anew

    def entries(group: str) -> Iterator[Entry]:
        for ep in found.select(group=group):
            if ep.dist not in titles:
                titles[ep.dist] = f"{ep.dist.name} {ep.dist.version}" if ep.dist else "an unnamed package"
            yield Entry(ep.name, ep.value, titles[ep.dist], ep.load)

    return Registry(entries(PASS_GROUP), entries(PRESET_GROUP))


def _by_name(entries: Iterable[Entry]) -> dict[str, tuple[Entry, ...]]:
    """Entries by name. The same object offered twice (a checkout beside its installation) counts once."""
    table: dict[str, dict[str, Entry]] = {}
    for entry in entries:
        if entry.name in (NONE, FIXPOINT):
            raise UserError(
                f"{entry.source} offers {entry.name!r}, which has a meaning of its own", fix="uninstall it"
            )
        table.setdefault(entry.name, {}).setdefault(entry.value, entry)
    return {name: tuple(found.values()) for name, found in table.items()}


def _load(entry: Entry) -> object:
    try:
        return entry.load()
    except (ImportError, AttributeError) as exc:
        raise UserError(
            f"{entry.name!r} of {entry.source} cannot be imported from {entry.value}: {exc}",
            fix=f"reinstall {entry.source.split()[0]}, or install what it misses",
        ) from exc


def _require_pass(value: object, name: str) -> type[Pass]:
    from graphopt.pipeline.base import Pass

    if not (isinstance(value, type) and issubclass(value, Pass)):
        raise PassError(name, f"{value!r} is not a subclass of graphopt.passkit.Pass")
    if inspect.isabstract(value):
        missing = ", ".join(sorted(getattr(value, "__abstractmethods__", ())))
        raise PassError(name, f"{value.__name__} does not implement {missing}")
    return value


# ---------------------------------------------------------------------------- passes named by file

_USER_FILE = "__graphopt_file__"


def _load_reference(reference: str) -> type[Pass]:
    """The class that `file.py[:Class]` or `module:Class` names. This runs code: the user named it."""
    from graphopt.pipeline.base import Pass

    place, _, attribute = reference.rpartition(":")
    if not place or attribute.endswith(".py"):  # no class, or only a drive letter before the colon
        place, attribute = reference, ""
    if not place.endswith(".py") and ("/" in place or "\\" in place):
        raise UserError("a pass file ends in .py", where=place)
    module = _module_of_file(place) if place.endswith(".py") else _module_of_name(place, reference)
    if attribute:
        value: object = module
        for part in attribute.split("."):
            value = getattr(value, part, None)
        if value is None:
            raise UserError(
                f"there is no {attribute!r} in it",
                where=place,
                fix=suggestion(attribute, _pass_names(module), "passes in it"),
            )
        if not (isinstance(value, type) and issubclass(value, Pass)):
            raise UserError(
                f"{attribute!r} in it is no pass: passes derive from passkit.NodePass or PatternPass",
                where=place,
                fix=suggestion(attribute, _pass_names(module), "passes in it"),
            )
        return _require_pass(value, reference)
    names = _pass_names(module)
    if len(names) != 1:
        found = ", ".join(names) or "none"
        raise UserError(
            f"one pass is wanted, it defines: {found}", where=place, fix=f"name it: {place}:Class"
        )
    return _require_pass(getattr(module, names[0]), reference)


def _pass_names(module: ModuleType) -> list[str]:
    """The passes that a module defines itself."""
    from graphopt.pipeline.base import Pass

    return [
        name
        for name, value in vars(module).items()
        if isinstance(value, type)
        and issubclass(value, Pass)
        and not inspect.isabstract(value)
        and value.__module__ == module.__name__
    ]


def _module_of_name(name: str, reference: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as exc:
        raise UserError(
            f"{reference!r} cannot be imported: {exc}",
            fix="a pass is named by its registered name, ./file.py:Class, or package.module:Class",
        ) from exc


def _module_of_file(path: str) -> ModuleType:
    file = Path(path).expanduser().resolve()
    if not file.is_file():
        raise UserError("there is no such pass file", where=path)
    # Registered in sys.modules, where dataclasses look the module's names up; by path, so that two files
    # of one name do not meet, and one file is not run twice.
    name = "graphopt_user_pass_" + "".join(c if c.isalnum() else "_" for c in str(file))
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise UserError("not a Python file", where=path)
    module = importlib.util.module_from_spec(spec)
    setattr(module, _USER_FILE, str(file))
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except SyntaxError as exc:
        del sys.modules[name]
        raise UserError(f"line {exc.lineno}: {exc.msg}", where=path) from exc
    except BaseException:
        del sys.modules[name]
        raise
    return module
