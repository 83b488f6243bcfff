"""How close a model's outputs are to another's, summed over all samples, and the user's task metrics."""

from __future__ import annotations

import math
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from graphopt.budget import Score
from graphopt.calibration.values import Array
from graphopt.errors import GraphOptError, UserError
from graphopt.validation.metrics import is_float, leaves

Outputs = Mapping[str, Any]

_BLOCK: Final = 1 << 18


@dataclass
class Sums:
    """Of one output: signal^2, error^2, dot product and result^2; NaN where they cannot be compared."""

    signal: float = 0.0
    error: float = 0.0
    dot: float = 0.0
    result: float = 0.0

    def add(self, expected: Array, actual: Array) -> None:
        """Take in the values of one batch."""
        if expected.shape != actual.shape:
            self.error = math.nan
            return
        a, b = expected.reshape(-1), actual.reshape(-1)
        for start in range(0, a.size, _BLOCK):
            x, y = (v[start : start + _BLOCK].astype(np.float64) for v in (a, b))
            good = np.isfinite(x) & np.isfinite(y)
            if not good.all():
                if not np.array_equal(x[~good], y[~good], equal_nan=True):
                    self.error = math.nan
                x, y = x[good], y[good]
            with np.errstate(over="ignore", invalid="ignore"):
                difference = x - y
                self.signal += float(x @ x)
                self.error += float(difference @ difference)
                self.dot += float(x @ y)
                self.result += float(y @ y)

    @property
    def sqnr_db(self) -> float:
        """Signal-to-noise ratio; infinite for equal values, -infinite where they cannot be compared."""
        if not self.error:
            return math.inf
        if not math.isfinite(self.error) or not self.signal:
            return -math.inf
        return 10 * math.log10(self.signal / self.error)

    @property
    def cosine(self) -> float:
        """Cosine similarity; 0 where they cannot be compared."""
        if not math.isfinite(self.error):
            return 0.0
        if not self.error:
            return 1.0
        norm = math.sqrt(self.signal) * math.sqrt(self.result)
        return max(-1.0, min(1.0, self.dot / norm)) if norm and math.isfinite(norm) else 0.0


class Agreement:
    """Sums over all batches, per float output.

    A model without float outputs is judged by the share of equal values: the SQNR is then that of a signal
    of ones which is wrong where they differ.
    """

    def __init__(self) -> None:
        self._floats: dict[str, Sums] = {}
        self._others: dict[str, Sums] = {}

    def update(self, expected: Outputs, actual: Outputs) -> None:
        """Take in one batch of the teacher's and the student's outputs."""
        for output, value in expected.items():
            theirs, mine = leaves(output, value), leaves(output, actual[output])
            for name in {**theirs, **mine}:
                self._add(name, theirs.get(name), mine.get(name))

    def _add(self, name: str, expected: Array | None, actual: Array | None) -> None:
        if expected is None or actual is None:
            if expected is not actual:
                self._floats.setdefault(name, Sums()).error = math.nan
        elif is_float(expected.dtype) and expected.dtype.kind != "c":
            self._floats.setdefault(name, Sums()).add(expected, actual)
        elif expected.shape != actual.shape:
            self._others.setdefault(name, Sums()).error = math.nan
        else:
            same = np.asarray(expected == actual)
            self._others.setdefault(name, Sums()).add(np.ones(same.shape), same)

    def score(self) -> Score:
        """The worst output's figures."""
        sums = list((self._floats or self._others).values())
        return Score(
            min((s.sqnr_db for s in sums), default=math.inf), min((s.cosine for s in sums), default=1.0)
        )


def as_metrics(
    metric: Callable[[Iterator[tuple[Mapping[str, Any], Outputs]]], Any],
    pairs: Iterator[tuple[Mapping[str, Any], Outputs]],
    wanted: Sequence[str] = (),
) -> dict[str, float]:
    """What the user's metric makes of a model's outputs, by name; a single figure is named after it.

    Args:
        metric: the user's function.
        pairs: samples and the model's outputs for them.
        wanted: figures that have to be among them.

    Raises:
        UserError: it raised an exception, returned no number, or not all that are wanted.
    """
    name = getattr(metric, "__name__", type(metric).__name__)
    try:
        found = metric(pairs)
    except (GraphOptError, MemoryError):
        raise  # not its fault
    except Exception as e:
        _, *frames = traceback.extract_tb(e.__traceback__)
        if not frames or any(Path(f.filename).parent == Path(__file__).parent for f in frames):
            raise  # while the pairs were made
        at = frames[-1]
        raise UserError(
            f"the metric {name!r} failed: {type(e).__name__}: {e}", where=f"{at.filename}:{at.lineno}"
        ) from e
    figures = found if isinstance(found, Mapping) else {name: found}
    try:
        numbers = {str(k): float(v) for k, v in figures.items()}
    except (TypeError, ValueError) as e:
        raise UserError(
            f"the metric {name!r} returned {found!r}", fix="it must return a number, or numbers by name"
        ) from e
    for missing in wanted:
        if missing not in numbers:
            raise UserError(
                f"there is no metric {missing!r}", fix=f"{name!r} returns: {', '.join(numbers) or 'nothing'}"
            )
    return numbers


def drops(teacher: Mapping[str, float], student: Mapping[str, float]) -> dict[str, float]:
    """By how much each metric is below the teacher's."""
    return {name: teacher[name] - value for name, value in student.items() if name in teacher}
