"""Matching a pattern backwards from a root node, with backtracking and an explanation of failure."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from graphopt.graph.view import Array, GraphView
from graphopt.ir import Node, Tensor
from graphopt.pattern.build import ConstPattern, EitherPattern, OpPattern, Pattern, VarPattern


class Match:
    """A region of the graph that a pattern describes.

    Attributes:
        root: the node that the match started from.
        nodes: the matched nodes that must have no readers outside, root included.
        shared: matched nodes that may have readers outside.
    """

    def __init__(self, graph: GraphView, root: Node) -> None:
        self._graph = graph
        self.root = root
        self.nodes: dict[Node, None] = {}
        self.shared: dict[Node, None] = {}
        self.tensors: dict[str, Tensor | None] = {}
        self.named: dict[str, Node] = {}
        self.values: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Tensor:
        """The tensor bound to `name`; KeyError if it is unbound or was omitted."""
        tensor = self.tensors[name]
        if tensor is None:
            raise KeyError(f"{name!r} is bound to an omitted input")
        return tensor

    def get(self, name: str) -> Tensor | None:
        """The tensor bound to `name`, None if it is unbound or was omitted."""
        return self.tensors.get(name)

    def node(self, name: str) -> Node:
        """The node bound to `name`."""
        return self.named[name]

    def value(self, name: str) -> Any:
        """The attribute value, or index of the alternative, bound to `name`."""
        return self.values[name]

    def array(self, name: str) -> Array:
        """The values of the constant bound to `name`. Do not write to it."""
        array = self._graph.array(self[name])
        if array is None:
            raise KeyError(f"{name!r} is not a constant")
        return array

    def array_or_none(self, name: str) -> Array | None:
        """The values of the constant bound to `name`, None if it was omitted."""
        return self._graph.array(self.get(name))

    @property
    def output(self) -> Tensor:
        """The root's first output."""
        return self.root.outputs[0]


class Failure:
    """Why a pattern did not match: the deepest point that was reached.

    Attributes:
        depth: how many operators had matched; -1 before anything was tried.
        node: where it ended.
        reason: why.
        blocked: everything matched, but something outside needs a part of it.
    """

    __slots__ = ("blocked", "depth", "node", "reason")

    def __init__(self) -> None:
        self.blocked = False
        self.depth = -1
        self.node: Node | None = None
        self.reason = ""

    def note(self, depth: int, node: Node, reason: str) -> None:
        """Keep the explanation that got furthest; the first one wins a tie."""
        if depth > self.depth and not self.blocked:
            self.depth, self.node, self.reason = depth, node, reason


def find(pattern: OpPattern, root: Node, graph: GraphView, failure: Failure | None = None) -> Match | None:
    """Match `pattern` at `root`.

    Args:
        pattern: what to look for.
        root: where; its type must be one of the pattern's.
        graph: the body it stands in.
        failure: receives the nearest miss: how many operators matched, where and why it ended.

    Returns:
        The match, all of whose interior nodes have their readers inside the match, or None.
    """
    for match in _match_op(pattern, root, Match(graph, root), graph, failure):
        if _is_closed(match, graph, failure):
            return match
    return None


def _is_closed(match: Match, graph: GraphView, failure: Failure | None) -> bool:
    """Every non-root output that the rewrite makes vanish has no other reader."""
    for node in match.nodes:
        if node is match.root:
            continue
        for t in node.outputs:
            if not t.name or graph.only_read_by(t, match.nodes):
                continue
            if failure is not None:
                reader = "is a graph output" if graph.is_output(t) else "has another reader"
                failure.blocked = True
                failure.node, failure.reason = node, f"the {node.op} output {t.name} {reader}"
            return False
    return True


def _save(m: Match) -> tuple[Any, ...]:
    return dict(m.nodes), dict(m.shared), dict(m.tensors), dict(m.named), dict(m.values)


def _restore(m: Match, saved: tuple[Any, ...]) -> None:
    m.nodes, m.shared, m.tensors, m.named, m.values = (dict(part) for part in saved)


