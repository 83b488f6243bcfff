"""store-sparse: the file shrinks, and every bit comes back."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from weight_models import build, sqnr

from graphopt.model import Model
from graphopt.testing import apply, assert_refuses
from graphopt_passes.pruning.store_sparse import StoreSparse

RNG = np.random.default_rng(5)


def sparse(*shape: int, zeros: float = 0.9, dtype: Any = np.float32) -> Any:
    w = RNG.standard_normal(shape).astype(dtype)
    w[RNG.random(shape) < zeros] = 0
    return w


def test_every_bit_comes_back(tmp_path: Any) -> None:
    model = build(
        "(float[N, 4, 8, 8] x) => (float y) { a = Conv(x, w)  b = GlobalAveragePool(a)  c = Flatten(b)  y = MatMul(c, v) }",
        w=sparse(32, 4, 3, 3), v=sparse(32, 64),
    )  # fmt: skip
    done = apply(StoreSparse(), model)
    assert [len(done.proto.graph.initializer), len(done.proto.graph.sparse_initializer)] == [0, 2]
    assert len(done.proto.SerializeToString()) < 0.5 * len(model.SerializeToString())
    assert sqnr(model, done.proto) == 200  # the same numbers
    done.model.save(tmp_path / "m.onnx")
    again = Model.load(tmp_path / "m.onnx")
    stored = {c.name.split("_")[0]: c.values for c in again.graph.initializers}
    for tensor in model.graph.initializer:
        np.testing.assert_array_equal(stored[tensor.name], onnx.numpy_helper.to_array(tensor))
    assert not apply(StoreSparse(), done.proto).journal.changes


def test_half_of_zeros_does_not_pay() -> None:
    model = build("(float[N, 32] x) => (float y) { y = MatMul(x, w) }", w=sparse(32, 64, zeros=0.5))
    assert not apply(StoreSparse(), model).journal.changes


def test_half_precision_pays_later() -> None:
    for zeros, pays in ((0.75, False), (0.9, True)):
        w = sparse(32, 64, zeros=zeros, dtype=np.float16)
        model = build("(float16[N, 32] x) => (float16 y) { y = MatMul(x, w) }", w=w)
        assert bool(apply(StoreSparse(), model).journal.changes) is pays


def test_all_readers_get_it() -> None:
    model = build(
        """(float[N, 32] x, bool c) => (float y, float z) { y = MatMul(x, w)  z = If(c)<
            then_branch = t () => (float[N, 32] a) { a = MatMul(x, w) },
            else_branch = e () => (float[N, 32] b) { b = MatMul(y, w) }> }""",
        w=sparse(32, 32),
    )
    done = apply(StoreSparse(), model)
    assert len(done.proto.graph.sparse_initializer) == 1
    assert (
        sqnr(model, done.proto, {"x": RNG.standard_normal((4, 32)).astype(np.float32), "c": np.array(True)})
        == 200
    )


@pytest.mark.parametrize(
    ("change", "options", "reason"),
    [
        ("target", {"target": "tensorrt"}, "tensorrt does not read"),
        ("ir", {}, "IR version 5"),
        ("output", {}, "is an output"),
        ("minus", {}, "-0.0"),
        ("keep", {"keep": ["w"]}, "kept"),
    ],
)
def test_left_alone(change: str, options: dict[str, Any], reason: str) -> None:
    w = sparse(32, 64)
    if change == "minus":
        w[0, 0] = -0.0
    model = build(
        "(float[N, 32] x) => (float y) { y = MatMul(x, w) }", opset=17 if change != "ir" else 10, w=w
    )
    if change == "ir":
        model.ir_version = 5
    if change == "output":
        model.graph.output.append(onnx.helper.make_tensor_value_info("w", 1, [32, 64]))
    assert_refuses(StoreSparse(), model, reason, **options)


def test_options() -> None:
    with pytest.raises(ValueError, match="least_saving"):
        StoreSparse(least_saving=1.0)
