"""List the passes, or show one in full.

Without PASS, all passes, presets and recipes that are installed. PASS is a name from that list,
./file.py:Class, or package.module:Class.
"""

from __future__ import annotations

import argparse
import inspect
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from graphopt.cli import arguments

if TYPE_CHECKING:
    from graphopt.pipeline.base import Pass
    from graphopt.pipeline.options import Option
    from graphopt.pipeline.recipe import Offer
    from graphopt.pipeline.registry import Registry

VERB = "passes"
SCHEMA = "graphopt.passes/1"

_SHORT = 66


@dataclass(frozen=True)
class PassInfo:
    """A pass as the list shows it, and as JSON."""

    name: str
    summary: str
    numerics: str
    source: str
    defined: str
    ops: tuple[str, ...]
    options: tuple[Option, ...]
    doc: str


@dataclass(frozen=True)
class PresetInfo:
    """A preset: a name for a pipeline string."""

    name: str
    pipeline: str
    source: str


@dataclass(frozen=True)
class RecipeInfo:
    """A recipe: stages of passes with gates, for `graphopt run --recipe`."""

    name: str
    description: str
    stages: tuple[str, ...]
    source: str


@dataclass(frozen=True)
class Catalog:
    """Everything that is installed; `broken` says what could not be imported, and why."""

    passes: tuple[PassInfo, ...]
    presets: tuple[PresetInfo, ...]
    broken: tuple[str, ...]
    recipes: tuple[RecipeInfo, ...] = ()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    action = parser.add_argument("name", metavar="PASS", nargs="?", help="the pass to show in full")
    action.complete = arguments.PASS  # type: ignore[attr-defined]
    parser.add_argument("--names", action="store_true", help="names only, one a line")
    parser.add_argument("--json", action="store_true", help="as JSON")


def execute(args: argparse.Namespace) -> int:
    """Run the verb; returns the exit code."""
    from graphopt.pipeline.recipe import installed_recipes
    from graphopt.pipeline.registry import DEFAULT, NONE, installed
    from graphopt.report.document import to_json

    registry = installed()
    out = sys.stdout
    if args.name == DEFAULT and DEFAULT not in registry.preset_names():
        args.name = f"{DEFAULT}-portable"
    if args.names:
        names = [*registry.pass_names(), *registry.preset_names(), DEFAULT, NONE]
        out.write("\n".join(names) + "\n")
    elif args.name in registry.preset_names():
        info = PresetInfo(args.name, registry.preset(args.name), registry.source(args.name))
        out.write((to_json(info, SCHEMA) if args.json else info.pipeline) + "\n")
    elif args.name and args.name not in registry.pass_names() and args.name in installed_recipes():
        offer = installed_recipes()[args.name]
        out.write(to_json(_recipe(offer), SCHEMA) + "\n" if args.json else offer.text)
    elif args.name:
        shown = describe(args.name, registry)
        if args.json:
            out.write(to_json(shown, SCHEMA) + "\n")
        else:
            _show_one(shown)
    else:
        catalog = collect(registry)
        if args.json:
            out.write(to_json(catalog, SCHEMA) + "\n")
        else:
            _show_all(catalog)
    return 0


def describe(name: str, registry: Registry) -> PassInfo:
    """What there is to know about pass `name`.

    Raises:
        UserError: there is no such pass.
    """
    from graphopt.pipeline.options import describe_options

    cls = registry.pass_class(name)
    source = registry.source(name) if name in registry.pass_names() else "named by you"
    ops: tuple[str, ...] = tuple(getattr(cls, "ops", ()))
    doc = inspect.cleandoc(cls.__doc__ or "")
    return PassInfo(
        cls.name, cls.summary(), cls.numerics.name, source, _place(cls), ops, describe_options(cls), doc
    )


