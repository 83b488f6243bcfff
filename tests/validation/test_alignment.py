"""Which inputs and outputs belong together."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import parser

from graphopt.errors import UserError
from graphopt.model import Model
from graphopt.validation.alignment import align

HEAD = '<ir_version: 8, opset_import: ["": 17]>'


def model(text: str) -> Model:
    return Model.load(parser.parse_model(f"{HEAD} {text}"))


A = model("g (float[N, 4] x, float[N, 4] z) => (float[N, 4] y, float[N, 4] w) { y = Sub(x, z) w = Neg(y) }")


def test_the_same_interface() -> None:
    found = align(A, A, {})
    assert (found.problems, found.reordered, found.mapping) == ((), (), {})
    assert found.candidate is A


def test_renamed_ones_are_proposed() -> None:
    other = model("g (float[N, 4] a, int64 z) => (float[N, 4] y, float[N, 4] v) { y = Neg(a) v = Neg(y) }")
    found = align(A, other, {})
    assert "input removed: x" in found.problems
    assert "input added: a" in found.problems
    assert "output removed: w" in found.problems
    assert any("z" in p and "changed from float to int64" in p for p in found.problems)
    assert any("--map a=x" in h for h in found.hints)
    assert any("--map v=w" in h for h in found.hints)


def test_mapped_ones_are_renamed_and_names_in_the_way_make_room() -> None:
    other = model(
        """g (float[N, 4] a, float[N, 4] b) => (float[N, 4] p, float[N, 4] q) {
            x = Sub(a, b) p = Identity(x) y = Neg(p) q = Identity(y) }"""
    )
    found = align(A, other, {"a": "x", "b": "z", "p": "y", "q": "w"})
    assert not found.problems
    assert found.mapping == {"a": "x", "b": "z", "p": "y", "q": "w"}
    assert [t.name for t in other.graph.inputs] == ["a", "b"]  # it is a copy that was renamed
    proto = found.candidate.to_proto()
    onnx.checker.check_model(proto, full_check=True)
    session = ort.InferenceSession(proto.SerializeToString())
    x, z = np.full((1, 4), 3, np.float32), np.full((1, 4), 1, np.float32)
    y, w = session.run(["y", "w"], {"x": x, "z": z})
    assert (y == 2).all()
    assert (w == -2).all()


def test_names_are_mapped_crosswise_and_in_bodies() -> None:
    text = """g (float[N] x, float[N] z, bool c) => (float[N] y) {
        y = If (c) < then_branch = t () => (float[N] r) { r = Sub(x, z) },
                     else_branch = e () => (float[N] s) { s = Sub(z, x) } > }"""
    swapped = text.replace("Sub(x, z)", "Sub(Z, X)").replace("Sub(z, x)", "Sub(x, z)").lower()
    swapped = swapped.replace("sub", "Sub").replace("if (", "If (").replace("[n]", "[N]")
    found = align(model(text), model(swapped), {"x": "z", "z": "x"})
    assert not found.problems
    session = ort.InferenceSession(found.candidate.to_proto().SerializeToString())
    feeds = {"x": np.float32([5]), "z": np.float32([2]), "c": np.array(True)}
    assert session.run(None, feeds)[0] == 3


def test_another_order_is_seen_unless_it_is_mapped() -> None:
    other = model(
        "g (float[N, 4] z, float[N, 4] x) => (float[N, 4] w, float[N, 4] y) { y = Sub(x, z) w = Neg(y) }"
    )
    found = align(A, other, {})
    assert found.reordered == ("inputs reordered: x, z -> z, x", "outputs reordered: y, w -> w, y")
    assert not found.problems
    mapped = align(A, other, {"z": "z", "x": "x", "y": "y", "w": "w"})
    assert mapped.reordered == ()


def test_overridable_initializers_have_to_stay() -> None:
    text = "g (float[4] x, float[4] k = {1, 1, 1, 1}) => (float[4] y) { y = Add(x, k) }"
    plain = "g (float[4] x) => (float[4] y) <float[4] k = {1, 1, 1, 1}> { y = Add(x, k) }"
    needed = "g (float[4] x, float[4] k) => (float[4] y) { y = Add(x, k) }"
    assert align(model(text), model(plain), {}).problems == ("overridable initializer removed: k",)
    assert align(model(plain), model(text), {}).problems == ("overridable initializer added: k",)
    assert "no default any more" in align(model(text), model(needed), {}).problems[0]


@pytest.mark.parametrize(
    ("mapping", "says"),
    [
        ({"nothing": "x"}, "the candidate has no input or output 'nothing'"),
        ({"x": "nothing"}, "the reference has no input or output 'nothing'"),
        ({"x": "y"}, "maps an input to an output"),
        ({"x": "x", "z": "x"}, "to several"),
    ],
)
def test_wrong_maps(mapping: dict[str, str], says: str) -> None:
    with pytest.raises(UserError, match=says):
        align(A, A, mapping)


def test_dims_of_inputs_that_cannot_both_be_right() -> None:
    first = model("g (float[N, 3, 8, 8] x) => (float[A, B, C, D] y) { y = Neg(x) }")
    second = model("g (float[N, 8, 8, 3] x) => (float[A, B, C, D] y) { y = Neg(x) }")
    found = align(first, second, {})
    assert "changed from float[N,3,8,8] to float[N,8,8,3]" in found.problems[0]
    assert any("transpose-io" in h for h in found.hints)
    open_ = model("g (float[N, A, B, C] x) => (float[N, A, B, C] y) { y = Neg(x) }")
    assert not align(first, open_, {}).problems
