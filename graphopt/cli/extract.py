"""Cut a part out of a model.

The part computes the tensors --outputs from the tensors --inputs; each may be any tensor of the main graph.
It is fed what the whole model has there, and must give what the whole model gives: that is compared before
it is written.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from graphopt.cli import _piece, arguments

VERB = "extract"
SCHEMA = "graphopt.extract/1"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    arguments.add_model(parser)
    parser.add_argument(
        "--inputs",
        metavar="NAMES",
        action="append",
        default=[],
        help="tensors that it is fed, comma separated; default: the model's inputs, those that it needs",
    )
    parser.add_argument(
        "--outputs",
        metavar="NAMES",
        action="append",
        default=[],
        help="tensors that it returns, comma separated; default: the model's outputs",
    )
    parser.add_argument(
        "--nodes",
        metavar="GLOBS",
        action="append",
        default=[],
        help="instead: exactly the nodes of these names or operator types, comma separated",
    )
    _piece.add_arguments(parser)


def execute(args: argparse.Namespace) -> int:
    """Run the verb; returns the exit code."""
    path = _piece.output_path(args, [args.model])

    from graphopt.cli.terminal import progress
    from graphopt.extracting import extract

    with progress(quiet=args.quiet, verbose=args.verbose) as tell:
        tell("extract", str(args.model))
        piece = extract(
            Path(args.model),
            _names(args.outputs),
            inputs=_names(args.inputs),
            nodes=_names(args.nodes),
            data=args.data,
            verify=not args.no_verify,
            trust_external_paths=args.trust_external_paths,
        )
    return _piece.finish(piece, path, [args.model], args, SCHEMA)


def _names(values: list[str]) -> tuple[str, ...]:
    return tuple(word.strip() for value in values for word in value.split(",") if word.strip())
