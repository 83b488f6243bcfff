"""Compare what two models compute.

Runs both on the same inputs and compares every output within A's own floating-point noise. Exit code 0 if
B computes what A computes, 1 if it does not.
"""

from __future__ import annotations

import argparse

from graphopt.cli import arguments

VERB = "validate"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    arguments.add_model(parser, "A", "the reference")
    arguments.add_model(parser, "B", "the model to compare with it")
    arguments.add_trust(parser)
    arguments.add_inputs(parser)
    arguments.add_output_style(parser)


def execute(args: argparse.Namespace) -> int:
    """Run the verb; returns the exit code."""
    raise NotImplementedError(args)
