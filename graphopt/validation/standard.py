"""What the outputs are held to: a level for all of them, or limits that the user sets, per output."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase

import numpy as np

from graphopt.budget import Budget
from graphopt.runtime.values import Array, Value
from graphopt.validation.compare import (
    Level,
    OutputVerdict,
    Pointed,
    Tolerance,
    compare_outputs,
    judge,
)
from graphopt.validation.metrics import is_float

_BLOCK = 1 << 18
#: What `OutputVerdict.level` says of an output that is held to a bound of the user's.
TOLERANCE = "TOLERANCE"


@dataclass(frozen=True)
class Bound:
    """`|a - b| <= atol + rtol * |a|` for every element, where a is the reference's.

    NaN and infinities have to stand at the same places.

    Attributes:
        atol: the absolute part, at least 0.
        rtol: the relative part, at least 0.
    """

    atol: float = 0.0
    rtol: float = 0.0

    def __str__(self) -> str:
        parts = [f"atol={self.atol:g}"] if self.atol or not self.rtol else []
        return ",".join(parts + ([f"rtol={self.rtol:g}"] if self.rtol else []))


@dataclass(frozen=True)
class Standard:
    """What is asked of the candidate's outputs.

    Attributes:
        level: of the outputs that no bound is about.
        bound: for all float outputs, instead of the level; integers, booleans and strings stay with CLOSE.
        bounds: for single outputs, by name or glob; the first that fits counts. These hold for integers too.
        budget: what LOSSY outputs have to keep.
    """

    level: Level = Level.CLOSE
    bound: Bound | None = None
    bounds: Mapping[str, Bound] = field(default_factory=dict)
    budget: Budget | None = None

    @property
    def name(self) -> str:
        """In a word: the level, or TOLERANCE."""
        return self.level.value if self.bound is None else TOLERANCE

    def relaxed(self) -> Standard:
        """What is asked where bits cannot be compared: EXACT is CLOSE there."""
        return replace(self, level=Level.CLOSE) if self.level is Level.EXACT else self

    def bound_of(self, path: str, dtype: np.dtype[np.generic]) -> Bound | None:
        """The bound for the output, or part of a sequence, of this name; None: the level counts."""
        name = path.partition("[")[0]
        for pattern, bound in self.bounds.items():
            if pattern in (path, name):
                return bound
        for pattern, bound in self.bounds.items():
            if fnmatchcase(path, pattern) or fnmatchcase(name, pattern):
                return bound
        return self.bound if is_float(dtype) else None

    def unused(self, outputs: Mapping[str, object] | set[str]) -> list[str]:
        """Names in `bounds` that fit none of these outputs."""
        names = {n.partition("[")[0] for n in outputs}
        return [
            p
            for p in self.bounds
            if p.partition("[")[0] not in names and not any(fnmatchcase(n, p) for n in names)
        ]

    def compare(
        self,
        reference: Mapping[str, Value],
        value: Mapping[str, Value],
        tolerances: Mapping[str, Tolerance],
        pointed: Mapping[str, Pointed],
    ) -> list[OutputVerdict]:
        """Compare all outputs of two runs, leaf by leaf; see `compare_outputs`."""
        level = Level.CLOSE if self.bound is not None else self.level
        verdicts = compare_outputs(reference, value, level, tolerances, pointed, self.budget)
        if self.bound is None and not self.bounds:
            return verdicts
        from graphopt.validation.metrics import leaves

        found = []
        theirs = {p: a for n, v in reference.items() for p, a in leaves(n, v).items()}
        mine = {p: a for n, v in value.items() for p, a in leaves(n, v).items()}
        for verdict in verdicts:
            a, b = theirs.get(verdict.name), mine.get(verdict.name)
            bound = None if a is None else self.bound_of(verdict.name, a.dtype)
            if a is None or b is None or bound is None:
                found.append(verdict)
            else:
                found.append(judge_bound(verdict.name, a, b, bound))
        return found


def judge_bound(name: str, reference: Array, value: Array, bound: Bound) -> OutputVerdict:
    """The verdict on one array that is held to a bound. Its `limit` is that of the worst element."""
    verdict = replace(judge(name, reference, value, Level.LOSSY, Tolerance()), level=TOLERANCE)
    metrics = verdict.metrics
    if not verdict.ok or metrics is None:
        return verdict
    if reference.dtype == object or reference.dtype.kind in "US" or reference.dtype == bool:
        what = "strings" if reference.dtype != bool else "booleans"
        why = f"{metrics.differing} of {metrics.count} {what} differ"
        return verdict if not metrics.differing else replace(verdict, ok=False, reason=why)
    if not metrics.same_pattern:
        index = _index(reference, metrics.worst_index or 0)
        why = f"NaN or infinity at other places (first at {index})"
        return replace(verdict, ok=False, reason=why, used=math.inf)
    used, at, difference, limit = _worst(reference, value, bound)
    verdict = replace(verdict, limit=limit, used=used)
    if used <= 1:
        return verdict
    return replace(
        verdict,
        ok=False,
        reason=f"difference {difference:.3g} at {_index(reference, at)} is more than {limit:.3g} ({bound})",
    )


def _worst(reference: Array, value: Array, bound: Bound) -> tuple[float, int, float, float]:
    """Of the element that uses most of its allowance: the share, its place, its difference, its limit."""
    complex_ = reference.dtype.kind == "c"
    a, b = (np.ascontiguousarray(x).reshape(-1) for x in (reference, value))
    # Where nothing differs, the smallest limit is what says most.
    used, at, difference, limit = 0.0, 0, 0.0, bound.atol
    for start in range(0, a.size, _BLOCK):
        wide = np.complex128 if complex_ else np.float64
        with np.errstate(invalid="ignore", over="ignore"):
            x, y = (part[start : start + _BLOCK].astype(wide) for part in (a, b))
            apart = np.abs(x - y)
            allowed = bound.atol + bound.rtol * np.abs(x)
        regular = np.isfinite(apart) & np.isfinite(allowed)
        apart, allowed = np.where(regular, apart, 0.0), np.where(regular, allowed, 0.0)
        with np.errstate(divide="ignore", invalid="ignore"):
            share = np.where(apart > 0, apart / allowed, 0.0)
        worst = int(np.argmax(share)) if share.size else 0
        if share.size and share[worst] > used:
            used, at = float(share[worst]), start + worst
            difference, limit = float(apart[worst]), float(allowed[worst])
    return used, at, difference, limit


def _index(reference: Array, flat: int) -> list[int]:
    return [int(i) for i in np.unravel_index(flat, reference.shape)] if reference.ndim else []
