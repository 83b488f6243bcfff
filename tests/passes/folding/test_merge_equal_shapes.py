"""merge-equal-shapes: one tensor per symbolic value."""

from __future__ import annotations

from graphopt.testing import assert_refuses, assert_rewrites
from graphopt_passes.folding.merge_equal_shapes import MergeEqualShapes


def graph(body: str, out: str, inits: str = "") -> str:
    return f"""
        <ir_version: 8, opset_import: ["" : 17]>
        g (float[N, S] x, float[M, S] z) => ({out})
        <int64 i = {{0}}, int64 j = {{1}}, int64[1] axis = {{0}} {inits}> {{ {body} }}
    """


def test_equal_dims_of_different_tensors() -> None:
    body = """
        r = Relu(x)
        a = Shape(x)
        b = Shape(r)
        p = Gather(a, i)
        q = Gather(b, i)
        m = Mul(p, q)
        k = Mul(q, p)
        y = Add(m, k)
    """
    assert_rewrites(
        MergeEqualShapes(), graph(body, "int64 y"), ops={"Shape": 1, "Gather": 1, "Mul": 1, "Add": 1}
    )


def test_a_shared_symbol_is_equal_across_inputs() -> None:
    body = "a = Shape<start=1>(x) b = Shape<start=1>(z) c = Neg(b) y = Sub(a, c)"
    assert_rewrites(MergeEqualShapes(), graph(body, "int64[1] y"), ops={"Shape": 1, "Neg": 1, "Sub": 1})


def test_different_symbols_and_ranks_stay_apart() -> None:
    assert_refuses(
        MergeEqualShapes(), graph("a = Shape<end=1>(x) b = Shape<end=1>(z) y = Sub(a, b)", "int64[1] y")
    )
    body = "a = Shape(x) p = Gather(a, i) u = Unsqueeze(p, axis) s = Squeeze(u, axis) y = Sub(u, s)"
    done = assert_rewrites(MergeEqualShapes(), graph(body, "int64[1] y"))
    assert done.ops["Gather"] == 1


def test_dtypes_stay_apart() -> None:
    body = "a = Shape<end=1>(x) b = Cast<to=6>(a) c = Cast<to=7>(b) d = Cast<to=6>(c) e = Mul(b, d) y = Cast<to=7>(e)"
    done = assert_rewrites(MergeEqualShapes(), graph(body, "int64[1] y"))
    assert done.ops["Cast"] == 2


def test_an_output_keeps_its_name() -> None:
    body = "a = Shape<end=1>(x) c = Neg(a) r = Relu(x) y = Shape<end=1>(r)"
    done = assert_rewrites(
        MergeEqualShapes(), graph(body, "int64[1] y, int64[1] c"), ops={"Shape": 1, "Neg": 1}
    )
    assert {o for n in done.proto.graph.node for o in n.output} == {"y", "c"}
    both = "y = Shape<end=1>(x) r = Relu(x) c = Shape<end=1>(r)"
    assert_refuses(MergeEqualShapes(), graph(both, "int64[1] y, int64[1] c"), "both outputs")


def test_what_is_kept_stays() -> None:
    body = "a = Shape<end=1>(x) r = Relu(x) b = Shape<end=1>(r) y = Add(a, b)"
    assert_refuses(MergeEqualShapes(), graph(body, "int64[1] y"), keep=["b"])
