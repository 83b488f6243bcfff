"""Chains of Relu, Clip, Min and Max as one operator."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from graphopt.passkit import Node, NodePass, Numerics, PassContext, Rewriter
from graphopt_passes.fusion._bounds import BOUNDING, read_bounds, write_bounds
from graphopt_passes.fusion._region import Region


@dataclass(frozen=True)
class MergeClips(NodePass):
    """clip(clip(x, a, b), c, d) = clip(x, max(a, c), min(max(b, c), d)), for Relu, Clip, Min, Max by scalars.

    clip(x, a, b) = min(max(x, a), b), also for a > b, where it is b. An omitted bound of Clip is the
    largest finite number, which infinity is mapped to; Relu, Min and Max have no such bound. NaN passes
    through all of them. Only the sign of zero may change, which implementations choose differently.

    Refuses when: the inner result has another reader or is a graph output; a bound of Min or Max
    broadcasts x to a higher rank; the merged operator does not exist for the type at this opset. Bounds
    that are not constant scalars, or NaN, are no candidates.
    """

    name: ClassVar[str] = "merge-clips"
    numerics: ClassVar[Numerics] = Numerics.CLOSE
    ops: ClassVar[tuple[str, ...]] = BOUNDING

    def visit(self, node: Node, graph: Rewriter, ctx: PassContext) -> None:
        """Merge `node` with the bounds on its input."""
        region = Region(graph)
        region.nodes[node] = None
        outer = read_bounds(region, node)
        before = None if outer is None else region.find(outer.x, *BOUNDING)
        inner = None if before is None else read_bounds(region, before)
        if outer is None or before is None or inner is None:
            return
        region.check_closed(node)
        region.check_rank(inner.x)
        with graph.site(node, f"{node.op} bounds what {before.op} has bounded"):
            write_bounds(graph, node.outputs[0], outer.inside(inner), "Clip" in (node.op, before.op))
