"""Ranges of a model's tensors in a file that people can look at, edit, merge and use again."""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, TypeVar, cast

from graphopt.calibration.fingerprint import Fingerprint
from graphopt.calibration.histogram import Histogram
from graphopt.calibration.observers import METHODS, RangeMethod, range_of
from graphopt.calibration.statistics import MinMax
from graphopt.errors import UserError
from graphopt.model import Model
from graphopt.quantization.grid import QUANT_TYPES

SCHEMA: Final = "graphopt.ranges/1"

_BOOK_KEYS: Final = ("schema", "model", "passes", "samples", "method", "type", "symmetric", "percentile")
_TENSOR_KEYS: Final = ("dtype", "low", "high", "min", "max", "count", "methods", "channels", "histogram")

_T = TypeVar("_T")


@dataclass(frozen=True)
class Choice:
    """How a range is chosen from a histogram.

    Attributes:
        method: as in `range_of`.
        type: name of the integer type that entropy and mse are for.
        symmetric: the zero point will be in the middle.
        percentile: of method "percentile".
    """

    method: str = "minmax"
    type: str = "uint8"
    symmetric: bool = False
    percentile: float = 99.99

    def ranges(self, histogram: Histogram) -> dict[str, tuple[float, float]]:
        """What each method says."""
        type_ = QUANT_TYPES[self.type]
        return {
            m: range_of(
                histogram,
                cast(RangeMethod, m),
                type_,
                symmetric=self.symmetric,
                percentile=self.percentile,
            )
            for m in METHODS
        }


@dataclass(frozen=True)
class TensorRange:
    """What was measured of one tensor.

    Attributes:
        dtype: its element type.
        histogram: all its values.
        channels: extremes along an axis, where they were asked for.
        methods: the range that each method chooses.
        low, high: the range that is used: that of the book's method, unless somebody edited it.
    """

    dtype: str
    histogram: Histogram
    channels: MinMax | None
    methods: Mapping[str, tuple[float, float]]
    low: float
    high: float


