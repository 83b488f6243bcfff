"""Arguments that several verbs share, and the types of their values."""

from __future__ import annotations

import argparse
import contextlib
import math
import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from graphopt.errors import UserError

if TYPE_CHECKING:
    from graphopt.budget import Budget
    from graphopt.runtime.providers import ProviderSettings

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)b?", re.IGNORECASE)
_TIME = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|m|min|h|)", re.IGNORECASE)
_SECONDS = {"ms": 1e-3, "": 1, "s": 1, "m": 60, "min": 60, "h": 3600}


def add_model(parser: argparse.ArgumentParser, name: str = "MODEL", what: str = "an ONNX file") -> None:
    """A positional model file."""
    action = parser.add_argument(name.lower(), metavar=name, help=what)
    action.complete = FILE  # type: ignore[attr-defined]


def add_trust(parser: argparse.ArgumentParser) -> None:
    """`--trust-external-paths`."""
    parser.add_argument(
        "--trust-external-paths",
        action="store_true",
        help="follow external data out of the model's folder (default: refuse)",
    )


def add_inputs(parser: argparse.ArgumentParser) -> None:
    """What models are run on: `--data`, `--input-shape`, `--providers`."""
    group = parser.add_argument_group("inputs and runtimes")
    add_input_shape(group)
    add_data(group, "real", " (default: synthesized)")
    group.add_argument(
        "--providers",
        metavar="LIST",
        default="cpu",
        help="runtimes to compare under, comma separated: cpu, cuda, tensorrt, ... (default: cpu)",
    ).complete = PROVIDERS  # type: ignore[attr-defined]
    _add_provider_options(group, "off by default, so that it hides nothing")


def add_provider(parser: argparse.ArgumentParser) -> None:
    """`--provider`, and what it is opened with."""
    group = parser.add_argument_group("execution provider")
    group.add_argument(
        "--provider", metavar="NAME", default="cpu", help="cpu (default), cuda, tensorrt, ..."
    ).complete = PROVIDERS  # type: ignore[attr-defined]
    _add_provider_options(group, "on by default where the GPU can")


def _add_provider_options(group: argparse._ActionsContainer, tf32: str) -> None:
    group.add_argument(
        "--provider-option",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        help="an option by onnxruntime's name, as in device_id=1; repeatable",
    )
    group.add_argument(
        "--tf32", metavar="ON", help=f"on, off: round float32 to TF32 in products on the GPU ({tf32})"
    )
    group.add_argument("--gpu-memory-limit", metavar="SIZE", help="most memory of the GPU's arena, as in 2GB")


@contextlib.contextmanager
def provider_options(args: argparse.Namespace) -> Iterator[None]:
    """Open all sessions of a command as its options say; without such options nothing is changed."""
    given = [getattr(args, name, None) for name in ("provider_option", "tf32", "gpu_memory_limit")]
    if not any(given):
        yield
        return
    from graphopt.runtime.providers import using

    with using(provider_settings(args, compares_numbers=True)):
        yield


def provider_settings(args: argparse.Namespace, *, compares_numbers: bool = False) -> ProviderSettings:
    """What the options for providers ask for.

    Args:
        args: the parsed arguments.
        compares_numbers: TF32 is off unless asked for, so that it does not hide what is wrong.

    Raises:
        UserError: an option is malformed, given twice, or makes no sense.
    """
    from graphopt.runtime.providers import parse_settings

    pairs: dict[str, str] = {}
    for text in args.provider_option:
        key, equals, value = text.partition("=")
        if not equals or not key or not value:
            raise UserError(f"--provider-option {text!r} is not KEY=VALUE", fix="as in: device_id=1")
        if key in pairs:
            raise UserError(f"--provider-option gives {key} twice")
        pairs[key] = value
    tf32 = None if args.tf32 is None else choice(args.tf32, ("on", "off"), "--tf32") == "on"
    limit = None if args.gpu_memory_limit is None else byte_size(args.gpu_memory_limit)
    if compares_numbers and tf32 is None and "use_tf32" not in pairs:
        tf32 = False
    return parse_settings(pairs, tf32=tf32, memory_limit=limit)


def add_data(parser: argparse._ActionsContainer, kind: str, otherwise: str = "") -> None:
    """`--data`; `kind` says which inputs, `otherwise` what happens without it."""
    data = parser.add_argument(
        "--data",
        metavar="DATA",
        help=f"{kind} inputs: .npz, .npy, .jsonl, a folder of those, a .toml that describes images, or "
        f"module:function{otherwise}",
    )
    data.complete = FILE  # type: ignore[attr-defined]


