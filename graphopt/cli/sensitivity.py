"""Show what a pass costs and saves in each layer, and what mixtures of changed and unchanged layers give.

With a pipeline that ends in a search, such as int8: every node is left in float by itself and changed by
itself, and mixtures of the two are measured. With any other: the first pass that moves the numbers runs on
one layer at a time. No model is written.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from graphopt.budget import Exploration, Survey
from graphopt.cli import arguments
from graphopt.errors import UserError

VERB = "sensitivity"
SCHEMA = "graphopt.sensitivity/1"
LAYERS_SCHEMA = "graphopt.sensitivity.layers/1"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    arguments.add_model(parser)
    action = parser.add_argument(
        "--passes",
        metavar="LIST",
        default="int8",
        help="a pipeline with a pass that moves the numbers, as in default,prune-weights{sparsity=0.5}; or "
        "one that ends in a search, such as the preset int8 (default)",
    )
    action.complete = arguments.PASSES  # type: ignore[attr-defined]
    parser.add_argument(
        "--target", metavar="NAME", default="portable", help="who runs the result"
    ).complete = (  # type: ignore[attr-defined]
        arguments.TARGETS
    )
    parser.add_argument(
        "--sweep",
        metavar="OPTION=VALUES",
        help="measure with several values of an option of that pass, as in sparsity=0.3,0.5,0.7",
    )
    parser.add_argument("--metric", metavar="FUNCTION", help="task metric, as for `graphopt run`")
    parser.add_argument("--plot", metavar="SVG", help="write the chart to this file").complete = (  # type: ignore[attr-defined]
        arguments.FILE
    )
    arguments.add_data(parser, "typical", "; needed")
    arguments.add_trust(parser)
    arguments.add_output_style(parser)
    arguments.add_html(parser)


def execute(args: argparse.Namespace) -> int:
    """Run the verb; returns the exit code."""
    if args.plot and Path(args.plot).suffix.lower() != ".svg":
        raise UserError("the chart is an SVG file", where=args.plot, fix="call it something.svg")
    arguments.check_html(args)
    from graphopt import exploring, surveying
    from graphopt.cli.terminal import console, progress, reader_may_leave
    from graphopt.report import exploration, survey
    from graphopt.report.document import to_json

    options = {
        "target": args.target,
        "data": args.data,
        "metric": args.metric,
        "trust_external_paths": args.trust_external_paths,
    }
    searches = args.sweep is None and exploring.searches(args.passes, target=args.target)
    with progress(quiet=args.quiet, verbose=args.verbose) as tell:
        found: Exploration | Survey
        if searches:
            found = exploring.explore(args.model, args.passes, progress=tell, **options)
        else:
            found = surveying.survey(args.model, args.passes, sweep=args.sweep, progress=tell, **options)
    title = Path(args.model).name
    if args.plot:
        chart = exploration.svg(found, title) if isinstance(found, Exploration) else survey.svg(found, title)
        try:
            Path(args.plot).write_text(chart, encoding="utf-8")
        except OSError as e:
            raise UserError(f"the chart cannot be written: {e.strerror}", where=args.plot) from e
    if args.html:
        from graphopt import pages

        pages.write(args.html, pages.sensitivity_html(found, title))
    with reader_may_leave():
        if args.json:
            schema = SCHEMA if isinstance(found, Exploration) else LAYERS_SCHEMA
            sys.stdout.write(to_json(found, schema) + "\n")
        elif isinstance(found, Exploration) and not args.quiet:
            exploration.exploration(found, console(), verbose=args.verbose)
        elif isinstance(found, Survey) and not args.quiet:
            survey.survey(found, console(), verbose=args.verbose)
    return 0
