"""Regions whose channels can be rescaled, the ranges of their weights, and the rewrite itself."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from graphopt.passkit import Array, Constant, Node, PassContext, RefusedRewrite, Rewriter, Tensor
from graphopt_passes.fusion._affine import rounded, scaled
from graphopt_passes.fusion._gemm import read_gemm
from graphopt_passes.quantization._channel_rules import RULES
from graphopt_passes.quantization._channels import Explorer, Operand, Port, Region

_LINEAR = ("Conv", "ConvTranspose", "Gemm", "MatMul")
# Scales beyond this, as log2, would only serve channels that hold next to nothing.
_LARGEST = 20.0
# Products of two computed tensors met on the way in whose either operand may carry the scale.
_CHOICES: tuple[tuple[int, ...], ...] = ((), (1,), (0, 1), (1, 1))


def linear_inputs(graph: Rewriter) -> Iterator[tuple[Node, Tensor]]:
    """Operators that multiply by a constant weight, and the computed tensor that each reads."""
    for node in graph.by_op(*_LINEAR):
        a, b = graph.input(node, 0), graph.input(node, 1)
        if a is None or b is None or graph.is_constant(a) == graph.is_constant(b):
            continue
        if graph.is_constant(a) and node.op.startswith("Conv"):
            continue
        yield node, b if graph.is_constant(a) else a


def input_axis(graph: Rewriter, node: Node) -> int | None:
    """The axis of the data of a linear operator (see `linear_inputs`) that it sums over; None if unknown."""
    if node.op.startswith("Conv"):
        return 1
    try:
        found = read_gemm(graph, node)
    except RefusedRewrite:
        return None
    slot = 1 if graph.is_constant(found.a) else 0
    rank = graph.rank(node.inputs[slot])
    return None if rank is None or rank < 2 else found.depth_axis(slot, rank)


@dataclass(frozen=True)
class Regions:
    """What of a body can be rescaled.

    Attributes:
        found: regions of at least two channels that a linear operator reads, in the order of their first
            reader.
        failed: linear operators whose input cannot be rescaled -> why; one of each group that hangs together.
        stuck: all such linear operators, and what they read.
    """

    found: list[Region]
    failed: dict[Node, str]
    stuck: list[tuple[Node, Tensor]]


def find_regions(graph: Rewriter) -> Regions:
    """All regions of a body that a linear operator reads from."""
    regions: list[Region] = []
    failed: dict[Node, str] = {}
    stuck: list[tuple[Node, Tensor]] = []
    seen: set[Tensor] = set()
    good: set[Tensor] = set()
    order = {node: place for place, node in enumerate(graph.nodes())}
    for node, tensor in sorted(linear_inputs(graph), key=lambda item: order[item[0]]):
        if tensor in good:
            continue
        if tensor in seen or graph.producer(tensor) is None:
            stuck.append((node, tensor))
            continue
        try:
            explorer = _explore(graph, node, tensor, seen)
        except RefusedRewrite as refused:
            failed[node] = refused.reason
            stuck.append((node, tensor))
            continue
        good.update(t for t, layout in explorer.layouts.items() if not explorer.is_fixed(layout))
        region = explorer.region(node)
        if region.count > 1 and not region.fixed.all():
            regions.append(region)
    return Regions(regions, failed, stuck)


def local_regions(graph: Rewriter, stuck: Iterable[tuple[Node, Tensor]]) -> list[Region]:
    """For each tensor of `stuck`, a region of nothing but the linear operators that read it.

    What such a region reads must be scaled by an operator of its own: `rescale` with `insert`.
    """
    regions = []
    for tensor, node in {tensor: node for node, tensor in reversed(list(stuck))}.items():
        axis, shape = input_axis(graph, node), graph.shape(tensor)
        if axis is None or shape is None or not isinstance(shape[axis], int) or graph.keeps(tensor):
            continue
        explorer = Explorer(graph, RULES)
        size = shape[axis]
        assert isinstance(size, int)
        explorer.layouts[tensor] = explorer.fresh([size if a == axis else 1 for a in range(len(shape))])
        for reader in graph.consumers(tensor):
            if (
                not graph.is_live(reader)
                or graph.keeps(reader)
                or input_axis_of(graph, reader, tensor) != axis
            ):
                continue
            with contextlib.suppress(RefusedRewrite):
                RULES[reader.op](explorer, reader, tensor)
        if explorer.ports and size > 1:
            regions.append(explorer.region(explorer.ports[0].node))
    return regions[::-1]


def input_axis_of(graph: Rewriter, node: Node, tensor: Tensor) -> int | None:
    """`input_axis` if `node` is a linear operator that reads `tensor` as its data, else None."""
    if not graph.is_op(node, *_LINEAR):
        return None
    a, b = graph.input(node, 0), graph.input(node, 1)
    if a is None or b is None or graph.is_constant(a) == graph.is_constant(b):
        return None
    return input_axis(graph, node) if (b if graph.is_constant(a) else a) is tensor else None


def _explore(graph: Rewriter, node: Node, tensor: Tensor, seen: set[Tensor]) -> Explorer:
    """Everything that must be scaled with `tensor`, which `node` reads; what was walked over joins `seen`."""
    axis, shape = input_axis(graph, node), graph.shape(tensor)
    size = None if axis is None or shape is None else shape[axis]
    if axis is None or shape is None or not isinstance(size, int):
        raise RefusedRewrite(f"the channels of {tensor.name} are not known")
    layout = [size if a == axis else 1 for a in range(len(shape))]
    first: RefusedRewrite | None = None
    walked: dict[Tensor, None] = {}
    met = 0
    for choices in _CHOICES:
        if len(choices) > met:
            continue
        explorer = Explorer(graph, RULES, choices)
        try:
            explorer.put(tensor, explorer.fresh(layout))
            explorer.explore()
        except RefusedRewrite as refused:
            first = first or refused
            met = max(met, explorer.n_choices)
            walked.update(dict.fromkeys(explorer.layouts))
            continue
        seen.update(explorer.layouts)
        return explorer
    seen.update(walked)
    assert first is not None
    raise first


class Magnitudes:
    """The magnitudes of the linear weights of some regions, under scales that change.

    Args:
        graph: the body.
        regions: the regions; a weight may be written in one of them and read in another.

    Attributes:
        logs: log2 of the scale of each region's channels, float64 `(count,)` each, all 0 at first.
    """

    def __init__(self, graph: Rewriter, regions: Sequence[Region]) -> None:
        self.logs = [np.zeros(r.count) for r in regions]
        self._uses: dict[tuple[Node, int], list[tuple[int, Operand]]] = {}
        self._sizes: dict[tuple[Node, int], Array] = {}
        for index, region in enumerate(regions):
            for port in region.ports:
                for operand in port.operands:
                    if port.is_linear and operand.is_weight:
                        self._uses.setdefault((port.node, operand.slot), []).append((index, operand))
        for (node, slot), uses in self._uses.items():
            weight = graph.array(node.inputs[slot])
            assert weight is not None  # the ports saw that it is constant
            varying = {weight.ndim - o.channels.ndim + a for _, o in uses for a in _varying(o.channels)}
            flat = tuple(a for a in range(weight.ndim) if a not in varying)
            self._sizes[node, slot] = np.abs(weight).max(axis=flat, keepdims=True).astype(np.float64)

    def of(self, index: int, port: Port) -> Array:
        """The largest magnitude in a port's weight per channel of region `index`, `(count,)`.

        In units of the largest of the whole weight, so that weights of several operators compare; 0 for
        channels that the weight does not have.
        """
        found = np.zeros(len(self.logs[index]))
        for operand in port.operands:
            if not operand.is_weight:
                continue
            now = self._sizes[port.node, operand.slot]
            for at, use in self._uses[port.node, operand.slot]:
                now = now * np.exp2(self.logs[at][use.channels] * use.power)
            channels = operand.channels.reshape(
                (1,) * (now.ndim - operand.channels.ndim) + operand.channels.shape
            )
            others = tuple(a for a in range(now.ndim) if channels.shape[a] == 1)
            largest = now.max(axis=others, keepdims=True)
            np.maximum.at(found, channels.reshape(-1), np.broadcast_to(largest, channels.shape).reshape(-1))
        top = found.max()
        return found / top if top > 0 and np.isfinite(top) else found


def _varying(channels: Array) -> list[int]:
    return [a for a, size in enumerate(channels.shape) if size > 1]


def rescale(
    graph: Rewriter, ctx: PassContext, region: Region, logs: Array, why: str, *, insert: bool = False
) -> None:
    """Divide the channels of `region` by `2 ** logs`: its writers' constants, and its readers' inversely.

    Args:
        graph: the body.
        ctx: for the limits.
        region: the region.
        logs: float64 `(count,)`.
        why: the rewrite in words.
        insert: the readers get what they read from a Mul by `2 ** -logs`, for a local region.

    Raises:
        RefusedRewrite: the new constants do not fit their dtype, or the model would grow.
    """
    made: dict[tuple[Constant, bytes, int], Tensor] = {}
    with graph.site(region.root, why):
        if insert:
            _insert_mul(graph, region, logs)
        for port in region.ports:
            for operand in port.operands:
                old = graph.constant(port.node.inputs[operand.slot])
                assert old is not None
                key = (old, operand.channels.tobytes(), operand.power)
                if key not in made:
                    made[key] = _rescaled(graph, old, logs, operand)
                if made[key] is not old:
                    graph.set_input(port.node, operand.slot, made[key])
        growth = sum(c.nbytes for c in made.values()) - sum(
            old.nbytes for old in {key[0] for key in made} if not graph.is_read(old)
        )
        if growth > ctx.limits.growth_bytes:
            raise RefusedRewrite(f"weights with other readers would be copied, {growth} bytes more")
    if not insert:
        # These tensors no longer have the values of their namesakes in the teacher.
        ctx.notes |= {("scaled", tensor): True for tensor in region.layouts}


def _insert_mul(graph: Rewriter, region: Region, logs: Array) -> None:
    port = region.ports[0]
    weight = graph.constant(port.node.inputs[port.operands[0].slot])
    rank = graph.rank(port.data)
    assert weight is not None
    assert rank is not None
    assert port.axis is not None
    assert port.channels is not None
    factor = np.exp2(-logs[port.channels]).reshape(-1, *(1,) * (rank - 1 - port.axis % rank))
    inverse = graph.new_constant(f"{port.data.name}_inverse_scale", rounded(factor, weight.dtype, "scale"))
    smooth = graph.op("Mul", [port.data, inverse], hint=f"{port.data.name}_smooth")
    for port in region.ports:
        slot = next(i for i, t in enumerate(port.node.inputs) if t is port.data)
        graph.set_input(port.node, slot, smooth)


def _rescaled(graph: Rewriter, old: Constant, logs: Array, operand: Operand) -> Constant:
    values = graph.array(old)
    assert values is not None
    factor = np.exp2(logs[operand.channels] * operand.power)
    shape = np.broadcast_shapes(values.shape, factor.shape)
    if not values.any() or (factor == 1).all():
        return old
    what = "weight" if operand.is_weight else "constant"
    new = scaled(np.broadcast_to(values, shape), factor, what)
    return graph.new_constant(old.name, new)


def centred(logs: Array, live: Array, *, exact: bool, shift: bool = True) -> Array:
    """`logs` less the median of the channels that are `live`, 0 for the others; integers if `exact`.

    A factor that all channels share makes no difference to quantization; so most weights keep their size.
    """
    median = np.median(logs[live]) if shift and live.any() else 0.0
    moved = np.where(live, logs - median, 0.0)
    moved = np.clip(moved, -_LARGEST, _LARGEST)
    return np.round(moved) if exact else moved


def spread(logs: Array, live: Array) -> float:
    """How far apart the scales of live channels are, as log2."""
    return float(np.ptp(logs[live])) if live.any() else 0.0
