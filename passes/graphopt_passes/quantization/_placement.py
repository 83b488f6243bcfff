"""Carrying out a plan: grids from ranges, and QuantizeLinear / DequantizeLinear where the plan has them.

One site per node that runs on integers. Each makes what it needs if that is not there: a site that is left
out takes nothing from the others.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from graphopt.passkit import Array, Constant, Node, RefusedRewrite, Rewriter, Tensor
from graphopt.quantkit import (
    Grid,
    Group,
    Plan,
    Planned,
    QuantType,
    WeightMethod,
    grid_for_range,
    reduced,
    weight_grid,
)
from graphopt_passes.quantization._quantized import BIAS_LIMIT, bias_scale, dequantize, int32_bias
from graphopt_passes.quantization._weights import TINY


@dataclass(frozen=True)
class Formats:
    """Number formats of one run.

    Attributes:
        activation: type of activations.
        weight: type of constant weights.
        symmetric: activations have no zero point.
        per_channel: weights have a scale per channel where the kernel takes one.
        reduce_range: weights use one bit less.
        power_of_two: scales are powers of two.
        weight_method: how weights get their scales.
        integer_bias: biases are int32 with the scale of the product.
    """

    activation: QuantType
    weight: QuantType
    symmetric: bool = False
    per_channel: bool = True
    reduce_range: bool = False
    power_of_two: bool = False
    weight_method: WeightMethod = "minmax"
    integer_bias: bool = True


def activation_grid(group: Group, ranges: Mapping[Tensor, tuple[float, float]], formats: Formats) -> Grid:
    """The grid of a group of tensors, from the ranges of its sources.

    Raises:
        RefusedRewrite: a range is not known, not finite, or too small.
    """
    for tensor in group.sources:
        if np.isnan(ranges[tensor]).any():
            raise RefusedRewrite(f"no values of {tensor.name} were seen, so its range is not known")
    low = min(ranges[t][0] for t in group.sources)
    high = max(ranges[t][1] for t in group.sources)
    kind, symmetric = formats.activation, formats.symmetric
    if not (np.isfinite(low) and np.isfinite(high)):
        raise RefusedRewrite(f"the values of {group.sources[0].name} are not finite")
    if group.bounds is not None:
        low, high = (float(np.clip(v, *group.bounds)) for v in (low, high))
        if group.bounds[0] == 0.0 and not kind.signed:
            # Half of the values would never occur, and the zero point could not stand for the Relu.
            symmetric = False
    if 0 < max(-low, high) < TINY:
        raise RefusedRewrite(f"the values of {group.sources[0].name} are too small for a float32 scale")
    grid = grid_for_range(low, high, kind, symmetric=symmetric, power_of_two=formats.power_of_two)
    return grid if group.bounds is None or symmetric else _within(grid, group.bounds)


def _within(grid: Grid, bounds: tuple[float, float]) -> Grid:
    """`grid`, shrunk so that its ends do not lie beyond `bounds`: only then does it imply a Clip to them."""
    zero = int(grid.zero_points())
    scale = float(grid.scale)
    for end, bound in ((grid.type.qmin, bounds[0]), (grid.type.qmax, bounds[1])):
        if end != zero and np.isfinite(bound) and bound != 0.0:
            scale = min(scale, bound / (end - zero))
    return (
        grid if scale == float(grid.scale) else Grid(grid.type, np.array(scale, np.float32), grid.zero_point)
    )


@dataclass(frozen=True, eq=False)
class _Weight:
    tensor: Tensor
    grid: Grid


class Placer:
    """Puts quantization into one body.

    Args:
        graph: the body.
        plan: what to quantize.
        ranges: least and largest value of every source tensor of the plan.
        formats: number formats.
    """

    def __init__(
        self, graph: Rewriter, plan: Plan, ranges: Mapping[Tensor, tuple[float, float]], formats: Formats
    ) -> None:
        self.graph, self.plan, self.ranges, self.formats = graph, plan, ranges, formats
        self._grids: dict[Group, tuple[Grid, Constant, Constant]] = {}
        self._pairs: dict[Tensor, Tensor] = {}
        self._weights: dict[tuple[object, ...], _Weight] = {}

    def place(self) -> None:
        """Quantize every node of the plan, each in a site of its own."""
        for node, planned in self.plan.nodes.items():
            with self.graph.site(node, self._why(planned)):
                self._place(node, planned)

    def _why(self, planned: Planned) -> str:
        kind = self.formats.activation.name
        if planned.core is None:
            return f"between integer operators: {kind}"
        if planned.core.weight is None:
            return f"{kind} activations"
        axis = self._weight_axis(planned)
        return f"{kind} activations, {self._weight_type(planned).name} weights" + (
            " per channel" if axis is not None else ""
        )

    # -- one node ------------------------------------------------------------------------------------

    def _place(self, node: Node, planned: Planned) -> None:
        # Whatever can go wrong is worked out before anything changes.
        grids = {slot: self._data_grid(node, slot) for slot in planned.data}
        for tensor in planned.outputs:
            self._grid(self.plan.groups[tensor])
        weight = self._weight(node, planned, grids)
        for slot in planned.data:
            self._quantize_input(node, slot)
        for slot in planned.constants:
            self._quantize_constant(node, slot)
        if weight is not None and planned.core is not None and planned.core.weight is not None:
            self.graph.set_input(node, planned.core.weight, weight.tensor)
        if planned.core is not None and planned.core.bias_apart:
            bias = node.inputs[2]
            self.graph.set_input(node, 2, None)
            self.graph.insert_behind(node.outputs[0], [("Add", [bias], {})])
        self._bias(planned, list(grids.values()), weight)
        for tensor in planned.outputs:
            self._quantize_output(tensor)

    def _data_grid(self, node: Node, slot: int) -> Grid:
        tensor = node.inputs[slot]
        group = self.plan.groups.get(tensor)
        if group is None:
            # The producer's site was here already: the node reads what it put behind.
            group = next(g for t, g in self.plan.groups.items() if self._pairs.get(t) is tensor)
        return self._grid(group)[0]

    def _grid(self, group: Group) -> tuple[Grid, Constant, Constant]:
        found = self._grids.get(group)
        if found is None:
            grid = self._new_grid(group)
            name = group.sources[0].name
            found = self._grids[group] = (
                grid,
                self.graph.new_constant(f"{name}_scale", grid.scale),
                self.graph.new_constant(f"{name}_zero_point", grid.zero_points()),
            )
        return found

    def _new_grid(self, group: Group) -> Grid:
        if group.scaled is None:
            return activation_grid(group, self.ranges, self.formats)
        tensor, factor = group.scaled
        base = self._grid(self.plan.groups[tensor])[0]
        scale = np.float32(factor) * base.scale
        if not np.isfinite(scale) or scale < np.finfo(np.float32).tiny or self.formats.power_of_two:
            return activation_grid(group, self.ranges, self.formats)
        return Grid(base.type, np.asarray(scale, np.float32), base.zero_point)

    def _quantize_input(self, node: Node, slot: int) -> None:
        tensor = node.inputs[slot]
        if self.graph.producer_op(tensor, "DequantizeLinear") is None:
            self.graph.set_input(node, slot, self._pair(tensor))

    def _pair(self, tensor: Tensor) -> Tensor:
        """What comes out of the Q/DQ pair that reads `tensor`; a new pair unless there is one."""
        graph = self.graph
        found = self._pairs.get(tensor)
        if found is not None:
            # A site that was withheld took it along.
            producer = graph.producer(found)
            if producer is not None and graph.is_live(producer):
                return found
        _, scale, zero = self._grid(self.plan.groups[tensor])
        q = graph.op("QuantizeLinear", [tensor, scale, zero], hint=f"{tensor.name}_quantized")
        out = graph.op("DequantizeLinear", [q, scale, zero], hint=f"{tensor.name}_dequantized")
        self._pairs[tensor] = out
        return out

    def _quantize_output(self, tensor: Tensor) -> None:
        graph = self.graph
        uses = graph.uses(tensor)
        if graph.is_output(tensor) or any(graph.keeps(use.node) for use in uses):
            _, scale, zero = self._grid(self.plan.groups[tensor])
            ops = ("QuantizeLinear", "DequantizeLinear")
            graph.insert_behind(tensor, [(op, [scale, zero], {}) for op in ops])
            self._pairs[tensor] = tensor
            return
        out = self._pair(tensor)
        for use in uses:
            graph.set_input(use.node, use.slot, out)

    def _quantize_constant(self, node: Node, slot: int) -> None:
        """A constant among data is quantized like data."""
        tensor = node.inputs[slot]
        kind = self.formats.activation
        key = (self.graph.constant(tensor), "data")
        found = self._live_weight(key)
        if found is None:
            grid = weight_grid(
                self._array(tensor),
                kind,
                axis=None,
                symmetric=self.formats.symmetric,
                power_of_two=self.formats.power_of_two,
            )
            q = grid.quantize(self._array(tensor))
            found = self._weights[key] = _Weight(dequantize(self.graph, q, grid, tensor.name), grid)
        self.graph.set_input(node, slot, found.tensor)

    # -- weights and biases --------------------------------------------------------------------------

    def _weight_axis(self, planned: Planned) -> int | None:
        return planned.core.axis if planned.core is not None and self.formats.per_channel else None

    def _weight_type(self, planned: Planned) -> QuantType:
        assert planned.core is not None
        return self.formats.activation if planned.core.unsigned_weight else self.formats.weight

    def _weight(self, node: Node, planned: Planned, grids: Mapping[int, Grid]) -> _Weight | None:
        core = planned.core
        if core is None or core.weight is None:
            return None
        tensor = node.inputs[core.weight]
        axis, kind = self._weight_axis(planned), self._weight_type(planned)
        values = self._array(tensor)
        if not np.isfinite(values).all():
            raise RefusedRewrite(f"its weight {tensor.name} is not finite")
        if not values.size:
            raise RefusedRewrite(f"its weight {tensor.name} has no elements")
        if 0 < np.abs(values).max() < TINY:
            raise RefusedRewrite(f"its weight {tensor.name} is too small for a float32 scale")
        key: tuple[object, ...] = (self.graph.constant(tensor), axis, kind.name)
        found = self._live_weight(key)
        grid = self._weight_grid(values, axis, kind) if found is None else found.grid
        fitted = self._fit_bias(grid, core.bias, grids)
        if fitted is not grid:
            key, grid = (*key, node), fitted
            found = self._live_weight(key)
        if found is None:
            made = dequantize(self.graph, grid.quantize(values), grid, tensor.name)
            found = self._weights[key] = _Weight(made, grid)
        return found

    def _live_weight(self, key: tuple[object, ...]) -> _Weight | None:
        found = self._weights.get(key)
        producer = None if found is None else self.graph.producer(found.tensor)
        return found if producer is not None and self.graph.is_live(producer) else None

    def _weight_grid(self, values: Array, axis: int | None, kind: QuantType) -> Grid:
        formats = self.formats
        symmetric = kind.signed
        if formats.reduce_range and kind.bits == 8:
            kind = reduced(kind)
        return weight_grid(
            values,
            kind,
            axis=axis,
            symmetric=symmetric,
            method=formats.weight_method,
            power_of_two=formats.power_of_two,
        )

    def _fit_bias(self, grid: Grid, bias: tuple[Node, int] | None, grids: Mapping[int, Grid]) -> Grid:
        """`grid`, with wider steps where the bias in units of the product would not fit into an int32.

        Such a channel's weights are next to nothing beside its bias, so that they need no precision.
        """
        if bias is None or not self.formats.integer_bias or grid.block:
            return grid
        values = np.abs(self._array(bias[0].inputs[bias[1]]).astype(np.float64).reshape(-1))
        step = 1.0
        for activation in grids.values():
            step *= float(activation.scale)
        least = values / (step * BIAS_LIMIT)
        needed = least if grid.scale.ndim else least.max(initial=0.0)
        if (grid.scale >= needed).all():
            return grid
        scale = np.maximum(grid.scale, needed).astype(np.float32)
        if self.formats.power_of_two:
            scale = np.exp2(np.ceil(np.log2(scale))).astype(np.float32)
        return Grid(grid.type, scale, grid.zero_point, grid.axis)

    def _bias(self, planned: Planned, grids: list[Grid], weight: _Weight | None) -> None:
        core = planned.core
        if core is None or core.bias is None:
            return
        if self._fails_with_add(planned):
            reader, slot = core.bias
            name = reader.inputs[slot].name
            row = self._array(reader.inputs[slot]).reshape(1, -1)
            self.graph.set_input(reader, slot, self.graph.new_constant(f"{name}_row", row))
            return
        if not self.formats.integer_bias:
            return
        scale = bias_scale(grids[0], weight.grid if weight is not None else grids[1])
        if scale is None:
            return
        reader, slot = core.bias
        tensor = reader.inputs[slot]
        values = self._array(tensor).astype(np.float32)
        if not np.isfinite(values).all():
            raise RefusedRewrite(f"its bias {tensor.name} is not finite")
        self.graph.set_input(reader, slot, int32_bias(self.graph, values, scale, tensor.name))

    def _fails_with_add(self, planned: Planned) -> bool:
        """Whether onnxruntime (1.32) makes a model that does not load of a product and the Add behind it.

        It merges the two into a Gemm of matrices, with a QuantizeLinear behind the Reshape whose type it
        states in `output_dtype`; its change from int8 to uint8 forgets that. A row in two dims is not merged.
        """
        node, kind = planned.node, self.formats.activation
        apart = (
            planned.core is None or planned.core.end is node or (self.graph.rank(node.inputs[0]) or 0) <= 2
        )
        return kind.signed and kind.bits == 8 and self.graph.opset >= 21 and not apart

    def _array(self, tensor: Tensor) -> Array:
        array = self.graph.array(tensor)
        assert array is not None
        return np.asarray(array)
