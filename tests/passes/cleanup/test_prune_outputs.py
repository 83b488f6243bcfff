from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper

from graphopt.testing import assert_refuses, assert_rewrites
from graphopt_passes.cleanup.prune_outputs import PruneOutputs

HEAD = '<ir_version: 8, opset_import: ["" : 17]>'


def outputs(model: onnx.ModelProto) -> list[str]:
    return list(model.graph.node[0].output)


def test_dropout_mask_and_pool_indices() -> None:
    done = assert_rewrites(
        PruneOutputs(),
        f"{HEAD} g (float[N, 4] x) => (float[N, 4] y) {{ y, mask = Dropout(x) }}",
        ops={"Dropout": 1},
    )
    assert outputs(done.proto) == ["y"]
    done = assert_rewrites(
        PruneOutputs(),
        f"""{HEAD} g (float[N, 2, 4, 4] x) => (float[N, 2, 2, 2] y) {{
            y, i = MaxPool<kernel_shape = [2, 2], strides = [2, 2]>(x)
        }}""",
        ops={"MaxPool": 1},
    )
    assert outputs(done.proto) == ["y"]


def test_layer_normalization_statistics() -> None:
    done = assert_rewrites(
        PruneOutputs(),
        f"""{HEAD} g (float[N, 4] x) => (float[N, 4] y) <float[4] s = {{1, 2, 3, 4}}> {{
            y, mean, inv = LayerNormalization(x, s)
        }}""",
        ops={"LayerNormalization": 1},
    )
    assert outputs(done.proto) == ["y"]


def test_lstm_first_output_leaves_a_gap() -> None:
    rng = np.random.default_rng(0)
    weights = [
        onnx.numpy_helper.from_array(rng.standard_normal((1, 12, k)).astype(np.float32), n)
        for n, k in (("w", 2), ("r", 3))
    ]
    node = helper.make_node("LSTM", ["x", "w", "r"], ["all", "y", "cell"], hidden_size=3)
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["T", 1, 2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 1, 3])],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    done = assert_rewrites(PruneOutputs(), model, ops={"LSTM": 1})
    assert outputs(done.proto) == ["", "y"]


def test_in_a_branch() -> None:
    assert_rewrites(
        PruneOutputs(),
        f"""{HEAD} g (float[N, 4] x, bool c) => (float[N, 4] y) {{
            y = If(c) <
                then_branch = t () => (float[N, 4] p) {{ p, m = Dropout(x) }},
                else_branch = e () => (float[N, 4] q) {{ q = Abs(x) }}
            >
        }}""",
        ops={"If": 1, "Dropout": 1, "Abs": 1},
    )


def test_required_and_variadic_outputs_stay() -> None:
    assert_refuses(
        PruneOutputs(),
        f"{HEAD} g (float[N, 4] x) => (float[N, 2] y) <int64[1] k = {{2}}> {{ y, i = TopK(x, k) }}",
    )
    assert_refuses(
        PruneOutputs(), f"{HEAD} g (float[N, 4] x) => (float[N, 2] y) {{ y, z = Split<axis = 1>(x) }}"
    )


def test_the_statistics_of_a_training_batch_norm_mean_that_it_trains() -> None:
    assert_refuses(
        PruneOutputs(),
        """<ir_version: 7, opset_import: ["" : 9]>
        g (float[N, 2, 3] x) => (float[N, 2, 3] y) <float[2] s = {1, 2}> {
            y, m, v, sm, sv = BatchNormalization(x, s, s, s, s)
        }""",
    )


def test_a_used_output_stays() -> None:
    assert_refuses(
        PruneOutputs(), f"{HEAD} g (float[N, 4] x) => (float[N, 4] y, bool[N, 4] m) {{ y, m = Dropout(x) }}"
    )


def test_a_function_of_that_name_is_not_the_operator() -> None:
    assert_refuses(
        PruneOutputs(),
        """<ir_version: 8, opset_import: ["" : 17, "f" : 1]>
        g (float[N, 4] x) => (float[N, 4] y) { y, m = f.Dropout(x) }
        <domain: "f", opset_import: ["" : 17]> Dropout (a) => (b, c) { b = Neg(a)  c = Abs(a) }""",
    )


def test_what_the_user_keeps_stays() -> None:
    assert_refuses(
        PruneOutputs(),
        f"{HEAD} g (float[N, 4] x) => (float[N, 4] y) {{ y, mask = Dropout(x) }}",
        keep=["mask"],
    )
