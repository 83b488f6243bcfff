"""Comparing and building models for the I/O tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper


def canonical(model: onnx.ModelProto) -> bytes:
    """A serialization in which the order of initializers and value_info does not matter."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    stack = [copy.graph]
    while stack:
        graph = stack.pop()
        tensors = sorted(graph.initializer, key=lambda t: t.name)
        infos = sorted(graph.value_info, key=lambda v: v.name)
        for field, items in (("initializer", tensors), ("value_info", infos)):
            detached = [type(i).FromString(i.SerializeToString()) for i in items]
            graph.ClearField(field)
            getattr(graph, field).extend(detached)
        for node in graph.node:
            for attribute in node.attribute:
                if attribute.HasField("g"):
                    stack.append(attribute.g)
                stack.extend(attribute.graphs)
    return copy.SerializeToString(deterministic=True)


@pytest.fixture
def assert_same() -> Callable[[onnx.ModelProto, onnx.ModelProto], None]:
    """Asserts that two models are equal up to order that ONNX calls irrelevant."""

    def check(a: onnx.ModelProto, b: onnx.ModelProto) -> None:
        if canonical(a) != canonical(b):
            assert str(a) == str(b)
            raise AssertionError("the models differ in bytes that have no text form")

    return check


@pytest.fixture
def weight() -> np.ndarray:
    """Four KiB of float32 values, which no two elements share. Shape (32, 32)."""
    return np.arange(1024, dtype=np.float32).reshape(32, 32)


@pytest.fixture
def linear(weight: np.ndarray) -> onnx.ModelProto:
    """y = x @ w + b, with a large embedded weight and a small bias."""
    return helper.make_model(
        helper.make_graph(
            [
                helper.make_node("MatMul", ["x", "w"], ["xw"], name="matmul"),
                helper.make_node("Add", ["xw", "b"], ["y"], name="add"),
            ],
            "linear",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 32])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 32])],
            [
                numpy_helper.from_array(weight, "w"),
                numpy_helper.from_array(np.ones(32, np.float32), "b"),
            ],
        ),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )


@pytest.fixture
def external(tmp_path: Path, linear: onnx.ModelProto) -> Path:
    """`linear` in a folder of its own, with all weights in weights.bin. Returns the model's path."""
    folder = tmp_path / "model"
    folder.mkdir()
    path = folder / "m.onnx"
    copy = onnx.ModelProto()
    copy.CopyFrom(linear)  # onnx.save takes the data out of the message that it is given
    onnx.save(copy, path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    return path
