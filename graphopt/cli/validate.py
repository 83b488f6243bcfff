"""Compare what two models compute.

Runs both on the same inputs and compares every output, by default within A's own floating-point noise. Exit
code 0 if B computes what A computes (or no runtime here can tell: --strict makes that 1), 1 if it does not.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from graphopt.cli import arguments
from graphopt.errors import UserError

if TYPE_CHECKING:
    from graphopt.validation.proof import Proof

VERB = "validate"
SCHEMA = "graphopt.validate/1"

_NUMERICS = ("exact", "close", "lossy")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    arguments.add_model(parser, "A", "the reference")
    arguments.add_model(parser, "B", "the model to compare with it")
    parser.add_argument(
        "--numerics",
        metavar="HOW",
        default="close",
        help="exact: bit for bit; close (default): within A's noise; lossy: within an accuracy budget",
    )
    parser.add_argument(
        "--min-cosine", type=float, metavar="X", help="lossy: least cosine similarity per output (0.99)"
    )
    parser.add_argument("--min-sqnr", type=float, metavar="DB", help="lossy: least SQNR per output (15 dB)")
    parser.add_argument("--strict", action="store_true", help="exit 1 unless it is proven")
    arguments.add_trust(parser)
    arguments.add_inputs(parser)
    arguments.add_output_style(parser)


def execute(args: argparse.Namespace) -> int:
    """Run the verb; returns the exit code."""
    numerics = arguments.choice(args.numerics.lower(), _NUMERICS, "--numerics")
    shapes = arguments.input_shapes(args.input_shape)
    limits = {"min_cosine": args.min_cosine, "min_sqnr_db": args.min_sqnr}
    given = {name: value for name, value in limits.items() if value is not None}
    if given and numerics != "lossy":
        raise UserError("--min-cosine and --min-sqnr are budgets", fix="they go with --numerics lossy")

    from graphopt import api
    from graphopt.budget import Budget
    from graphopt.cli.terminal import progress, reader_may_leave
    from graphopt.graph.text import dims_text
    from graphopt.report.document import to_json

    with progress(quiet=args.quiet, verbose=args.verbose) as tell:
        tell("validate", f"{args.a} and {args.b}")
        b = api.load(Path(args.b), trust_external_paths=args.trust_external_paths)
        proof = api.validate(
            Path(args.a),
            b,
            data=args.data,
            input_shapes=shapes or None,
            providers=arguments.comma_list(args.providers),
            numerics=numerics.upper(),
            budget=Budget(**given) if numerics == "lossy" else None,
            trust_external_paths=args.trust_external_paths,
        )
    with reader_may_leave():
        if args.json:
            sys.stdout.write(to_json(proof, SCHEMA) + "\n")
        elif not args.quiet:
            _show(proof, {t.name: dims_text(t) for t in b.graph.outputs}, verbose=args.verbose)
    return 1 if proof.verdict == "failed" or (args.strict and proof.verdict != "proven") else 0


def _show(proof: Proof, declared: dict[str, tuple[str, ...] | None], *, verbose: bool) -> None:
    from graphopt import summary
    from graphopt.cli.terminal import console
    from graphopt.report import console as render
    from graphopt.report.text import clean

    out = console()
    render.verdict(proof.verdict, proof.reason or "they compute the same", out)
    rows = summary.output_rows(proof, declared)
    render.outputs(rows, proof.probes, out, verbose=verbose, said=proof.reason)
    for warning in proof.warnings:
        render.line(out, "warning", clean(warning), "yellow")
    if verbose:
        out.print(f"compared under {'; '.join(proof.runtimes)}")
