"""prune-channels: what goes together, what stays and why, and what the options do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from channel_models import Builder, declared, masked, prune
from onnx import helper, numpy_helper

import graphopt
from graphopt.errors import UserError
from graphopt.passkit import GraphView, PassContext
from graphopt.pipeline.base import Numerics
from graphopt.testing import Applied, apply, assert_refuses, assert_same_numbers, random_feeds
from graphopt_passes.pruning.prune_channels import PruneChannels

HALF = PruneChannels(multiple=1, least=1)


def weights(model: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    """Shape of every constant, by the node that reads it and the slot."""
    shapes = {t.name: tuple(t.dims) for t in model.graph.initializer}
    return {
        f"{node.op_type}:{slot}:{i}": shapes[name]
        for i, node in enumerate(model.graph.node)
        for slot, name in enumerate(node.input)
        if name in shapes
    }


def two_convs(
    between: str | None = None, c: int = 8, opset: int = 17, b: Builder | None = None, **attrs: Any
) -> onnx.ModelProto:
    """x -> Conv -> `between` -> Conv -> y, on planes of 4 x 4."""
    b = b or Builder(1, opset)
    x = b.conv("x", 3, c)
    if between:
        x = b.op(between, x, **attrs)
    b.conv(x, c, 3)
    b.nodes[-1].output[0] = "y"
    return b.model({"x": ["N", 3, 4, 4]}, {"y": ["N", 3, 4, 4]})


def exact(model: onnx.ModelProto, pruning: PruneChannels = HALF, **kwargs: Any) -> Applied:
    """Prune, and compare with the masked original."""
    done, kept = prune(pruning, model, **kwargs)
    assert kept, done.reasons
    feeds = [random_feeds(model, n, n) for n in (2, 3)]
    assert_same_numbers(masked(model, kept), done.proto, Numerics.CLOSE, feeds)
    sizes = declared(done.proto)
    assert all(sizes[n][axis] == len(left) for n, (axis, left) in kept.items() if n in sizes)
    return done


# -- what is cut -----------------------------------------------------------------------------------------


def test_two_convolutions() -> None:
    model = two_convs("Relu")
    done = exact(model)
    assert weights(done.proto) == {
        "Conv:1:0": (4, 3, 3, 3),
        "Conv:2:0": (4,),
        "Conv:1:2": (3, 4, 3, 3),
        "Conv:2:2": (3,),
    }
    assert [n.name for n in done.proto.graph.node] == [n.name for n in model.graph.node]
    assert [n.output[0] for n in done.proto.graph.node] == [n.output[0] for n in model.graph.node]


def test_a_bias_shared_between_layers_is_cut_for_one() -> None:
    b = Builder(2)
    bias = b.const(np.zeros(8))
    x = b.op("Conv", "x", b.random(8, 3, 1, 1), bias)
    x = b.op("Conv", b.op("Relu", x), b.random(8, 8, 1, 1), bias)
    b.nodes[-1].output[0] = "y"
    done = exact(b.model({"x": ["N", 3, 4, 4]}, {"y": ["N", 8, 4, 4]}))
    assert weights(done.proto) == {
        "Conv:1:0": (4, 3, 1, 1),
        "Conv:2:0": (4,),
        "Conv:1:2": (8, 4, 1, 1),
        "Conv:2:2": (8,),
    }


def test_a_weight_read_twice_is_cut_alike() -> None:
    b = Builder(3)
    w, bias, v = b.random(8, 3, 1, 1), b.random(8), b.random(2, 8, 1, 1)
    left, right = (b.op("Conv", b.op("Relu", b.op("Conv", x, w, bias)), v) for x in ("x", "z"))
    b.op("Add", left, right)
    b.nodes[-1].output[0] = "y"
    done = exact(b.model({"x": ["N", 3, 4, 4], "z": ["N", 3, 4, 4]}, {"y": ["N", 2, 4, 4]}))
    assert sorted(tuple(t.dims) for t in done.proto.graph.initializer) == [(2, 4, 1, 1), (4,), (4, 3, 1, 1)]


def test_a_weight_that_something_else_reads() -> None:
    b = Builder(3)
    w = b.random(8, 3, 1, 1)
    y = b.op("Conv", b.op("Relu", b.op("Conv", "x", w)), b.random(2, 8, 1, 1))
    b.op("Add", y, b.op("ReduceMean", w, keepdims=0))
    b.nodes[-1].output[0] = "y"
    model = b.model({"x": ["N", 3, 4, 4]}, {"y": ["N", 2, 4, 4]})
    assert_refuses(HALF, model, "is also read where it cannot be cut alike")


@pytest.mark.parametrize("opset", [11, 13, 18])
def test_split(opset: int) -> None:
    b = Builder(4, opset)
    y = b.conv("x", 3, 12)
    if opset == 11:
        parts = b.op("Split", y, outputs=3, axis=1, split=[2, 4, 6])
    elif opset == 13:
        parts = b.op("Split", y, b.const([2, 4, 6], np.int64), outputs=3, axis=1)
    else:
        parts = b.op("Split", y, outputs=3, axis=1, num_outputs=3)
    sizes = [4, 4, 4] if opset == 18 else [2, 4, 6]
    ends = [b.conv(p, n, 5) for p, n in zip(parts, sizes, strict=True)]
    b.op("Sum", *ends)
    b.nodes[-1].output[0] = "y"
    exact(b.model({"x": ["N", 3, 4, 4]}, {"y": ["N", 5, 4, 4]}))


def test_slice_by_attributes() -> None:
    b = Builder(4, 9)
    b.conv(b.op("Slice", b.conv("x", 3, 12), starts=[3], ends=[1000], axes=[1]), 9, 2)
    b.nodes[-1].output[0] = "y"
    exact(b.model({"x": ["N", 3, 4, 4]}, {"y": ["N", 2, 4, 4]}))


def test_quantized_weights() -> None:
    b = Builder(5)
    codes = b.const(b.rng.integers(-90, 90, (8, 3, 3, 3)), np.int8)
    scale, zero = b.const(b.rng.uniform(0.01, 0.02, 8)), b.const(np.zeros(8), np.int8)
    x = b.op("Conv", "x", b.op("DequantizeLinear", codes, scale, zero, axis=0), pads=[1] * 4)
    codes = b.const(b.rng.integers(-90, 90, (4, 8, 1, 1)), np.int8)
    x = b.op("Relu", b.op("Conv", b.op("Relu", x), b.op("DequantizeLinear", codes, b.const(0.01))))
    codes = b.const(b.rng.integers(-90, 90, (2, 4, 1, 1)), np.int8)
    b.op("Conv", x, b.op("DequantizeLinear", codes, b.const(0.02)))
    b.nodes[-1].output[0] = "y"
    done = exact(b.model({"x": ["N", 3, 4, 4]}, {"y": ["N", 2, 4, 4]}))
    shapes = sorted(tuple(t.dims) for t in done.proto.graph.initializer)
    assert shapes == [(), (), (2, 2, 1, 1), (2, 4, 1, 1), (4,), (4,), (4, 3, 3, 3)]


def test_heads_that_share_keys() -> None:
    b = Builder(6)
    q = b.op(
        "Transpose", b.op("Reshape", b.linear("x", 8, 24), b.const([0, 0, 6, 4], np.int64)), perm=[0, 2, 1, 3]
    )
    k, v = (b.op("Unsqueeze", b.linear("x", 8, 4), b.const([1], np.int64)) for _ in range(2))
    p = b.op("Softmax", b.op("MatMul", q, b.op("Transpose", k, perm=[0, 1, 3, 2])), axis=-1)
    o = b.op("Transpose", b.op("MatMul", p, v), perm=[0, 2, 1, 3])
    b.linear(b.op("Reshape", o, b.const([0, 0, 24], np.int64)), 24, 3)
    b.nodes[-1].output[0] = "y"
    done = exact(b.model({"x": ["N", 5, 8]}, {"y": ["N", 5, 3]}))
    assert [c.why for c in done.journal.changes] == ["3 of 6 heads are left"]


def test_grouped_query_attention() -> None:
    b = Builder(7)

    def heads(n: int) -> Any:
        y = b.op("Reshape", b.linear("x", 8, 4 * n), b.const([0, 0, n, 4], np.int64))
        return b.op("Transpose", y, perm=[0, 2, 1, 3])

    def repeated(y: str) -> Any:
        y = b.op("Expand", b.op("Unsqueeze", y, b.const([2], np.int64)), b.const([1, 4, 2, 5, 4], np.int64))
        return b.op("Reshape", y, b.const([-1, 8, 5, 4], np.int64))

    q, k, v = heads(8), repeated(heads(4)), repeated(heads(4))
    p = b.op("Softmax", b.op("MatMul", q, b.op("Transpose", k, perm=[0, 1, 3, 2])), axis=-1)
    o = b.op("Transpose", b.op("MatMul", p, v), perm=[0, 2, 1, 3])
    b.linear(b.op("Reshape", o, b.const([0, 0, 32], np.int64)), 32, 3)
    b.nodes[-1].output[0] = "y"
    done = exact(b.model({"x": ["N", 5, 8]}, {"y": ["N", 5, 3]}))
    assert [c.why for c in done.journal.changes] == ["2 of 4 heads are left"]


def test_lstm_with_everything() -> None:
    b = Builder(8)
    h = 6
    inputs = [
        b.random(1, 4 * h, 5),
        b.random(1, 4 * h, h),
        b.random(1, 8 * h),
        "",
        b.random(1, 2, h),
        b.random(1, 2, h),
        b.random(1, 3 * h),
    ]
    y, last, cell = b.op("LSTM", "x", *inputs, outputs=3, hidden_size=h)
    last = b.op(
        "Add", b.op("Squeeze", last, b.const([0], np.int64)), b.op("Squeeze", cell, b.const([0], np.int64))
    )
    b.op(
        "Add",
        b.linear(last, h, 3),
        b.op("ReduceMax", b.linear(b.op("Squeeze", y, b.const([1], np.int64)), h, 3), axes=[0], keepdims=0),
    )
    b.nodes[-1].output[0] = "y"
    model = b.model({"x": [7, 2, 5]}, {"y": [2, 3]})
    done = exact(model)
    lstm = next(n for n in done.proto.graph.node if n.op_type == "LSTM")
    assert helper.get_node_attr_value(lstm, "hidden_size") == 3


def test_a_sum_over_channels_loses_what_is_removed() -> None:
    b = Builder(9)
    b.op("ReduceSum", b.op("Relu", b.conv("x", 3, 8)), b.const([1], np.int64))
    b.nodes[-1].output[0] = "y"
    exact(b.model({"x": ["N", 3, 4, 4]}, {"y": ["N", 1, 4, 4]}))


def test_channels_beside_an_input() -> None:
    b = Builder(10)
    y = b.op("Concat", "x", b.op("Relu", b.conv("x", 3, 8)), axis=1)
    b.conv(y, 11, 2)
    b.nodes[-1].output[0] = "y"
    done = exact(b.model({"x": ["N", 3, 4, 4]}, {"y": ["N", 2, 4, 4]}))
    assert (2, 7, 3, 3) in weights(done.proto).values()


def test_inside_an_if() -> None:
    b = Builder(11)
    b.conv(b.op("Relu", b.conv("x", 3, 8)), 8, 3)
    b.nodes[-1].output[0] = "inner"
    out = helper.make_tensor_value_info("inner", 1, ["N", 3, 4, 4])
    then = helper.make_graph(b.nodes, "t", [], [out], b.weights)
    other = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["same"])],
        "e",
        [],
        [helper.make_tensor_value_info("same", 1, ["N", 3, 4, 4])],
    )
    node = helper.make_node("If", ["c"], ["y"], then_branch=then, else_branch=other)
    inputs = [
        helper.make_tensor_value_info("x", 1, ["N", 3, 4, 4]),
        helper.make_tensor_value_info("c", 9, []),
    ]
    graph = helper.make_graph([node], "g", inputs, [helper.make_tensor_value_info("y", 1, ["N", 3, 4, 4])])
    done = apply(HALF, helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9))
    body = next(a.g for a in done.proto.graph.node[0].attribute if a.name == "then_branch")
    assert sorted(tuple(t.dims) for t in body.initializer) == [(3,), (3, 4, 3, 3), (4,), (4, 3, 3, 3)]


# -- what stays ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("op", "attrs", "reason"),
    [
        ("LRN", {"size": 3}, "for which there is no rule"),
        ("LpNormalization", {"axis": 1}, "for which there is no rule"),
        ("Softmax", {"axis": 1}, "normalizes over it"),
        ("LogSoftmax", {"axis": -3}, "normalizes over it"),
    ],
)
def test_operators_that_mix_channels(op: str, attrs: dict[str, Any], reason: str) -> None:
    assert_refuses(HALF, two_convs(op, **attrs), reason)


def test_softmax_of_old_opsets_takes_all_that_follows() -> None:
    assert_refuses(HALF, two_convs("Softmax", opset=12, axis=1), "normalizes over it")
    exact(two_convs("Softmax", opset=13, axis=2))


def test_layer_norm_over_channels() -> None:
    b = Builder(1)
    x = b.op("LayerNormalization", b.linear("x", 4, 8), b.random(8), b.random(8))
    b.linear(x, 8, 3)
    b.nodes[-1].output[0] = "y"
    assert_refuses(HALF, b.model({"x": ["N", 4]}, {"y": ["N", 3]}), "normalizes over it")


def test_a_mean_over_channels() -> None:
    b = Builder(1)
    b.op("ReduceMean", b.conv("x", 3, 8), axes=[1])
    b.nodes[-1].output[0] = "y"
    assert_refuses(HALF, b.model({"x": ["N", 3, 4, 4]}, {"y": ["N", 1, 4, 4]}), "reduces over it")


def test_a_graph_output() -> None:
    model = two_convs("Relu")
    model.graph.output.append(helper.make_tensor_value_info(model.graph.node[1].output[0], 1, ["N", 8, 4, 4]))
    assert_refuses(HALF, model, "is a graph output")


def test_kept_nodes_and_tensors() -> None:
    model = two_convs("Relu")
    assert_refuses(HALF, model, "is kept", keep=[model.graph.node[1].name])
    assert_refuses(HALF, model, "is kept", keep=[model.graph.node[0].output[0]])


def test_a_weight_that_can_be_overridden() -> None:
    model = two_convs("Relu")
    weight = model.graph.node[2].input[1]
    model.graph.input.append(helper.make_tensor_value_info(weight, 1, [3, 8, 3, 3]))
    assert_refuses(HALF, model, "is not constant")


def test_a_capture_by_a_subgraph() -> None:
    model = two_convs("Relu")
    inner = model.graph.node[1].output[0]

    def branch(name: str) -> onnx.GraphProto:
        nodes = [helper.make_node("ReduceMean", [inner], [name])]
        return helper.make_graph(nodes, name, [], [helper.make_tensor_value_info(name, 1, [1, 1, 1, 1])])

    model.graph.node.append(
        helper.make_node("If", ["c"], ["z"], name="if", then_branch=branch("t"), else_branch=branch("e"))
    )
    model.graph.input.append(helper.make_tensor_value_info("c", 9, []))
    model.graph.output.append(helper.make_tensor_value_info("z", 1, [1, 1, 1, 1]))
    assert_refuses(HALF, model, "is read in the body of a control-flow operator")


def test_elements_that_move_between_axes_of_unknown_size() -> None:
    b = Builder(1)
    y = b.op("Reshape", b.conv("x", 3, 8), b.const([0, -1], np.int64))
    b.op("MatMul", y, b.random(128, 2))
    b.nodes[-1].output[0] = "y"
    model = b.model({"x": ["N", 3, "H", 4]}, {"y": ["N", 2]})
    assert_refuses(HALF, model, "unknown size")


def test_a_size_that_is_computed_with() -> None:
    b = Builder(1)
    y = b.op("Relu", b.conv("x", 3, 8))
    size = b.op("Cast", b.op("Gather", b.op("Shape", y), b.const(1, np.int64)), to=1)
    b.conv(b.op("Div", y, b.op("Sqrt", size)), 8, 3)
    b.nodes[-1].output[0] = "y"
    model = b.model({"x": ["N", 3, 4, 4]}, {"y": ["N", 3, 4, 4]})
    assert_refuses(HALF, model, "computes with the size")


def test_an_addend_that_has_no_channels_to_remove() -> None:
    b = Builder(1)
    b.conv(b.op("Add", b.conv("x", 8, 8), "x"), 8, 8)
    b.nodes[-1].output[0] = "y"
    model = b.model({"x": ["N", 8, 4, 4]}, {"y": ["N", 8, 4, 4]})
    assert_refuses(HALF, model, "combines it with a tensor that has no such channels")


# -- options ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {"ratio": 1.0},
        {"ratio": -0.1},
        {"below": -1.0},
        {"below": 0.1, "importance": "l1"},
        {"below": 0.1, "scope": "global"},
        {"multiple": -1},
        {"ops": ("Relu",)},
    ],
)
def test_bad_requests(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"ratio|below|negative|makes no channels"):
        PruneChannels(**options)


@pytest.mark.parametrize("options", [{"importance": "variance"}, {"below": 0.1}, {"budget": "latency"}])
def test_data_that_is_needed(options: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="needs data"):
        graphopt.run(two_convs(), [PruneChannels(**options)])


def test_layers_that_match_nothing() -> None:
    model = two_convs()
    with pytest.raises(UserError, match="matches no node"):
        graphopt.run(model, [PruneChannels(layers=("/nowhere/*",))])


def test_layers_and_types() -> None:
    b = Builder(1)
    x = b.op("Relu", b.conv("x", 3, 8))
    x = b.op("Relu", b.conv(x, 8, 8))
    y = b.op("ReduceMean", x, axes=[2, 3], keepdims=0)
    b.linear(b.op("Relu", b.linear(y, 8, 8)), 8, 2)
    b.nodes[-1].output[0] = "y"
    model = b.model({"x": ["N", 3, 4, 4]}, {"y": ["N", 2]})
    first, second = (n.name for n in model.graph.node if n.op_type == "Conv")

    def changed(**options: Any) -> list[str]:
        done = apply(PruneChannels(multiple=1, **options), model)
        return [c.key.anchor for c in done.journal.changes]

    matmul = next(n.output[0] for n in model.graph.node if n.op_type == "MatMul")
    assert [f"n_{a}" for a in changed(layers=(first,))] == [first]
    assert [f"n_{a}" for a in changed(ops=("Conv",))] == [first, second]
    assert changed(ops=("MatMul",)) == [matmul]
    assert changed(channels=False) == []


def test_layers_that_are_coupled_with_others() -> None:
    b = Builder(1)
    x = b.conv("x", 3, 8)
    b.conv(b.op("Add", x, b.conv(b.op("Relu", x), 8, 8)), 8, 2)
    b.nodes[-1].output[0] = "y"
    model = b.model({"x": ["N", 3, 4, 4]}, {"y": ["N", 2, 4, 4]})
    assert_refuses(PruneChannels(layers=(model.graph.node[0].name,)), model, "coupled with")


@pytest.mark.parametrize(
    ("options", "left"),
    [
        ({}, 32),
        ({"ratio": 0.6}, 32),
        ({"ratio": 0.8}, 16),
        ({"multiple": 8, "ratio": 0.6}, 24),
        ({"multiple": 1, "ratio": 0.6}, 20),
        ({"multiple": 1, "ratio": 0.9, "least": 0.25}, 12),
        ({"multiple": 1, "ratio": 0.9, "least": 7}, 7),
    ],
)
def test_how_many_are_left(options: dict[str, Any], left: int) -> None:
    done = apply(PruneChannels(**options), two_convs("Relu", c=48))
    assert weights(done.proto)["Conv:2:0"] == (left,)


def test_small_layers_keep_one_block() -> None:
    assert_refuses(PruneChannels(), two_convs("Relu", c=8), "are to be kept")


def test_twice_in_one_pipeline_is_once() -> None:
    model = two_convs("Relu", c=12)
    once, kept = prune(HALF, model)
    twice, _ = prune([HALF, HALF], model)
    assert weights(twice.proto) == weights(once.proto)
    more, fewer = prune([HALF, PruneChannels(ratio=0.75, multiple=1)], model)
    assert weights(more.proto)["Conv:2:0"] == (3,)
    name = model.graph.node[0].output[0]
    assert set(fewer[name][1]) < set(kept[name][1])
    assert_same_numbers(masked(model, fewer), more.proto, Numerics.CLOSE)


@pytest.mark.parametrize("budget", ["channels", "params", "flops"])
@pytest.mark.parametrize("scope", ["uniform", "global"])
def test_budgets(budget: Any, scope: Any) -> None:
    b = Builder(1)
    x = b.op("Relu", b.conv("x", 3, 16))
    x = b.op("Relu", b.conv(x, 16, 24, strides=[2, 2]))
    x = b.op("Relu", b.conv(x, 24, 40))
    b.linear(b.op("ReduceMean", x, axes=[2, 3], keepdims=0), 40, 2)
    b.nodes[-1].output[0] = "y"
    model = b.model({"x": ["N", 3, 8, 8]}, {"y": ["N", 2]})
    pruning = PruneChannels(ratio=0.6, budget=budget, scope=scope, multiple=1)
    done = exact(model, pruning)

    def measure(proto: onnx.ModelProto) -> float:
        shapes = weights(proto)
        if budget == "channels":
            return sum(s[0] for k, s in shapes.items() if k.startswith("Conv:2"))
        if budget == "params":
            return sum(int(np.prod(t.dims)) for t in proto.graph.initializer)
        planes = [64, 16, 16, 1]
        mains = [
            s for k, s in shapes.items() if k.split(":")[0] in ("Conv", "MatMul") and k.split(":")[1] == "1"
        ]
        return float(sum(np.prod(s) * p for s, p in zip(mains, planes, strict=True)))

    share = measure(done.proto) / measure(model)
    assert 0.3 < share <= 0.42


def test_a_budget_that_cannot_be_met() -> None:
    with pytest.raises(UserError, match="are left") as caught:
        apply(PruneChannels(ratio=0.95, budget="params", multiple=1, least=0.5), two_convs("Relu"))
    assert "ask for at most ratio=0.4" in str(caught.value)


def test_toggles_of_kinds() -> None:
    b = Builder(8)
    w, r = b.random(1, 32, 5), b.random(1, 32, 8)
    _, last = b.op("LSTM", "x", w, r, outputs=2, hidden_size=8)
    b.linear(b.op("Squeeze", last, b.const([0], np.int64)), 8, 3)
    b.nodes[-1].output[0] = "y"
    model = b.model({"x": [7, "N", 5]}, {"y": ["N", 3]})
    assert apply(HALF, model).journal.changes
    assert not apply(PruneChannels(multiple=1, hidden=False), model).journal.changes


# -- what matters ----------------------------------------------------------------------------------------


def with_rows(scale: list[float], bias: list[float]) -> onnx.ModelProto:
    """x (N, 4) -> MatMul, Add, Relu -> MatMul; rows of the first scaled."""
    b = Builder(1)
    n = len(scale)
    w = b.rng.standard_normal((4, n)) * np.array(scale)
    x = b.op("Relu", b.op("Add", b.op("MatMul", "x", b.const(w)), b.const(bias)))
    b.linear(x, n, 3)
    b.nodes[-1].output[0] = "y"
    return b.model({"x": ["N", 4]}, {"y": ["N", 3]})


def data(n: int = 256, seed: int = 0) -> dict[str, np.ndarray[Any, Any]]:
    return {"x": np.random.default_rng(seed).standard_normal((n, 4)).astype(np.float32)}


def kept_of(model: onnx.ModelProto, **options: Any) -> list[int]:
    options = {"multiple": 1, "refit": False, "compensate": False, **options}
    done, kept = prune(PruneChannels(**options), model, data=data())
    assert done.journal.changes, done.reasons
    return list(kept[model.graph.node[0].output[0]][1])


@pytest.mark.parametrize("importance", ["l1", "l2"])
def test_small_weights_go_first(importance: Any) -> None:
    assert kept_of(with_rows([1, 0.1, 2, 0.2], [0.0] * 4), importance=importance) == [0, 2]


def test_small_activations_go_first() -> None:
    assert kept_of(with_rows([1, 1, 1, 1], [5, 0, 9, 0]), importance="activation") == [0, 2]


def test_constant_activations_go_first() -> None:
    assert kept_of(with_rows([1, 0.01, 1, 0.01], [0, 50, 0, 90]), importance="variance") == [0, 2]


def test_activations_below_a_threshold() -> None:
    model = with_rows([1, 1, 1, 1, 1], [0, -99, 3, -99, 0])  # two that Relu never lets through
    done, kept = prune(PruneChannels(below=1e-6, multiple=1), model, data=data())
    assert list(kept[model.graph.node[0].output[0]][1]) == [0, 2, 4]
    assert_same_numbers(model, done.proto, Numerics.CLOSE, data(8, 5))


def test_the_mean_of_what_goes_is_compensated() -> None:
    model = with_rows([1, 0, 1, 0], [0, 50, 0, 90])
    pruning = PruneChannels(importance="variance", multiple=1, refit=False)
    done = apply(pruning, model, data=data())
    assert_same_numbers(model, done.proto, Numerics.CLOSE, data(8, 5))


def difference(a: onnx.ModelProto, b: onnx.ModelProto) -> float:
    from graphopt.runtime.session import open_session

    with open_session(a) as one, open_session(b) as two:
        feeds = data(64, 9)
        return float(np.square(one.run(feeds)["y"] - two.run(feeds)["y"]).sum())


def test_what_others_can_make_up_for_goes_first() -> None:
    model = with_rows([1] * 6, [0.5] * 6)
    weight = model.graph.initializer[0]
    w = numpy_helper.to_array(weight).copy()
    w[:, 1], w[:, 4] = 3 * w[:, 0], 0.5 * w[:, 3]
    weight.CopyFrom(numpy_helper.from_array(w, weight.name))
    bias = model.graph.initializer[1]
    values = numpy_helper.to_array(bias).copy()
    values[1], values[4] = 3 * values[0], 0.5 * values[3]
    bias.CopyFrom(numpy_helper.from_array(values, bias.name))
    third = PruneChannels(ratio=0.34, multiple=1, scope="uniform")
    done, kept = prune(third, model, data=data())
    left = set(kept[model.graph.node[0].output[0]][1].tolist())  # type: ignore[attr-defined]
    assert {2, 5} < left
    assert len(left & {0, 1}) == len(left & {3, 4}) == 1
    exactly = difference(model, done.proto)
    assert exactly < 1e-3 * difference(model, apply(PruneChannels(ratio=0.34, multiple=1), model).proto)


def test_refitting_pays_on_other_data() -> None:
    b = Builder(3)
    x = b.op("Relu", b.linear("x", 4, 24))
    x = b.op("Relu", b.linear(x, 24, 24))
    b.linear(x, 24, 3)
    b.nodes[-1].output[0] = "y"
    model = b.model({"x": ["N", 4]}, {"y": ["N", 3]})

    def error(**options: Any) -> float:
        return difference(model, apply(PruneChannels(multiple=1, **options), model, data=data(512)).proto)

    plain = error(importance="l2", refit=False, compensate=False)
    assert error(importance="l2", refit=False) < plain
    assert error(importance="l2") < 0.5 * plain
    assert error() < 0.2 * plain
    assert error(scope="global") < 0.2 * plain


def test_a_latency_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    # The clock of a machine that is busy with other things tells nothing: time is the size of the weights.
    def latency(self: PassContext, graph: GraphView) -> float:
        def size(model: Any) -> int:
            return sum(t.values.size for t in model.graph.initializers)

        return size(graph.snapshot(swept=True)) / size(self.teacher.model)

    monkeypatch.setattr(PassContext, "latency", latency)
    model = two_convs("Relu", c=64)
    feeds = {"x": np.random.default_rng(0).standard_normal((8, 3, 4, 4)).astype(np.float32)}
    for scope in ("uniform", "global"):
        pruning = PruneChannels(ratio=0.4, budget="latency", scope=scope)  # type: ignore[arg-type]
        assert weights(apply(pruning, model, data=feeds).proto)["Conv:2:0"] == (32,)
    with pytest.raises(UserError, match="of the model's latency"):
        apply(PruneChannels(ratio=0.9, budget="latency", scope="uniform"), model, data=feeds)


def test_the_whole_run() -> None:
    result = graphopt.run(two_convs("Relu", c=64), passes="prune-channels{ratio=0.5 importance=l2}")
    assert weights(result.model.to_proto(weights="inline"))["Conv:2:0"] == (32,)
    said = [r.remark for r in result.report.passes if r.name == "prune-channels"]
    assert said == ["32 of 64 channels left, 50% of the parameters, 50% of the multiplications with weights"]


def test_a_group_whose_sizes_are_not_confirmed_stays() -> None:
    """The output of the model's Resize cannot be told once channels are gone: its group stays, others go."""
    models = Path(__file__).resolve().parents[3] / "models"
    done = graphopt.run(
        models / "messy.onnx",
        "default,prune-channels{ratio=0.25 multiple=4}",
        data=str(models / "digits.npz"),
        verify="off",
    )
    (report,) = [p for p in done.report.passes if p.name == "prune-channels"]
    assert report.rewrites
    assert any("would have a size of" in r.reason for r in report.refusals)
