"""Time models, and say whether one is faster than the first.

Models run in turns, in sessions that are opened anew many times, so that neither the machine's noise nor a
session's luck decides. Every model is compared with the first. Exit code 0 whatever the result is; limits are
for `graphopt gate`.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

from graphopt.cli import arguments
from graphopt.errors import UserError

VERB = "bench"

_LEVELS = ("none", "basic", "extended", "all")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    models = parser.add_argument(
        "models", metavar="MODEL", nargs="+", help="ONNX files; the first is the yardstick"
    )
    models.complete = arguments.FILE  # type: ignore[attr-defined]
    inputs = parser.add_argument_group("inputs")
    arguments.add_input_shape(inputs)
    arguments.add_data(inputs, "real", "; the first samples are run in turn (default: synthesized)")
    arguments.add_trust(parser)
    arguments.add_provider(parser)
    how = parser.add_argument_group("how it is measured")
    how.add_argument(
        "--optimize",
        metavar="LEVEL",
        default="all",
        help=f"onnxruntime's optimizations: {', '.join(_LEVELS)} (default)",
    )
    how.add_argument(
        "--threads", type=int, metavar="N", default=1, help="threads within an operator (default: 1)"
    )
    how.add_argument(
        "--affinity",
        metavar="LIST",
        help="processors that the runs are bound to, as in 0 or 0,1 (default: none)",
    )
    how.add_argument(
        "--seconds",
        type=float,
        metavar="X",
        default=10.0,
        help="how long the models run, together (default: 10), up to three times as long on a busy "
        "machine; it ends earlier once the answer is clear",
    )
    how.add_argument("--runs", type=int, metavar="N", help="instead, at least so many timed runs of each")
    how.add_argument(
        "--sessions", type=int, metavar="N", help="how often each session is opened anew (default: up to 20)"
    )
    how.add_argument(
        "--confidence", type=float, metavar="X", default=0.99, help="of the intervals (default: 0.99)"
    )
    how.add_argument(
        "--min-effect",
        type=float,
        metavar="X",
        default=0.01,
        help="a relative difference below this counts as none (default: 0.01)",
    )
    how.add_argument("--no-profile", action="store_true", help="without the time by operator")
    how.add_argument("--no-memory", action="store_true", help="without the peak memory")
    arguments.add_output_style(parser)
    arguments.add_html(parser)


def execute(args: argparse.Namespace) -> int:
    """Run the verb; returns the exit code."""
    level: Any = arguments.choice(args.optimize, _LEVELS, "--optimize")
    shapes = arguments.input_shapes(args.input_shape)
    affinity = _processors(args.affinity)
    arguments.check_html(args)

    from graphopt import benching
    from graphopt.cli.terminal import console, progress, reader_may_leave
    from graphopt.report.document import to_json
    from graphopt.report.timed import SCHEMA
    from graphopt.report.timing import timing

    with progress(quiet=args.quiet, verbose=args.verbose) as tell:
        report = benching.bench(
            args.models,
            data=args.data,
            input_shapes=shapes or None,
            provider=args.provider,
            settings=arguments.provider_settings(args),
            optimize=level,
            threads=args.threads,
            affinity=affinity,
            seconds=args.seconds,
            runs=args.runs,
            sessions=args.sessions,
            confidence=args.confidence,
            min_effect=args.min_effect,
            profile=not args.no_profile,
            memory=not args.no_memory,
            trust_external_paths=args.trust_external_paths,
            progress=tell,
        )
    if args.html:
        from graphopt import pages

        pages.write(args.html, pages.html(report))
    with reader_may_leave():
        if args.json:
            sys.stdout.write(to_json(report, SCHEMA) + "\n")
        elif not args.quiet:
            timing(report, console(), verbose=args.verbose)
    return 0


def _processors(text: str | None) -> tuple[int, ...]:
    words = arguments.comma_list(text or "")
    if not all(word.isdigit() for word in words):
        raise UserError(f"--affinity {text!r} is not a list of processors", fix="as in: 0,1")
    return tuple(map(int, words))