def add_input_shape(parser: argparse._ActionsContainer) -> None:
    """`--input-shape`."""
    parser.add_argument(
        "--input-shape",
        metavar="NAME:DIMS",
        action="append",
        default=[],
        help="shape of a dynamic input, as in image:1,3,224,224; repeatable",
    )


def add_budget(parser: argparse.ArgumentParser) -> None:
    """What a result that moves the numbers has to keep."""
    group = parser.add_argument_group(
        "what must be kept by passes that move the numbers",
        "Measured on a held-back part of --data. Presets ask by themselves for a cosine of 0.99 and 15 dB.",
    )
    group.add_argument("--min-cosine", type=float, metavar="X", help="least cosine similarity per output")
    group.add_argument("--min-sqnr", type=float, metavar="DB", help="least signal-to-noise ratio per output")
    group.add_argument(
        "--metric",
        metavar="FUNCTION",
        help="task metric, as module:function or ./file.py:function; called with an iterable of (sample, "
        "outputs), returns a number, or numbers by name; higher is better",
    )
    group.add_argument(
        "--max-drop",
        metavar="NAME=X",
        action="append",
        default=[],
        help="how far a task metric may fall, as in accuracy=0.2; repeatable",
    )
    group.add_argument(
        "--max-latency-ratio", type=float, metavar="X", help="most latency, in units of the original's"
    )
    group.add_argument(
        "--write-anyway", action="store_true", help="write the result even if it does not keep all this"
    )


def budget(args: argparse.Namespace) -> Budget | None:
    """The budget that `add_budget`'s options ask for; None when they ask for nothing.

    Raises:
        UserError: a value makes no sense.
    """
    from graphopt.budget import Budget

    allowed = drops(args.max_drop)
    if allowed and not args.metric and not getattr(args, "recipe", None):  # which may name one
        raise UserError("--max-drop needs a metric", fix="name the function that computes it: --metric")
    for option, value, least, most in (
        ("--min-cosine", args.min_cosine, -1.0, 1.0),
        ("--min-sqnr", args.min_sqnr, -math.inf, math.inf),
        ("--max-latency-ratio", args.max_latency_ratio, 0.0, math.inf),
    ):
        if value is not None and not least <= value <= most:
            raise UserError(f"{option} cannot be {value:g}", fix=f"it lies between {least:g} and {most:g}")
    given = (args.min_cosine, args.min_sqnr, args.max_latency_ratio)
    if not allowed and given == (None, None, None):
        return None
    return Budget(args.min_cosine, args.min_sqnr, allowed, args.max_latency_ratio)


def drops(values: Sequence[str]) -> dict[str, float]:
    """`["accuracy=0.2"]` as `{"accuracy": 0.2}`.

    Raises:
        UserError: a value is not of that form.
    """
    found: dict[str, float] = {}
    for text in values:
        name, equals, value = text.rpartition("=")
        try:
            found[name] = float(value)
        except ValueError:
            equals = ""
        if not equals or not name or not found[name] >= 0:
            raise UserError(f"--max-drop {text!r} is not NAME=X", fix="as in: accuracy=0.2")
    return found


def pairs(values: Sequence[str], option: str, fix: str) -> dict[str, str]:
    """`["a=b"]` as `{"a": "b"}`.

    Raises:
        UserError: a value is not of that form, or names one thing twice.
    """
    found: dict[str, str] = {}
    for text in values:
        left, equals, right = text.partition("=")
        if not equals or not left or not right:
            raise UserError(f"{option} {text!r} does not name two things", fix=fix)
        if left in found:
            raise UserError(f"{option} names {left!r} twice", fix=fix)
        found[left] = right
    return found


def add_output_style(parser: argparse.ArgumentParser) -> None:
    """`--json`, `--quiet`, `-v`."""
    group = parser.add_argument_group("what is printed")
    group.add_argument("--json", action="store_true", help="the report as JSON, and nothing else, on stdout")
    group.add_argument("-q", "--quiet", action="store_true", help="errors only")
    group.add_argument("-v", "--verbose", action="store_true", help="leave nothing out")


def add_html(parser: argparse._ActionsContainer) -> None:
    """`--html`."""
    parser.add_argument(
        "--html", metavar="FILE", help="write the report as a page too: one file that needs no network"
    ).complete = FILE  # type: ignore[attr-defined]


