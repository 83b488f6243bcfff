"""Checks of the memory that the model takes."""

from __future__ import annotations

from collections.abc import Iterator

from graphopt.gating.asked import megabytes, number
from graphopt.gating.context import Context
from graphopt.report.gated import Check
from graphopt.runtime.footprint import Footprint, NotMeasurable, footprint
from graphopt.runtime.session import RuntimeFailure


def check_memory(ctx: Context) -> Iterator[Check]:
    """`[memory]`."""
    limits, provider = ctx.policy.memory, ctx.providers[0]
    assert limits is not None
    found, why = _measured(ctx, "model")
    if limits.max_mb is not None:
        asked = ctx.ask(
            ("memory", "max_mb"), "memory at the peak", f"at most {number(limits.max_mb)} MB", limits.max_mb
        )
        if found is None:
            yield asked.not_measured(why)
        else:
            detail = f"{megabytes(found.loaded)} once it is loaded; one run on {provider}, in a new process"
            yield asked.at_most(found.peak / 1e6, megabytes(found.peak), detail)
    if limits.max_ratio is not None:
        asked = ctx.ask(
            ("memory", "max_ratio"),
            "memory at the peak over the reference's",
            f"at most {number(limits.max_ratio)}",
            limits.max_ratio,
        )
        before, why_not = _measured(ctx, "reference")
        if found is None or before is None or before.peak <= 0:
            yield asked.not_measured(why or why_not or "the reference takes no memory that can be told")
        else:
            ratio = found.peak / before.peak
            yield asked.at_most(ratio, number(ratio), f"{megabytes(before.peak)} -> {megabytes(found.peak)}")


def _measured(ctx: Context, which: str) -> tuple[Footprint | None, str]:
    """What the model or the reference takes, or why that cannot be said."""
    model = ctx.model if which == "model" else ctx.reference
    assert model is not None
    if model.path is None:
        return None, f"the {which} is no file"
    if ctx.inputs.reason:
        return None, ctx.inputs.reason
    ctx.tell("memory", f"of the {which}")
    try:
        return footprint(
            model.path, [ctx.inputs.sets[0].feeds], provider=ctx.providers[0], settings=ctx.settings
        ), ""
    except RuntimeFailure as failure:
        verb = "run" if failure.kind == "run" else "load"
        return None, f"the {which} does not {verb}: {failure.message}"
    except NotMeasurable as failure:
        return None, str(failure)
