"""Write docs/passes/ from the passes themselves, and docs/schemas/ from the dataclasses of reports.

    python docs/generate.py            write pages and schemas
    python docs/generate.py --check    write nothing; exit 1 if a file is missing, stale or left over

Pages: one per pass of this distribution, and an index by family. Run it again after adding a pass or changing
a docstring, an option, a preset or a field of a report.
"""

from __future__ import annotations

import argparse
import inspect
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from graphopt import schemas
from graphopt.pipeline.base import Numerics, Pass
from graphopt.pipeline.options import Option, describe_options
from graphopt.pipeline.registry import Registry, installed
from graphopt.pipeline.spec import FixpointSpec, PassSpec, Spec, parse_pipeline
from graphopt.pipeline.targets import TARGETS

DOCS = Path(__file__).resolve().parent
PACKAGE = "graphopt_passes"

# A docstring's section about options: its heading, and the indented lines below.
_SECTION = re.compile(r"^(?:Options|Args|Attributes):\n(?P<rows>(?:[ ]+.*\n?|\n)+)", re.M)
_NOTICE = "<!-- Written by docs/generate.py from the pass itself. Do not edit: change the docstring. -->\n"
_MEANING = {
    Numerics.EXACT: "the result is the same, bit for bit",
    Numerics.CLOSE: "the result moves no further than the model's own floating-point noise",
    Numerics.LOSSY: "the result moves, within an accuracy budget",
}
# Headings and one sentence for the folders of the pass library; a folder that is not listed comes after them.
_FAMILIES = {
    "cleanup": ("Clean-up", "Remove what computes nothing, and merge what says the same thing twice."),
    "folding": ("Folding", "Compute what does not depend on the inputs once, ahead of time."),
    "fusion": ("Fusion", "Replace several operators by one that computes the same."),
    "layout": ("Layout", "Change the order of dimensions in memory."),
    "quantization": ("Quantization", "Compute with fewer bits."),
    "pruning": ("Pruning", "Drop weights."),
    "sharing": ("Sharing", "Let weights share storage."),
    "distillation": ("Distillation", "Fit a smaller model to the outputs of a larger one."),
    "conversion": ("Conversion", "Move to another operator set or another set of operators."),
}


@dataclass(frozen=True)
class Place:
    """Where a pass stands in a pipeline: the pass before it ("" for none), and whether it is repeated."""

    after: str
    repeated: bool


@dataclass(frozen=True)
class Entry:
    """What a page says about a pass."""

    name: str
    family: str
    cls: type[Pass]
    options: tuple[Option, ...]
    targets: Mapping[str, tuple[Place, ...]]
    presets: tuple[str, ...]

    @property
    def doc(self) -> str:
        """The class's docstring, without its section about options."""
        return _SECTION.sub("", inspect.cleandoc(self.cls.__doc__ or "")).strip()

    def help(self, option: Option) -> str:
        """What an option is for: as its field says, or else the docstring's section about options."""
        if option.help:
            return option.help
        section = _SECTION.search(inspect.cleandoc(self.cls.__doc__ or ""))
        rows = "" if section is None else inspect.cleandoc(section["rows"])
        found = re.search(rf"^{option.name}: (.*(?:\n +.*)*)", rows, re.M)
        return "" if found is None else " ".join(found[1].split())


def collect(registry: Registry) -> list[Entry]:
    """The passes of this distribution, by family and name."""
    default = {t: _places(registry, f"default-{t}") for t in TARGETS}
    presets = {
        name: _places(registry, name) for name in registry.preset_names() if not name.startswith("default-")
    }
    entries = []
    for name in registry.pass_names():
        cls = registry.pass_class(name)
        if cls.__module__.partition(".")[0] != PACKAGE:
            continue
        entries.append(
            Entry(
                name,
                cls.__module__.split(".")[1],
                cls,
                describe_options(cls),
                {t: tuple(places[name]) for t, places in default.items() if name in places},
                tuple(preset for preset, places in presets.items() if name in places),
            )
        )
    order = list(_FAMILIES)
    return sorted(
        entries,
        key=lambda e: (order.index(e.family) if e.family in order else len(order), e.family, e.name),
    )


