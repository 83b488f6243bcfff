"""Show what a model consists of.

Inputs, outputs, operators, the largest initializers, operator sets, element types, arithmetic and bytes
moved. With --text, every node of every body.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from graphopt.cli import arguments
from graphopt.errors import UserError

if TYPE_CHECKING:
    from rich.console import Console

    from graphopt.graph.cost import Cost
    from graphopt.model import Model
    from graphopt.report.document import FileInfo, ModelStats

VERB = "inspect"
SCHEMA = "graphopt.inspect/1"

_SHORT = 10
_SHORT_OPS = 20


@dataclass(frozen=True)
class Value:
    """A model input or output, or an initializer; `bytes` is 0 for what is not stored."""

    name: str
    type: str
    bytes: int = 0
    overridable: bool = False


@dataclass(frozen=True)
class Inspection:
    """What a model consists of.

    Attributes:
        file: where it is and how much space it takes.
        producer: the tool that wrote it.
        inputs, outputs: its interface.
        stats: nodes, parameters, opsets.
        bodies: number of nested bodies and local functions.
        functions: names of local functions.
        initializers: all of them, the largest first.
        dtypes: element type -> bytes of initializers and constants.
        cost: arithmetic and traffic of one run.
        assumed: symbolic dims that count as 1 in `cost`.
        metadata: what the model says about itself.
    """

    file: FileInfo
    producer: str
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    stats: ModelStats
    bodies: int
    functions: tuple[str, ...]
    initializers: tuple[Value, ...]
    dtypes: Mapping[str, int]
    cost: Cost
    assumed: tuple[str, ...]
    metadata: Mapping[str, str]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    arguments.add_model(parser)
    arguments.add_input_shape(parser)
    arguments.add_trust(parser)
    parser.add_argument("--text", action="store_true", help="every node of every body, as text")
    parser.add_argument("--json", action="store_true", help="as JSON")
    parser.add_argument("-v", "--verbose", action="store_true", help="all operators, all initializers")


def execute(args: argparse.Namespace) -> int:
    """Run the verb; returns the exit code."""
    from graphopt.model import Model
    from graphopt.report.document import to_json

    model = Model.load(Path(args.model), trust_external_paths=args.trust_external_paths)
    if args.text:
        from graphopt.graph.text import model_text

        sys.stdout.write(model_text(model) + "\n")
        return 0
    found = inspect(model, arguments.input_shapes(args.input_shape))
    if args.json:
        sys.stdout.write(to_json(found, SCHEMA) + "\n")
    else:
        _show(found, verbose=args.verbose)
    return 0


def inspect(model: Model, shapes: Mapping[str, tuple[int, ...]]) -> Inspection:
    """Look into a model.

    Args:
        model: the model; no large weight is loaded.
        shapes: sizes of dynamic inputs, to count arithmetic with.

    Raises:
        UserError: `shapes` names an input that is not there, or contradicts what it declares.
    """
    from graphopt import ir
    from graphopt.graph.cost import Cost, CostModel
    from graphopt.graph.shapes import infer
    from graphopt.graph.stats import constants, model_stats
    from graphopt.graph.text import dtype_text, type_text
    from graphopt.summary import file_info

    bodies = ir.bodies(model.graph)
    counter = CostModel(infer(model), bindings(model, shapes))
    costs = [counter.body(body) for body in bodies if not isinstance(body, ir.Function)]
    dtypes: Counter[str] = Counter()
    for body in bodies:
        for constant in constants(body):
            dtypes[dtype_text(constant.dtype)] += constant.nbytes
    initializers = [
        Value(c.name, type_text(c), c.nbytes)
        for body in bodies
        for c in (*body.initializers, *body.defaults.values())
    ]
    overridable = {t.name for t in model.graph.defaults}
    header = model.origin
    return Inspection(
        file=file_info(model.path, model.data_files),
        producer=f"{header.producer_name} {header.producer_version}".strip(),
        inputs=tuple(Value(t.name, type_text(t), 0, t.name in overridable) for t in model.graph.inputs),
        outputs=tuple(Value(t.name, type_text(t)) for t in model.graph.outputs),
        stats=model_stats(model),
        bodies=len(bodies) - 1,
        functions=tuple(f"{f.domain}::{f.name}" for f in model.graph.functions),
        initializers=tuple(sorted(initializers, key=lambda v: (-v.bytes, v.name))),
        dtypes=dict(dtypes.most_common()),
        cost=Cost(sum(c.flops for c in costs), sum(c.bytes for c in costs), sum(c.unknown for c in costs)),
        assumed=tuple(sorted(s for s in counter.assumed if not s.startswith("?"))),
        metadata={entry.key: entry.value for entry in header.metadata_props},
    )


def bindings(model: Model, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
    """Sizes of the symbolic dims that `shapes` implies.

    Raises:
        UserError: as for `inspect`.
    """
    from graphopt.pipeline.options import suggestion

    inputs = {t.name: t for t in model.graph.inputs}
    sizes: dict[str, int] = {}
    for name, dims in shapes.items():
        if name not in inputs:
            raise UserError(
                f"the model has no input {name!r}", fix=suggestion(name, list(inputs), "its inputs")
            )
        declared = inputs[name].shape
        if declared is None:
            continue
        if len(declared) != len(dims):
            raise UserError(f"input {name!r} has {len(declared)} dims, --input-shape gives {len(dims)}")
        for want, have in zip(dims, declared, strict=True):
            if isinstance(have, int) and have != want:
                raise UserError(f"a dim of input {name!r} is {have}, --input-shape says {want}")
            if isinstance(have, str) and sizes.setdefault(have, want) != want:
                raise UserError(f"--input-shape gives the dim {have!r} two sizes: {sizes[have]} and {want}")
    return sizes


def _show(found: Inspection, *, verbose: bool) -> None:
    from graphopt.cli.terminal import console
    from graphopt.report.console import show, table
    from graphopt.report.text import clean, count, plural, size

    out = console()
    stats = found.stats
    where = clean(found.file.path) or "model"
    parameters = f"{count(stats.parameters)} parameters"
    out.print(f"{where}: {size(found.file.bytes)}, {plural(stats.nodes, 'node')}, {parameters}")
    facts = table("", "")
    opsets = ", ".join(f"{clean(domain) or 'ai.onnx'} {version}" for domain, version in stats.opsets.items())
    facts.add_row("operator sets", opsets)
    facts.add_row("IR version", str(stats.ir_version))
    facts.add_row("written by", clean(found.producer) or "-")
    if found.bodies:
        functions = f", {plural(len(found.functions), 'local function')}" if found.functions else ""
        facts.add_row(
            "bodies",
            f"{plural(found.bodies - len(found.functions), 'nested body', 'nested bodies')}{functions}",
        )
    facts.add_row("weights", ", ".join(f"{dtype} {size(n)}" for dtype, n in found.dtypes.items()) or "none")
    facts.add_row("arithmetic", _cost_text(found))
    facts.add_row("bytes moved", size(found.cost.bytes))
    for key, text in found.metadata.items():
        facts.add_row(clean(key), clean(text))
    show(out, facts)

    interface = table("", "", "")
    for kind, values in (("input", found.inputs), ("output", found.outputs)):
        for value in values:
            note = "has a default" if value.overridable else ""
            interface.add_row(kind, clean(value.name), f"{clean(value.type)}  {note}".strip())
    show(out, interface)

    ops = table("operator", "nodes", numbers=(1,))
    limit = len(stats.ops) if verbose else _SHORT_OPS
    for op, n in list(stats.ops.items())[:limit]:
        ops.add_row(clean(op), f"{n:,}")
    show(out, ops)
    _rest(out, len(stats.ops) - limit)

    if found.initializers:
        largest = table("initializer", "type", "size", numbers=(2,))
        limit = len(found.initializers) if verbose else _SHORT
        for value in found.initializers[:limit]:
            largest.add_row(clean(value.name), value.type, size(value.bytes))
        show(out, largest)
        _rest(out, len(found.initializers) - limit)


def _rest(out: Console, n: int) -> None:
    if n > 0:
        out.print(f"  and {n:,} more (-v shows all)", style="dim")


def _cost_text(found: Inspection) -> str:
    from graphopt.report.text import clean, count, plural

    text = f"{count(found.cost.flops)} operations"
    if found.assumed:
        text += f", with {', '.join(f'{clean(s)}=1' for s in found.assumed[:4])} (see --input-shape)"
    if found.cost.unknown:
        text += f"; {plural(found.cost.unknown, 'node')} could not be counted"
    return text
