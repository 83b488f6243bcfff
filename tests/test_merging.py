from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import graphopt
from graphopt.errors import UserError
from graphopt.extracting import Piece
from graphopt.runtime.session import open_session
from graphopt.testing import parse

HEAD = '<ir_version: 8, opset_import: ["" : 17]>'
A = f"""{HEAD} a (float[N, 3] x, float[N, T] s) => (float[N, 4] y, float[N, T] t)
    <float[3, 4] w = {{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}}> {{ h = MatMul(x, w)  y = Relu(h)  t = Neg(s) }}"""
B = f"""{HEAD} b (float[M, 4] x, float[T] s) => (float[M, 4] y, float[T] z) <float[4] w = {{1, -1, 2, -2}}>
    {{ h = Mul(x, w)  y = Sigmoid(h)  z = Abs(s) }}"""


def checked(piece: Piece) -> onnx.ModelProto:
    assert piece.proof is not None
    assert (piece.proof.verdict, piece.proof.reason) == ("proven", "")
    proto = piece.model.to_proto()
    onnx.checker.check_model(proto, full_check=True)
    return proto


def dims(value: onnx.ValueInfoProto) -> list[int | str]:
    return [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]


def test_names_and_dims_that_both_have() -> None:
    piece = graphopt.merge(parse(A), parse(B), {"y": "x"})
    proto = checked(piece)
    assert [v.name for v in proto.graph.input] == ["x", "s", "b_s"]
    assert [v.name for v in proto.graph.output] == ["t", "b_y", "z"]
    # M is A's N; B's T is another than A's
    assert [dims(v) for v in proto.graph.output] == [["N", "T"], ["N", 4], ["b_T"]]
    assert any("'s' of B is called 'b_s'" in note for note in piece.notes)
    x = np.random.default_rng(0).standard_normal((2, 3)).astype(np.float32)
    feeds = {"x": x, "s": np.ones((2, 5), np.float32), "b_s": -np.ones(7, np.float32)}
    with open_session(proto) as session:
        got = session.run(feeds)
    w = np.arange(1, 13, dtype=np.float32).reshape(3, 4)
    want = 1 / (1 + np.exp(-np.maximum(x @ w, 0) * np.array([1, -1, 2, -2], np.float32)))
    np.testing.assert_allclose(got["b_y"], want, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(got["z"], np.ones(7))


def test_mapped_outputs_may_stay() -> None:
    piece = graphopt.merge(parse(A), parse(B), {"y": "x"}, keep_mapped=True, prefix="second_")
    proto = checked(piece)
    assert [v.name for v in proto.graph.output] == ["y", "t", "second_y", "z"]


def test_the_older_opset_is_raised() -> None:
    old = '<ir_version: 6, opset_import: ["" : 11]> b (float[M, 4] q) => (float[M, 2, 4] r) { r = Unsqueeze<axes = [1]>(q) }'
    text = old.replace("float[M, 2, 4]", "float[M, 1, 4]")
    piece = graphopt.merge(parse(A), parse(text), {"y": "q"})
    proto = checked(piece)
    assert [(o.domain, o.version) for o in proto.opset_import] == [("", 17)]
    assert proto.ir_version == 8
    assert piece.notes == ("B was raised from opset 11 to 17",)


def test_bodies_that_capture_the_mapped_input() -> None:
    text = f"""{HEAD} b (float[M, 4] x, bool k) => (float[M, 4] r) {{
        r = If (k) <then_branch = t () => (float[M, 4] h) {{ h = Neg(x) }},
                    else_branch = e () => (float[M, 4] q) {{ q = Abs(x) }}>
    }}"""
    checked(graphopt.merge(parse(A), parse(text), {"y": "x"}))


def test_functions() -> None:
    head = '<ir_version: 8, opset_import: ["" : 17, "f" : 1]>'
    body = '<domain: "f", opset_import: ["" : 17]> act (p) => (q) {{ q = {op}(p) }}'
    first = f"{head} a (float[4] x) => (float[4] y) {{ y = f.act(x) }} " + body.format(op="Relu")
    same = f"{head} b (float[4] u) => (float[4] v) {{ v = f.act(u) }} " + body.format(op="Relu")
    differs = f"{head} b (float[4] u) => (float[4] v) {{ v = f.act(u) }} " + body.format(op="Neg")
    proto = checked(graphopt.merge(parse(first), parse(same), {"y": "u"}))
    assert len(proto.functions) == 1
    plain = f"{HEAD} a (float[4] x) => (float[4] y) {{ y = Exp(x) }}"
    assert len(checked(graphopt.merge(parse(plain), parse(same), {"y": "u"})).functions) == 1
    with pytest.raises(UserError, match="they differ"):
        graphopt.merge(parse(first), parse(differs), {"y": "u"})


def test_weights_of_both_come_from_their_files(tmp_path: Path) -> None:
    def build(name: str) -> Path:
        proto = parse(f"{HEAD} g (float[N, 64] x) => (float[N, 64] y) {{ a = Relu(x) y = Neg(a) }}")
        proto.graph.node[1].op_type = "MatMul"
        proto.graph.node[1].input.append("w")
        values = np.random.default_rng(len(name)).standard_normal((64, 64)).astype(np.float32)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(values, "w"))
        path = tmp_path / f"{name}.onnx"
        onnx.save(proto, path, save_as_external_data=True, location=f"{name}.data", size_threshold=0)
        return path

    piece = graphopt.merge(build("a"), build("bb"), {"y": "x"})
    assert piece.proof is not None
    assert piece.proof.verdict == "proven"
    saved = piece.model.save(tmp_path / "out.onnx")
    loaded = onnx.load(saved.model)
    assert sorted(t.name for t in loaded.graph.initializer) == ["b_w", "w"]
    assert graphopt.validate(saved.model, piece.model).verdict == "proven"


def test_metadata_of_both() -> None:
    a, b = parse(A), parse(B)
    a.metadata_props.add(key="k", value="a")
    b.metadata_props.add(key="k", value="b")
    b.metadata_props.add(key="l", value="b")
    proto = checked(graphopt.merge(a, b, {"y": "x"}))
    assert {p.key: p.value for p in proto.metadata_props} == {"k": "a", "l": "b"}


@pytest.mark.parametrize(
    ("mapping", "words"),
    [
        ({}, "nothing is mapped"),
        ({"yy": "x"}, "A has no output 'yy'"),
        ({"y": "q"}, "B has no input 'q'"),
        ({"y": "s"}, r"is float\[N,4\], the input 's' of B is float\[T\]"),
        ({"y": "x", "t": "x"}, "is fed twice"),
    ],
)
def test_refuses(mapping: dict[str, str], words: str) -> None:
    with pytest.raises(UserError, match=words):
        graphopt.merge(parse(A), parse(B), mapping)


def test_types_that_differ() -> None:
    text = f"{HEAD} b (double[M, 4] q) => (double[M, 4] r) {{ r = Relu(q) }}"
    with pytest.raises(UserError, match="double"):
        graphopt.merge(parse(A), parse(text), {"y": "q"})


def test_a_result_that_computes_something_else_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    from graphopt import merging

    apply = merging._Join.apply

    def wrong(self: Any) -> None:
        apply(self)
        last = next(n for n in self.a.graph.nodes if n.op == "Sigmoid")
        last.op, last.origin = "Tanh", None

    monkeypatch.setattr(merging._Join, "apply", wrong)
    piece = graphopt.merge(parse(A), parse(B), {"y": "x"})
    assert piece.proof is not None
    assert piece.proof.verdict == "failed"
