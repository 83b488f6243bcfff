from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from weight_models import build, ort_ops, weights_of

from graphopt.passkit import Array
from graphopt.testing import apply, assert_refuses, assert_rewrites
from graphopt_passes.cleanup.dead_nodes import DeadNodes
from graphopt_passes.folding.fold_constants import FoldConstants
from graphopt_passes.sharing.share_transposed import ShareTransposed

TABLE: Array = np.random.default_rng(0).standard_normal((512, 48)).astype(np.float32)
TIED = "(int64[1, T] i) => (float[1, T, 512] y) { e = Gather(t, i) y = MatMul(e, u) }"
GEMM = "(int64[T] i) => (float[T, 512] y) { e = Gather(t, i) y = Gemm(e, u) }"
SMALL = {"i": np.array([[0, 5, 511]])}


def tied(body: str, **options: Any) -> onnx.ModelProto:
    return build(body, t=TABLE, u=np.ascontiguousarray(TABLE.T), **options)


def test_tied_embedding(tmp_path: Path) -> None:
    done = assert_rewrites(
        ShareTransposed(), tied(TIED), ops={"Gather": 1, "Transpose": 1, "MatMul": 1}, inputs=SMALL
    )
    assert list(weights_of(done.proto)) == ["t"]
    assert ort_ops(done.proto, tmp_path) == ["Gather", "MatMul"]  # computed at load, as the docstring says
    # What cleans up afterwards leaves it alone: folding would bring a whole matrix back.
    again = apply([ShareTransposed(), FoldConstants(), DeadNodes()], tied(TIED))
    assert again.ops == done.ops


def test_directly() -> None:
    pass_ = ShareTransposed(products="direct")
    done = assert_rewrites(
        pass_, tied(TIED), ops={"Gather": 1, "com.microsoft::FusedMatMul": 1}, target="ort-cpu", inputs=SMALL
    )
    assert list(weights_of(done.proto)) == ["t"]
    assert_refuses(pass_, tied(TIED), "no FusedMatMul")
    flat = TIED.replace("1, T", "T")
    assert_rewrites(pass_, tied(flat), ops={"Gather": 1, "Gemm": 1}, inputs={"i": np.array([3, 4])})


def test_the_left_operand() -> None:
    body = "(int64[T] i, float[512, 5] x) => (float y, float z) { y = Gather(t, i) z = MatMul(u, x) }"
    feeds = {"i": np.array([3]), "x": np.random.default_rng(1).standard_normal((512, 5)).astype(np.float32)}
    for products, op in (("transpose", "MatMul"), ("direct", "Gemm")):
        done = assert_rewrites(ShareTransposed(products=products), tied(body), inputs=feeds)  # type: ignore[arg-type]
        assert done.ops[op] == 1


@pytest.mark.parametrize("flag", ["", "<transB=0>"])
def test_gemm_flips(flag: str) -> None:
    done = assert_rewrites(
        ShareTransposed(products="none"),
        tied(GEMM.replace("Gemm", f"Gemm{flag}")),
        ops={"Gather": 1, "Gemm": 1},
        inputs={"i": np.array([3, 4])},
    )
    assert list(weights_of(done.proto)) == ["t"]


def test_gemm_flips_back_and_forth() -> None:
    body = "(float[M, 48] x, float[48, M] v) => (float a, float b, float c) { a = Gemm<transB=1>(x, t) b = Gemm(x, u) c = Gemm<transA=1>(u, v) }"
    done = assert_rewrites(ShareTransposed(), tied(body), ops={"Gemm": 3})
    assert len(weights_of(done.proto)) == 1


def test_what_costs_no_node_goes_first() -> None:
    # u has a MatMul, t only a Gemm: t goes, although it comes first.
    body = "(float[M, 48] x) => (float a, float b) { a = Gemm<transB=1>(x, t) b = MatMul(x, u) }"
    done = assert_rewrites(ShareTransposed(), tied(body), ops={"Gemm": 1, "MatMul": 1})
    assert list(weights_of(done.proto)) == ["u"]


def test_square_and_three() -> None:
    a = np.random.default_rng(0).standard_normal((128, 128)).astype(np.float32)
    body = """(float[M, 128] x) => (float p, float q, float r) {
        p = MatMul(x, a) q = MatMul(x, b) r = Gemm(x, c) }"""
    done = assert_rewrites(ShareTransposed(), build(body, a=a, b=a.T.copy(), c=a.T.copy()))
    assert len(weights_of(done.proto)) <= 2


def test_one_bit_differs() -> None:
    for old, new in ((0.0, -0.0), (1.0, 1.0000001)):
        t = TABLE.copy()
        t[400, 30] = old
        u = t.T.copy()
        u[30, 400] = new
        assert_refuses(ShareTransposed(), build(TIED, t=t, u=u))


def test_refusals() -> None:
    pass_ = ShareTransposed()
    assert_refuses(ShareTransposed(min_bytes=1 << 20), tied(TIED))
    assert_refuses(ShareTransposed(products="none"), tied(TIED), "is read by MatMul")
    assert_refuses(pass_, tied(TIED), "is kept", keep=["y"])
    other = TIED.replace("}", "z = Relu(u) }").replace("y)", "y, float[48, 512] z)", 1)
    assert_refuses(pass_, tied(other), "read by Relu")
    output = TIED.replace("y)", "y, float[48, 512] u)", 1)
    assert_refuses(pass_, tied(output), "has to stay as it is")
    over = TIED.replace("i)", "i, float[48, 512] u)", 1)
    assert_refuses(pass_, tied(over))
    assert_refuses(pass_, build(TIED, t=TABLE, u=TABLE.T.copy().astype(np.float32) + 1))
    with pytest.raises(ValueError, match="min_bytes"):
        ShareTransposed(min_bytes=-1)


def test_if_bodies() -> None:
    body = """(int64[1, T] i, bool c) => (float y) { e = Gather(t, i)
        y = If (c) <then_branch = p () => (float[1, T, 512] a) { a = MatMul(e, u) },
                    else_branch = q () => (float[1, T, 48] b) { b = Relu(e) }>
    }"""
    assert_refuses(ShareTransposed(), tied(body), "in another body")
    inside = """(float[M, 48] x, bool c) => (float y) {
        y = If (c) <then_branch = p () => (float[M, 512] a)
                        <float[2, 3] t = {1, 2, 3, 4, 5, 6}, float[3, 2] u = {1, 4, 2, 5, 3, 6}>
                        { h = MatMul(x, k) g = MatMul(h, t) s = MatMul(g, u) a = MatMul(s, l) },
                    else_branch = q () => (float[M, 48] b) { b = Relu(x) }>
    }"""
    model = build(inside, k=(48, 2), l=(2, 512))
    pass_ = ShareTransposed(min_bytes=0)
    done = assert_rewrites(pass_, model, ops={"If": 1, "MatMul": 4, "Transpose": 1, "Relu": 1})
    (body_,) = [b for b in done.model.bodies() if any(n.op == "Transpose" for n in b.nodes)]
    assert [c.name for c in body_.initializers] == ["t"]
