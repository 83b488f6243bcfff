"""What `extract` and `merge` have in common: writing what they made, and reporting it."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from graphopt.cli import arguments
from graphopt.errors import UserError

if TYPE_CHECKING:
    from graphopt.extracting import Piece
    from graphopt.report.document import FileInfo
    from graphopt.validation.proof import Proof

#: Nothing was written: the model made computes something else.
FAILED = 1


@dataclass(frozen=True)
class PieceReport:
    """What was made.

    Attributes:
        inputs: the models that it was made of.
        output: the file that was written; None if none was.
        nodes: how many nodes it has.
        takes, gives: its inputs and outputs, as `name type[dims]`.
        notes: what else there is to know.
        proof: how it compares with what it was made of; None: it was not asked for.
    """

    inputs: tuple[str, ...]
    output: FileInfo | None
    nodes: int
    takes: tuple[str, ...]
    gives: tuple[str, ...]
    notes: tuple[str, ...]
    proof: Proof | None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of both."""
    output = parser.add_argument("-o", "--output", metavar="FILE", help="the model to write (required)")
    output.complete = arguments.FILE  # type: ignore[attr-defined]
    parser.add_argument(
        "--external-data",
        action=argparse.BooleanOptionalAction,
        help="weights in a file beside the model (default: as in the input, and from 2 GiB on)",
    )
    parser.add_argument("--no-verify", action="store_true", help="do not run and compare")
    parser.add_argument("--strict", action="store_true", help="write nothing and exit 1 unless it is proven")
    arguments.add_data(parser, "real", " (default: synthesized)")
    arguments.add_trust(parser)
    arguments.add_output_style(parser)


def output_path(args: argparse.Namespace, sources: Sequence[str]) -> Path:
    """The file to write.

    Raises:
        UserError: none is named, or it is one of those that are read.
    """
    if not args.output:
        raise UserError("where to write it is not said", fix="name the file: -o part.onnx")
    path = Path(args.output)
    if any(path.resolve() == Path(source).resolve() for source in sources):
        raise UserError(f"{args.output} is read, so it is not written", fix="name another file with -o")
    return path


def finish(piece: Piece, path: Path, sources: Sequence[str], args: argparse.Namespace, schema: str) -> int:
    """Write the model if it is right, and report it; returns the exit code."""
    from graphopt import summary
    from graphopt.cli.terminal import reader_may_leave
    from graphopt.graph.text import type_text
    from graphopt.report.document import to_json

    proof, model = piece.proof, piece.model
    bad = proof is not None and proof.verdict == "failed"
    unproven = proof is None or proof.verdict != "proven"
    output = None
    if not bad and not (args.strict and unproven):
        saved = model.save(path, external_data=args.external_data)
        output = summary.file_info(saved.model, saved.data)
    graph = model.graph
    report = PieceReport(
        tuple(map(str, sources)),
        output,
        len(graph.nodes),
        tuple(f"{t.name} {type_text(t)}" for t in graph.inputs if t not in graph.defaults),
        tuple(f"{t.name} {type_text(t)}" for t in graph.outputs),
        piece.notes,
        proof,
    )
    with reader_may_leave():
        if args.json:
            sys.stdout.write(to_json(report, schema) + "\n")
        elif not args.quiet:
            _show(report, piece, args)
    return FAILED if output is None else 0


def _show(report: PieceReport, piece: Piece, args: argparse.Namespace) -> None:
    from graphopt import summary
    from graphopt.cli.terminal import console
    from graphopt.graph.text import dims_text
    from graphopt.report import console as render
    from graphopt.report.text import clean, plural, size

    out = console()
    proof = report.proof
    if proof is None:
        render.verdict("not verified", "the result was not run (--no-verify)", out)
    else:
        render.verdict(proof.verdict, proof.reason or "it computes what it did where it comes from", out)
    for kind, ports in (("input", report.takes), ("output", report.gives)):
        for port in ports:
            out.print(f"  {kind} {clean(port)}", markup=False, highlight=False, soft_wrap=True)
    if proof is not None:
        declared = {t.name: dims_text(t) for t in piece.model.graph.outputs}
        rows = summary.output_rows(proof, declared)
        render.outputs(rows, proof.probes, out, verbose=args.verbose, said=proof.reason)
        for warning in proof.warnings:
            render.line(out, "warning", clean(warning), "yellow")
    for note in report.notes:
        render.line(out, "note", clean(note), "yellow")
    out.print()
    if report.output is None:
        out.print("nothing was written")
        return
    text = (
        f"written: {clean(report.output.path)} ({plural(report.nodes, 'node')}, {size(report.output.bytes)})"
    )
    out.print(text, markup=False, highlight=False, soft_wrap=True)
    for file in report.output.data_files:
        out.print(f"  external data: {clean(file)}", markup=False, highlight=False, soft_wrap=True)
