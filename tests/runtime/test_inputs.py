"""Synthesized inputs: what the graph does with them decides what they are."""

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser

from graphopt.errors import UserError
from graphopt.runtime.inputs import ProbeSet, Synthesizer, synthesize

HEAD = '<ir_version: 8, opset_import: ["": 17]>'


def model(text: str, opset: int = 17, **weights: np.ndarray) -> onnx.ModelProto:
    m = parser.parse_model(f'<ir_version: 8, opset_import: ["": {opset}]> {text}')
    m.graph.initializer.extend(numpy_helper.from_array(v, k) for k, v in weights.items())
    return m


def feeds(text: str, probe: int = 0, opset: int = 17, **weights: np.ndarray) -> dict[str, np.ndarray]:
    return dict(synthesize(model(text, opset, **weights), count=2)[probe].feeds)  # type: ignore[arg-type]


TABLE = np.zeros((7, 4), np.float32)


@pytest.mark.parametrize(
    "path",
    [
        "i = Identity(ids)",
        "j = Cast<to=7>(ids) i = Unsqueeze(j, zero)",
        "j = Reshape(ids, flat) i = Identity(j)",
        "j = Flatten(ids) i = Cast<to=7>(j)",
    ],
)
def test_indices_stay_in_their_table(path: str) -> None:
    for probe in (0, 1):
        ids = feeds(f"g(int32[b,s] ids) => (float[a,c,d] y) {{ {path} y = Gather(table, i) }}", probe,
                    table=TABLE, zero=np.array([0]), flat=np.array([-1]))["ids"]  # fmt: skip
        assert ids.dtype == np.int32
        assert ids.min() >= 0
        assert ids.max() < 7
    many = feeds("g(int64[500] ids) => (float[500,4] y) { y = Gather(table, ids) }", table=TABLE)["ids"]
    assert set(many) == set(range(7))


def test_an_offset_before_the_table_counts() -> None:
    text = "g(int64[500] ids) => (float[500,4] y) { i = Add(ids, two) y = Gather(table, i) }"
    ids = feeds(text, table=TABLE, two=np.array(2))["ids"]
    assert set(ids) == set(range(5))


def test_the_smallest_of_several_tables_decides() -> None:
    text = "g(int64[500] ids) => (float[500,4] y) { a = Gather(t, ids) b = Gather(u, ids) y = Add(a, b) }"
    assert feeds(text, t=TABLE, u=TABLE[:3])["ids"].max() == 2


def test_indices_into_something_computed() -> None:
    text = "g(float[n,9] x, int64[50] i) => (float[n,50] y) { h = Neg(x) y = Gather<axis=1>(h, i) }"
    assert feeds(text)["i"].max() in (7, 8)


@pytest.mark.parametrize("dtype", ["int64", "float", "bool"])
def test_masks_are_ones_and_zeros_and_never_all_zeros(dtype: str) -> None:
    m = model(f"g({dtype}[b,s] attention_mask) => (float[b,s] y) {{ y = Cast<to=1>(attention_mask) }}")
    for probe_set in synthesize(m, count=4):
        mask = np.asarray(probe_set.feeds["attention_mask"]).astype(int)
        assert set(np.unique(mask)) <= {0, 1}
        assert (mask[:, 0] == 1).all()
        assert (np.diff(mask, axis=1) <= 0).all()
    second = np.asarray(synthesize(m, count=2)[1].feeds["attention_mask"]).astype(int)
    assert (second == 0).any()


def test_masks_are_known_by_what_is_done_to_them() -> None:
    text = "g(int64[b,s] m) => (float[b,s] y) { f = Cast<to=1>(m) n = Sub(one, f) y = Mul(n, low) }"
    mask = feeds(text, 1, one=np.array(1, np.float32), low=np.array(-1e9, np.float32))["m"]
    assert set(np.unique(mask)) == {0, 1}


