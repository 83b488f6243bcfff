"""Show what changed from one model to another.

Interface, versions, metadata, initializers (by value), and nodes, paired by the values that they compute.
Exit code 0 if the models are the same, 1 if they differ.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from typing import TYPE_CHECKING

from graphopt.cli import arguments

if TYPE_CHECKING:
    from rich.console import Console

    from graphopt.graph.diff import ModelDiff, NodeChange

VERB = "diff"

_SHORT = 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    arguments.add_model(parser, "A", "the model before")
    arguments.add_model(parser, "B", "the model after")
    arguments.add_trust(parser)
    parser.add_argument("--json", action="store_true", help="as JSON")
    arguments.add_html(parser)
    parser.add_argument("-q", "--quiet", action="store_true", help="say nothing, exit 0 or 1")
    parser.add_argument("-v", "--verbose", action="store_true", help="every node and initializer")


def execute(args: argparse.Namespace) -> int:
    """Run the verb; returns the exit code."""
    arguments.check_html(args)
    from graphopt.cli.terminal import reader_may_leave
    from graphopt.graph.diff import SCHEMA, diff_models
    from graphopt.model import Model
    from graphopt.report.document import to_json

    a, b = (Model.load(path, trust_external_paths=args.trust_external_paths) for path in (args.a, args.b))
    found = diff_models(a, b)
    if args.html:
        from graphopt import pages

        pages.write(args.html, pages.diff_html(found, a, b))
    with reader_may_leave():
        if args.json:
            sys.stdout.write(to_json(found, SCHEMA) + "\n")
        elif not args.quiet:
            _show(found, verbose=args.verbose)
    return 1 if found else 0


def _show(found: ModelDiff, *, verbose: bool) -> None:
    from graphopt.cli.terminal import console
    from graphopt.report.console import show, table
    from graphopt.report.text import clean

    out = console()
    if not found:
        out.print("the models are the same")
        return
    for text in (*found.interface, *found.properties):
        out.print(clean(text))
    if found.ops:
        rows = table("operator", "before", "after", "", numbers=(1, 2, 3))
        for op, (before, after) in sorted(found.ops.items(), key=lambda item: item[1][1] - item[1][0]):
            rows.add_row(clean(op), f"{before:,}", f"{after:,}", f"{after - before:+,}")
        show(out, rows)
    _nodes(found.nodes, out, verbose=verbose)
    if found.initializers:
        kinds = Counter[str](v.kind for v in found.initializers)
        out.print(f"\ninitializers: {_counts(kinds)}")
        limit = len(found.initializers) if verbose else _SHORT
        for v in found.initializers[:limit]:
            type_ = " -> ".join(text for text in (v.before, v.after) if text)
            out.print(f"  {_SIGNS[v.kind]} {clean(v.name)}  {type_}", style=_STYLES[v.kind], soft_wrap=True)
        _rest(out, len(found.initializers) - limit)


_SIGNS = {"removed": "-", "added": "+", "changed": "~"}
_STYLES = {"removed": "red", "added": "green", "changed": "yellow"}


def _nodes(changes: tuple[NodeChange, ...], out: Console, *, verbose: bool) -> None:
    from graphopt.report.text import clean

    if not changes:
        return
    out.print(f"\nnodes: {_counts(Counter[str](change.kind for change in changes))}")
    limit = len(changes) if verbose else _SHORT
    body = "main"
    for change in changes[:limit]:
        if change.body != body:
            body = change.body
            out.print(f"  in {clean(body)}:", soft_wrap=True)
        made = f"  # made by {clean(change.made_by)}" if change.made_by and "# " not in change.text else ""
        text = f"  {_SIGNS[change.kind]} {clean(change.text)}{made}"
        out.print(text, style=_STYLES[change.kind], soft_wrap=True)
        for difference in change.changes:
            out.print(f"      {clean(difference)}", soft_wrap=True)
    _rest(out, len(changes) - limit)


def _counts(kinds: Counter[str]) -> str:
    return ", ".join(f"{kinds[kind]:,} {kind}" for kind in ("removed", "added", "changed") if kinds[kind])


def _rest(out: Console, n: int) -> None:
    if n > 0:
        out.print(f"  and {n:,} more (-v shows all)", style="dim")