def check_html(args: argparse.Namespace) -> None:
    """See before any work is done that the page of `--html` can be written.

    Raises:
        UserError: it cannot.
    """
    if args.html:
        from graphopt.pages import check_path

        check_path(args.html)


#: How shells complete values (read by shtab; the functions are in cli/completion.py).
FILE = {"bash": "_shtab_compgen_files", "zsh": "_files", "tcsh": "f"}
FOLDER = {"bash": "_shtab_compgen_dirs", "zsh": "_files -/", "tcsh": "d"}
PASS = {"bash": "_graphopt_pass", "zsh": "_graphopt_pass"}
PASSES = {"bash": "_graphopt_passes", "zsh": "_graphopt_passes"}
TARGETS = {"bash": "_graphopt_targets", "zsh": "_graphopt_targets"}
VERIFY = {"bash": "_graphopt_verify", "zsh": "_graphopt_verify"}
PRESETS = {"bash": "_graphopt_presets", "zsh": "_graphopt_presets"}
SCHEMAS = {"bash": "_graphopt_schemas", "zsh": "_graphopt_schemas"}
PROVIDERS = {"bash": "_graphopt_providers", "zsh": "_graphopt_providers"}


def input_shapes(values: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """`["image:1,3,224,224"]` as `{"image": (1, 3, 224, 224)}`; a scalar is `name:`.

    Raises:
        UserError: a value is not of that form, or names an input twice.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for value in values:
        name, colon, dims = value.rpartition(":")  # names may hold colons, dims do not
        words = [word for word in re.split(r"[,x\s]+", dims) if word]
        if not colon or not name or not all(word.isdigit() for word in words):
            raise UserError(f"--input-shape {value!r} is not NAME:DIMS", fix="as in: image:1,3,224,224")
        if any(int(word) == 0 for word in words):
            raise UserError(f"--input-shape {value!r} has a dim of 0", fix="a dim is at least 1")
        if name in shapes:
            raise UserError(f"--input-shape names the input {name!r} twice")
        shapes[name] = tuple(map(int, words))
    return shapes


def several_shapes(values: Sequence[str]) -> list[dict[str, tuple[int, ...]]]:
    """The same where an input may be named several times: one dict for each of its shapes.

    Inputs that are named once have that shape in all of them.

    Raises:
        UserError: as for `input_shapes`, or several inputs have several shapes, but not equally many.
    """
    by_name: dict[str, list[tuple[int, ...]]] = {}
    for value in values:
        for name, dims in input_shapes([value]).items():
            by_name.setdefault(name, []).append(dims)
    counts = {name: len(shapes) for name, shapes in by_name.items()}
    most = max(counts.values(), default=0)
    for name, n in counts.items():
        if n not in (1, most):
            raise UserError(
                f"--input-shape gives {n} shapes for {name!r} and {most} for another input",
                fix="the first ones are run together, then the second: give equally many, or one for all",
            )
    return [
        {name: shapes[i if len(shapes) > 1 else 0] for name, shapes in by_name.items()} for i in range(most)
    ]


def comma_list(value: str) -> tuple[str, ...]:
    """`"cpu, cuda"` as `("cpu", "cuda")`."""
    return tuple(word for word in re.split(r"[,\s]+", value) if word)


def byte_size(value: str) -> int:
    """`"8GB"`, `"512MiB"`, `"4096"` as a number of bytes; GB counts in thousands, GiB in 1024s.

    Raises:
        UserError: it is not a size.
    """
    match = _SIZE.fullmatch(value.strip())
    if not match:
        raise UserError(f"{value!r} is not a size", fix="as in: 8GB, 512MiB")
    number, unit, binary = match.groups()
    power = " kmgt".index(unit.lower() or " ")
    return int(float(number) * (1024 if binary else 1000) ** power)


def duration(value: str) -> float:
    """`"90"`, `"90s"`, `"10min"`, `"1h"`: seconds.

    Raises:
        UserError: it is not a duration.
    """
    match = _TIME.fullmatch(value.strip())
    if not match:
        raise UserError(f"{value!r} is not a duration", fix="as in: 90s, 10min, 1h")
    return float(match[1]) * _SECONDS[match[2].lower()]


def choice(value: str, allowed: Sequence[str], option: str) -> str:
    """`value`, which is one of `allowed`.

    Raises:
        UserError: it is not.
    """
    if value not in allowed:
        raise UserError(f"{option} cannot be {value!r}", fix=f"one of: {', '.join(allowed)}")
    return value
