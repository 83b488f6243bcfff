"""Show which nodes of a quantized model run as integer kernels.

For every node: the integer kernel, or why it runs in float and what to do about it. If the target's runtime
is there, what it really executes is read and compared. Exit code 0; with --strict, 1 if a quantized node runs
in float although there is an integer kernel for it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from graphopt.cli import arguments

if TYPE_CHECKING:
    from rich.console import Console

    from graphopt.quantization.lint import LeftConversion, LintReport, LintRow

VERB = "lint"

_SHORT = 30
_SHORT_TENSORS = 4
# Nodes with the same fate are one row, with so many names.
_ALIKE = 4
# Predictions for the portable target are those for the runtime that it is judged by.
_PROVIDERS = {
    "portable": "cpu",
    "ort-cpu": "cpu",
    "ort-cuda": "cuda",
    "tensorrt": None,  # it does not write down what it executes
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    arguments.add_model(parser)
    target = parser.add_argument(
        "--target", metavar="NAME", default="ort-cpu", help="who executes the model (default: ort-cpu)"
    )
    target.complete = arguments.TARGETS  # type: ignore[attr-defined]
    parser.add_argument("--predict-only", action="store_true", help="do not ask the runtime")
    parser.add_argument("--strict", action="store_true", help="exit 1 if a quantized node runs in float")
    arguments.add_trust(parser)
    arguments.add_output_style(parser)


def execute(args: argparse.Namespace) -> int:
    """Run the verb; returns the exit code."""
    from graphopt.cli.terminal import progress, reader_may_leave
    from graphopt.model import Model
    from graphopt.pipeline.targets import get_target
    from graphopt.runtime.lint import lint

    target = get_target(args.target).name
    with progress(quiet=args.quiet, verbose=args.verbose) as tell:
        tell("load", args.model)
        model = Model.load(Path(args.model), trust_external_paths=args.trust_external_paths)
        found = lint(model, target, provider=None if args.predict_only else _PROVIDERS.get(target))
    with reader_may_leave():
        if args.json:
            sys.stdout.write(found.to_json() + "\n")
        elif not args.quiet:
            _show(found, verbose=args.verbose)
    return 1 if args.strict and found.fallbacks else 0


def _show(found: LintReport, *, verbose: bool) -> None:
    from graphopt.cli.terminal import console
    from graphopt.report.console import line
    from graphopt.report.text import clean, plural

    out = console()
    if not any(row.quantized or row.kernel for row in found.rows):
        out.print("the model is not quantized: it has no QuantizeLinear or DequantizeLinear")
    else:
        kernels = ", ".join(f"{kernel} {n}" for kernel, n in found.kernels.items())
        style = "bold green" if not found.fallbacks else "bold yellow"
        head = (
            f"{found.integer:,} of {plural(found.possible, 'node')} with an integer kernel on {found.target}"
        )
        line(out, f"{head} run as such", "", style)
        if kernels:
            out.print(f"  {clean(kernels)}", style="dim")
        _nodes(found, out, verbose=verbose)
        _conversions(found.conversions, out, verbose=verbose)
    if found.runtime:
        wrong = sum(row.disagrees for row in found.rows)
        says = f"{plural(wrong, 'node')} otherwise than predicted" if wrong else "as predicted"
        out.print(f"{found.runtime} executes them {says}", style="dim")
    if found.note:
        line(out, "note", clean(found.note), "yellow")


def _nodes(found: LintReport, out: Console, *, verbose: bool) -> None:
    from graphopt.report.console import show, table
    from graphopt.report.text import clean

    rows = list(found.rows) if verbose else [row for row in found.rows if _is_news(row)]
    if not rows:
        return
    differs = any(row.disagrees for row in rows)
    heads = ["node", "op", "runs as", "why, and what to do"]
    result = table(*heads, *(["onnxruntime says otherwise"] if differs else []))
    groups: dict[tuple[str, ...], list[LintRow]] = {}
    for i, row in enumerate(rows):
        says = row.actual if row.disagrees and row.actual else ""
        groups.setdefault((row.op, _kernel(row), _why(row), says, str(i) if verbose else ""), []).append(row)
    shown = list(groups.items()) if verbose else list(groups.items())[:_SHORT]
    for (op, kernel, why, says, _), alike in shown:
        names = "\n".join(clean(row.node) for row in alike[:_ALIKE])
        if len(alike) > _ALIKE:
            names += f"\nand {len(alike) - _ALIKE:,} more"
        cells = [names, clean(op), kernel, clean(why)]
        result.add_row(*cells, *([clean(says)] if differs else []))
    show(out, result)
    if len(shown) < len(groups):
        out.print(f"  and {len(groups) - len(shown):,} more kinds (-v shows all)", style="dim")


def _is_news(row: LintRow) -> bool:
    """People want to hear of it: it was quantized in vain, or could be quantized, or is a surprise."""
    if row.disagrees or row.falls_back:
        return True
    if row.kernel is not None or row.merged:
        return False
    return row.counts or (row.quantized and bool(row.fix))


def _kernel(row: LintRow) -> str:
    if row.kernel is None:
        return "float"
    if row.merged:
        return f"part of {row.kernel}"
    return "integers" if row.moves_data else row.kernel


def _why(row: LintRow) -> str:
    if row.fix and row.reason:
        return f"{row.reason}; {row.fix}"
    return row.reason


def _conversions(left: Sequence[LeftConversion], out: Console, *, verbose: bool) -> None:
    from graphopt.report.text import clean, plural

    groups = (
        ([c for c in left if not c.weight], "conversion", "between float and integers inside the model"),
        ([c for c in left if c.weight], "weight", "dequantized anew on every run"),
    )
    for found, noun, what in groups:
        if not found:
            continue
        names = list(dict.fromkeys(c.tensor for c in found))
        shown = names if verbose else names[:_SHORT_TENSORS]
        more = f" and {len(names) - len(shown):,} more" if len(shown) < len(names) else ""
        out.print(f"{plural(len(found), noun)} {what}: {clean(', '.join(shown))}{more}", soft_wrap=True)