def test_a_mask_that_is_added_hides_by_large_negative_numbers() -> None:
    text = "g(float[b,s] mask, float[b,s] x) => (float[b,s] y) { a = Add(x, mask) y = Softmax(a) }"
    mask = feeds(text, 1)["mask"]
    assert set(np.unique(mask)) == {np.float32(-1e4), np.float32(0)}
    assert (mask[:, 0] == 0).all()


@pytest.mark.parametrize(
    ("op", "low", "high"), [("Log", 0, 9), ("Sqrt", 0, 9), ("Acos", -1, 1), ("Acosh", 1, 9), ("Atanh", -1, 1)]
)
def test_domains_of_functions(op: str, low: float, high: float) -> None:
    x = feeds(f"g(float[99] x) => (float[99] y) {{ h = Identity(x) y = {op}(h) }}")["x"]
    assert x.min() > low
    assert x.max() < high
    assert x.std() > 0.1


@pytest.mark.parametrize(
    ("text", "name", "value"),
    [
        ("g(float[2,6] x, int64[2] s) => (float[3,4] y) { y = Reshape(x, s) }", "s", [3, 4]),
        ("g(float[2,6] x, int64[3] s) => (float[a,b,c] y) { y = Reshape(x, s) }", "s", [1, 1, -1]),
        ("g(float[2,1] x, int64[2] s) => (float[2,5] y) { y = Expand(x, s) }", "s", [2, 5]),
        ("g(int64[2] s) => (float[4,5] y) { y = ConstantOfShape(s) }", "s", [4, 5]),
        ("g(float[2,3] x, int64[2] r) => (float[4,9] y) { y = Tile(x, r) }", "r", [2, 3]),
        ("g(float[9] x, int64[1] k) => (float[4] v, int64[4] i) { v, i = TopK(x, k) }", "k", [4]),
        ("g(float[4,6] x, int64[1] a, int64[1] b, int64[1] c) => (float[4,2] y) { y = Slice(x, a, b, c) }", "c", [1]),
        ("g(float[4,6] x, int64[1] a, int64[1] b, int64[1] c) => (float[4,2] y) { y = Slice(x, a, b, c) }", "b", [2]),
        ("g(float[4,6] x, int64[4] p) => (float[5,9] y) { y = Pad(x, p) }", "p", [0, 0, 1, 3]),
        ("g(float[2,3] x, int64[2] a) => (float[1,2,3,1] y) { y = Unsqueeze(x, a) }", "a", [0, 3]),
        ("g(float[1,3,1] x, int64[1] a) => (float[3,1] y) { y = Squeeze(x, a) }", "a", [0]),
        ("g(float[6] x, int64[2] s) => (float[2] y, float[4] z) { y, z = Split(x, s) }", "s", [2, 4]),
        ("g(float[2,3,4] x, int64[1] a) => (float[2,1,4] y) { y = ReduceSum(x, a) }", "a", [1]),
        ("g(float[2,3,4] x, int64[1] a) => (float[2,4] y) { y = ReduceSum<keepdims=0>(x, a) }", "a", [1]),
    ],
)  # fmt: skip
def test_what_steers_shapes_is_told_by_the_shapes(text: str, name: str, value: list[int]) -> None:
    assert feeds(text)[name].tolist() == value


def test_conditions_take_both_values() -> None:
    text = (
        "g(bool c, float[2] x) => (float[2] y) { y = If (c) <then_branch = t() => (float[2] a) { a = Neg(x) },"
        "else_branch = e() => (float[2] b) { b = Abs(x) }> }"
    )
    assert [bool(feeds(text, probe)["c"]) for probe in (0, 1)] == [True, False]


def test_inputs_of_bodies_and_functions_are_followed() -> None:
    text = (
        "g(bool c, int64[50] ids) => (float[50,4] y) { y = If (c) <then_branch = t() => (float[50,4] a)"
        "{ a = Gather(table, ids) }, else_branch = e() => (float[50,4] b) { b = Gather(table, ids) }> }"
    )
    assert feeds(text, table=TABLE)["ids"].max() == 6
    m = parser.parse_model(
        '<ir_version: 8, opset_import: ["": 17, "f": 1]> g(int64[50] ids) => (float[50,4] y)'
        '{ y = f.look(table, ids) } <domain: "f", opset_import: ["": 17]> look(t, i) => (o) { o = Gather(t, i) }'
    )
    m.graph.initializer.append(numpy_helper.from_array(TABLE, "table"))
    ids = np.asarray(synthesize(m)[0].feeds["ids"])
    assert (ids.min(), ids.max()) == (0, 6)


