"""Print the JSON Schema of what a verb's --json prints.

Without NAME: which there are. The same files are in docs/schemas.
"""

from __future__ import annotations

import argparse
import sys

from graphopt.cli import arguments

VERB = "schema"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    from graphopt.schemas import NAMES

    action = parser.add_argument("name", metavar="NAME", nargs="?", help=", ".join(NAMES))
    action.complete = arguments.SCHEMAS  # type: ignore[attr-defined]


def execute(args: argparse.Namespace) -> int:
    """Run the verb; returns the exit code."""
    from graphopt import schemas

    sys.stdout.write(schemas.text(args.name) if args.name else "\n".join(schemas.NAMES) + "\n")
    return 0