@dataclass(frozen=True)
class RangeBook:
    """The ranges of a model's tensors.

    Attributes:
        fingerprint: the model whose tensors these are, as it stood when they were measured.
        passes: the pipeline that made it.
        samples: how many samples were run.
        choice: how `low` and `high` were chosen.
        tensors: by name.
        path: the file it came from.
    """

    fingerprint: Fingerprint
    passes: str
    samples: int
    choice: Choice
    tensors: Mapping[str, TensorRange]
    path: str = field(default="", compare=False)
    _checked: list[bool] = field(default_factory=list, init=False, repr=False, compare=False)

    @classmethod
    def of(
        cls,
        fingerprint: Fingerprint,
        passes: str,
        samples: int,
        choice: Choice,
        observed: Mapping[str, tuple[str, Histogram, MinMax | None]],
    ) -> RangeBook:
        """A new book.

        Args:
            fingerprint, passes, samples, choice: as in the class.
            observed: by name, the dtype and what was observed; tensors without finite values are left out.
        """
        tensors = {
            name: _chosen(choice, dtype, histogram, channels)
            for name, (dtype, histogram, channels) in observed.items()
            if histogram.count.any()
        }
        return cls(fingerprint, passes, samples, choice, tensors)

    def get(self, name: str) -> tuple[float, float] | None:
        """The range of a tensor; None for one that was not measured.

        Infinite for one that was seen to be infinite or NaN, unless somebody edited its range.
        """
        found = self.tensors.get(name)
        if found is None:
            return None
        odd = found.histogram.nans + found.histogram.infinities
        return (-math.inf, math.inf) if odd and _edit(self, name) is None else (found.low, found.high)

    def check(self, model: Model) -> None:
        """See that this is the model whose tensors were measured, the first time that this is called.

        Once the model was the right one, its ranges hold for what becomes of it: other bodies of it that are
        quantized later, and the same pipeline run again without a rewrite that was wrong.

        Raises:
            UserError: it is not; the error says what differs.
        """
        if self._checked:
            return
        differences = self.fingerprint.differences(Fingerprint.of(model))
        if not differences:
            self._checked.append(True)
            return
        there = {t.name for body in model.bodies() for t in body.inputs}
        there |= {t.name for body in model.bodies() for node in body.nodes for t in node.outputs}
        missing = [name for name in self.tensors if name not in there]
        if missing:
            shown = ", ".join(map(repr, missing[:4])) + (", ..." if len(missing) > 4 else "")
            differences.append(f"{len(missing)} of its tensors are not there: {shown}")
        raise UserError(
            f"the ranges were measured on another model: {'; '.join(differences)}",
            where=self.path or None,
            fix=f"measure again: graphopt calibrate MODEL --data DATA -o {self.path or 'ranges.json'}   "
            "(the file says which passes had run before it was measured)",
        )

    def merge(self, other: RangeBook) -> RangeBook:
        """The ranges over the data of both: the same, bit for bit, as of one run over all of it.

        A range that somebody edited in one of them stays as it is.

        Raises:
            UserError: they are of different models or were measured differently, or both have been edited
                and disagree.
        """
        differences = self.fingerprint.differences(other.fingerprint)
        if self.choice != other.choice:
            differences.append(f"{self.choice} became {other.choice}")
        if self.passes != other.passes:
            differences.append("the pipelines differ")
        if differences:
            raise UserError(
                f"ranges of different runs do not merge: {'; '.join(differences)}", where=other.path or None
            )
        merged = {name: _merged(self, other, name) for name in dict.fromkeys([*self.tensors, *other.tensors])}
        return replace(self, samples=self.samples + other.samples, tensors=merged, path="")

    def save(self, path: str | Path) -> None:
        """Write the file, or leave what is there as it was.

        Raises:
            UserError: it cannot be written.
        """
        path = Path(path)
        try:
            handle, name = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent or ".")
            temporary = Path(name)
            try:
                with os.fdopen(handle, "w", encoding="utf-8") as file:
                    file.writelines(self._lines())
                temporary.chmod(0o666 & ~_umask())
                temporary.replace(path)
            except BaseException:
                temporary.unlink(missing_ok=True)
                raise
        except OSError as e:
            raise UserError(f"the ranges cannot be written: {e.strerror or e}", where=str(path)) from e

    def _lines(self) -> Iterator[str]:
        """The file: what people edit on lines of its own, histograms on one each."""
        head: dict[str, Any] = {"schema": SCHEMA, "model": vars(self.fingerprint), "passes": self.passes}
        head |= {"samples": self.samples, **vars(self.choice)}
        yield "{\n"
        for key, value in head.items():
            yield f" {json.dumps(key)}: {json.dumps(value)},\n"
        yield ' "tensors": {'
        for i, (name, tensor) in enumerate(self.tensors.items()):
            yield f"{',' if i else ''}\n  {json.dumps(name)}: {{"
            for j, (key, value) in enumerate(_tensor_json(tensor).items()):
                yield f"{',' if j else ''}\n   {json.dumps(key)}: {json.dumps(value)}"
            yield "\n  }"
        yield "\n }\n}\n"

    @classmethod
    def load(cls, path: str | Path) -> RangeBook:
        """Read a file.

        Raises:
            UserError: it is not there, or something in it is not as it must be; the error says where.
        """
        where = str(path)
        try:
            text = Path(path).read_text(encoding="utf-8")
            data = json.loads(text, parse_constant=lambda word: _refuse(f"{word} is no number"))
        except (OSError, UnicodeDecodeError) as e:
            raise UserError(f"the ranges cannot be read: {e}", where=where) from e
        except ValueError as e:
            raise UserError(f"not a file of ranges: {e}", where=where) from e
        try:
            return replace(_book(data), path=where)
        except _Invalid as e:
            raise UserError(str(e), where=where) from e


class _Invalid(ValueError):
    """Something in the file is not as it must be."""


def _refuse(message: str) -> None:
    raise _Invalid(message)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _chosen(choice: Choice, dtype: str, histogram: Histogram, channels: MinMax | None) -> TensorRange:
    methods = choice.ranges(histogram)
    return TensorRange(dtype, histogram, channels, methods, *methods[choice.method])


def _edit(book: RangeBook, name: str) -> tuple[float, float] | None:
    """The range of a tensor that is not what the method chose."""
    tensor = book.tensors.get(name)
    if tensor is None or (tensor.low, tensor.high) == tuple(tensor.methods[book.choice.method]):
        return None
    return tensor.low, tensor.high


def _merged(a: RangeBook, b: RangeBook, name: str) -> TensorRange:
    found = [book.tensors[name] for book in (a, b) if name in book.tensors]
    histogram = found[0].histogram.fresh()
    channels = found[0].channels
    channels = channels.fresh() if channels is not None else None
    for tensor in found:
        if tensor.histogram.key != histogram.key or (tensor.channels is None) != (channels is None):
            raise UserError(f"the tensor {name!r} was measured differently", where=b.path or None)
        histogram.merge(tensor.histogram)
        if channels is not None and tensor.channels is not None:
            channels.merge(tensor.channels)
    edits = {edit for edit in (_edit(a, name), _edit(b, name)) if edit is not None}
    if len(edits) > 1:
        raise UserError(f"both files have an edited range of {name!r}, and they differ", where=b.path or None)
    merged = _chosen(a.choice, found[0].dtype, histogram, channels)
    for low, high in edits:
        merged = replace(merged, low=low, high=high)
    return merged


