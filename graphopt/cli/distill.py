"""Teach a smaller model of your own what a large one computes, layer by layer, without labels.

Finds for each layer of STUDENT the tensor of TEACHER that it is to become, and refits the layers in order,
so that each computes it as well as it can from what those before give it. Written only if the student then
is closer to the teacher than before.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from graphopt.cli import arguments
from graphopt.errors import UserError

if TYPE_CHECKING:
    from graphopt.report.distillation import DistillReport

VERB = "distill"
SCHEMA = "graphopt.distill/1"
_NO_BETTER = 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    arguments.add_model(parser, "TEACHER", "the model to learn from")
    arguments.add_model(parser, "STUDENT", "the model that learns; with the same inputs and outputs")
    arguments.add_data(parser, "typical", "; needed; no labels")
    output = parser.add_argument(
        "-o", "--output", metavar="FILE", help="default: STUDENT.distilled.onnx beside the student"
    )
    output.complete = arguments.FILE  # type: ignore[attr-defined]
    parser.add_argument(
        "--map",
        metavar="STUDENT=TEACHER",
        action="append",
        default=[],
        help="a tensor (or node) of the student and the one of the teacher that it is to become; repeatable",
    )
    parser.add_argument(
        "--match",
        metavar="HOW",
        default="auto",
        help="how the others are found: name, correlation (shape and similarity along the depth), or auto:"
        " by name where both models look alike (default)",
    )
    parser.add_argument(
        "--keep", metavar="GLOB", action="append", default=[], help="leave these of the student alone"
    )
    parser.add_argument("--metric", metavar="FUNCTION", help="task metric, as for `graphopt run`")
    parser.add_argument(
        "--fine-tune",
        metavar="EPOCHS",
        type=int,
        default=0,
        help="then descend along the gradient towards the teacher's outputs; needs torch",
    )
    parser.add_argument(
        "--learning-rate", metavar="RATE", type=float, default=1e-3, help="of that (default: 0.001)"
    )
    arguments.add_trust(parser)
    arguments.add_output_style(parser)


def execute(args: argparse.Namespace) -> int:
    """Run the verb; returns the exit code."""
    from graphopt import distilling
    from graphopt.cli.run import checked_output
    from graphopt.cli.terminal import progress, reader_may_leave
    from graphopt.distillation.lesson import MatchBy

    arguments.choice(args.match, get_args(MatchBy), "--match")
    pairs = _pairs(args.map)
    source = Path(args.student)
    output = Path(args.output) if args.output else source.with_name(f"{source.stem}.distilled.onnx")
    checked_output(output, source)
    with progress(quiet=args.quiet, verbose=args.verbose) as tell:
        found = distilling.distill(
            args.teacher,
            source,
            data=args.data,
            map=pairs,
            match=args.match,
            keep=args.keep,
            metric=args.metric,
            fine_tune=args.fine_tune,
            learning_rate=args.learning_rate,
            trust_external_paths=args.trust_external_paths,
            progress=tell,
        )
        if found.report.is_better:
            tell("save", str(output))
            found.save(output)
    with reader_may_leave():
        _print(found.report, args, output)
    return 0 if found.report.is_better else _NO_BETTER


def _pairs(given: list[str]) -> dict[str, str]:
    found = {}
    for text in given:
        student, sign, teacher = text.partition("=")
        if not (student and sign and teacher):
            raise UserError(
                f"--map takes a name of the student and one of the teacher, not {text!r}",
                fix="as in: --map conv2=layer3/conv1",
            )
        found[student] = teacher
    return found


def _print(report: DistillReport, args: argparse.Namespace, output: Path) -> None:
    if args.json:
        from graphopt.report.document import to_json

        sys.stdout.write(to_json(report, SCHEMA) + "\n")
        return
    from graphopt.cli.terminal import console
    from graphopt.report.distillation import render

    if not args.quiet:
        render(report, console(), verbose=args.verbose)
        words = f"written: {output}" if report.is_better else "nothing was written"
        console().print(words, soft_wrap=True, markup=False, highlight=False)
