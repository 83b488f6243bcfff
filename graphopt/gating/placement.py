"""Checks of who runs the nodes: coverage by an execution provider, copies between devices."""

from __future__ import annotations

from collections.abc import Iterator

from graphopt.gating.asked import by_reason, matches, names, number
from graphopt.gating.context import Context
from graphopt.gating.policy import ProviderLimits
from graphopt.report.gated import Check
from graphopt.runtime.assignment import Assignment, PlacedNode, assignment
from graphopt.runtime.session import RuntimeFailure

_ON_PURPOSE = "preferred on the CPU"


def check_providers(ctx: Context) -> Iterator[Check]:
    """`[providers.NAME]`."""
    for name, limits in ctx.policy.providers.items():
        source = ctx.model.session_source()
        ctx.tell("assignment", f"who runs the nodes on {name}")
        found: Assignment | None = None
        why = ""
        try:
            found = assignment(source, provider=name, settings=ctx.settings)
        except RuntimeFailure as failure:
            why = f"the model does not load on {name}: {failure.message}"
        if limits.min_share is not None:
            yield _share(ctx, name, limits, found, why)
        if limits.allow_memcpy is False:
            asked = ctx.ask(("providers", name, "allow_memcpy"), f"copies to and from {name}", "none", 0)
            if found is None:
                yield asked.not_measured(why)
            else:
                count = found.copy_count
                yield asked.at_most(count, f"{count}" if count else "none", names(found.copies))


def _share(ctx: Context, name: str, limits: ProviderLimits, found: Assignment | None, why: str) -> Check:
    assert limits.min_share is not None
    allowed = limits.min_share
    asked = ctx.ask(
        ("providers", name, "min_share"),
        f"nodes that {name} runs",
        f"at least {100 * allowed:.4g} %",
        allowed,
    )
    if found is None:
        return asked.not_measured(why)
    nodes = [node for node in found.nodes if not _is_excused(node, limits)]
    left = [node for node in nodes if node.provider != found.provider]
    share = 1 - len(left) / len(nodes) if nodes else 1.0
    others = by_reason((f"{n.name} ({n.op})", f"on {n.provider}, {n.reason}") for n in left)
    detail = "; ".join(text for text in (others, f"read from {found.source}") if text)
    return asked.at_least(
        share, f"{number(100 * share)} % ({len(nodes) - len(left)} of {len(nodes)})", detail
    )


def _is_excused(node: PlacedNode, limits: ProviderLimits) -> bool:
    """Whether the policy lets another provider run the node."""
    return matches(node.op, limits.fallback) or (limits.shapes_on_cpu and node.cause == _ON_PURPOSE)
