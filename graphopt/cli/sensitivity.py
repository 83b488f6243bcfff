"""Show what quantizing each node costs, and what lies between all integers and all float.

Runs the pipeline up to its search, leaves every node in float by itself and changes every node by itself,
and measures accuracy, size and latency of mixtures of the two. Nothing is written but what is asked for.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from graphopt.cli import arguments
from graphopt.errors import UserError

VERB = "sensitivity"
SCHEMA = "graphopt.sensitivity/1"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    arguments.add_model(parser)
    action = parser.add_argument(
        "--passes",
        metavar="LIST",
        default="int8",
        help="a pipeline that ends in a search, such as the preset int8 (default)",
    )
    action.complete = arguments.PASSES  # type: ignore[attr-defined]
    parser.add_argument(
        "--target", metavar="NAME", default="portable", help="who runs the result"
    ).complete = (  # type: ignore[attr-defined]
        arguments.TARGETS
    )
    parser.add_argument("--metric", metavar="FUNCTION", help="task metric, as for `graphopt run`")
    parser.add_argument("--plot", metavar="SVG", help="write the chart to this file").complete = (  # type: ignore[attr-defined]
        arguments.FILE
    )
    arguments.add_data(parser, "typical", "; needed")
    arguments.add_trust(parser)
    arguments.add_output_style(parser)


def execute(args: argparse.Namespace) -> int:
    """Run the verb; returns the exit code."""
    if args.plot and Path(args.plot).suffix.lower() != ".svg":
        raise UserError("the chart is an SVG file", where=args.plot, fix="call it something.svg")
    from graphopt import exploring
    from graphopt.cli.terminal import console, progress, reader_may_leave
    from graphopt.report import exploration as render
    from graphopt.report.document import to_json

    with progress(quiet=args.quiet, verbose=args.verbose) as tell:
        found = exploring.explore(
            args.model,
            args.passes,
            target=args.target,
            data=args.data,
            metric=args.metric,
            trust_external_paths=args.trust_external_paths,
            progress=tell,
        )
    if args.plot:
        try:
            Path(args.plot).write_text(render.svg(found, Path(args.model).name), encoding="utf-8")
        except OSError as e:
            raise UserError(f"the chart cannot be written: {e.strerror}", where=args.plot) from e
    with reader_may_leave():
        if args.json:
            sys.stdout.write(to_json(found, SCHEMA) + "\n")
        elif not args.quiet:
            render.exploration(found, console(), verbose=args.verbose)
    return 0
