"""Optimize a model, prove the result, and write it.

Runs the passes over MODEL, compares the result with MODEL on ONNX Runtime, and writes it only if it is
right: a rewrite that is wrong is rolled back and named, and the rest is kept.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graphopt.cli import arguments
from graphopt.errors import UserError

if TYPE_CHECKING:
    from graphopt.api import Result, Tell
    from graphopt.pipeline.spec import Spec
    from graphopt.report.document import RunReport

VERB = "run"
#: The exit code with which nothing is written: the result is wrong, or --strict and it is not proven.
UNPROVEN = 1

#: What --verify takes.
VERIFY = ("final", "each", "off")
_SUFFIXES = (".onnx", ".pb")
#: Options that a --config file may set, by their names on the command line.
_SETTINGS = ("target", "verify", "keep", "providers", "data", "memory-limit", "timeout", "strict")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    arguments.add_model(parser)
    passes = parser.add_argument_group("what is done")
    action = passes.add_argument(
        "--passes",
        metavar="LIST",
        nargs="?",
        const="default",
        action="append",
        help="passes, presets and pipeline strings, comma separated; repeatable; without LIST (or without "
        "the option) the target's default pipeline; none only loads and saves",
    )
    action.complete = arguments.PASSES  # type: ignore[attr-defined]
    config = passes.add_argument("--config", metavar="TOML", help="a pipeline file")
    config.complete = arguments.FILE  # type: ignore[attr-defined]
    recipe = passes.add_argument(
        "--recipe",
        metavar="NAME",
        help="instead of passes: stages of passes with a gate after each, a .toml file or the name of an "
        "installed recipe (`graphopt passes` lists them)",
    )
    recipe.complete = arguments.FILE  # type: ignore[attr-defined]
    passes.add_argument(
        "--target",
        metavar="NAME",
        help="who runs the result: portable (default), ort-cpu, ort-cuda, tensorrt",
    ).complete = arguments.TARGETS  # type: ignore[attr-defined]
    passes.add_argument(
        "--keep",
        metavar="GLOB",
        action="append",
        help="leave nodes and tensors of this name alone; repeatable",
    )
    where = parser.add_argument_group("where it is written")
    output = where.add_argument(
        "-o", "--output", metavar="FILE", help="default: MODEL.opt.onnx beside the input"
    )
    output.complete = arguments.FILE  # type: ignore[attr-defined]
    where.add_argument("--in-place", action="store_true", help="overwrite MODEL")
    where.add_argument(
        "--external-data",
        action=argparse.BooleanOptionalAction,
        help="weights in a file beside the model (default: as in the input, and from 2 GiB on)",
    )
    where.add_argument(
        "--repro-dir",
        metavar="DIR",
        help="where reproducers of wrong rewrites are written (default: OUTPUT.repro beside the output)",
    ).complete = arguments.FOLDER  # type: ignore[attr-defined]
    proof = parser.add_argument_group("how it is proven")
    proof.add_argument(
        "--verify",
        metavar="WHEN",
        help=f"{', '.join(VERIFY)}: compare at the end (default), after each pass, never",
    ).complete = arguments.VERIFY  # type: ignore[attr-defined]
    proof.add_argument(
        "--strict",
        action="store_true",
        default=None,
        help="write nothing and exit 1 unless the result is proven",
    )
    proof.add_argument(
        "--check",
        metavar="COMMAND",
        help="a command that must call the result right, too, as in 'python check.py {model}'",
    )
    proof.add_argument("--timeout", metavar="TIME", help="give up after this long, as in 90s, 10min")
    proof.add_argument("--memory-limit", metavar="SIZE", help="stay below this, as in 8GB")
    arguments.add_trust(parser)
    arguments.add_inputs(parser)
    arguments.add_budget(parser)
    ranges = parser.add_argument(
        "--ranges", metavar="JSON", help="activation ranges from `graphopt calibrate`, instead of measuring"
    )
    ranges.complete = arguments.FILE  # type: ignore[attr-defined]
    arguments.add_output_style(parser)
    arguments.add_html(parser)
    parser.add_argument(
        "--explain", action="store_true", help="list the rewrites that nearly happened, and why not"
    )


def execute(args: argparse.Namespace) -> int:
    """Run the verb; returns the exit code."""
    steps, settings = _config(args)
    source = Path(args.model)
    output = _output_path(args, source)
    arguments.check_html(args)
    options = _run_options(args, settings)
    chosen = args.passes if args.passes is not None else steps
    if args.recipe is not None and chosen is not None:
        other = "--passes" if args.passes is not None else f"the passes in {args.config}"
        raise UserError(f"--recipe and {other} exclude each other", fix="put the passes into the recipe")

    from graphopt import api
    from graphopt.cli.terminal import progress, reader_may_leave

    with progress(quiet=args.quiet, verbose=args.verbose) as tell:
        result = api.run(
            source,
            chosen,
            recipe=args.recipe,
            trust_external_paths=args.trust_external_paths,
            repro_dir=args.repro_dir or output.parent / f"{output.stem}.repro",
            progress=tell,
            **options,
        )
        code = result.report.exit_code(strict=bool(settings.get("strict")))
        # Before anything is written: the output may take the input's place.
        shown = _shown(args, settings, result, tell) if args.html else {}
        anyway = args.write_anyway and result.report.verdict == "over budget"
        if code != UNPROVEN or anyway:
            tell("save", str(output))
            result.save(output, external_data=args.external_data, over_budget=anyway)
    if args.html:
        from graphopt import pages

        pages.write(args.html, pages.html(result.report, **shown))
    with reader_may_leave():
        _print(result.report, args)
    return code


def _shown(
    args: argparse.Namespace, settings: Mapping[str, Any], result: Result, tell: Tell
) -> dict[str, Any]:
    """What the page shows beyond the report: both models drawn, their tensors compared, what is quantized."""
    from graphopt import api, evidence
    from graphopt.pipeline.recipe import load_recipe
    from graphopt.viewing import view

    data, report = settings.get("data"), result.report
    if data is None and args.recipe is not None:
        data = load_recipe(args.recipe).own_data()
    original = api.load(Path(args.model), trust_external_paths=args.trust_external_paths)
    tell("draw", args.model)
    shown: dict[str, Any] = {"graph": view(result.model, original, result.removed_by)}
    if report.verdict in ("not verified", "unproven"):
        shown["layers_note"] = f"not compared, since the result is {report.verdict}"
    else:
        shown["layers"], shown["layers_note"] = evidence.layers(
            original,
            result.model,
            data=data,
            input_shapes=arguments.input_shapes(args.input_shape),
            lossy=report.accuracy is not None,
            tell=tell,
        )
    if data is not None:
        found = evidence.quantized_values(result.model, original, data, tell=tell)
        shown["calibration"], shown["calibration_note"] = found
    return shown


def _config(args: argparse.Namespace) -> tuple[tuple[Spec, ...] | None, dict[str, Any]]:
    """The pipeline file's steps, and the settings: the command line's, else the file's."""
    from graphopt.pipeline.spec import read_pipeline_file

    steps, settings = None, {}
    if args.config:
        file = read_pipeline_file(args.config, settings=_SETTINGS)
        steps = file.steps
        settings = {key: _checked(key, value, args.config) for key, value in file.settings.items()}
    for key in _SETTINGS:
        value = getattr(args, key.replace("-", "_"))
        if value is not None:
            settings[key] = value
    return steps, settings


