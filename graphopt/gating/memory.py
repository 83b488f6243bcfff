"""Checks of the memory that the model takes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from graphopt.gating.asked import megabytes, number
from graphopt.gating.context import Context
from graphopt.io.loading import data_locations
from graphopt.model import Model
from graphopt.report.gated import Check
from graphopt.runtime.footprint import footprint
from graphopt.runtime.measure import Plan
from graphopt.runtime.providers import AS_DEPLOYED
from graphopt.runtime.session import RuntimeFailure, open_session


@dataclass(frozen=True)
class AsFile:
    """A model as programs load it: from the bytes of its file, with its external data where the file says.

    (graphopt itself would map the weights, which takes less.)
    """

    proto: bytes
    folder: Path

    @classmethod
    def of(cls, path: Path) -> AsFile:
        """The file at `path`."""
        folder = path.parent.resolve()
        if not all((folder / location).exists() for location in data_locations(path)):
            folder = path.resolve().parent  # a link into a cache of models
        return cls(path.read_bytes(), folder)


def check_memory(ctx: Context) -> Iterator[Check]:
    """`[memory]`."""
    limits = ctx.policy.memory
    assert limits is not None
    found = _peak(ctx, ctx.model, "model")
    detail = f"one process, {ctx.providers[0]}, 1 thread"
    if limits.max_mb is not None:
        asked = ctx.ask(
            ("memory", "max_mb"), "memory at the peak", f"at most {number(limits.max_mb)} MB", limits.max_mb
        )
        if isinstance(found, str):
            yield asked.not_measured(found)
        else:
            yield asked.at_most(found / 1e6, megabytes(found), detail)
    if limits.max_ratio is not None:
        assert ctx.reference is not None
        asked = ctx.ask(
            ("memory", "max_ratio"),
            "memory at the peak over the reference's",
            f"at most {number(limits.max_ratio)}",
            limits.max_ratio,
        )
        before = _peak(ctx, ctx.reference, "reference")
        if isinstance(found, str) or isinstance(before, str) or not before:
            why = next((x for x in (found, before) if isinstance(x, str)), "the reference takes none")
            yield asked.not_measured(why)
        else:
            ratio = found / before
            yield asked.at_most(ratio, number(ratio), f"{megabytes(before)} -> {megabytes(found)}; {detail}")


def _peak(ctx: Context, model: Model, which: str) -> int | str:
    """Bytes that the model takes, or why that cannot be said."""
    if model.path is None:
        return f"the {which} is no file"
    if ctx.inputs.reason:
        return ctx.inputs.reason
    ctx.tell("memory", f"of the {which}")
    feeds = ctx.inputs.sets[0].feeds
    source = AsFile.of(model.path)
    peak = footprint(source, [feeds], Plan(provider=ctx.providers[0]))
    return peak if peak is not None else _why_not(ctx, source, feeds, which)


def _why_not(ctx: Context, source: AsFile, feeds: object, which: str) -> str:
    """Why the other process did not say what the model takes."""
    try:
        with open_session(source, optimize="all", provider=ctx.providers[0], settings=AS_DEPLOYED) as session:
            session.run(feeds)  # type: ignore[arg-type]
    except RuntimeFailure as failure:
        verb = "run" if failure.kind == "run" else "load"
        return f"the {which} does not {verb}: {failure.message}"
    return (
        "this system does not tell what a process takes, or the process that ran the model did not end well"
    )