def collect(registry: Registry) -> Catalog:
    """All passes and presets; one that cannot be imported does not hide the others."""
    from graphopt.errors import GraphOptError
    from graphopt.pipeline.recipe import installed_recipes

    passes, presets, recipes, broken = [], [], [], []
    for name in registry.pass_names():
        try:
            passes.append(describe(name, registry))
        except GraphOptError as exc:
            broken.append(str(exc))
    for name in registry.preset_names():
        try:
            presets.append(PresetInfo(name, registry.preset(name), registry.source(name)))
        except GraphOptError as exc:
            broken.append(str(exc))
    try:
        recipes = [_recipe(offer) for offer in installed_recipes().values()]
    except GraphOptError as exc:
        broken.append(str(exc))
    return Catalog(tuple(passes), tuple(presets), tuple(broken), tuple(recipes))


def _recipe(offer: Offer) -> RecipeInfo:
    from graphopt.pipeline.recipe import parse_recipe

    read = parse_recipe(offer.text, offer.where)
    return RecipeInfo(offer.name, read.description, tuple(s.name for s in read.stages), offer.source)


def _place(cls: type[Pass]) -> str:
    """File and line of a class."""
    try:
        return f"{inspect.getsourcefile(cls)}:{inspect.getsourcelines(cls)[1]}"
    except (OSError, TypeError):
        return f"{cls.__module__}:{cls.__qualname__}"


def _show_all(catalog: Catalog) -> None:
    from graphopt.cli.terminal import console
    from graphopt.report.console import line, show, table

    out = console()
    by_room: dict[str, list[PassInfo]] = {}
    for info in catalog.passes:
        by_room.setdefault(_room(info), []).append(info)
    for room, infos in by_room.items():
        rows = table("", "", "", title=room)
        for info in infos:
            rows.add_row(info.name, info.numerics, info.summary)
        show(out, rows)
    if catalog.presets:
        rows = table("", "", title="presets")
        for preset in catalog.presets:
            short = preset.pipeline if len(preset.pipeline) <= _SHORT else f"{preset.pipeline[:_SHORT]}..."
            rows.add_row(preset.name, short)
        show(out, rows)
    if catalog.recipes:
        rows = table("", "", title="recipes, for graphopt run --recipe")
        for recipe in catalog.recipes:
            rows.add_row(recipe.name, recipe.description or ", ".join(recipe.stages))
        show(out, rows)
    for problem in catalog.broken:
        line(out, "broken", problem, "bold red")
    if not catalog.passes and not catalog.broken:
        out.print("no passes are installed; reinstall graphopt with pip, which registers them")
    out.print("\n`graphopt passes NAME` shows one in full.")


def _room(info: PassInfo) -> str:
    """The heading that a pass stands under: its package, and the folder in it."""
    distribution = info.source.split()[0]
    parts = info.defined.rpartition(":")[0].replace("\\", "/").split("/")
    return f"{distribution}: {parts[-2]}" if distribution == "graphopt" and len(parts) > 1 else info.source


def _show_one(info: PassInfo) -> None:
    from graphopt.cli.terminal import console
    from graphopt.report.console import show, table

    out = console()
    out.print(f"{info.name}\n", style="bold")
    out.print(_reflowed(info.doc))
    out.print()
    facts = {"numbers": f"{info.numerics}: {_MEANING[info.numerics]}"}
    if info.ops:
        facts["looks at"] = ", ".join(info.ops)
    facts |= {"from": info.source, "source": info.defined}
    for key, text in facts.items():
        out.print(f"  {key:<8}  {text}", soft_wrap=True)  # a path is there to be copied
    if not info.options:
        out.print("\n  It has no options.")
        return
    rows = table("option", "is", "default", "")
    for option in info.options:
        default = "must be given" if option.default is None else option.default
        rows.add_row(option.name, option.type, default, option.help)
    show(out, rows)


def _reflowed(doc: str) -> str:
    """A docstring with its paragraphs on one line each, for the console to wrap; lists stay as they are."""
    paragraphs = (block.splitlines() for block in doc.split("\n\n"))
    return "\n\n".join(
        "\n".join(lines) if any(line.startswith((" ", "- ", "* ")) for line in lines) else " ".join(lines)
        for lines in paragraphs
    )


_MEANING = {
    "EXACT": "the result is the same bit for bit",
    "CLOSE": "the result moves no further than the model's own floating-point noise",
    "LOSSY": "the result moves, within an accuracy budget",
}