def _places(registry: Registry, preset: str) -> dict[str, list[Place]]:
    """Where each pass stands in a preset; presets in presets are followed."""
    found: dict[str, list[Place]] = {}
    if preset in registry.preset_names():
        before = ""
        for name, depth in _walk(registry, preset):
            found.setdefault(name, []).append(Place(before, depth > 0))
            before = name
    return found


def _walk(registry: Registry, preset: str) -> Iterator[tuple[str, int]]:
    def walk(specs: Sequence[Spec], depth: int) -> Iterator[tuple[str, int]]:
        for spec in specs:
            if isinstance(spec, FixpointSpec):
                yield from walk(spec.steps, depth + 1)
            elif spec.name in registry.preset_names():
                yield from walk(parse_pipeline(registry.preset(spec.name)), depth)
            else:
                assert isinstance(spec, PassSpec)
                yield spec.name, depth

    yield from walk(parse_pipeline(registry.preset(preset)), 0)


# -- pages -------------------------------------------------------------------------------------------------


def pages(entries: Sequence[Entry]) -> dict[str, str]:
    """File name in docs/passes -> its text."""
    return {"index.md": index(entries)} | {f"{e.name}.md": page(e) for e in entries}


def index(entries: Sequence[Entry]) -> str:
    """All passes, by family."""
    lines = [_NOTICE, "# Passes", ""]
    lines += [
        f"{len(entries)} passes come with graphopt. `graphopt passes` lists them together with those of",
        "other packages. What EXACT, CLOSE and LOSSY mean: [proof and numerics](../proof-and-numerics.md).",
        "How to combine passes: [pipelines](../pipelines.md). A check mark: it is in the default pipeline.",
    ]
    family = ""
    for e in entries:
        if e.family != family:
            family = e.family
            title, sentence = _FAMILIES.get(family, (family.capitalize(), ""))
            lines += ["", f"## {title}", "", sentence, "", "| pass | numerics | default | what it does |"]
            lines += ["|---|---|---|---|"]
        mark = "" if not e.targets else "✓" if len(e.targets) == len(TARGETS) else ", ".join(e.targets)
        summary = _cell(e.doc.partition("\n")[0])
        lines.append(f"| [{e.name}]({e.name}.md) | {e.cls.numerics.name} | {mark} | {summary} |")
    return "\n".join(lines) + "\n"


def page(e: Entry) -> str:
    """One pass."""
    summary, _, rest = e.doc.partition("\n")
    lines = [_NOTICE, f"# {e.name}", "", _text(summary)]
    if rest.strip():
        lines += ["", _text(rest.strip("\n"))]
    lines += ["", "## Facts", "", "| | |", "|---|---|"]
    lines.append(f"| numerics | {e.cls.numerics.name}: {_MEANING[e.cls.numerics]} |")
    ops = getattr(e.cls, "ops", ())
    if ops:
        lines.append(f"| looks at | {', '.join(f'`{op}`' for op in ops)} |")
    lines.append(f"| default pipeline | {_where(e)} |")
    if e.presets:
        lines.append(f"| presets | {', '.join(f'`{p}`' for p in e.presets)} |")
    lines.append(f"| class | `{e.cls.__module__}.{e.cls.__qualname__}` |")
    lines += ["", "## Options", ""]
    if not e.options:
        lines.append("It has none.")
    else:
        lines += ["| option | is | default | |", "|---|---|---|---|"]
        for o in e.options:
            default = "must be given" if o.default is None else "`{}`".format(o.default.replace("|", "\\|"))
            lines.append(f"| `{o.name}` | {_cell(o.type)} | {default} | {_cell(e.help(o))} |")
    lines += ["", "## Alone", "", "```bash"]
    needed = [f"{o.name}=..." for o in e.options if o.default is None]
    spelled = f"{e.name}{{{','.join(needed)}}}" if needed else e.name
    data = " --data calib.npz" if e.cls.numerics is Numerics.LOSSY or e.cls.uses_data else ""
    lines += [f"graphopt run model.onnx --passes {_shell(spelled)}{data} --explain", "```", ""]
    lines.append("[All passes](index.md)")
    return "\n".join(lines) + "\n"


