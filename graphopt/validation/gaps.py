"""How far two values of one tensor are apart, and whether that is more than noise."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from graphopt.budget import Budget
from graphopt.runtime.values import Array
from graphopt.validation.compare import EPS_FACTOR, Level, Tolerance, judge
from graphopt.validation.metrics import Metrics, Scale, bit_equal, eps, is_float, measure, scale_of

# Beyond this share of the RMS a difference between onnxruntime's own ways to compute is no reordering.
_GROSS = 0.01
_GROSS_EPS = 64.0


@dataclass(frozen=True)
class Gap:
    """The distance between the reference's and the candidate's values of one tensor.

    Attributes:
        ok: within the allowance.
        why: why not, in words.
        max_abs: largest absolute difference; None where shapes or types do not fit.
        used: share of the allowance; None where there is none.
        signal, noise: sums of squares of the reference and of the difference, for floats.
        is_float: SQNR makes sense.
        pattern: NaN and infinities stand at the same places.
        first: in a loop, the first iteration that is off.
    """

    ok: bool = True
    why: str = ""
    max_abs: float | None = 0.0
    used: float | None = 0.0
    signal: float = 0.0
    noise: float = 0.0
    is_float: bool = False
    pattern: bool = True
    first: int = 0

    @property
    def sqnr_db(self) -> float | None:
        """Signal over noise in dB: infinite for equal values, None where it makes no sense."""
        if not self.is_float or self.max_abs is None:
            return None
        if not self.noise:
            return math.inf if self.pattern else -math.inf
        if not self.signal:
            return -math.inf
        return 10 * math.log10(self.signal / self.noise) if math.isfinite(self.noise) else -math.inf

    def merged(self, other: Gap) -> Gap:
        """Over both: the worst, and the sums."""
        bad = self if not self.ok else other
        maxima = [m for m in (self.max_abs, other.max_abs) if m is not None]
        used = [u for u in (self.used, other.used) if u is not None]
        return Gap(
            self.ok and other.ok,
            bad.why,
            max(maxima) if len(maxima) == 2 else None,
            max(used, default=None),
            self.signal + other.signal,
            self.noise + other.noise,
            self.is_float or other.is_float,
            self.pattern and other.pattern,
            bad.first,
        )


def spread_of(reference: Sequence[Array], again: Sequence[Array], unit: float = 0.0) -> float:
    """How far reordering alone moves a tensor, as a share of its RMS; 0 where it is no reordering.

    Args:
        reference: its values.
        again: its values when they are computed otherwise.
        unit: machine epsilon of that, if it is coarser than the tensor's.
    """
    share = 0.0
    for a, b in zip(reference, again, strict=False):
        if a.shape != b.shape or a.dtype != b.dtype or not is_float(a.dtype):
            return 0.0
        scale = scale_of(a)
        metrics = measure(a, b)
        if scale.rms and metrics.same_pattern and scale.cut == math.inf:
            share = max(share, metrics.max_abs / scale.rms)
    return share if share <= max(_GROSS, _GROSS_EPS * unit) else 0.0


def gap(
    reference: Sequence[Array],
    candidate: Sequence[Array],
    *,
    spread: float = 0.0,
    budget: Budget | None = None,
    exact: bool = False,
) -> Gap | None:
    """Compare all values that one run makes of a tensor (several in a loop); None: neither is computed.

    Args:
        reference, candidate: the values.
        spread: the reference's own noise, as a share of its RMS.
        budget: hold floats to this instead of to noise.
        exact: hold all to every bit.
    """
    if not reference and not candidate:
        return None
    if len(reference) != len(candidate):
        why = f"computed {len(candidate)} times, not {len(reference)}"
        return Gap(False, why, None, None)
    total: Gap | None = None
    for i, (a, b) in enumerate(zip(reference, candidate, strict=True)):
        one = replace(_gap(a, b, spread, budget), first=i)
        if exact and one.ok and not bit_equal(a, b):
            one = replace(one, ok=False, why="it is not bit for bit equal", used=None)
        total = one if total is None else total.merged(one)
    return total


def _gap(a: Array, b: Array, spread: float, budget: Budget | None) -> Gap:
    if a.shape != b.shape:
        return Gap(False, f"shape {list(b.shape)}, not {list(a.shape)}", None, None)
    unit = 0.0
    if a.dtype != b.dtype:
        if is_float(a.dtype) and is_float(b.dtype) and "c" not in (a.dtype.kind, b.dtype.kind):
            unit = max(eps(a.dtype), eps(b.dtype))  # another precision: compared in a wide one
            wide = np.float64 if np.float64 in (a.dtype, b.dtype) else np.float32
            with np.errstate(over="ignore", invalid="ignore"):
                a, b = a.astype(wide), b.astype(wide)
        elif a.dtype.kind in "iub" and b.dtype.kind in "iub":
            a, b = a.astype(np.int64), b.astype(np.int64)
        else:
            return Gap(False, f"type {b.dtype}, not {a.dtype}", None, None)
    floats = is_float(a.dtype)
    scale = scale_of(a) if floats else Scale(0.0)
    unit = max(unit, eps(a.dtype)) if floats else 0.0
    floor = max(EPS_FACTOR * unit, spread) * scale.rms
    verdict = judge("", a, b, Level.CLOSE, Tolerance(floor, scale.cut, unit))
    metrics = verdict.metrics
    assert metrics is not None
    found = Gap(verdict.ok, verdict.reason, metrics.max_abs, verdict.used, is_float=floats)
    found = replace(found, pattern=metrics.same_pattern)
    if floats and a.dtype.kind != "c":
        signal = metrics.rms**2 * metrics.count
        noise = _noise(signal, metrics)
        found = replace(found, signal=signal, noise=noise)
        if not metrics.same_pattern:
            found = replace(found, why=_pattern_words(a, b), used=math.inf)
        elif budget is not None:
            found = _budgeted(found, budget, metrics.cosine)
    return found


def _budgeted(found: Gap, budget: Budget, cosine: float | None) -> Gap:
    limit, sqnr = budget.min_sqnr_db, found.sqnr_db
    short = limit is not None and sqnr is not None and sqnr < limit
    crooked = budget.min_cosine is not None and cosine is not None and cosine < budget.min_cosine
    used = 10 ** ((limit - sqnr) / 20) if limit is not None and sqnr is not None else None
    why = f"SQNR {sqnr:.1f} dB" if sqnr is not None and (short or crooked) else ""
    return replace(found, ok=not short and not crooked, why=why, used=used)


def _noise(signal: float, metrics: Metrics) -> float:
    """The energy of the difference."""
    if metrics.sqnr_db is not None:
        return float(signal / 10 ** (metrics.sqnr_db / 10))
    return math.inf if metrics.max_abs else 0.0


def _pattern_words(a: Array, b: Array) -> str:
    """What of NaN and infinities is at other places."""
    with np.errstate(invalid="ignore"):
        x, y = a.astype(np.float64), b.astype(np.float64)
    for word, test in (("NaN", np.isnan), ("infinity", np.isinf)):
        theirs, mine = int(np.count_nonzero(test(x))), int(np.count_nonzero(test(y)))
        if mine > theirs:
            return f"{mine - theirs} of {x.size} values became {word}"
        if theirs > mine:
            return f"{theirs - mine} of {x.size} values are no longer {word}"
    return "NaN or infinity at other places"
