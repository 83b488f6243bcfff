"""Make a model that fails a check smaller, for as long as it fails in the same way.

The check is a shell command in which {model} stands for the model file; it exits with 0 for a right model,
and fails on MODEL. {data} stands for an .npz file of inputs for the model at hand. A smaller model counts
only if the exit code is the same, and the kind of error that the check prints last (or, with --expect, if
what it prints matches); a model that onnxruntime does not load never does, unless MODEL is one. Writes the
model to OUT, and its inputs beside it if the check takes some.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from graphopt.cli import arguments
from graphopt.cli.bisect import add_check

if TYPE_CHECKING:
    from graphopt.report.searched import ReduceReport

VERB = "reduce"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    arguments.add_model(parser)
    output = parser.add_argument(
        "-o", "--output", metavar="OUT", help="default: MODEL.min.onnx beside the input"
    )
    output.complete = arguments.FILE  # type: ignore[attr-defined]
    add_check(parser, "the command that fails, as in 'python check.py {model}' (required)")
    parser.add_argument(
        "--expect", metavar="REGEX", help="what the output of a failing check matches, instead of the above"
    )
    parser.add_argument(
        "--keep-inputs",
        action="store_true",
        help="add no inputs, only constants (for checks that feed fixed inputs)",
    )
    parser.add_argument("--max-checks", type=int, metavar="N", help="run the check at most this often")
    parser.add_argument("--timeout", metavar="TIME", help="stop after this long, with what was found by then")
    arguments.add_input_shape(parser)
    arguments.add_data(parser, "real", " (default: synthesized)")
    arguments.add_trust(parser)
    arguments.add_output_style(parser)


def execute(args: argparse.Namespace) -> int:
    """Run the verb; returns the exit code."""
    shapes = arguments.input_shapes(args.input_shape)
    check_timeout = arguments.duration(args.check_timeout) if args.check_timeout else None
    timeout = arguments.duration(args.timeout) if args.timeout else None
    source = Path(args.model)
    output = Path(args.output) if args.output else source.with_name(f"{source.stem}.min.onnx")

    from graphopt.cli.run import checked_output
    from graphopt.cli.terminal import progress, reader_may_leave
    from graphopt.reducing.search import check_arguments, reduce
    from graphopt.report.document import to_json
    from graphopt.report.searched import REDUCE_SCHEMA

    check = check_arguments(args.check)
    checked_output(output, source)
    with progress(quiet=args.quiet, verbose=args.verbose) as tell:
        report = reduce(
            source,
            output,
            check=check,
            expect=args.expect,
            check_timeout=check_timeout,
            data=args.data,
            input_shapes=shapes or None,
            keep_inputs=args.keep_inputs,
            max_checks=args.max_checks,
            timeout=timeout,
            trust_external_paths=args.trust_external_paths,
            progress=tell,
        )
    with reader_may_leave():
        if args.json:
            sys.stdout.write(to_json(report, REDUCE_SCHEMA) + "\n")
        elif not args.quiet:
            _show(report, verbose=args.verbose)
    return 0


def _show(report: ReduceReport, *, verbose: bool) -> None:
    from graphopt.cli.terminal import console
    from graphopt.report import console as render
    from graphopt.report.text import clean, plural, size

    out = console()

    def say(text: str) -> None:
        out.print(clean(text), markup=False, highlight=False, soft_wrap=True)

    kept = "nothing more can be left out" if report.minimal else f"stopped: {report.stopped}"
    head = f"{report.before.nodes:,} -> {plural(report.after.nodes, 'node')}; {kept}"
    render.line(out, "REDUCED", head, "bold green" if report.minimal else "bold yellow")
    say(f"  the check fails as before: {report.failure}")
    say(f"  it was run {plural(report.checks, 'time')}")
    if verbose:
        for step in report.steps:
            say(f"  {step.nodes:>6,} nodes after {step.checks:>4} checks: {step.what}")
    if report.text:
        out.print()
        for row in report.text.splitlines():
            say(row)
    out.print()
    assert report.output is not None
    say(f"written: {report.output.path} ({size(report.output.bytes)})")
    if report.inputs:
        say(f"  inputs: {report.inputs}")
