"""What a part of the candidate makes of the reference's own values: its error, without what came in."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from graphopt.errors import UserError
from graphopt.ir import Node, Tensor
from graphopt.runtime.evaluate import evaluate
from graphopt.runtime.values import Array
from graphopt.validation.gaps import Gap
from graphopt.validation.metrics import is_float
from graphopt.validation.net import Net

if TYPE_CHECKING:
    from graphopt.validation.layers import Comparison
    from graphopt.validation.matching import Pair

# Weights of the part are copied: beyond so many bytes it is left alone.
_MOST: Final = 256 << 20
_NODES: Final = 64


def isolated(comparison: Comparison, pair: Pair, near: list[Pair]) -> Gap | None:
    """How far `pair` is off when the nodes before it are fed the reference's values.

    Args:
        comparison: where values come from.
        pair: the tensor.
        near: tensors before it that have a counterpart.

    Returns:
        None where that cannot be run: control flow, large weights, values that cannot be observed.
    """
    cand = comparison.matching.candidate
    known = comparison.known(pair)
    if known is None:
        return None
    at = known.first
    body = cand.places[pair.candidate].body
    nodes = region(cand, pair.candidate, {p.candidate for p in near})
    if nodes is None:
        return None
    feeds: dict[Tensor, Array] = {}
    values = comparison.reference.read([p.reference for p in near])
    for other in near:
        found = values.get(other.reference)
        if not found:
            return None
        inside = other.candidate in cand.places and cand.places[other.candidate].body == body
        index = at if body and inside else 0
        if index >= len(found):
            return None
        feeds[other.candidate] = _as_declared(cand, other.candidate, found[index])
    size = 0
    made = {t for node in nodes for t in node.outputs}
    for node in nodes:
        for tensor in node.inputs:
            if not tensor.name or tensor in feeds or tensor in made:
                continue
            constant = cand.constant(tensor) if cand.is_constant(tensor) else None
            if constant is None:
                return None
            size += constant.nbytes
            if size > _MOST:
                return None
            feeds[tensor] = np.asarray(constant.values)
    try:
        results, _ = evaluate(
            nodes, feeds, cand.model.opset_imports, cand.model.graph.functions, wanted=[pair.candidate]
        )
    except (UserError, MemoryError):
        return None
    finally:
        feeds.clear()
        cand.model.release()
    value = results.get(pair.candidate)
    return None if value is None else comparison.distance(pair, [value], at)


def first_not_finite(comparison: Comparison, pair: Pair, near: list[Pair]) -> tuple[Node, Tensor] | None:
    """Where NaN or infinity appears among the nodes without counterpart that lead to `pair`.

    Args:
        comparison: where values come from.
        pair: has NaN or infinities at places where the reference has not.
        near: tensors before it that have a counterpart.

    Returns:
        the node and its output; None where only the last node, or none of them, can be looked at.
    """
    cand = comparison.matching.candidate
    nodes = region(cand, pair.candidate, {p.candidate for p in near})
    if nodes is None or len(nodes) < 2:
        return None
    before = comparison.candidate.read([p.candidate for p in near])
    if not all(_is_finite(v) for values in before.values() for v in values):
        return None  # infinities come in, as of a mask: what is new cannot be told by looking for any
    outputs = [(n, t) for n in nodes for t in n.outputs if t.name]
    values = comparison.candidate.read([t for _, t in outputs])
    for node, tensor in outputs:
        if not all(map(_is_finite, values.get(tensor, []))):
            return node, tensor
    return None


def _is_finite(value: Array) -> bool:
    return not is_float(value.dtype) or bool(np.isfinite(value.astype(np.float64)).all())


def region(net: Net, tensor: Tensor, border: set[Tensor]) -> list[Node] | None:
    """The nodes that compute `tensor` from `border` and constants, in order; None: not by simple nodes."""
    found: dict[Node, None] = {}
    stack = [tensor]
    while stack:
        current = stack.pop()
        if current is not tensor and current in border:
            continue
        if net.is_constant(current) or not current.name:
            continue
        node = net.producer(current)
        if node is None or any(True for _ in node.bodies()) or len(found) > _NODES:
            return None
        if node not in found:
            found[node] = None
            stack.extend(node.inputs)
    order = {n: i for i, n in enumerate(net.nodes)}
    return sorted(found, key=order.__getitem__)


def _as_declared(net: Net, tensor: Tensor, value: Array) -> Array:
    """The value in the type that the candidate has there."""
    from graphopt.runtime.values import numpy_dtype

    dtype = net.facts.dtype(tensor)
    if dtype is None or value.dtype == object:
        return value
    with np.errstate(over="ignore", invalid="ignore"):
        return value.astype(numpy_dtype(dtype), copy=False)