def test_sizes_that_weights_fix() -> None:
    x = feeds(
        "g(float[n,c,h,w] x) => (float[a,b,d,e] y) { y = Conv<group=2>(x, k) }",
        k=np.zeros((4, 3, 3, 3), np.float32),
    )
    assert x["x"].shape[1] == 6
    x = feeds(
        "g(float[n,k] x) => (float[n,4] y) { y = Gemm<transB=1>(x, k) }", k=np.zeros((4, 9), np.float32)
    )
    assert x["x"].shape[1] == 9


def test_overridable_initializers_keep_their_default_once_and_change_once() -> None:
    text = (
        "g(float[4] x, float[4] s, int64[2] shape) => (float[2,2] y) { h = Mul(x, s) y = Reshape(h, shape) }"
    )
    first, second = synthesize(model(text, s=np.ones(4, np.float32), shape=np.array([2, 2])))
    assert set(first.feeds) == {"x"}
    assert set(second.feeds) == {"x", "s"}
    assert second.overridden == ("s",)
    assert (np.asarray(second.feeds["s"]) != 1).all()
    old = model(text, s=np.ones(4, np.float32), shape=np.array([2, 2]))
    old.ir_version = 3
    assert set(synthesize(old)[1].feeds) == {"x"}


def test_optionals_sequences_and_strings() -> None:
    text = "g(optional(float[2]) o, seq(float[2,3]) s, string[4] t) => (bool y) { y = OptionalHasElement(o) }"
    first, second = synthesize(model(text, opset=18))
    assert isinstance(first.feeds["o"], np.ndarray)
    assert second.feeds["o"] is None
    assert [v.shape for v in first.feeds["s"]] == [(2, 3)] * 3  # type: ignore[union-attr]
    assert all(isinstance(word, str) for word in first.feeds["t"])  # type: ignore[union-attr]


def test_the_same_seed_makes_the_same_inputs() -> None:
    m = model("g(float[n,4] x) => (float[n,4] y) { y = Neg(x) }")
    a, b, c = (synthesize(m, seed=s)[1].feeds["x"] for s in (0, 0, 1))
    assert np.array_equal(a, b)  # type: ignore[arg-type]
    assert not np.array_equal(a, c)  # type: ignore[arg-type]


def test_shapes_from_the_user() -> None:
    m = model("g(float[n,4] x, float[n] z) => (float[n,4] y) { y = Neg(x) }")
    sets = synthesize(m, input_shapes={"x": (7, -1)})
    assert [np.shape(s.feeds["x"]) for s in sets] == [(7, 4)] * 2  # type: ignore[arg-type]
    assert np.shape(sets[0].feeds["z"]) == (7,)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="no input is called 'w'"):
        Synthesizer(m, {"w": (1,)})
    with pytest.raises(UserError, match="axis 1 of input 'x' is 4, not 5"):
        Synthesizer(m, {"x": (7, 5)})
    with pytest.raises(UserError, match="2 dims, but 1"):
        Synthesizer(m, {"x": (7,)})


def test_description() -> None:
    assert ProbeSet({}, {"n": 2, "t": 5}).describe() == "synthesized, n=2, t=5"
    assert ProbeSet({}, {}, "data.npz").describe() == "data.npz"


@pytest.mark.parametrize("op", ["Reshape", "Expand", "Tile"])
def test_an_input_without_a_declared_rank_that_is_a_shape(op: str) -> None:
    m = model(f"g(float[2,2] x, int64[n] s) => (float[a,b] y) {{ y = {op}(x, s) }}")
    m.graph.input[1].type.tensor_type.ClearField("shape")
    assert synthesize(m)[0].feeds["s"].shape == (2,)  # type: ignore[union-attr]
