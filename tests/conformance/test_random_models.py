"""Random models: the default pipelines prove what they make of them, and have nothing left to do then."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

import graphopt

Dims = tuple[int | str, ...]
Draw = st.DrawFn
FLOATS = st.sampled_from([0.0, -0.0, 1.0, -1.0, 2.0, 0.5, 6.0, math.inf])


class Builder:
    """A model in the making; dims are ints, or "N" for the batch.

    Args:
        draw: makes choices.
    """

    def __init__(self, draw: Draw) -> None:
        self.draw = draw
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self.dims: dict[str, Dims] = {"x": ("N", 3, 4), "w": (3, 4)}
        self.count = 0

    def name(self) -> str:
        self.count += 1
        return f"t{self.count}"

    def pick(self, accepts: Callable[[Dims], bool] = lambda dims: True) -> str:
        """A tensor, one of the latest more likely."""
        found = [t for t, dims in self.dims.items() if accepts(dims)]
        return found[-1 - self.draw(st.integers(0, min(len(found) - 1, 3)))]

    def constant(self, values: Any, dtype: type = np.float32) -> str:
        """A new initializer or Constant node."""
        name, array = self.name(), numpy_helper.from_array(np.asarray(values, dtype))
        if self.draw(st.booleans()):
            array.name = name
            self.weights.append(array)
        else:
            self.nodes.append(helper.make_node("Constant", [], [name], value=array))
        return name

    def ints(self, *values: int) -> str:
        return self.constant(values, np.int64)

    def random(self, *dims: int) -> str:
        seed = self.draw(st.integers(0, 3))
        return self.constant(np.random.default_rng(seed).standard_normal(dims))

    def op(self, op: str, inputs: Sequence[str], dims: Dims | None = None, **attrs: Any) -> str:
        """A node; with `dims`, its output may be drawn from then on."""
        out = self.name()
        self.nodes.append(helper.make_node(op, inputs, [out], **attrs))
        if dims is not None:
            self.dims[out] = dims
        return out

    # -- steps ---------------------------------------------------------------------------------------

    def unary(self) -> None:
        x = self.pick()
        op = self.draw(st.sampled_from(["Relu", "Neg", "Abs", "Tanh", "Identity", "Sigmoid", "Dropout"]))
        self.op(op, [x], self.dims[x])

    def binary(self) -> None:
        x = self.pick()
        op = self.draw(st.sampled_from(["Add", "Mul", "Sub", "Max", "Min"]))
        y = self.pick(lambda dims: dims == self.dims[x])
        if self.draw(st.booleans()):
            y = self.constant(np.full(self.draw(st.sampled_from([(), (1,), (1, 1)])), self.draw(FLOATS)))
        self.op(op, [x, y] if self.draw(st.booleans()) else [y, x], self.dims[x])
        if len(self.dims[x]) < 2 or self.dims[x][0] == "N":  # a constant of rank 2 may add axes
            self.dims[f"t{self.count}"] = (1,) * (2 - len(self.dims[x])) + self.dims[x]

    def clip(self) -> None:
        x = self.pick()
        low, high = (self.constant(self.draw(FLOATS)) for _ in range(2))
        inputs = self.draw(st.sampled_from([[x, low, high], [x, "", high], [x, low], [x]]))
        self.op("Clip", inputs, self.dims[x])

    def transpose(self) -> None:
        x = self.pick()
        perm = self.draw(st.permutations(range(len(self.dims[x]))))
        self.op("Transpose", [x], tuple(self.dims[x][p] for p in perm), perm=perm)

    def reshape(self) -> None:
        """To (first dim, -1), with the dim taken from the shape at run time or written as 0."""
        x = self.pick(lambda dims: len(dims) > 1)
        first, rest = self.dims[x][0], self.dims[x][1:]
        if "N" in rest:
            return
        target = self.ints(0, -1)
        if self.draw(st.booleans()):
            dim = self.op("Gather", [self.op("Shape", [x]), self.ints(0)], axis=0)
            target = self.op("Concat", [dim, self.ints(-1)], axis=0)
        self.op("Reshape", [x, target], (first, math.prod(rest)))  # type: ignore[arg-type]

    def squeeze(self) -> None:
        x = self.pick()
        dims = self.dims[x]
        axis = self.draw(st.integers(0, len(dims)))
        y = self.op("Unsqueeze", [x, self.ints(axis)], (*dims[:axis], 1, *dims[axis:]))
        if self.draw(st.booleans()):
            self.op("Squeeze", [y, self.ints(axis)], dims)

    def slice(self) -> None:
        x = self.pick(lambda dims: isinstance(dims[-1], int) and dims[-1] > 1)
        size = self.dims[x][-1]
        assert isinstance(size, int)
        start, end = self.draw(st.sampled_from([(0, size), (1, 2**31), (0, -1), (-1, size), (-size, 1)]))
        length = len(range(size)[start:end])
        inputs = [x, self.ints(start), self.ints(end), self.ints(-1)]
        self.op("Slice", inputs, (*self.dims[x][:-1], length))

    def concat(self) -> None:
        x = self.pick(lambda dims: isinstance(dims[-1], int))
        same = [t for t in self.dims if self.dims[t] == self.dims[x]]
        parts = self.draw(st.lists(st.sampled_from(same), min_size=1, max_size=3))
        self.op("Concat", parts, (*self.dims[x][:-1], self.dims[x][-1] * len(parts)), axis=-1)  # type: ignore[arg-type, operator]

    def matmul(self) -> None:
        x = self.pick(lambda dims: len(dims) > 1 and isinstance(dims[-1], int))
        y = self.op("MatMul", [x, self.random(self.dims[x][-1], 4)], (*self.dims[x][:-1], 4))  # type: ignore[arg-type]
        if self.draw(st.booleans()):
            self.op("Add", [y, self.random(4)], self.dims[y])

    def casts(self) -> None:
        x = self.pick()
        there = self.op("Cast", [x], to=self.draw(st.sampled_from([TensorProto.DOUBLE, TensorProto.FLOAT])))
        self.op("Cast", [there], self.dims[x], to=TensorProto.FLOAT)

    def normalization(self) -> None:
        x = self.pick(lambda dims: isinstance(dims[-1], int) and dims[-1] > 1)
        dims = self.dims[x]
        centred = self.op("Sub", [x, self.op("ReduceMean", [x], axes=[-1])])
        square = self.op("Pow", [centred, self.constant(self.draw(st.sampled_from([2.0, 4.0])))])
        variance = self.op("Add", [self.op("ReduceMean", [square], axes=[-1]), self.constant(0.1)])
        self.op("Div", [centred, self.op("Sqrt", [variance])], dims)

    def branch(self) -> None:
        x = self.pick()
        there, here = self.name(), self.name()
        then = helper.make_graph([helper.make_node("Relu", [x], [there])], "then", [], [_value(there, None)])
        other = helper.make_graph(
            [helper.make_node("Identity", [x], [here])], "else", [], [_value(here, None)]
        )
        condition = self.constant(self.draw(st.booleans()), np.bool_)
        self.op("If", [condition], self.dims[x], then_branch=then, else_branch=other)

    def model(self) -> onnx.ModelProto:
        """What no node reads is an output, and perhaps one thing more."""
        read = {i for node in self.nodes for i in node.input}
        made = [t for t in self.dims if t not in ("x", "w")]
        outputs = [t for t in made if t not in read][-3:]
        outputs += [t for t in made[: self.draw(st.integers(0, 1))] if t not in outputs]
        graph = helper.make_graph(
            self.nodes,
            "random",
            [_value("x", ("N", 3, 4)), _value("w", (3, 4))],
            [_value(t, [None] * len(self.dims[t])) for t in outputs],
            self.weights,
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def _value(name: str, dims: Sequence[int | str | None] | None) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, dims)


STEPS = [
    Builder.unary, Builder.binary, Builder.clip, Builder.transpose, Builder.reshape, Builder.squeeze,
    Builder.slice, Builder.concat, Builder.matmul, Builder.casts, Builder.normalization, Builder.branch,
]  # fmt: skip


@st.composite
def models(draw: Draw) -> onnx.ModelProto:
    """Models of up to twelve steps."""
    builder = Builder(draw)
    builder.unary()
    for step in draw(st.lists(st.sampled_from(STEPS), max_size=12)):
        step(builder)
    return builder.model()


@pytest.mark.parametrize("target", ["portable", "ort-cpu"])
def test_random_models(target: str) -> None:
    @settings(
        max_examples=60,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(models())
    def check(model: onnx.ModelProto) -> None:
        onnx.checker.check_model(model, full_check=True)
        result = graphopt.run(model, target=target)
        assert result.report.verdict == "proven", result.report.verdict_reason
        again = graphopt.run(result.model, target=target, verify="off")
        assert not any(p.rewrites for p in again.report.passes)

    check()
