"""Activations of the form `x * gate(x)`, where the gate is built from Erf, Tanh or Sigmoid."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from graphopt.passkit import GraphView, Node, Tensor
from graphopt_passes.fusion._algebra import Polynomial, polynomial, product
from graphopt_passes.fusion._region import Region


@dataclass(frozen=True)
class Gate:
    """`coefficient * x * g(argument(x))`, where g(u) is 1 + Erf(u), 1 + Tanh(u) or Sigmoid(u).

    Attributes:
        curve: "Erf", "Tanh" or "Sigmoid".
        region: the nodes that compute it.
    """

    x: Tensor
    curve: str
    coefficient: float
    argument: Polynomial
    region: Region


def gates(graph: GraphView, root: Node) -> Iterator[Gate]:
    """The ways to read `root`, a Mul or Div, as a gate.

    The first readings leave alone what other nodes read as well; those that follow do not, so that a
    caller can tell why such a near miss is not fused.
    """
    for shared in (False, True):
        region = Region(graph)
        found = product(region, root, shared)
        if len(found.factors) != 2:
            continue
        for x, gate in (found.factors, found.factors[::-1]):
            attempt = region.fork()
            read = _gate(attempt, gate)
            if read is None:
                continue
            curve, scale, sign = read
            argument = polynomial(attempt, curve.inputs[0], x)
            if argument is not None:
                signed = {d: sign * c for d, c in argument.items()}
                yield Gate(x, curve.op, found.coefficient * scale, signed, attempt)


def _gate(region: Region, tensor: Tensor) -> tuple[Node, float, float] | None:
    """`tensor` as `scale * g(sign * u)`: the node of the curve, scale and sign."""
    node = region.find(tensor, "Sigmoid", "Add", "Sub")
    if node is None:
        return None
    if node.op == "Sigmoid":
        return node, 1.0, 1.0
    for one, other in (node.inputs, node.inputs[::-1]):
        shift = region.scalar(one)
        if shift is None or shift == 0.0:
            continue
        if node.op == "Sub" and one is node.inputs[1]:
            continue
        read = _scaled_curve(region, other)
        if read is None:
            return None
        curve, factor = read
        ratio = (-factor if node.op == "Sub" else factor) / shift
        # Erf and Tanh are odd, so 1 - Erf(u) = 1 + Erf(-u).
        return (curve, shift, ratio) if abs(ratio) == 1.0 else None
    return None


def _scaled_curve(region: Region, tensor: Tensor) -> tuple[Node, float] | None:
    """`tensor` as `factor * Erf(u)` or `factor * Tanh(u)`."""
    curve = region.find(tensor, "Erf", "Tanh")
    if curve is not None:
        return curve, 1.0
    outer = region.find(tensor, "Mul", "Div")
    if outer is None:
        return None
    found = product(region, outer, shared=True)
    if len(found.factors) != 1:
        return None
    curve = region.find(found.factors[0], "Erf", "Tanh")
    return None if curve is None else (curve, found.coefficient)
