"""Verdicts per output: EXACT, CLOSE or LOSSY, each as strict as it promises and no stricter."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any, Literal

import numpy as np

from graphopt.budget import Budget
from graphopt.runtime.values import Array, Value
from graphopt.validation.metrics import Metrics, eps, is_float, leaves, measure

FACTOR = 8.0
EPS_FACTOR = 16.0


class Level(Enum):
    """How far a value may move. The members' names are those of a pass' numerics."""

    EXACT = "EXACT"
    CLOSE = "CLOSE"
    LOSSY = "LOSSY"

    @classmethod
    def of(cls, numerics: object) -> Level:
        """The level of that name: of a Level, a string, or any enum with the same names or values."""
        if isinstance(numerics, Level):
            return numerics
        for word in (numerics, getattr(numerics, "value", None), getattr(numerics, "name", None)):
            if isinstance(word, str) and word.upper() in cls.__members__:
                return cls(word.upper())
        raise ValueError(f"no numerics level: {numerics!r}")


@dataclass(frozen=True)
class Tolerance:
    """What CLOSE means for one output of one model on one probe.

    Attributes:
        floor: the noise floor: the largest difference that is no more than float reordering.
        cut: values beyond it in magnitude are fills, judged relative to themselves.
        eps: machine epsilon that goes with the floor; 0 for integers, booleans and strings.
        integers: by how much integers may differ: the original's own spread between thread counts.
    """

    floor: float = 0.0
    cut: float = math.inf
    eps: float = 0.0
    integers: float = 0.0

    @property
    def limit(self) -> float:
        """The largest absolute difference allowed to values that are no fills."""
        return FACTOR * self.floor


@dataclass(frozen=True)
class OutputVerdict:
    """How one output of the candidate compares with the reference's.

    Attributes:
        name: the output's name, with a path for parts of sequences and maps ("y[1]").
        ok: within what `level` allows.
        level: the level it was held to.
        reason: why it is not ok; "" when it is.
        dtype, shape: of the reference.
        metrics: None when the two cannot be compared element by element.
        limit: largest absolute difference allowed; None where the level has no such limit.
        used: share of the allowance that was used (1 is the limit); None where there is none.
    """

    name: str
    ok: bool
    level: str
    reason: str = ""
    dtype: str = ""
    shape: tuple[int, ...] = ()
    metrics: Metrics | None = None
    limit: float | None = None
    used: float | None = None


@dataclass(frozen=True)
class Pointed:
    """What an index output points into, so that ties may be broken either way.

    Attributes:
        kind: "axis" when indices count along `axis` of `values` (ArgMax, ArgMin, TopK); "boxes" for
            NonMaxSuppression's rows (batch, class, box) into scores.
        values: the tensor pointed into, from the reference run.
        axis: axis of `values` that the indices count along.
        tolerance: how closely the pointed-to values must agree.
        keepdims: whether the index output still has `axis`.
    """

    kind: Literal["axis", "boxes"]
    values: Array
    axis: int
    tolerance: Tolerance
    keepdims: bool = True


def compare_outputs(
    reference: Mapping[str, Value],
    value: Mapping[str, Value],
    level: Level,
    tolerances: Mapping[str, Tolerance] | None = None,
    pointed: Mapping[str, Pointed] | None = None,
    budget: Budget | None = None,
) -> list[OutputVerdict]:
    """Compare all outputs of two runs, leaf by leaf.

    Args:
        reference: outputs of the original.
        value: outputs of the candidate; must have the same names.
        level: what is asked of every output.
        tolerances: for CLOSE, per leaf; a leaf that is missing gets none (it must be equal).
        pointed: what index outputs point into, by output name.
        budget: for LOSSY.
    """
    verdicts: list[OutputVerdict] = []
    for name, ref in reference.items():
        expected, got = leaves(name, ref), leaves(name, value.get(name))
        if expected.keys() != got.keys():
            reason = f"structure differs: {len(expected)} parts in the original, {len(got)} in the candidate"
            verdicts.append(OutputVerdict(name, False, level.value, reason))
            continue
        for path, array in expected.items():
            tolerance = (tolerances or {}).get(path, Tolerance())
            verdicts.append(
                judge(path, array, got[path], level, tolerance, (pointed or {}).get(name), budget)
            )
    return verdicts


def judge(
    name: str,
    reference: Array | None,
    value: Array | None,
    level: Level,
    tolerance: Tolerance,
    pointed: Pointed | None = None,
    budget: Budget | None = None,
) -> OutputVerdict:
    """The verdict on one array (None: an empty optional or sequence)."""
    verdict = OutputVerdict(name, True, level.value)
    if reference is None or value is None:
        same = reference is None and value is None
        return replace(verdict, ok=same, reason="" if same else "one of the two is empty")
    verdict = replace(verdict, dtype=str(reference.dtype), shape=reference.shape)
    if reference.dtype != value.dtype:
        return _no(verdict, f"dtype changed from {reference.dtype} to {value.dtype}")
    if reference.shape != value.shape:
        return _no(verdict, f"shape changed from {list(reference.shape)} to {list(value.shape)}")
    metrics = measure(reference, value)
    verdict = replace(verdict, metrics=metrics)
    if level is Level.EXACT:
        return verdict if metrics.bit_equal else _no(verdict, _exact_reason(reference, value, metrics))
    if level is Level.LOSSY:
        return _judge_lossy(verdict, reference, metrics, budget)
    if not is_float(reference.dtype):
        return _judge_integers(verdict, reference, value, metrics, tolerance, pointed)
    if not metrics.same_pattern:
        return _no(verdict, f"NaN or infinity at other places (first at {_at(reference, metrics)})")
    used = _used(reference, value, tolerance, metrics)
    verdict = replace(verdict, limit=tolerance.limit, used=used)
    if used <= 1:
        return verdict
    floor = f"{tolerance.floor:.3g}"
    return _no(
        verdict,
        f"max difference {metrics.max_abs:.3g} at {_at(reference, metrics)} is {used:.3g} times what CLOSE"
        f" allows ({tolerance.limit:.3g} = {FACTOR:g} x noise floor {floor})",
    )


def _no(verdict: OutputVerdict, reason: str) -> OutputVerdict:
    return replace(verdict, ok=False, reason=reason)


def _at(reference: Array, metrics: Metrics) -> list[int]:
    index = metrics.worst_index or 0
    if reference.dtype.kind == "c":
        index //= 2
    return [int(i) for i in np.unravel_index(index, reference.shape)] if reference.ndim else []


def _exact_reason(reference: Array, value: Array, metrics: Metrics) -> str:
    if not metrics.differing:
        return "the sign of a zero differs"
    if not metrics.same_pattern:
        return f"NaN or infinity at other places (first at {_at(reference, metrics)})"
    return (
        f"not bit for bit equal: {metrics.differing} of {metrics.count} values differ, by at most"
        f" {metrics.max_abs:.3g} (at {_at(reference, metrics)})"
    )


def _used(reference: Array, value: Array, tolerance: Tolerance, metrics: Metrics) -> float:
    """The largest share of the allowance that any element uses."""
    if not metrics.differing:
        return 0.0
    if tolerance.cut == math.inf:
        return metrics.max_abs / tolerance.limit if tolerance.limit else math.inf
    x, y = reference.astype(np.float64).reshape(-1), value.astype(np.float64).reshape(-1)
    finite = np.isfinite(x) & np.isfinite(y)
    x, y = x[finite], y[finite]
    size = np.abs(x)
    floor = np.where(size >= tolerance.cut, EPS_FACTOR * tolerance.eps * size, tolerance.floor)
    allowed = FACTOR * np.maximum(floor, tolerance.floor)
    difference = np.abs(x - y)
    with np.errstate(divide="ignore", invalid="ignore"):
        return float(np.nanmax(np.where(difference > 0, difference / allowed, 0.0), initial=0.0))


def _judge_lossy(
    verdict: OutputVerdict, reference: Array, metrics: Metrics, budget: Budget | None
) -> OutputVerdict:
    if budget is None or not is_float(reference.dtype) or not metrics.differing:
        return verdict
    if not metrics.same_pattern:
        return _no(verdict, f"NaN or infinity at other places (first at {_at(reference, metrics)})")
    short = []
    if budget.min_cosine is not None and (metrics.cosine is None or metrics.cosine < budget.min_cosine):
        cosine = "undefined (all zeros)" if metrics.cosine is None else f"{metrics.cosine:.5f}"
        short.append(f"cosine {cosine} < {budget.min_cosine:g}")
    if budget.min_sqnr_db is not None and (metrics.sqnr_db is None or metrics.sqnr_db < budget.min_sqnr_db):
        sqnr = "undefined (no signal)" if metrics.sqnr_db is None else f"{metrics.sqnr_db:.2f} dB"
        short.append(f"SQNR {sqnr} < {budget.min_sqnr_db:g} dB")
    return _no(verdict, ", ".join(short)) if short else verdict


def _judge_integers(
    verdict: OutputVerdict,
    reference: Array,
    value: Array,
    metrics: Metrics,
    tolerance: Tolerance,
    pointed: Pointed | None,
) -> OutputVerdict:
    if not metrics.differing or (metrics.max_abs <= tolerance.integers and reference.dtype != object):
        return verdict
    if pointed is not None and _ties(reference, value, pointed):
        return verdict
    kind = "strings" if reference.dtype == object else "integers" if reference.dtype != bool else "booleans"
    hint = ", and the values that they point at do not agree" if pointed is not None else ""
    return _no(
        verdict,
        f"{metrics.differing} of {metrics.count} {kind} differ (first at {_first(reference, value)}){hint}",
    )


def _first(reference: Array, value: Array) -> list[int]:
    flat = int(np.argmax(np.asarray(reference != value).reshape(-1)))
    return [int(i) for i in np.unravel_index(flat, reference.shape)] if reference.ndim else []


def _ties(reference: Array, value: Array, pointed: Pointed) -> bool:
    """Every index that differs points at a value that agrees with the one the original points at."""
    try:
        a, b = _pointed_values(reference, pointed), _pointed_values(value, pointed)
    except (IndexError, ValueError):  # out of range: whatever it is, it is no tie
        return False
    if pointed.kind == "axis" and not _distinct(value, pointed, reference):
        return False
    return judge("", a, b, Level.CLOSE, pointed.tolerance).ok


def _pointed_values(indices: Array, pointed: Pointed) -> Array:
    if pointed.kind == "boxes":
        batch, cls, box = indices.reshape(-1, 3).T
        picked: Array = pointed.values[batch, cls, box]
        return picked
    axis = pointed.axis % pointed.values.ndim
    if not pointed.keepdims:
        indices = np.expand_dims(indices, axis)
    return np.take_along_axis(pointed.values, indices.astype(np.int64), axis)


def _distinct(value: Array, pointed: Pointed, reference: Array) -> bool:
    """A candidate that names one element twice did not break a tie, unless the original did so too."""
    if not pointed.keepdims or value.ndim != pointed.values.ndim:
        return True
    axis = pointed.axis % pointed.values.ndim
    ordered = np.sort(value, axis=axis)
    repeated = np.any(np.diff(ordered, axis=axis) == 0) if value.shape[axis] > 1 else False
    return not repeated or bool(np.any(np.diff(np.sort(reference, axis=axis), axis=axis) == 0))


def tolerance_floor(dtype: np.dtype[Any], rms: float) -> float:
    """The least noise floor of a float output: 16 machine epsilons of its dtype times its RMS."""
    return EPS_FACTOR * eps(dtype) * rms
