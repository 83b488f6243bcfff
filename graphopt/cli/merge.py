"""Put one model behind another.

Outputs of A feed inputs of B, as --map says; all other inputs and outputs of both stay. The result must give
what A and then B give: that is compared before it is written.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from graphopt.cli import _piece, arguments
from graphopt.errors import UserError

VERB = "merge"
SCHEMA = "graphopt.merge/1"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    arguments.add_model(parser, "A", "the model that comes first")
    arguments.add_model(parser, "B", "the model that it feeds")
    parser.add_argument(
        "--map",
        metavar="OUT=IN",
        action="append",
        default=[],
        help="an output of A and the input of B that it feeds, comma separated; repeatable",
    )
    parser.add_argument(
        "--prefix",
        default="b_",
        metavar="TEXT",
        help="put before names of B that A has as well (default: b_)",
    )
    parser.add_argument(
        "--keep-mapped", action="store_true", help="outputs of A that feed B stay outputs of the result"
    )
    _piece.add_arguments(parser)


def execute(args: argparse.Namespace) -> int:
    """Run the verb; returns the exit code."""
    path = _piece.output_path(args, [args.a, args.b])
    mapping = _mapping(args.map)
    if not args.prefix:
        raise UserError("--prefix cannot be empty", fix="it tells apart what is called the same in both")

    from graphopt.cli.terminal import progress
    from graphopt.merging import merge

    with progress(quiet=args.quiet, verbose=args.verbose) as tell:
        tell("merge", f"{args.a} and {args.b}")
        piece = merge(
            Path(args.a),
            Path(args.b),
            mapping,
            prefix=args.prefix,
            keep_mapped=args.keep_mapped,
            data=args.data,
            verify=not args.no_verify,
            trust_external_paths=args.trust_external_paths,
        )
    return _piece.finish(piece, path, [args.a, args.b], args, SCHEMA)


def _mapping(values: list[str]) -> dict[str, str]:
    """`["a=b,c=d"]` as a dict.

    Raises:
        UserError: one is not of that form, or nothing is mapped.
    """
    found: dict[str, str] = {}
    for item in (word.strip() for value in values for word in value.split(",") if word.strip()):
        left, equals, right = item.partition("=")
        if not equals or not left.strip() or not right.strip():
            raise UserError(f"--map {item!r} is not OUT=IN", fix="as in: --map features=x")
        if left.strip() in found:
            raise UserError(
                f"--map names the output {left.strip()!r} twice", fix="feed one input, and read it twice in B"
            )
        found[left.strip()] = right.strip()
    if not found:
        raise UserError("nothing is mapped", fix="say which output feeds which input: --map OUT=IN")
    return found
