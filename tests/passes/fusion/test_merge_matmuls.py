"""merge-matmuls: query, key and value in one product."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from graphopt.pipeline.base import Limits
from graphopt.testing import assert_refuses, assert_rewrites
from graphopt_passes.fusion.merge_matmuls import MergeMatMuls, joined

F = onnx.TensorProto.FLOAT


def model(
    widths: tuple[int, ...] = (4, 6, 2),
    bias: tuple[bool, ...] = (True, True, True),
    opset: int = 17,
    bias_first: bool = False,
    extra: list[onnx.NodeProto] | None = None,
    outputs: list[str] | None = None,
    dtype: type = np.float32,
) -> onnx.ModelProto:
    rng = np.random.default_rng(0)
    elem = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    nodes, initializers, results = [], [], []
    for i, (width, has_bias) in enumerate(zip(widths, bias, strict=True)):
        initializers.append(numpy_helper.from_array(rng.standard_normal((8, width)).astype(dtype), f"w{i}"))
        nodes.append(helper.make_node("MatMul", ["x", f"w{i}"], [f"m{i}"]))
        result = f"m{i}"
        if has_bias:
            initializers.append(numpy_helper.from_array(rng.standard_normal(width).astype(dtype), f"b{i}"))
            operands = [f"b{i}", result] if bias_first else [result, f"b{i}"]
            nodes.append(helper.make_node("Add", operands, [f"a{i}"]))
            result = f"a{i}"
        nodes.append(helper.make_node("Abs", [result], [f"y{i}"]))
        results.append(f"y{i}")
    nodes += extra or []
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", elem, ["N", 5, 8])],
        [helper.make_tensor_value_info(name, elem, ["N", 5, None]) for name in outputs or results],
        initializers,
    )
    return helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", opset)])


@pytest.mark.parametrize("opset", [11, 13, 18])
@pytest.mark.parametrize("bias_first", [False, True])
def test_three_with_bias(opset: int, bias_first: bool) -> None:
    assert_rewrites(
        MergeMatMuls(),
        model(opset=opset, bias_first=bias_first),
        ops={"MatMul": 1, "Add": 1, "Split": 1, "Abs": 3},
    )


def test_two_with_bias() -> None:
    assert_rewrites(
        MergeMatMuls(),
        model((4, 6), (True, True)),
        ops={"MatMul": 1, "Add": 1, "Split": 1, "Abs": 2},
    )


def test_three_without_bias() -> None:
    assert_rewrites(MergeMatMuls(), model(bias=(False,) * 3), ops={"MatMul": 1, "Split": 1, "Abs": 3})


def test_a_bias_that_not_all_have_stays_behind() -> None:
    assert_rewrites(
        MergeMatMuls(),
        model(bias=(True, False, True)),
        ops={"MatMul": 1, "Split": 1, "Add": 2, "Abs": 3},
    )


def test_products_that_are_outputs_keep_their_names() -> None:
    done = assert_rewrites(
        MergeMatMuls(), model(bias=(False,) * 3, outputs=["y0", "y1", "y2", "m1"]), ops=None
    )
    split = next(n for n in done.model.graph.nodes if n.op == "Split")
    assert [t.name for t in split.outputs] == ["m0", "m1", "m2"]


def test_double_precision() -> None:
    assert_rewrites(MergeMatMuls(), model(dtype=np.float64), ops=None)


def test_too_few() -> None:
    assert_refuses(MergeMatMuls(), model((4, 6), (False, False)))
    assert_refuses(MergeMatMuls(), model((4, 6), (True, False)))
    assert_refuses(MergeMatMuls(), model((4,), (True,)))


def test_a_weight_with_another_reader() -> None:
    extra = [helper.make_node("Neg", ["w1"], ["z"])]
    text = model(bias=(False,) * 3, extra=extra, outputs=["y0", "y1", "y2"])
    text.graph.output.append(helper.make_tensor_value_info("z", F, [8, 6]))
    assert_refuses(MergeMatMuls(), text, "w1 has another reader")


def test_a_product_with_another_reader_keeps_its_own_bias() -> None:
    extra = [helper.make_node("Neg", ["m1"], ["z"])]
    assert_rewrites(
        MergeMatMuls(),
        model(extra=extra, outputs=["y0", "y1", "y2", "z"]),
        ops={"MatMul": 1, "Split": 1, "Add": 3, "Abs": 3, "Neg": 1},
    )


def test_weights_that_are_not_constant() -> None:
    proto = model(bias=(False,) * 3)
    proto.graph.input.append(helper.make_tensor_value_info("w2", F, [8, 2]))  # overridable
    assert_refuses(MergeMatMuls(), proto)


def test_what_is_kept_is_left_alone() -> None:
    assert_refuses(MergeMatMuls(), model(bias=(False,) * 3), keep=["m1"])


def test_a_weight_too_large_to_merge() -> None:
    assert_refuses(MergeMatMuls(), model(), "too large", limits=Limits(folded_bytes=64))


def test_different_left_operands() -> None:
    text = model(bias=(False,) * 3)
    text.graph.node.insert(0, helper.make_node("Neg", ["x"], ["other"]))
    text.graph.node[3].input[0] = "other"
    assert text.graph.node[3].op_type == "MatMul"
    assert_refuses(MergeMatMuls(), text)


def test_in_a_branch_with_captured_operands() -> None:
    outer = model(bias=(False,) * 3)
    branch = helper.make_graph(
        [*list(outer.graph.node)[:5:2], helper.make_node("Concat", ["m0", "m1", "m2"], ["r"], axis=-1)],
        "t",
        [],
        [helper.make_tensor_value_info("r", F, None)],
    )
    other = helper.make_graph(
        [helper.make_node("Concat", ["x", "x"], ["q"], axis=-1)],
        "e",
        [],
        [helper.make_tensor_value_info("q", F, None)],
    )
    graph = helper.make_graph(
        [helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=other)],
        "g",
        [
            helper.make_tensor_value_info("x", F, ["N", 5, 8]),
            helper.make_tensor_value_info("c", onnx.TensorProto.BOOL, []),
        ],
        [helper.make_tensor_value_info("y", F, ["N", 5, None])],
        list(outer.graph.initializer),
    )
    proto = helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)])
    assert_rewrites(MergeMatMuls(), proto, ops={"If": 1, "MatMul": 1, "Split": 1, "Concat": 2})


def test_joined() -> None:
    assert joined([np.zeros((2, 1)), np.ones((2, 2))]).tolist() == [[0, 1, 1], [0, 1, 1]]
