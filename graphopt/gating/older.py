"""What changed since an older version of the model, and how far it may."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cached_property

from graphopt import summary
from graphopt.gating.asked import Asked, megabytes, names
from graphopt.gating.context import Context
from graphopt.graph.diff import ModelDiff, diff_models
from graphopt.graph.stats import model_stats
from graphopt.model import Model
from graphopt.report.gated import Check, Older
from graphopt.report.text import change, plural

_SHOWN = 10


class Comparison:
    """A model next to an older version of it."""

    def __init__(self, ctx: Context, old: Model) -> None:
        self.ctx, self.old = ctx, old

    @cached_property
    def diff(self) -> ModelDiff:
        """What differs; initializers are compared by value, one at a time."""
        self.ctx.tell("against", "what changed")
        return diff_models(self.old, self.ctx.model)

    def report(self) -> Older:
        """What differs, for the report."""
        diff = self.diff
        kinds = ("removed", "added", "changed")
        return Older(
            file=summary.file_info(self.old.path, self.old.data_files),
            stats=model_stats(self.old),
            interface=diff.interface,
            properties=diff.properties,
            nodes={kind: sum(n.kind == kind for n in diff.nodes) for kind in kinds},
            initializers={kind: sum(v.kind == kind for v in diff.initializers) for kind in kinds},
            ops={op: (before, after) for op, (before, after) in diff.ops.items()},
        )

    def words(self) -> Iterator[str]:
        """What differs, in words, the most telling first."""
        diff = self.diff
        yield from diff.interface
        yield from diff.properties
        before = summary.file_info(self.old.path, self.old.data_files).bytes
        after = self.ctx.info.bytes
        if before != after:
            yield f"size: {megabytes(before)} -> {megabytes(after)} ({change(before, after)})"
        for op, (old, new) in diff.ops.items():
            yield f"{op}: {old} -> {new}"
        for what, items in (("node", diff.nodes), ("initializer", diff.initializers)):
            for kind in ("removed", "added", "changed"):
                found = [item.name or "(unnamed)" for item in items if item.kind == kind]
                if found:
                    yield f"{plural(len(found), what)} {kind}: {names(found)}"


def check_against(ctx: Context, seen: Comparison) -> Iterator[Check]:
    """`[against]`."""
    limits = ctx.policy.against
    assert limits is not None
    diff = seen.diff
    if limits.same_interface:
        asked = ctx.ask(("against", "same_interface"), "inputs and outputs", "as they were")
        yield _unchanged(asked, diff.interface)
    if limits.same_opsets:
        asked = ctx.ask(("against", "same_opsets"), "opsets and IR version", "as they were")
        yield _unchanged(asked, [p for p in diff.properties if p.startswith(("opsets:", "IR version:"))])
    if limits.max_size_growth is not None:
        before = summary.file_info(seen.old.path, seen.old.data_files).bytes
        yield _growth(ctx, "max_size_growth", "size", limits.max_size_growth, before, ctx.info.bytes)
    if limits.max_node_growth is not None:
        before = model_stats(seen.old).nodes
        yield _growth(
            ctx, "max_node_growth", "number of nodes", limits.max_node_growth, before, ctx.stats.nodes
        )
    if limits.max_new_ops is not None:
        asked = ctx.ask(
            ("against", "max_new_ops"),
            "kinds of operators that are new",
            f"at most {limits.max_new_ops}",
            limits.max_new_ops,
        )
        new = [op for op, (old, _) in diff.ops.items() if not old]
        yield asked.at_most(len(new), str(len(new)), names(new))


def _unchanged(asked: Asked, changes: Iterable[str]) -> Check:
    found = list(changes)
    value = plural(len(found), "change") if found else "as they were"
    return asked.judged(not found, value, len(found), "; ".join(found[:_SHOWN]))


def _growth(ctx: Context, key: str, what: str, allowed: float, before: float, after: float) -> Check:
    asked = ctx.ask(("against", key), f"growth of the {what}", f"at most {100 * allowed:.4g} %", allowed)
    if not before:
        return asked.not_measured("the older version has none, or is no file")
    growth = (after - before) / before
    words = megabytes if key == "max_size_growth" else lambda n: f"{n:,.0f}"
    return asked.at_most(growth, change(before, after) or "0%", f"{words(before)} -> {words(after)}")