def _checked(key: str, value: object, where: str) -> object:
    """A setting of a pipeline file, of the type that the command line would give it."""
    if key == "strict":
        if not isinstance(value, bool):
            raise UserError("`strict` is true or false", where=where)
        return value
    if key in ("keep", "providers") and isinstance(value, list) and all(isinstance(v, str) for v in value):
        return value if key == "keep" else ",".join(value)
    if key in ("timeout", "memory-limit") and isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        raise UserError(f"`{key}` is text", where=where)
    return [value] if key == "keep" else value


def _run_options(args: argparse.Namespace, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The keyword arguments of `graphopt.run`."""
    options: dict[str, Any] = {
        "target": settings.get("target"),
        "verify": arguments.choice(settings.get("verify", "final"), VERIFY, "--verify"),
        "keep": tuple(settings.get("keep", ())),
        "providers": arguments.comma_list(settings.get("providers", "cpu")),
        "input_shapes": arguments.input_shapes(args.input_shape) or None,
        "data": settings.get("data"),
        "budget": arguments.budget(args),
        "metric": args.metric,
        "ranges": args.ranges,
        "check": args.check,
    }
    if "timeout" in settings:
        options["timeout"] = arguments.duration(settings["timeout"])
    if "memory-limit" in settings:
        options["memory_limit"] = arguments.byte_size(settings["memory-limit"])
    return options


def _output_path(args: argparse.Namespace, source: Path) -> Path:
    """Where the result goes; everything that can be wrong with it is said before any work is done."""
    if args.in_place and args.output:
        raise UserError("-o and --in-place exclude each other")
    if args.in_place:
        output = source
    elif args.output:
        output = Path(args.output)
    else:
        output = source.with_name(f"{source.stem}.opt.onnx")
    return checked_output(output, source, in_place=args.in_place)


def checked_output(output: Path, source: Path, *, in_place: bool = False) -> Path:
    """`output`, where a model can be written. Raises UserError if not.

    Args:
        output: the file.
        source: the input, which it must not be unless `in_place`.
        in_place: the user asked for that.
    """
    where = str(output)
    if output.is_dir():
        raise UserError("the output is a folder", where=where, fix="give a file name, as in: -o out.onnx")
    if not in_place and output.suffix.lower() not in _SUFFIXES:
        extension = (
            f"the output's extension is {output.suffix!r}" if output.suffix else "the output has no extension"
        )
        raise UserError(
            f"{extension}, and it will be an ONNX file",
            where=where,
            fix=f"call it {output.with_suffix('.onnx').name}",
        )
    if not in_place and output.exists() and source.exists() and output.samefile(source):
        raise UserError("the output is the input", where=where, fix="say --in-place if that is what you want")
    folder = output.resolve().parent
    if not folder.is_dir():
        raise UserError(
            "the output's folder does not exist", where=where, fix=f"create it: mkdir -p {folder}"
        )
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UserError("the output's folder is not writable", where=where, fix="choose another with -o")
    return output


def _print(report: RunReport, args: argparse.Namespace) -> None:
    import sys

    if args.json:
        sys.stdout.write(report.to_json() + "\n")
        return
    from graphopt.cli.terminal import console
    from graphopt.report.console import render

    if not args.quiet:
        render(report, console(), explain=args.explain, verbose=args.verbose)
    elif report.verdict in ("failed", "rolled back", "over budget"):
        render(replace(report, passes=(), outputs=()), console(sys.stderr))
