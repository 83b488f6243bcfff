"""A data TOML file: which images, and how they become a model's input."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from graphopt.errors import UserError

RESIZE = ("exact", "shorter", "letterbox", "none")
INTERPOLATION = ("nearest", "box", "bilinear", "hamming", "bicubic", "lanczos")
CHANNELS = {"rgb": 3, "bgr": 3, "gray": 1}
LAYOUTS = ("NCHW", "NHWC")
_DTYPES = ("float32", "float16", "float64", "uint8", "int8", "int32")


@dataclass(frozen=True)
class Description:
    """How images become a model's input: `(crop(resize(image)) * scale - mean) / std`.

    Attributes:
        source: folders (searched with their subfolders), files or globs, relative to the TOML file.
        input: the model's input; "" for the only one.
        resize: "exact" to height and width as given; "shorter": the shorter side, keeping proportions;
            "letterbox": to fit into height and width, the rest filled with `pad`; "none".
        size: height and width to resize to (of "shorter": the length of that side, twice).
        crop: height and width of the centre that is kept; None for all of it.
        pad: what "letterbox" fills with, before `scale`.
        interpolation: as in Pillow, smoothing when it makes smaller.
        channels: "rgb", "bgr" or "gray".
        scale, mean, std: a number, or one per channel, in the order of `channels`.
        layout: "NCHW" or "NHWC".
        dtype: of the input.
        labels: the name under which the place of an image's folder among its sorted neighbours is handed
            to metrics; "" for no labels.
    """

    source: tuple[str, ...]
    input: str = ""
    resize: str = "exact"
    size: tuple[int, int] | None = None
    crop: tuple[int, int] | None = None
    pad: int = 0
    interpolation: str = "bilinear"
    channels: str = "rgb"
    scale: tuple[float, ...] = (1 / 255,)
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    layout: str = "NCHW"
    dtype: str = "float32"
    labels: str = ""


def read_description(path: Path) -> Description:
    """Read a data TOML file.

    Raises:
        UserError: it is no TOML, or a key is unknown, missing, or has no sensible value.
    """
    try:
        given = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as e:
        raise UserError(f"not readable as TOML: {e}", where=str(path)) from e
    known = [f.name for f in fields(Description)]
    for key in given:
        if key not in known:
            close = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
            raise UserError(
                f"unknown key {key!r}",
                where=str(path),
                fix=f"did you mean {close[0]!r}?" if close else f"there are: {', '.join(known)}",
            )
    values: dict[str, Any] = {}
    for key, value in given.items():
        try:
            values[key] = _READ[key](value)
        except (TypeError, ValueError, ZeroDivisionError) as e:
            raise UserError(f"key {key!r} cannot be {value!r}: {e}", where=str(path)) from e
    if not values.get("source"):
        raise UserError("key 'source' is missing", where=str(path), fix='as in: source = "photos"')
    if "scale" not in values and np.dtype(values.get("dtype", "float32")).kind in "iu":
        values["scale"] = (1.0,)
    description = Description(**values)
    _check(description, path)
    return description


def _check(d: Description, path: Path) -> None:
    if (d.resize != "none") != (d.size is not None):
        what = "key 'size' is missing" if d.size is None else "key 'size' has no use with resize = \"none\""
        raise UserError(what, where=str(path), fix="as in: size = [224, 224], which is height and width")
    if d.resize == "shorter" and d.size and d.size[0] != d.size[1]:
        raise UserError("key 'size' is one number when resize = \"shorter\"", where=str(path))
    if d.crop and d.size and any(c > s for c, s in zip(d.crop, d.size, strict=True)):
        raise UserError(f"key 'crop' ({d.crop}) is larger than 'size' ({d.size})", where=str(path))
    count = CHANNELS[d.channels]
    for key in ("scale", "mean", "std"):
        if len(getattr(d, key)) not in (1, count):
            raise UserError(
                f"key {key!r} has {len(getattr(d, key))} numbers, {d.channels!r} has {count} channels",
                where=str(path),
            )


def _one_of(allowed: Sequence[str]) -> Callable[[Any], str]:
    def read(value: Any) -> str:
        if value not in allowed:
            raise ValueError(f"it is one of {', '.join(allowed)}")
        return str(value)

    return read


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError("it is a text")
    return value


def _texts(value: Any) -> tuple[str, ...]:
    return tuple(map(_text, value if isinstance(value, list) else [value]))


def _whole(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError("it is a whole number")
    return value


def _sides(value: Any) -> tuple[int, int]:
    sides = tuple(map(_whole, value)) if isinstance(value, list) else (_whole(value),) * 2
    if len(sides) != 2 or min(sides) < 1:
        raise ValueError("it is a number of pixels, or [height, width]")
    return sides[0], sides[1]


def _level(value: Any) -> int:
    if not 0 <= _whole(value) <= 255:
        raise ValueError("it is between 0 and 255")
    return int(value)


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise TypeError('it is a number, or a fraction like "1/255"')
    above, slash, below = str(value).partition("/")
    number = float(above) / (float(below) if slash else 1.0)
    if not np.isfinite(number):
        raise ValueError("it is finite")
    return number


def _numbers(value: Any) -> tuple[float, ...]:
    return tuple(map(_number, value if isinstance(value, list) else [value]))


def _divisors(value: Any) -> tuple[float, ...]:
    numbers = _numbers(value)
    if not all(numbers):
        raise ValueError("it divides, and cannot be 0")
    return numbers


_READ: Mapping[str, Callable[[Any], Any]] = {
    "source": _texts,
    "input": _text,
    "resize": _one_of(RESIZE),
    "size": _sides,
    "crop": _sides,
    "pad": _level,
    "interpolation": _one_of(INTERPOLATION),
    "channels": _one_of(tuple(CHANNELS)),
    "scale": _divisors,
    "mean": _numbers,
    "std": _divisors,
    "layout": _one_of(LAYOUTS),
    "dtype": _one_of(_DTYPES),
    "labels": _text,
}
