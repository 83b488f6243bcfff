"""Measure the ranges of a model's activations, look at them, or merge them.

Writes a JSON file for `graphopt run --passes int8 --ranges FILE`. The range of a tensor in it (low, high) can
be edited by hand.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from graphopt.cli import arguments
from graphopt.errors import UserError

if TYPE_CHECKING:
    from graphopt.calibration.histogram import Histogram
    from graphopt.calibration.ranges import RangeBook
    from graphopt.pipeline.registry import Registry, Step

VERB = "calibrate"

_PRESET = "int8"
_QUANTIZES = "insert-qdq"
_SPARKS = "▁▂▃▄▅▆▇█"
_WIDTH = 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    model = parser.add_argument("model", metavar="MODEL", nargs="?", help="an ONNX file")
    model.complete = arguments.FILE  # type: ignore[attr-defined]
    data = parser.add_argument(
        "--data",
        metavar="DATA",
        help="typical inputs: .npz, .npy, .jsonl, a folder of those, a .toml that describes images, or "
        "module:function",
    )
    data.complete = arguments.FILE  # type: ignore[attr-defined]
    output = parser.add_argument("-o", "--output", metavar="FILE", help="default: MODEL.ranges.json")
    output.complete = arguments.FILE  # type: ignore[attr-defined]
    how = parser.add_argument_group("how ranges are chosen")
    how.add_argument(
        "--method", metavar="HOW", default="minmax", help="minmax (default), percentile, entropy, mse"
    )
    how.add_argument(
        "--type", metavar="TYPE", default="uint8", help="integer type of activations (default: uint8)"
    )
    how.add_argument("--symmetric", action="store_true", help="activations without a zero point")
    how.add_argument(
        "--percentile", type=float, metavar="P", default=99.99, help="of method percentile (99.99)"
    )
    how.add_argument("--bins", type=int, metavar="N", default=2048, help="bins of the histograms (2048)")
    how.add_argument("--per-channel", action="store_true", help="measure extremes along axis 1 as well")
    what = parser.add_argument_group("what is measured")
    passes = what.add_argument(
        "--passes",
        metavar="LIST",
        action="append",
        help="passes to run first (default: those that the preset int8 runs before it quantizes)",
    )
    passes.complete = arguments.PASSES  # type: ignore[attr-defined]
    target = what.add_argument(
        "--target", metavar="NAME", default="portable", help="who will run the result (default: portable)"
    )
    target.complete = arguments.TARGETS  # type: ignore[attr-defined]
    what.add_argument(
        "--hold-back",
        action="store_true",
        help="leave out every 8th sample, by which `graphopt run` judges its result",
    )
    arguments.add_trust(parser)
    files = parser.add_argument_group("files that are there")
    shown = files.add_argument("--show", metavar="FILE", help="print a file of ranges")
    shown.complete = arguments.FILE  # type: ignore[attr-defined]
    merge = files.add_argument(
        "--merge", metavar="FILE", nargs="+", help="make one file of several, as if all data had been one"
    )
    merge.complete = arguments.FILE  # type: ignore[attr-defined]
    style = parser.add_argument_group("what is printed")
    arguments.add_html(style)
    style.add_argument("-q", "--quiet", action="store_true", help="errors only")
    style.add_argument("-v", "--verbose", action="store_true", help="all tensors, all methods")


def execute(args: argparse.Namespace) -> int:
    """Run the verb; returns the exit code."""
    if sum(map(bool, (args.show, args.merge, args.model))) != 1:
        raise UserError(
            "say what to do: measure a MODEL, --show a file, or --merge files",
            fix="as in: graphopt calibrate model.onnx --data calib.npz -o ranges.json",
        )
    arguments.check_html(args)
    from graphopt.calibration.ranges import RangeBook
    from graphopt.cli.terminal import reader_may_leave

    if args.show:
        book = RangeBook.load(args.show)
        _page(book, args)
        with reader_may_leave():
            _show(book, verbose=args.verbose)
        return 0
    if args.merge:
        if not args.output:
            raise UserError("--merge needs a file to write", fix="name it with -o")
        book, *others = [RangeBook.load(path) for path in args.merge]
        for other in others:
            book = book.merge(other)
        output = Path(args.output)
    else:
        output = Path(args.output or Path(args.model).with_suffix(".ranges.json"))
        book = _measure(args)
    book.save(output)
    _page(replace(book, path=str(output)), args)
    if not args.quiet:
        with reader_may_leave():
            _say(book, output, verbose=args.verbose)
    return 0


def _page(book: RangeBook, args: argparse.Namespace) -> None:
    if args.html:
        from graphopt import pages

        pages.write(args.html, pages.calibration_html(book))


def _measure(args: argparse.Namespace) -> RangeBook:
    from graphopt.calibration.observers import METHODS
    from graphopt.quantization.grid import QUANT_TYPES

    arguments.choice(args.method, METHODS, "--method")
    arguments.choice(args.type, [*QUANT_TYPES], "--type")
    if not args.data:
        raise UserError("there is nothing to measure on", fix="hand in typical inputs: --data calib.npz")
    if not 0 < args.percentile <= 100:
        raise UserError(f"a percentile is above 0 and at most 100, not {args.percentile:g}")
    if not 2 <= args.bins <= 1 << 20:
        raise UserError(f"histograms have 2 to 1048576 bins, not {args.bins}")

    from graphopt import api
    from graphopt.calibration.data import open_dataset, ports_of
    from graphopt.calibration.ranges import Choice
    from graphopt.calibration.service import CalibrationService
    from graphopt.cli.terminal import progress
    from graphopt.pipeline.registry import installed
    from graphopt.pipeline.targets import get_target

    get_target(args.target)
    choice = Choice(args.method, args.type, args.symmetric, args.percentile)
    with progress(quiet=args.quiet, verbose=args.verbose) as tell:
        tell("load", args.model)
        model = api.load(Path(args.model), trust_external_paths=args.trust_external_paths)
        skeleton = model.skeleton()
        dataset = open_dataset(args.data, *ports_of(skeleton), model=skeleton)
        registry = installed()
        default = registry.preset(f"default-{args.target}")
        if args.passes is not None:
            steps = registry.resolve(args.passes, default=default, target=args.target)
        else:
            steps = _before_quantizing(registry, default, args.target, model.opset_imports.get("", 0))
        if steps:
            model = api.run(
                model, steps, target=args.target, verify="off", data=args.data, progress=tell
            ).model
        service = CalibrationService(
            dataset,
            # One sample at a time: what a kernel computes for a sample may depend on its neighbours in
            # the last bit, and files that are merged are to equal one run over all data.
            max_batch=1,
            tell=tell,
            part="calibration" if args.hold_back else "all",
        )
        passes = registry.format(steps)
        return service.ranges(model, choice, passes=passes, bins=args.bins, per_channel=args.per_channel)


def _before_quantizing(registry: Registry, default: str, target: str, opset: int) -> tuple[Step, ...]:
    """The passes of the preset that come before the one that reads the ranges, on a model of this opset."""
    from graphopt.pipeline.manager import flatten
    from graphopt.pipeline.spec import PassSpec, parse_pipeline

    specs = parse_pipeline(registry.preset(_PRESET))
    at = next((i for i, s in enumerate(specs) if isinstance(s, PassSpec) and s.name == _QUANTIZES), None)
    if at is None:
        raise UserError(f"the preset {_PRESET} here has no {_QUANTIZES}", fix="say what to run with --passes")
    needs = flatten(registry.resolve([specs[at]]))[0].least_opset()
    room = registry.resolve(f"raise-opset{{least={needs}}}") if opset < needs else ()
    return (*room, *registry.resolve(specs[:at], default=default, target=target))


def _say(book: RangeBook, output: Path, *, verbose: bool) -> None:
    from graphopt.cli.terminal import console
    from graphopt.report.text import clean, plural

    out = console()
    what = f"{plural(len(book.tensors), 'tensor')}, {plural(book.samples, 'sample')}"
    out.print(f"wrote {clean(str(output))}: {what}, {book.choice.method}")
    if verbose:
        _show(book, verbose=True)
    else:
        out.print(f"  look at it: graphopt calibrate --show {clean(str(output))}", style="dim")


def _show(book: RangeBook, *, verbose: bool) -> None:
    from graphopt.calibration.observers import METHODS
    from graphopt.cli.terminal import console
    from graphopt.report.console import show, table
    from graphopt.report.text import clean, plural

    out = console()
    choice = book.choice
    sign = "symmetric" if choice.symmetric else "asymmetric"
    out.print(
        f"{plural(len(book.tensors), 'tensor')}, {plural(book.samples, 'sample')}; "
        f"ranges by {choice.method} for {choice.type}, {sign}"
    )
    if verbose:
        out.print(f"after: {clean(book.passes)}", soft_wrap=True)
    more = METHODS if verbose else ()
    rows = table("tensor", "type", "min", "max", "range", "values", *more, numbers=(2, 3))
    for name, tensor in book.tensors.items():
        histogram = tensor.histogram
        chosen = tensor.methods[choice.method]
        edited = "" if (tensor.low, tensor.high) == tuple(chosen) else " (edited)"
        rows.add_row(
            clean(name),
            tensor.dtype,
            f"{histogram.low[0]:.4g}",
            f"{histogram.high[0]:.4g}",
            f"{tensor.low:.4g} .. {tensor.high:.4g}{edited}",
            sparkline(histogram),
            *(f"{tensor.methods[m][0]:.4g} .. {tensor.methods[m][1]:.4g}" for m in more),
        )
    show(out, rows)


def sparkline(histogram: Histogram) -> str:
    """The distribution of all values, zeros included, as a row of bars whose height is the logarithm."""
    import numpy as np

    used, first = histogram.used(), int(histogram.first[0])
    counts = histogram.counts[0, :used].astype(np.float64)
    if 0 <= -first < used:
        counts[-first] += histogram.zeros[0]
    cells = np.bincount(np.arange(used) * _WIDTH // used, weights=counts, minlength=min(used, _WIDTH))
    heights = np.log1p(cells) / np.log1p(cells.max())
    marks = np.ceil(heights * len(_SPARKS)).astype(int)
    return "".join(_SPARKS[m - 1] if m else " " for m in marks)
