"""merge-reshapes: chains of Reshape, Flatten, Squeeze and Unsqueeze."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from graphopt.passkit import (
    Dim,
    GraphView,
    Node,
    NodePass,
    Numerics,
    PassContext,
    RefusedRewrite,
    Rewriter,
    Sym,
    Tensor,
)
from graphopt_passes.cleanup.operands import absorbable, attribute, label
from graphopt_passes.cleanup.remove_noop_reshape import RESHAPES


@dataclass(frozen=True)
class MergeReshapes(NodePass):
    """Reshape(r(x), shape) = Reshape(x, shape) for r of Reshape, Flatten, Squeeze, Unsqueeze.

    Only the order of the elements matters, and r keeps it. A 0 in `shape`, which copies a dim of r(x), must
    copy the same dim of x, or is written as the number (or the -1) that it stands for. The outer node may be
    a Flatten, Squeeze or Unsqueeze as well, if what it makes can be written as a Reshape: at most one
    dim that is not a known number above 0. Pairs of Squeezes and of Unsqueezes are for their own passes.

    Refuses when r(x) has other readers, and when a dim that 0 may stand for is not known.
    """

    name: ClassVar[str] = "merge-reshapes"
    numerics: ClassVar[Numerics] = Numerics.EXACT
    ops: ClassVar[tuple[str, ...]] = RESHAPES

    def visit(self, node: Node, graph: Rewriter, ctx: PassContext) -> None:
        """Read past the inner node."""
        middle, result = graph.input(node, 0), graph.output(node, 0)
        if middle is None or result is None or graph.opset < 5:
            return
        inner = graph.producer_op(middle, *RESHAPES)
        if inner is None or (inner.op == node.op and node.op in ("Squeeze", "Unsqueeze")):
            return
        inner = absorbable(graph, middle, *RESHAPES)
        source = None if inner is None else graph.input(inner, 0)
        if inner is None or source is None:
            return
        if graph.keeps(node):
            raise RefusedRewrite(f"{node.name} is kept")
        if node.op == "Reshape" and _means_the_same(graph, node, source, middle):
            graph.set_input(node, 0, source, f"{inner.op} keeps the order of the elements")
            return
        shape = graph.shape(result)
        target = None if shape is None else as_target(shape)
        if target is None:
            raise RefusedRewrite(
                f"what {label(node)} makes of the {inner.op} before it depends on dims that are not known"
            )
        if node.op == "Reshape" and _is_empty_copy(graph, node):
            raise RefusedRewrite(f"the target of {label(node)} may copy a dim of length 0")
        with graph.site(node, f"{node.op} of a {inner.op} is one Reshape"):
            constant = graph.new_constant(f"{result.name}/shape", np.array(target, np.int64))
            graph.replace(result, "Reshape", [source, constant])


def as_target(shape: Sequence[Dim]) -> list[int] | None:
    """`shape` as the second input of Reshape, with at most one -1, and right for 0 elements as well.

    None where two dims are unknown, or one is 0: then -1 is ambiguous and 0 would copy.
    """
    if any(d == 0 for d in shape) or sum(isinstance(d, Sym) for d in shape) > 1:
        return None
    return [-1 if isinstance(d, Sym) else d for d in shape]


def _means_the_same(graph: GraphView, node: Node, source: Tensor, middle: Tensor) -> bool:
    """Whether the target of a Reshape gives the same shape for `source` as for `middle`."""
    allowzero = graph.opset >= 14 and bool(attribute(graph, node, "allowzero"))
    if allowzero:
        return True
    target = graph.sym_value(graph.input(node, 1))
    if target is None:
        return False
    old, new = graph.shape(middle), graph.shape(source)
    for i, dim in enumerate(target):
        if not may_be_zero(dim):
            continue
        if old is None or new is None or i >= len(old) or i >= len(new):
            return False
        if old[i] != new[i]:
            return False
    return True


def may_be_zero(dim: Any) -> bool:
    """Whether an element of a Reshape target can be 0, as far as is known."""
    if isinstance(dim, Sym):
        positive = dim.lower is not None and dim.lower > 0
        return not positive and not (dim.upper is not None and dim.upper < 0)
    return bool(dim == 0)


def _is_empty_copy(graph: GraphView, node: Node) -> bool:
    """Whether a target that is computed may turn out to be 0 and so mean another shape than it says."""
    target = graph.sym_value(graph.input(node, 1))
    return target is None or any(isinstance(d, Sym) and may_be_zero(d) for d in target)
