"""Recipes: stages of passes in a TOML file, with a gate after each.

    name = "prune-int8"
    target = "ort-cpu"                       # as for `graphopt run`; the command line goes first
    keep = ["/head/*"]

    [data]                                   # likewise
    path = "calib.npz"                       # relative to this file
    metric = "metrics.py:accuracy"

    [[stage]]
    name = "prune"
    passes = "default,prune-weights{sparsity=0.5},distill-layers"
    gate = { min_cosine = 0.99, min_sqnr_db = 15, max_drop = { accuracy = 0.5 }, max_size_ratio = 0.6 }
    on_fail = "skip"                         # "stop" (the default), "skip", or "warn"

Everything that can be wrong with a recipe is said before any work, with the line where it stands.
"""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.resources
import math
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from graphopt.budget import Budget, Gate
from graphopt.errors import UserError
from graphopt.pipeline.options import suggestion
from graphopt.pipeline.registry import OnFail, Registry, Stage
from graphopt.pipeline.targets import get_target
from graphopt.pipeline.toml_lines import key_lines

RECIPE_GROUP = "graphopt.recipes"
SUFFIX = ".toml"

_TOP = ("name", "description", "target", "keep", "data", "stage")
_DATA = ("path", "metric")
_STAGE = ("name", "passes", "gate", "on_fail")
_GATE = ("min_cosine", "min_sqnr_db", "max_drop", "max_size_ratio", "max_latency_ratio")
_AN = {str: "text", dict: "a table", list: "a list", bool: "true or false"}


@dataclass(frozen=True)
class StageSpec:
    """A stage as written: pipeline strings that are not yet passes."""

    name: str
    passes: tuple[str, ...]
    gate: Gate | None
    on_fail: OnFail
    where: str
    gate_where: str


@dataclass(frozen=True)
class Recipe:
    """What a recipe says.

    Attributes:
        name: what people call it.
        stages: what is done, in order.
        description: what it is for.
        target, keep: as for a run; None and empty where it says nothing.
        data, metric: likewise; files are relative to the working directory by now.
        data_where: the place in the recipe that names the data.
    """

    name: str
    stages: tuple[StageSpec, ...]
    description: str = ""
    target: str | None = None
    keep: tuple[str, ...] = ()
    data: str | None = None
    metric: str | None = None
    data_where: str = ""

    def resolve(self, registry: Registry, target: str) -> tuple[Stage, ...]:
        """The stages with their passes, for `target`.

        Raises:
            UserError: a pass or an option is not known; it says where.
            PassError: as for `Registry.pass_class`.
        """
        default = registry.preset(f"default-{target}")
        stages = []
        for spec in self.stages:
            try:
                steps = registry.resolve(spec.passes, default=default, target=target)
            except UserError as exc:
                what = f"{exc.where}: {exc.what}" if exc.where else exc.what
                raise UserError(what, where=spec.where, fix=exc.fix) from exc
            passes = ",".join(spec.passes)
            stages.append(
                Stage(spec.name, steps, passes, spec.gate, spec.on_fail, spec.where, spec.gate_where)
            )
        return tuple(stages)

    def own_data(self) -> str | None:
        """The data that it names, if it is there.

        Raises:
            UserError: it names a file that is not there.
        """
        if self.data is not None and not _is_callable(self.data) and not Path(self.data).exists():
            raise UserError(
                f"there is no {self.data!r}",
                where=self.data_where,
                fix="correct it, or hand in data with --data",
            )
        return self.data


# ---------------------------------------------------------------------------------------- finding


@dataclass(frozen=True)
class Offer:
    """A recipe that comes with an installed package: its text, and where that stands."""

    name: str
    text: str
    where: str
    source: str


@functools.cache
def installed_recipes() -> Mapping[str, Offer]:
    """The recipes of all installed packages, by name, sorted.

    A package offers the *.toml files of one of its packages:

        [project.entry-points."graphopt.recipes"]
        my-recipes = "my_package.recipes"
    """
    found: dict[str, Offer] = {}
    for ep in importlib.metadata.entry_points(group=RECIPE_GROUP):
        source = f"{ep.dist.name} {ep.dist.version}" if ep.dist else "an unnamed package"
        try:
            folder = importlib.resources.files(ep.value)
            files = [f for f in folder.iterdir() if f.name.endswith(SUFFIX)]
        except (ImportError, OSError) as exc:
            raise UserError(
                f"the recipes of {source} cannot be read from {ep.value}: {exc}",
                fix=f"reinstall {source.split(maxsplit=1)[0]}",
            ) from exc
        for file in files:
            name = file.name.removesuffix(SUFFIX)
            offer = Offer(name, file.read_text(encoding="utf-8"), str(file), source)
            other = found.setdefault(name, offer)
            if other.text != offer.text:  # a checkout beside its installation offers the same twice
                raise UserError(
                    f"two packages offer a recipe {name!r}: {other.source} and {source}",
                    fix="uninstall one of them, or name the file",
                )
    return dict(sorted(found.items()))


