"""Hold a model against a policy, for CI.

The policy (TOML) says what a model has to keep: numerics, task metrics, latency, memory, size, operators,
inputs and outputs, ... Exit code 0 if every check passes, 1 if one fails or cannot be measured. Reports are
written in either case. `graphopt gate --init > gate.toml` makes a policy to start from.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from graphopt.cli import arguments
from graphopt.errors import UserError

if TYPE_CHECKING:
    from graphopt.report.gated import GateReport

VERB = "gate"

PRESETS = ("minimal", "float", "int8", "cuda")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    model = parser.add_argument("model", metavar="MODEL", nargs="?", help="the ONNX file to be deployed")
    model.complete = arguments.FILE  # type: ignore[attr-defined]
    policy = parser.add_argument("--policy", metavar="TOML", help="what it has to keep")
    policy.complete = arguments.FILE  # type: ignore[attr-defined]
    parser.add_argument(
        "--init",
        metavar="PRESET",
        nargs="?",
        const="minimal",
        help=f"print a policy to start from: {', '.join(PRESETS)}; with MODEL, with limits that it keeps now",
    ).complete = arguments.PRESETS  # type: ignore[attr-defined]
    group = parser.add_argument_group("what it is measured with", "These go before what the policy names.")
    for option, metavar, what in (
        ("--reference", "REF", "the model to compare with"),
        ("--against", "OLD", "an older version of the model, to show what changed"),
    ):
        action = group.add_argument(option, metavar=metavar, help=what)
        action.complete = arguments.FILE  # type: ignore[attr-defined]
    arguments.add_data(group, "real", " (default: synthesized)")
    arguments.add_input_shape(group)
    group.add_argument(
        "--metric", metavar="FUNCTION", help="task metric: module:function or ./file.py:function"
    )
    providers = group.add_argument(
        "--providers",
        metavar="LIST",
        help="execution providers, comma separated: cpu, cuda, ... (default: cpu)",
    )
    providers.complete = arguments.PROVIDERS  # type: ignore[attr-defined]
    arguments.add_trust(parser)
    files = parser.add_argument_group("reports in files", "Written whatever the verdict is.")
    for option, what in (
        ("--junit", "JUnit XML, for the test reports of CI servers"),
        ("--markdown", "Markdown, for the comment of a pull request"),
    ):
        action = files.add_argument(option, metavar="FILE", help=what)
        action.complete = arguments.FILE  # type: ignore[attr-defined]
    arguments.add_html(files)
    arguments.add_output_style(parser)


def execute(args: argparse.Namespace) -> int:
    """Run the verb; returns the exit code."""
    if args.init is not None:
        return _init(args)
    if args.model is None:
        raise UserError("no MODEL was named", fix="as in: graphopt gate model.onnx --policy gate.toml")
    if args.policy is None:
        raise UserError(
            "no policy was named", fix="name it: --policy gate.toml   (a first one: graphopt gate --init)"
        )
    shapes = arguments.input_shapes(args.input_shape)
    files = _writers(args)

    from graphopt.cli.terminal import console, progress, reader_may_leave
    from graphopt.gating.running import gate
    from graphopt.io.text_file import write_text
    from graphopt.report.document import to_json
    from graphopt.report.gate_console import headline, render
    from graphopt.report.gated import SCHEMA

    with progress(quiet=args.quiet, verbose=args.verbose) as tell:
        report = gate(
            Path(args.model),
            Path(args.policy),
            reference=args.reference,
            against=args.against,
            data=args.data,
            metric=args.metric,
            providers=arguments.comma_list(args.providers) if args.providers else None,
            input_shapes=shapes or None,
            trust_external_paths=args.trust_external_paths,
            progress=tell,
        )
    for path, renderer in files.items():
        write_text(path, renderer(report))
    with reader_may_leave():
        if args.json:
            sys.stdout.write(to_json(report, SCHEMA) + "\n")
        elif not args.quiet:
            render(report, console(), verbose=args.verbose)
        elif report.exit_code():
            sys.stderr.write(f"FAILED: {headline(report)}\n")
    return report.exit_code()


def _writers(args: argparse.Namespace) -> dict[Path, Callable[[GateReport], str]]:
    """File -> what makes its text.

    Raises:
        UserError: a file's folder is not there, or a file is named twice.
    """
    from graphopt.report.junit import junit
    from graphopt.report.markdown import markdown

    arguments.check_html(args)
    trust = args.trust_external_paths
    found: dict[Path, Callable[[GateReport], str]] = {}
    for option, name, renderer in (
        ("--junit", args.junit, junit),
        ("--markdown", args.markdown, markdown),
        ("--html", args.html, lambda report: _page(report, trust_external_paths=trust)),
    ):
        if name is None:
            continue
        path = Path(name)
        if path.is_dir() or not path.parent.is_dir():
            what = (
                "is a folder"
                if path.is_dir()
                else f"cannot be written: there is no folder {str(path.parent)!r}"
            )
            raise UserError(f"{option} {name} {what}")
        if path in found:
            raise UserError(f"{option} names a file that another report goes to: {name}")
        found[path] = renderer
    return found


def _page(report: GateReport, *, trust_external_paths: bool) -> str:
    """The report as a page, with the models drawn if they can be read."""
    from graphopt import pages
    from graphopt.errors import ModelError

    base = report.reference or (report.against.file if report.against is not None else None)
    paths = [file.path for file in (base, report.model) if file is not None and file.path]
    try:
        return pages.with_graph(report, *paths, trust_external_paths=trust_external_paths)
    except ModelError:  # the checks say so
        return pages.html(report)


def _init(args: argparse.Namespace) -> int:
    from graphopt.gating.starter import starter

    if args.init not in PRESETS and args.model is None and Path(args.init).is_file():
        args.init, args.model = "minimal", args.init  # --init MODEL
    arguments.choice(args.init, PRESETS, "--init")
    sys.stdout.write(starter(args.init, None if args.model is None else Path(args.model)))
    return 0
