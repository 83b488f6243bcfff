"""Reading expressions of one tensor and constants, however an exporter has grouped them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from graphopt.passkit import Node, Tensor
from graphopt_passes.fusion._region import Region

Polynomial = Mapping[int, float]
_MAX_DEGREE = 3
_MAX_DEPTH = 8


def polynomial(region: Region, tensor: Tensor, x: Tensor, depth: int = _MAX_DEPTH) -> Polynomial | None:
    """`tensor` as a polynomial in `x`, up to degree 3.

    Args:
        region: receives the nodes on the way and the rank of the constants.
        tensor: the expression.
        x: the indeterminate.
        depth: how many nodes to look through.

    Returns:
        Coefficients by degree, without zeros; None if the expression is anything else.
    """
    if tensor is x:
        return {1: 1.0}
    value = region.scalar(tensor)
    if value is not None:
        return {0: value}
    node = region.find(tensor, "Add", "Sub", "Mul", "Div", "Pow", "Neg") if depth else None
    if node is None:
        return None
    left = polynomial(region, node.inputs[0], x, depth - 1)
    if left is None or node.op == "Neg":
        return None if left is None else {d: -c for d, c in left.items()}
    right = polynomial(region, node.inputs[1], x, depth - 1)
    return None if right is None else _combined(node.op, left, right)


def _combined(op: str, left: Polynomial, right: Polynomial) -> Polynomial | None:
    if op == "Pow":
        if set(right) != {0} or right[0] not in (1.0, 2.0, 3.0):
            return None
        power: Polynomial | None = left
        for _ in range(int(right[0]) - 1):
            power = None if power is None else _product(power, left)
        return power
    if op == "Div":
        if set(right) != {0} or right[0] == 0.0:
            return None
        return {d: c / right[0] for d, c in left.items()}
    if op == "Mul":
        return _product(left, right)
    sign = -1.0 if op == "Sub" else 1.0
    total = dict(left)
    for degree, c in right.items():
        total[degree] = total.get(degree, 0.0) + sign * c
    return {d: c for d, c in total.items() if c != 0.0}


def _product(left: Polynomial, right: Polynomial) -> Polynomial | None:
    total: dict[int, float] = {}
    for i, a in left.items():
        for j, b in right.items():
            total[i + j] = total.get(i + j, 0.0) + a * b
    if any(d > _MAX_DEGREE for d in total):
        return None
    return {d: c for d, c in total.items() if c != 0.0}


def matches(found: Polynomial, wanted: Polynomial, rtol: float) -> bool:
    """Whether two polynomials have the same terms, with coefficients that agree within `rtol`."""
    return set(found) == set(wanted) and all(near(found[d], c, rtol) for d, c in wanted.items())


def near(value: float, wanted: float, rtol: float) -> bool:
    """Whether `value` is `wanted` within `rtol`; NaN is near nothing."""
    return abs(value - wanted) <= rtol * abs(wanted)


@dataclass(frozen=True)
class Product:
    """`coefficient * factors[0] * factors[1] * ...`."""

    coefficient: float
    factors: tuple[Tensor, ...]


def product(region: Region, root: Node, shared: bool = False) -> Product:
    """The product that `root`, a Mul or Div, computes.

    Args:
        region: receives the nodes on the way and the rank of the constants.
        root: the last node.
        shared: look through products that have further readers, too.
    """
    coefficient, factors = 1.0, []
    stack: list[tuple[Tensor, int]] = [(root.outputs[0], 4)]
    while stack:
        tensor, depth = stack.pop()
        value = region.scalar(tensor)
        if value is not None:
            coefficient *= value
            continue
        node = region.graph.producer_op(tensor, "Mul", "Div")
        inside = node is root or (
            depth > 0 and (shared or region.graph.sole_consumer(tensor) in region.nodes)
        )
        if node is None or not inside or region.find(tensor, node.op) is None:
            factors.append(tensor)
            continue
        if node.op == "Mul":
            stack += [(t, depth - 1) for t in node.inputs]
            continue
        # Only a constant divides: what divides by a tensor is not a product.
        divisor = region.scalar(node.inputs[1])
        if divisor is None or divisor == 0.0:
            del region.nodes[node]
            factors.append(tensor)
        else:
            coefficient /= divisor
            stack.append((node.inputs[0], depth - 1))
    return Product(coefficient, tuple(factors))
