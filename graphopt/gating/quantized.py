"""Checks of what really runs as integers."""

from __future__ import annotations

from collections.abc import Iterator

from graphopt.gating.asked import Asked, by_reason, matches, number
from graphopt.gating.context import Context
from graphopt.quantization.lint import LintReport, LintRow
from graphopt.report.gated import Check
from graphopt.runtime.lint import lint

_PROVIDERS = {"ort-cpu": "cpu", "ort-cuda": "cuda"}


def check_int8(ctx: Context) -> Iterator[Check]:
    """`[int8]`."""
    limits = ctx.policy.int8
    assert limits is not None
    ctx.tell("kernels", "which nodes run as integers")
    found = lint(ctx.model, limits.target, provider=_PROVIDERS[limits.target])
    rows = [row for row in found.rows if row.counts and (limits.ops is None or matches(row.op, limits.ops))]
    which = "" if limits.ops is None else f" of {', '.join(limits.ops)}"
    if limits.min_share is not None:
        allowed = limits.min_share
        asked = ctx.ask(
            ("int8", "min_share"),
            f"nodes{which} that run as integer kernels",
            f"at least {100 * allowed:.4g} %",
            allowed,
        )
        yield _share(asked, found, rows)
    if limits.max_fallbacks is not None:
        asked = ctx.ask(
            ("int8", "max_fallbacks"),
            f"quantized nodes{which} that run in float",
            f"at most {limits.max_fallbacks}",
            limits.max_fallbacks,
        )
        back = [row for row in rows if row.falls_back]
        if found.runtime:
            yield asked.at_most(len(back), str(len(back)), _reasons(back))
        else:
            yield asked.not_measured(found.note)


def _share(asked: Asked, found: LintReport, rows: list[LintRow]) -> Check:
    if not found.runtime:
        return asked.not_measured(found.note)
    if not rows:
        return asked.judged(False, "no such node", 0.0, "no node has an integer kernel on this target")
    integer = sum(row.is_integer for row in rows)
    share = integer / len(rows)
    left = [row for row in rows if not row.is_integer]
    value = f"{number(100 * share)} % ({integer} of {len(rows)})"
    return asked.at_least(share, value, _reasons(left))


def _reasons(rows: list[LintRow]) -> str:
    return by_reason((f"{row.node} ({row.op})", row.reason) for row in rows)