def load_recipe(name: str | Path) -> Recipe:
    """A recipe by the name of an installed one, or from a file, whose name ends in .toml.

    Raises:
        UserError: there is no such recipe, or it says something that makes no sense.
    """
    path = Path(name)
    if path.suffix == SUFFIX or path.is_file():
        try:
            text = path.read_text(encoding="utf-8")
        except OSError as exc:
            raise UserError(f"the recipe cannot be read: {exc.strerror}", where=str(path)) from exc
        except UnicodeDecodeError as exc:
            raise UserError("the recipe is not UTF-8 text", where=str(path)) from exc
        return parse_recipe(text, str(path))
    offers = installed_recipes()
    if str(name) not in offers:
        raise UserError(
            f"there is no recipe {str(name)!r}",
            fix=suggestion(str(name), list(offers), "there are") + "\n  a file of your own ends in .toml",
        )
    offer = offers[str(name)]
    return parse_recipe(offer.text, offer.where)


# ---------------------------------------------------------------------------------------- reading


def parse_recipe(text: str, where: str) -> Recipe:
    """Read a recipe.

    Args:
        text: TOML.
        where: the file that it comes from, for messages and for the files that it names.

    Raises:
        UserError: it is not TOML, or not a recipe; `where` has the line.
    """
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as exc:
        place = re.search(r"\(at line (\d+), column \d+\)", str(exc))
        line = place[1] if place else str(text.count("\n") + 1)
        said = str(exc).partition(" (at ")[0]
        raise UserError(f"this is not TOML: {said}", where=f"{where}:{line}") from exc
    return _Reader(data, key_lines(text), where).recipe()


