"""Symbolic values and shapes of random integer graphs, against what ONNX Runtime computes at several sizes."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from graphopt.graph.dims import Sym, evaluate
from graphopt.graph.shapes import infer
from graphopt.model import Model

ort = pytest.importorskip("onnxruntime")

SIZES = ({"N": 3, "S": 5}, {"N": 1, "S": 2}, {"N": 8, "S": 1}, {"N": 2, "S": 0})


class Builder:
    """A graph of int64 scalars and vectors that starts from the dims of `x[N, S, 4]`."""

    def __init__(self, draw: Any) -> None:
        self.draw = draw
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self.vectors: list[tuple[str, int]] = []  # name, length
        self.scalars: list[str] = []

    def constant(self, *values: int, scalar: bool = False, dtype: Any = np.int64) -> str:
        name = f"c{len(self.constants)}"
        array = np.array(values[0] if scalar else values, dtype=dtype)
        self.constants.append(onnx.numpy_helper.from_array(array, name))
        return name

    def node(self, op: str, *inputs: str, **attrs: Any) -> str:
        name = f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [name], **attrs))
        return name

    def pick_scalar(self) -> str:
        choice = self.draw(st.integers(0, len(self.scalars)))
        if choice == len(self.scalars):
            return self.constant(self.draw(st.integers(-4, 9)), scalar=True)
        return self.scalars[choice]

    def pick_vector(self) -> tuple[str, int]:
        return self.vectors[self.draw(st.integers(0, len(self.vectors) - 1))]

    def pair(self) -> tuple[str, str, int | None]:
        """Operands of one length; None for scalars."""
        if self.draw(st.booleans()):
            return self.pick_scalar(), self.pick_scalar(), None
        name, length = self.pick_vector()
        others = [n for n, m in self.vectors if m == length]
        other = others[self.draw(st.integers(0, len(others) - 1))]
        return name, self.draw(st.sampled_from([other, self.pick_scalar()])), length

    def keep(self, name: str, length: int | None) -> None:
        if length is None:
            self.scalars.append(name)
        else:
            self.vectors.append((name, length))

    def step(self) -> None:
        getattr(self, self.draw(st.sampled_from(STEPS)))()

    def arithmetic(self) -> None:
        a, b, length = self.pair()
        self.keep(self.node(self.draw(st.sampled_from(["Add", "Sub", "Mul", "Max", "Min"])), a, b), length)

    def division(self) -> None:
        a, _, length = self.pair()
        divisor = self.constant(self.draw(st.sampled_from([1, 2, 3, 4, 7, -2])), scalar=True)
        self.keep(self.node(self.draw(st.sampled_from(["Div", "Mod"])), a, divisor), length)

    def choice(self) -> None:
        a, b, length = self.pair()
        test = self.node(self.draw(st.sampled_from(["Equal", "Less", "GreaterOrEqual"])), a, b)
        if self.draw(st.booleans()):
            test = self.node("Not", test)
        self.keep(self.node("Where", test, a, b), length)

    def element(self) -> None:
        name, length = self.pick_vector()
        if length:
            at = self.constant(self.draw(st.integers(-length, length - 1)), scalar=True)
            self.keep(self.node("Gather", name, at, axis=0), None)

    def wrap(self) -> None:
        op = self.draw(st.sampled_from(["Unsqueeze", "Reshape"]))
        axes = self.constant(0 if op == "Unsqueeze" else -1)
        self.keep(self.node(op, self.pick_scalar(), axes), 1)

    def join(self) -> None:
        (a, m), (b, n) = self.pick_vector(), self.pick_vector()
        if m + n <= 6:
            self.keep(self.node("Concat", a, b, axis=0), m + n)

    def cut(self) -> None:
        name, length = self.pick_vector()
        start, end = (
            self.draw(st.integers(-4, 4)),
            self.draw(st.sampled_from([-3, -1, 1, 2, 2**31 - 1, 2**63 - 1])),
        )
        step = self.draw(st.sampled_from([1, 2, -1]))
        if step < 0:
            start, end = -1, -(2**63) + 1
        got = len(range(*slice(start, end, step).indices(length)))
        bounds = (self.constant(v) for v in (start, end, 0, step))
        self.keep(self.node("Slice", name, *bounds), got)

    def fold(self) -> None:
        name, length = self.pick_vector()
        if length:
            op = self.draw(st.sampled_from(["ReduceProd", "ReduceSum", "ReduceMax", "ReduceMin"]))
            self.keep(self.node(op, name, keepdims=0), None)

    def there_and_back(self) -> None:
        name, length = self.pick_vector()
        to = self.draw(st.sampled_from([TensorProto.INT32, TensorProto.DOUBLE]))
        self.keep(self.node("Cast", self.node("Cast", name, to=to), to=TensorProto.INT64), length)

    def negate(self) -> None:
        name, length = self.pick_vector()
        self.keep(self.node(self.draw(st.sampled_from(["Neg", "Abs", "Identity"])), name), length)

    def slice_of_input(self) -> None:
        bounds = [self.node("Reshape", self.pick_scalar(), self.constant(1)) for _ in range(2)]
        axis = self.draw(st.integers(0, 1))
        step = self.constant(self.draw(st.sampled_from([1, 2])))
        self.keep(self.node("Shape", self.node("Slice", "x", *bounds, self.constant(axis), step)), 3)

    def flatten_input(self) -> None:
        target = self.constant(
            *self.draw(st.sampled_from([(-1, 4), (0, -1), (0, 0, 2, 3), (-1,), (0, 4, -1)]))
        )
        reshaped = self.node("Reshape", "y", target)
        self.keep(self.node("Size", reshaped), None)
        self.keep(self.node("Gather", self.node("Shape", reshaped), self.constant(0, scalar=True)), None)

    def counting(self) -> None:
        limit = self.node("Min", self.pick_scalar(), self.constant(30, scalar=True))
        step = self.constant(self.draw(st.sampled_from([1, 2, 3])), scalar=True)
        self.keep(self.node("Size", self.node("Range", self.constant(0, scalar=True), limit, step)), None)

    def proto(self) -> onnx.ModelProto:
        outputs = [helper.make_value_info(n.output[0], onnx.TypeProto()) for n in self.nodes]
        inputs = [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", "S", 4]),
            helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 4, 6]),
        ]
        graph = helper.make_graph(self.nodes, "g", inputs, outputs, self.constants)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


STEPS = [
    "arithmetic", "arithmetic", "division", "choice", "element", "wrap", "join", "cut", "fold",
    "there_and_back", "negate", "slice_of_input", "flatten_input", "counting",
]  # fmt: skip


@st.composite
def graphs(draw: Any) -> onnx.ModelProto:
    builder = Builder(draw)
    builder.vectors.append((builder.node("Shape", "x"), 3))
    builder.scalars.append(builder.node("Gather", "t0", builder.constant(0, scalar=True)))
    builder.scalars.append(builder.node("Gather", "t0", builder.constant(1, scalar=True)))
    for _ in range(draw(st.integers(2, 12))):
        builder.step()
    return builder.proto()


def known(element: Any, sizes: dict[str, int]) -> Any:
    """The element at these sizes; None if it is not determined."""
    if not isinstance(element, Sym):
        return element
    return None if element.is_anonymous else evaluate(element, sizes)


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(graphs())
def test_agrees_with_onnxruntime(proto: onnx.ModelProto) -> None:
    model = Model.load(proto)
    facts = infer(model, strict=True)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    session = ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    for sizes in SIZES:
        feeds = {
            "x": np.zeros((sizes["N"], sizes["S"], 4), np.float32),
            "y": np.zeros((sizes["N"], 4, 6), np.float32),
        }
        try:
            results = session.run(None, feeds)
        except ort.capi.onnxruntime_pybind11_state.Fail:
            continue  # facts hold for runs that do not fail
        for tensor, actual in zip(model.graph.outputs, results, strict=True):
            shape = facts.shape(tensor)
            assert shape is not None
            assert len(shape) == actual.ndim
            for dim, size in zip(shape, actual.shape, strict=True):
                assert known(dim, sizes) in (None, size), (tensor.name, shape, actual.shape)
            value = facts.value(tensor)
            if value is not None:
                assert len(value) == actual.size
                for element, number in zip(value, actual.ravel().tolist(), strict=True):
                    assert known(element, sizes) in (None, number), (tensor.name, value, actual)


def test_random_graphs_are_mostly_determined() -> None:
    """The property above would hold of an inference that knows nothing."""
    counts = {"known": 0, "all": 0}

    @settings(max_examples=60, deadline=None, database=None, derandomize=True)
    @given(graphs())
    def count(proto: onnx.ModelProto) -> None:
        model = Model.load(proto)
        facts = infer(model)
        for tensor in model.graph.outputs:
            value = facts.value(tensor)
            counts["all"] += 1
            counts["known"] += value is not None and not any(
                isinstance(e, Sym) and e.is_anonymous for e in value
            )

    count()
    assert counts["known"] >= 0.6 * counts["all"]