def _match_op(
    p: OpPattern, node: Node, m: Match, graph: GraphView, failure: Failure | None
) -> Iterator[Match]:
    """Extend `m` by `p` at `node`, in every way there is."""

    def miss(reason: str) -> None:
        if failure is not None:
            failure.note(len(m.nodes) + len(m.shared), node, reason)

    if not graph.is_op(node, *p.ops, domain=p.domain):
        miss(f"{node.op} where {' or '.join(p.ops)} was expected")
        return
    if not graph.is_live(node):
        miss(f"{node.op} stands in another body")
        return
    for name, wanted in p.attrs.items():
        value = graph.attr(node, name)
        if isinstance(value, list):
            value = tuple(value)
        target = tuple(wanted.value) if isinstance(wanted.value, list) else wanted.value
        accepted = wanted.check(value) if wanted.check else target is None or value == target
        if not accepted:
            miss(f"{name} is {value}")
            return
        if wanted.name is not None:
            m.values[wanted.name] = value
    if p.outputs is not None:
        used = sum(1 for t in node.outputs if t.name and graph.is_read(t))
        if used > p.outputs or any(t.name and graph.is_read(t) for t in node.outputs[p.outputs :]):
            miss(f"{used} outputs of {node.op} are used")
            return
    if p.exact and any(t.name for t in node.inputs[len(p.inputs) :]):
        miss(f"{node.op} has {len(node.inputs)} inputs")
        return
    (m.shared if p.shared else m.nodes)[node] = None
    if p.name is not None:
        m.named[p.name] = node
    operands = [graph.input(node, slot) for slot in range(len(p.inputs))]
    orders = [operands, operands[::-1]] if p.commutative and len(operands) == 2 else [operands]
    saved = _save(m)
    for order in orders:
        _restore(m, saved)
        yield from _match_all(p.inputs, order, 0, node, m, graph, failure)


def _match_all(
    patterns: tuple[Pattern, ...],
    tensors: list[Tensor | None],
    at: int,
    reader: Node,
    m: Match,
    graph: GraphView,
    failure: Failure | None,
) -> Iterator[Match]:
    if at == len(patterns):
        yield m
        return
    saved = _save(m)
    for _ in _match_tensor(patterns[at], tensors[at], reader, m, graph, failure):
        yield from _match_all(patterns, tensors, at + 1, reader, m, graph, failure)
        _restore(m, saved)


def _match_tensor(
    p: Pattern, tensor: Tensor | None, reader: Node, m: Match, graph: GraphView, failure: Failure | None
) -> Iterator[Match]:
    if isinstance(p, EitherPattern):
        saved = _save(m)
        for number, option in enumerate(p.options):
            _restore(m, saved)
            for _ in _match_tensor(option, tensor, reader, m, graph, failure):
                if p.name is not None:
                    m.values[p.name] = number
                yield m
        return

    def miss(reason: str) -> None:
        if failure is not None:
            failure.note(len(m.nodes) + len(m.shared), reader, reason)

    if isinstance(p, OpPattern):
        if tensor is None:
            miss(f"{reader.op} lacks an input")
            return
        producer = graph.producer(tensor)
        if producer is None:
            miss(f"{tensor.name} is not computed by {' or '.join(p.ops)}")
            return
        if p.output >= len(producer.outputs) or producer.outputs[p.output] is not tensor:
            miss(f"{tensor.name} is another output of {producer.op}")
            return
        bound = m.named.get(p.name) if p.name is not None else None
        if bound is not None and bound is not producer:
            miss(f"{tensor.name} comes from another {producer.op}")
            return
        yield from _match_op(p, producer, m, graph, failure)
        return
    if tensor is None and not p.optional:
        miss(f"{reader.op} lacks an input")
        return
    if isinstance(p, ConstPattern) and tensor is not None:
        reason = _constant_misses(p, tensor, graph)
        if reason is not None:
            miss(reason)
            return
    if p.name is not None:
        if p.name in m.tensors and m.tensors[p.name] is not tensor:
            miss(f"{tensor.name if tensor else 'nothing'} where {p.name} was expected again")
            return
        m.tensors[p.name] = tensor
    yield m


def _constant_misses(p: ConstPattern, tensor: Tensor, graph: GraphView) -> str | None:
    constant = graph.constant(tensor)
    if constant is None:
        return f"{tensor.name} is not constant"
    if p.scalar is not None or p.one_element:
        if int(np.prod(constant.shape)) != 1:
            return f"{tensor.name} has {int(np.prod(constant.shape))} elements"
        if p.scalar is not None:
            value = graph.scalar(tensor)
            if not isinstance(value, int | float) or not math.isclose(
                float(value), p.scalar, rel_tol=p.rtol, abs_tol=0.0
            ):
                return f"{tensor.name} is {value}, not {p.scalar}"
    if p.check is not None and not p.check(constant.values):
        return f"{tensor.name} has the wrong value"
    return None


__all__ = ["Failure", "Match", "VarPattern", "find"]