def _tensor_json(tensor: TensorRange) -> dict[str, Any]:
    histogram, channels = tensor.histogram, tensor.channels
    found: dict[str, Any] = {"dtype": tensor.dtype, "low": tensor.low, "high": tensor.high}
    found |= {"min": float(histogram.low[0]), "max": float(histogram.high[0])}
    found |= {"count": int(histogram.count[0]), "methods": {m: list(r) for m, r in tensor.methods.items()}}
    if channels is not None:
        known = channels.low <= channels.high
        ends = [
            [None if not k else float(v) for k, v in zip(known, side, strict=True)]
            for side in (channels.low, channels.high)
        ]
        found["channels"] = {"axis": channels.axis, "min": ends[0], "max": ends[1]}
        found["channels"] |= {"count": channels.count, "nonfinite": channels.nonfinite}
    found["histogram"] = histogram.to_json()
    return found


# -- reading -------------------------------------------------------------------------------------------


def _book(data: Any) -> RangeBook:
    _keys(data, (*_BOOK_KEYS, "tensors"), (), "the file")
    if data["schema"] != SCHEMA:
        raise _Invalid(f"its schema is {data['schema']!r}, this version reads {SCHEMA!r}")
    choice = Choice(data["method"], data["type"], data["symmetric"], data["percentile"])
    if choice.method not in METHODS:
        raise _Invalid(f"the method {choice.method!r} is none of {', '.join(METHODS)}")
    if choice.type not in QUANT_TYPES:
        raise _Invalid(f"the type {choice.type!r} is none of {', '.join(QUANT_TYPES)}")
    if not isinstance(choice.symmetric, bool):
        raise _Invalid(f"symmetric is true or false, not {choice.symmetric!r}")
    if not 0 < _number(choice.percentile, "percentile") <= 100:
        raise _Invalid(f"a percentile is above 0 and at most 100, not {choice.percentile}")
    fingerprint = _parsed(lambda: Fingerprint.from_json(data["model"]), "model")
    samples = data["samples"]
    if not isinstance(samples, int) or samples < 0:
        raise _Invalid(f"samples is a number of samples, not {samples!r}")
    if not isinstance(data["tensors"], dict):
        raise _Invalid("tensors is not an object")
    tensors = {name: _tensor(name, entry) for name, entry in data["tensors"].items()}
    return RangeBook(fingerprint, str(data["passes"]), samples, choice, tensors)


def _tensor(name: str, data: Any) -> TensorRange:
    what = f"tensor {name!r}"
    _keys(data, _TENSOR_KEYS, ("channels",), what)
    low, high = (_number(data[key], f"{key} of {what}") for key in ("low", "high"))
    if low > high:
        raise _Invalid(f"{what} has low {low:g} above high {high:g}")
    histogram = _parsed(lambda: Histogram.from_json(data["histogram"]), f"histogram of {what}")
    if histogram.axis is not None or not histogram.used():
        raise _Invalid(f"the histogram of {what} is not one of all its values")
    seen = {"min": float(histogram.low[0]), "max": float(histogram.high[0]), "count": int(histogram.count[0])}
    for key, value in seen.items():
        if data[key] != value:
            raise _Invalid(
                f"{key} of {what} is measured and cannot be edited: its histogram says {value!r}; "
                "edit low and high"
            )
    methods = data["methods"]
    _keys(methods, METHODS, (), f"methods of {what}")
    ranges = {m: cast("tuple[float, float]", tuple(_numbers(methods[m], f"{m} of {what}"))) for m in METHODS}
    channels = None
    if data.get("channels") is not None:
        channels = _parsed(lambda: _channels(data["channels"]), f"channels of {what}")
    return TensorRange(str(data["dtype"]), histogram, channels, ranges, low, high)


def _channels(data: Mapping[str, Any]) -> MinMax:
    import numpy as np

    found = MinMax(int(data["axis"]))
    found.low = np.array([math.inf if v is None else float(v) for v in data["min"]], np.float64)
    found.high = np.array([-math.inf if v is None else float(v) for v in data["max"]], np.float64)
    found.count, found.nonfinite = int(data["count"]), int(data["nonfinite"])
    return found


def _keys(data: Any, keys: Sequence[str], optional: Sequence[str], what: str) -> None:
    if not isinstance(data, dict):
        raise _Invalid(f"{what} is not an object")
    for key in data:
        if key not in keys:
            raise _Invalid(f"{what} has {key!r}, which means nothing; known are {', '.join(keys)}")
    missing = [key for key in keys if key not in data and key not in optional]
    if missing:
        raise _Invalid(f"{what} lacks {', '.join(missing)}")


def _number(value: Any, what: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise _Invalid(f"{what} is {value!r}, not a number")
    return float(value)


def _numbers(values: Any, what: str) -> list[float]:
    if not isinstance(values, list) or len(values) != 2:
        raise _Invalid(f"{what} is not [low, high]")
    return [_number(v, what) for v in values]


def _parsed(parse: Callable[[], _T], what: str) -> _T:
    try:
        return parse()
    except (KeyError, TypeError, ValueError, AttributeError) as e:
        raise _Invalid(f"the {what} is damaged ({e})") from e
