"""One limit of a policy on its way to a verdict: where it stands, and how it is judged."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

from graphopt.report.gated import Check
from graphopt.report.text import clean

_NAMED = 5
_REASONS = 3


@dataclass(frozen=True)
class Asked:
    """A limit that is about to be checked.

    Attributes:
        name: where it stands in the policy.
        what: in words.
        limit: what is asked for, in words.
        allowed: the same as a number, where it is one.
        line: of the policy file.
    """

    name: str
    what: str
    limit: str
    allowed: float | None = None
    line: int | None = None

    def judged(self, passed: bool, value: str, measured: float | None = None, detail: str = "") -> Check:
        """The check, with what was found."""
        return replace(
            self.not_measured(detail),
            value=value,
            verdict="passed" if passed else "failed",
            measured=measured,
        )

    def at_most(self, measured: float, value: str, detail: str = "") -> Check:
        """Passed if `measured` is no more than what is allowed; NaN never is."""
        assert self.allowed is not None
        return self.judged(measured <= self.allowed, value, measured, detail)

    def at_least(self, measured: float, value: str, detail: str = "") -> Check:
        """Passed if `measured` is no less than what is allowed; NaN never is."""
        assert self.allowed is not None
        return self.judged(measured >= self.allowed, value, measured, detail)

    def not_measured(self, why: str) -> Check:
        """The check as one that could not be carried out, which lets no model pass."""
        return Check(
            name=self.name,
            what=self.what,
            value="not measured",
            limit=self.limit,
            verdict="error",
            allowed=self.allowed,
            detail=why,
            line=self.line,
        )


def number(value: float) -> str:
    """A figure with enough digits to be compared with its limit."""
    if math.isinf(value):
        return "infinite" if value > 0 else "-infinite"
    return f"{value:.6g}" if 0.99 < abs(value) < 1 else f"{value:.4g}"  # 0.99996 is not 1


def megabytes(nbytes: float) -> str:
    """Bytes as MB, the unit of policies."""
    value = nbytes / 1e6
    return f"{value:.4g} MB" if value >= 0.001 else f"{nbytes:.0f} B"


def names(items: Iterable[str]) -> str:
    """Some names; the first ones where they are many."""
    found: Sequence[str] = [clean(item) for item in items]
    more = f" and {len(found) - _NAMED:,} more" if len(found) > _NAMED else ""
    return ", ".join(found[:_NAMED]) + more


def matches(name: str, globs: Iterable[str]) -> bool:
    """Whether a name matches one of the globs; upper and lower case differ."""
    return any(fnmatchcase(name, glob) for glob in globs)


def by_reason(items: Iterable[tuple[str, str]]) -> str:
    """Names with the reason of each, those of one reason together: "a, b: too large; c: no kernel"."""
    groups: dict[str, list[str]] = {}
    for name, reason in items:
        groups.setdefault(reason, []).append(name)
    return "; ".join(
        f"{names(found)}: {reason}" if reason else names(found) for reason, found in groups.items()
    )
