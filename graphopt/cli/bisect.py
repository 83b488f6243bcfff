"""Find the rewrite that makes a result wrong.

Runs a pipeline on MODEL and asks a check of yours about the result: a shell command in which {model} stands
for the model file. Exit code 0 means right, 125 that it cannot tell, any other wrong. If the result is wrong,
the guilty rewrite is found by bisection, left out, and the rest is checked again. Without --check, the result
is compared with MODEL. Nothing is written, except with --repro-dir. Exit code 0 if nothing is wrong, 1 if a
culprit was found.
"""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from graphopt.cli import arguments

if TYPE_CHECKING:
    from graphopt.report.searched import BisectReport

VERB = "bisect"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    arguments.add_model(parser)
    parser.add_argument(
        "--passes",
        metavar="LIST",
        help="pass names, presets and pipeline strings, comma separated (default: the target's pipeline)",
    ).complete = arguments.PASSES  # type: ignore[attr-defined]
    add_check(parser, "a command that says whether a model is right, as in 'python check.py {model}'")
    parser.add_argument(
        "--target",
        metavar="NAME",
        help="who runs the result: portable (default), ort-cpu, ort-cuda, tensorrt",
    ).complete = arguments.TARGETS  # type: ignore[attr-defined]
    parser.add_argument(
        "--keep",
        metavar="GLOB",
        action="append",
        default=[],
        help="leave nodes and tensors of this name alone; repeatable",
    )
    parser.add_argument(
        "--repro-dir", metavar="DIR", help="where the models before and after the guilty rewrite are written"
    ).complete = arguments.FOLDER  # type: ignore[attr-defined]
    parser.add_argument("--timeout", metavar="TIME", help="give up after this long, as in 90s, 10min")
    arguments.add_trust(parser)
    arguments.add_inputs(parser)
    arguments.add_output_style(parser)


def add_check(parser: argparse.ArgumentParser, what: str) -> None:
    """`--check` and `--check-timeout`."""
    parser.add_argument("--check", metavar="COMMAND", help=what)
    parser.add_argument(
        "--check-timeout", metavar="TIME", help="stop a check after this long; that counts as wrong"
    )


def execute(args: argparse.Namespace) -> int:
    """Run the verb; returns the exit code."""
    shapes = arguments.input_shapes(args.input_shape)
    check_timeout = arguments.duration(args.check_timeout) if args.check_timeout else None
    timeout = arguments.duration(args.timeout) if args.timeout else None

    from graphopt.bisecting import bisect
    from graphopt.cli.terminal import progress, reader_may_leave
    from graphopt.report.document import to_json
    from graphopt.report.searched import BISECT_SCHEMA

    with progress(quiet=args.quiet, verbose=args.verbose) as tell:
        report = bisect(
            args.model,
            args.passes,
            check=args.check,
            check_timeout=check_timeout,
            target=args.target,
            keep=args.keep,
            data=args.data,
            input_shapes=shapes or None,
            providers=arguments.comma_list(args.providers),
            timeout=timeout,
            repro_dir=args.repro_dir,
            trust_external_paths=args.trust_external_paths,
            progress=tell,
        )
    with reader_may_leave():
        if args.json:
            sys.stdout.write(to_json(report, BISECT_SCHEMA) + "\n")
        elif not args.quiet:
            _show(report)
    return report.exit_code()


def _show(report: BisectReport) -> None:
    from graphopt.cli.terminal import console
    from graphopt.report import console as render
    from graphopt.report.text import plural

    out = console()
    if report.verdict == "found":
        what = "the check fails" if report.check else "the result is wrong"
        sites = sum(1 for c in report.culprits if c.site)
        whole = len(report.culprits) - sites
        wrong = [
            *([plural(sites, "rewrite")] if sites else []),
            *([plural(whole, "pass", "passes")] if whole else []),
        ]
        render.verdict("found", f"{what} because of {' and '.join(wrong)}", out)
    else:
        render.verdict(report.verdict, report.reason, out)
    for culprit in report.culprits:
        render.culprit_lines(culprit, out)
    if report.rest:
        them = "it" if len(report.culprits) == 1 else "them"
        text = f"without {them}: {report.rest} ({plural(report.rewrites, 'rewrite')} left)"
        out.print(text, markup=False, highlight=False, soft_wrap=True)
    if report.check:
        text = f"the check was run {plural(report.checks, 'time')}"
        out.print(text, markup=False, highlight=False, soft_wrap=True)