def _where(e: Entry) -> str:
    """The pass's place in the targets' default pipelines, in words."""
    if not e.targets:
        return "no; name it in `--passes`"
    by_places: dict[tuple[Place, ...], list[str]] = {}
    for target, places in e.targets.items():
        by_places.setdefault(places, []).append(target)
    parts = []
    for places, targets in by_places.items():
        steps = ", and ".join(
            (f"after [{p.after}]({p.after}.md)" if p.after else "first")
            + (", repeated until nothing changes" if p.repeated else "")
            for p in places
        )
        of = "all targets" if len(targets) == len(TARGETS) else ", ".join(targets)
        parts.append(f"{of}: {steps}")
    return "; ".join(parts)


def _text(doc: str) -> str:
    """A docstring as Markdown: `*`, `_` and `<` are meant as they are, outside of code."""
    out = []
    for line in doc.split("\n"):
        parts = line.split("`")
        parts[::2] = [_escaped(part) for part in parts[::2]]
        out.append("`".join(parts))
    return "\n".join(out)


def _escaped(text: str) -> str:
    for mark in "\\*_<[":
        text = text.replace(mark, f"\\{mark}")
    return text


def _cell(text: str) -> str:
    return _escaped(text).replace("|", "\\|") if "`" not in text else text.replace("|", "\\|")


def _shell(text: str) -> str:
    import shlex

    return shlex.quote(text)


# -- writing -----------------------------------------------------------------------------------------------


def schema_files() -> dict[str, str]:
    """File name in docs/schemas -> its text."""
    return {f"{name}.json": schemas.text(name) for name in schemas.NAMES}


def differences(wanted: Mapping[str, str], folder: Path, kind: str = "*.md") -> list[str]:
    """What is wrong with the files in `folder`, one sentence each."""
    problems = []
    for name, text in wanted.items():
        file = folder / name
        if not file.is_file():
            problems.append(f"{name} is missing")
        elif file.read_text(encoding="utf-8") != text:
            problems.append(f"{name} is stale")
    owner = "pass" if kind == "*.md" else "report"
    problems += [f"{f.name} belongs to no {owner}" for f in sorted(folder.glob(kind)) if f.name not in wanted]
    return problems


def write(wanted: Mapping[str, str], folder: Path, kind: str = "*.md") -> None:
    """Write the files and delete those that belong to nothing any more."""
    folder.mkdir(parents=True, exist_ok=True)
    for file in folder.glob(kind):
        if file.name not in wanted:
            file.unlink()
    for name, text in wanted.items():
        (folder / name).write_text(text, encoding="utf-8", newline="\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Write or check the pages; returns the exit code."""
    parser = argparse.ArgumentParser(description="Write docs/passes/ from the passes themselves.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if a page is not current")
    parser.add_argument("--folder", type=Path, default=DOCS / "passes", help="default: docs/passes")
    parser.add_argument("--schemas", type=Path, default=DOCS / "schemas", help="default: docs/schemas")
    args = parser.parse_args(argv)
    wanted, forms = pages(collect(installed())), schema_files()
    problems = [f"docs/passes: {problem}" for problem in differences(wanted, args.folder)]
    problems += [f"docs/schemas: {problem}" for problem in differences(forms, args.schemas, "*.json")]
    if not args.check:
        write(wanted, args.folder)
        write(forms, args.schemas, "*.json")
        print(f"{len(wanted)} pages, {len(forms)} schemas, {len(problems)} of them changed")
        return 0
    for problem in problems:
        print(problem, file=sys.stderr)
    if problems:
        print("run: python docs/generate.py", file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    raise SystemExit(main())
