"""Compare what two models compute, or one model on several runtimes, and say whose fault a difference is.

Runs both on the same inputs and compares every output, by default within the reference's own floating-point
noise. Without CANDIDATE, the verdict is about the runtimes: an optimizer or a provider that changes what the
model computes fails. Exit code 0 if the candidate computes what the reference does (or no runtime here can
tell: --strict makes that 1), 1 if it does not.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path

from graphopt.cli import arguments
from graphopt.errors import UserError

VERB = "validate"

_NUMERICS = ("exact", "close", "lossy")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    arguments.add_model(parser, "REFERENCE", "the model that is right")
    action = parser.add_argument(
        "candidate", metavar="CANDIDATE", nargs="?", help="the model to compare with it (default: itself)"
    )
    action.complete = arguments.FILE  # type: ignore[attr-defined]
    group = parser.add_argument_group("what is asked of the outputs")
    group.add_argument(
        "--numerics",
        metavar="HOW",
        default="close",
        help="exact: bit for bit; close (default): within the reference's noise; lossy: within a budget",
    )
    group.add_argument(
        "--min-cosine", type=float, metavar="X", help="lossy: least cosine similarity per output (0.99)"
    )
    group.add_argument("--min-sqnr", type=float, metavar="DB", help="lossy: least SQNR per output (15 dB)")
    group.add_argument(
        "--atol",
        type=float,
        metavar="X",
        help="instead: |a - b| <= atol + rtol * |a|, where a is the reference's",
    )
    group.add_argument("--rtol", type=float, metavar="X", help="see --atol")
    group.add_argument(
        "--tolerance",
        metavar="NAME:LIMITS",
        action="append",
        default=[],
        help="the same for one output, or those that a glob fits: logits:atol=1e-3,rtol=1e-2; repeatable",
    )
    group.add_argument(
        "--metric",
        metavar="FUNCTION",
        help="task metric of both on --data, as module:function or ./file.py:function; higher is better",
    )
    group.add_argument(
        "--max-drop",
        metavar="NAME=X",
        action="append",
        default=[],
        help="how far a task metric may be below the reference's, as in accuracy=0.2; repeatable",
    )
    group.add_argument("--strict", action="store_true", help="exit 1 unless it is proven")
    group = parser.add_argument_group("names")
    group.add_argument(
        "--map",
        metavar="NEW=OLD",
        action="append",
        default=[],
        help="the candidate's input or output NEW is what the reference calls OLD; repeatable",
    )
    group.add_argument(
        "--any-order", action="store_true", help="inputs and outputs may stand in another order"
    )
    group = parser.add_argument_group("inside of the models")
    group.add_argument(
        "--localize", action="store_true", help="if something differs, find the first tensor that does"
    )
    group.add_argument(
        "--layers", action="store_true", help="compare all intermediate tensors that have a counterpart"
    )
    arguments.add_trust(parser)
    arguments.add_inputs(parser)
    parser.add_argument(
        "--probes",
        type=int,
        default=2,
        metavar="N",
        help="sets of inputs that are synthesized, each with other sizes of open dims (default: 2)",
    )
    arguments.add_output_style(parser)
    arguments.add_html(parser)


def execute(args: argparse.Namespace) -> int:
    """Run the verb; returns the exit code."""
    numerics = arguments.choice(args.numerics.lower(), _NUMERICS, "--numerics")
    shapes = arguments.several_shapes(args.input_shape)
    limits = {"min_cosine": args.min_cosine, "min_sqnr_db": args.min_sqnr}
    given = {name: value for name, value in limits.items() if value is not None}
    if given and numerics != "lossy":
        raise UserError("--min-cosine and --min-sqnr are budgets", fix="they go with --numerics lossy")
    mapping = arguments.pairs(args.map, "--map", "as in: --map new_name=old_name")
    drops = arguments.drops(args.max_drop)
    bounds = _tolerances(args.tolerance)
    for option, value in (("--atol", args.atol), ("--rtol", args.rtol)):
        if value is not None and not 0 <= value < math.inf:
            raise UserError(f"{option} cannot be {value:g}", fix="it is at least 0")

    arguments.check_html(args)
    from graphopt.budget import Budget
    from graphopt.cli.terminal import console, progress, reader_may_leave
    from graphopt.report.comparison import render
    from graphopt.validating import validate

    with progress(quiet=args.quiet, verbose=args.verbose) as tell:
        report = validate(
            Path(args.reference),
            None if args.candidate is None else Path(args.candidate),
            data=args.data,
            input_shapes=shapes or None,
            probes=args.probes,
            providers=arguments.comma_list(args.providers),
            numerics=numerics.upper(),
            budget=Budget(**given) if numerics == "lossy" else None,
            atol=args.atol,
            rtol=args.rtol,
            tolerances=bounds,
            mapping=mapping,
            any_order=args.any_order,
            metric=args.metric,
            max_drop=drops,
            layers=args.layers,
            localize=args.localize,
            trust_external_paths=args.trust_external_paths,
            progress=tell,
        )
    if args.html:
        from graphopt import pages

        paths = (args.reference, args.candidate) if args.candidate else (args.reference,)
        pages.write(
            args.html, pages.with_graph(report, *paths, trust_external_paths=args.trust_external_paths)
        )
    with reader_may_leave():
        if args.json:
            sys.stdout.write(report.to_json() + "\n")
        elif not args.quiet:
            render(report, console(), verbose=args.verbose)
    return report.exit_code(strict=args.strict)


def _tolerances(values: Sequence[str]) -> dict[str, tuple[float, float]]:
    """`["logits:atol=1e-3,rtol=1e-2"]` as `{"logits": (1e-3, 1e-2)}`."""
    found: dict[str, tuple[float, float]] = {}
    for text in values:
        name, colon, limits = text.rpartition(":")
        parts: dict[str, float] = {}
        for word in limits.split(","):
            key, equals, number = word.partition("=")
            try:
                parts[key.strip()] = float(number)
            except ValueError:
                equals = ""
            if not equals or not set(parts) <= {"atol", "rtol"}:
                colon = ""
        if not colon or not name or not all(0 <= v < math.inf for v in parts.values()):
            raise UserError(
                f"--tolerance {text!r} is not NAME:LIMITS", fix="as in: logits:atol=1e-3,rtol=1e-2"
            )
        if name in found:
            raise UserError(f"--tolerance names the output {name!r} twice")
        found[name] = (parts.get("atol", 0.0), parts.get("rtol", 0.0))
    return found
