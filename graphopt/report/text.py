"""Numbers, sizes and names as people read them."""

from __future__ import annotations

import math


def size(n: int) -> str:
    """A number of bytes: "1.2 MB", powers of 1000 as in file managers and data sheets."""
    value = float(n)
    for unit in ("B", "kB", "MB", "GB"):
        if abs(value) < 999.5:
            return f"{value:.0f} {unit}" if unit == "B" or abs(value) >= 99.95 else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"


def count(n: float) -> str:
    """A large number: "12,345", then three digits: "1.23 M", "28.0 M"."""
    if abs(n) < 1_000_000:
        return f"{n:,.0f}"
    for unit in ("M", "G", "T"):
        n /= 1000 if unit != "M" else 1_000_000
        if abs(n) < 999.5:
            return f"{n:.{2 if abs(n) < 9.995 else 1 if abs(n) < 99.95 else 0}f} {unit}"
    return f"{n:,.0f} T"


def change(before: float, after: float) -> str:
    """The relative change: "-53%", "" where there is none."""
    if before == after:
        return ""
    if not before:
        return "new"
    percent = 100 * (after - before) / before
    if abs(percent) < 0.1:
        return "-0.1%" if percent < 0 else "+0.1%"
    return f"{percent:+.1f}%" if abs(percent) < 10 else f"{percent:+.0f}%"


def figure(value: float | None) -> str:
    """A measured difference: "0", "3.1e-07", "-" where there is none."""
    if value is None:
        return "-"
    if value == 0:
        return "0"
    if not math.isfinite(value):
        return {math.inf: "inf", -math.inf: "-inf"}.get(value, "nan")
    return f"{value:.3g}" if 1e-2 <= abs(value) < 1e4 else f"{value:.1e}"


def seconds(value: float) -> str:
    """A time: "12 ms", "3.4 s", "2 min 10 s"."""
    if value < 1:
        return f"{1000 * value:.0f} ms"
    if value < 99.95:
        return f"{value:.1f} s"
    return f"{int(value + 0.5) // 60} min {int(value + 0.5) % 60} s"


def plural(n: int, noun: str, many: str = "") -> str:
    """A number of things: "1 node", "2 nodes"."""
    return f"{n:,} {noun if n == 1 else many or noun + 's'}"


def clean(name: str) -> str:
    """A name from a model, fit for a terminal: control characters are escaped, so no model can drive it."""
    return name if name.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in name)