class _Reader:
    """Checks the values of one recipe; everything that it raises says in which line."""

    def __init__(self, data: dict[str, Any], lines: Mapping[tuple[str | int, ...], int], where: str) -> None:
        self.data, self.lines, self.file = data, lines, where

    def where(self, *path: str | int) -> str:
        """File and line of a key, or of what it stands in."""
        while path and path not in self.lines:
            path = path[:-1]
        return f"{self.file}:{self.lines[path]}" if path else self.file

    def recipe(self) -> Recipe:
        self.keys((), self.data, _TOP, "a recipe")
        stages = self.of_type(("stage",), list, None)
        if not stages:
            raise UserError("it has no stages", where=self.where(), fix='as in: [[stage]] passes = "default"')
        target = self.of_type(("target",), str, None)
        if target is not None:
            try:
                get_target(target)
            except UserError as exc:
                raise UserError(exc.what, where=self.where("target"), fix=exc.fix) from exc
        table = self.of_type(("data",), dict, {})
        self.keys(("data",), table, _DATA, "[data]")
        return Recipe(
            name=self.of_type(("name",), str, Path(self.file).stem),
            stages=tuple(self.stages(len(stages))),
            description=self.of_type(("description",), str, ""),
            target=target,
            keep=self.texts(("keep",), ()),
            data=self.beside(self.of_type(("data", "path"), str, None)),
            metric=self.beside(self.of_type(("data", "metric"), str, None)),
            data_where=self.where("data", "path"),
        )

    def stages(self, count: int) -> Iterator[StageSpec]:
        names: dict[str, int] = {}
        for n in range(count):
            path = ("stage", n)
            self.keys(path, self.of_type(path, dict, {}), _STAGE, "[[stage]]")
            name = self.of_type((*path, "name"), str, f"stage {n + 1}")
            if name in names:
                raise UserError(f"two stages are called {name!r}", where=self.where(*path, "name"))
            names[name] = n
            passes = self.texts((*path, "passes"), None)
            if passes is None or not "".join(passes).strip(" ,"):
                raise UserError(
                    f"stage {name!r} has no passes",
                    where=self.where(*path, "passes"),
                    fix='as in: passes = "default,quantize-weights"; none, if it is to be a gate only',
                )
            gate = self.gate((*path, "gate"))
            on_fail = self.of_type((*path, "on_fail"), str, "stop")
            if on_fail not in get_args(OnFail):
                raise UserError(
                    f"on_fail cannot be {on_fail!r}",
                    where=self.where(*path, "on_fail"),
                    fix=f"one of: {', '.join(get_args(OnFail))}",
                )
            if gate is None and self.get((*path, "on_fail")) is not None:
                raise UserError(
                    f"stage {name!r} says what to do when its gate fails, but has none",
                    where=self.where(*path, "on_fail"),
                    fix="as in: gate = { min_sqnr_db = 15 }",
                )
            where, gate_where = self.where(*path, "passes"), self.where(*path, "gate")
            yield StageSpec(name, passes, gate, on_fail, where, gate_where)

    def gate(self, path: tuple[str | int, ...]) -> Gate | None:
        table = self.of_type(path, dict, None)
        if table is None:
            return None
        self.keys(path, table, _GATE, "a gate")
        drops = self.of_type((*path, "max_drop"), dict, {})
        budget = Budget(
            self.number((*path, "min_cosine"), -1.0, 1.0),
            self.number((*path, "min_sqnr_db"), -math.inf, math.inf),
            {name: self.number((*path, "max_drop", name), 0.0, math.inf) or 0.0 for name in drops},
            self.number((*path, "max_latency_ratio"), 0.0, math.inf),
        )
        gate = Gate(budget, self.number((*path, "max_size_ratio"), 0.0, math.inf))
        if not gate.needs_data and gate.max_size_ratio is None:
            raise UserError(
                "the gate asks for nothing", where=self.where(*path), fix=f"it can have: {', '.join(_GATE)}"
            )
        return gate

    # -- values ------------------------------------------------------------------------------------

    def get(self, path: tuple[str | int, ...]) -> Any:
        value: Any = self.data
        for key in path:
            if isinstance(key, int):
                value = value[key]
            else:
                value = value.get(key) if isinstance(value, dict) else None
        return value

    def keys(
        self, path: tuple[str | int, ...], table: Mapping[str, Any], known: Sequence[str], what: str
    ) -> None:
        for key in table:
            if key not in known:
                raise UserError(
                    f"{what} has no key {key!r}",
                    where=self.where(*path, key),
                    fix=suggestion(key, known, "its keys"),
                )

    def of_type(self, path: tuple[str | int, ...], kind: type, default: Any) -> Any:
        value = self.get(path)
        if value is None:
            return default
        if not isinstance(value, kind):
            raise UserError(f"`{_dotted(path)}` is {_AN[kind]}", where=self.where(*path))
        return value

    def number(self, path: tuple[str | int, ...], least: float, most: float) -> float | None:
        value = self.get(path)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise UserError(f"`{_dotted(path)}` is a number", where=self.where(*path))
        if not (math.isfinite(value) and least <= value <= most):
            upper = "" if math.isinf(most) else f" and at most {most:g}"
            lower = "finite" if math.isinf(least) else f"at least {least:g}"
            raise UserError(
                f"`{_dotted(path)}` cannot be {value:g}", where=self.where(*path), fix=f"it is {lower}{upper}"
            )
        return float(value)

    def texts(self, path: tuple[str | int, ...], default: Any) -> Any:
        value = self.get(path)
        if value is None:
            return default
        if isinstance(value, str):
            return (value,)
        if not isinstance(value, list) or not all(isinstance(v, str) for v in value):
            raise UserError(f"`{_dotted(path)}` is text, or a list of texts", where=self.where(*path))
        return tuple(value)

    def beside(self, name: str | None) -> str | None:
        """A file, or a function in one, that is named relative to the recipe."""
        if name is None:
            return None
        place, colon, attribute = name.rpartition(":") if _is_callable(name) else (name, "", "")
        if colon and not place.endswith(".py"):
            return name  # a module
        return f"{Path(self.file).parent / Path(place).expanduser()}{colon}{attribute}"


def _is_callable(name: str) -> bool:
    """`module:function` or `file.py:function`; a drive letter is no module."""
    place, _, attribute = name.rpartition(":")
    return len(place) > 1 and attribute.isidentifier()


def _dotted(path: Sequence[str | int]) -> str:
    return ".".join(str(key) for key in path if isinstance(key, str))
