from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

import graphopt
from graphopt.errors import UserError
from graphopt.extracting import Piece
from graphopt.runtime.session import open_session
from graphopt.testing import parse

HEAD = '<ir_version: 8, opset_import: ["" : 17, "local" : 1]>'
MODEL = f"""{HEAD} g (float[N, 4] x, float[N, 4] z) => (float[N, 4] y, float[N, 4] w)
    <float[4] bias = {{1, 2, 3, 4}}, float[4] other = {{5, 6, 7, 8}}> {{
    a = Relu(x)  b = Add(a, bias)  c = Mul(b, z)  y = local.twice(c)  w = Sub(a, other)
}}
<domain: "local", opset_import: ["" : 17]> twice (p) => (q) {{ q = Add(p, p) }}"""


def ports(piece: Piece) -> tuple[list[str], list[str]]:
    return [t.name for t in piece.model.graph.inputs], [t.name for t in piece.model.graph.outputs]


def checked(piece: Piece) -> onnx.ModelProto:
    assert piece.proof is not None
    assert (piece.proof.verdict, piece.proof.reason) == ("proven", "")
    proto = piece.model.to_proto()
    onnx.checker.check_model(proto, full_check=True)
    return proto


def test_between_two_tensors() -> None:
    piece = graphopt.extract(parse(MODEL), "c", inputs=["b", "z"])
    proto = checked(piece)
    assert ports(piece) == (["b", "z"], ["c"])
    assert [n.op_type for n in proto.graph.node] == ["Mul"]
    assert not proto.graph.initializer
    assert not proto.functions
    assert [o.domain for o in proto.opset_import] == [""]
    dims = proto.graph.input[0].type.tensor_type.shape.dim
    assert (dims[0].dim_param, dims[1].dim_value) == ("N", 4)
    b, z = np.ones((2, 4), np.float32), np.full((2, 4), 3, np.float32)
    with open_session(proto) as session:
        np.testing.assert_array_equal(session.run({"b": b, "z": z})["c"], b * z)


def test_without_inputs_those_that_are_needed() -> None:
    piece = graphopt.extract(parse(MODEL), ["w"])
    proto = checked(piece)
    assert ports(piece) == (["x"], ["w"])
    assert [t.name for t in proto.graph.initializer] == ["other"]


def test_without_outputs_those_of_the_model_and_functions_stay() -> None:
    piece = graphopt.extract(parse(MODEL), inputs=["a", "z"])
    proto = checked(piece)
    assert ports(piece) == (["a", "z"], ["y", "w"])
    assert [f.name for f in proto.functions] == ["twice"]


def test_nodes() -> None:
    piece = graphopt.extract(parse(MODEL), nodes=["Add", "Mul"])
    assert ports(piece) == (["a", "z"], ["c"])
    checked(piece)
    with pytest.raises(UserError, match="matches no node"):
        graphopt.extract(parse(MODEL), nodes=["Conv"])
    with pytest.raises(UserError, match="says where to cut"):
        graphopt.extract(parse(MODEL), ["c"], nodes=["Mul"])


def test_an_output_that_the_model_reads_on() -> None:
    piece = graphopt.extract(parse(MODEL), ["a", "b"])
    assert ports(piece) == (["x"], ["a", "b"])
    checked(piece)


def test_captures_of_a_body_enter_the_part() -> None:
    text = f"""{HEAD} g (float[N] x, bool k) => (float[N] y) {{
        a = Relu(x)  b = Neg(a)
        y = If (k) <then_branch = t () => (float[N] p) {{ p = Abs(b) }},
                    else_branch = e () => (float[N] q) {{ q = Add(a, b) }}>
    }}"""
    piece = graphopt.extract(parse(text), "y", inputs=["a", "b", "k"])
    assert ports(piece) == (["a", "b", "k"], ["y"])
    checked(piece)
    with pytest.raises(UserError, match="need 'x' too"):
        graphopt.extract(parse(text), "y", inputs=["b", "k"])
    by_node = graphopt.extract(parse(text), nodes=["If"])
    assert set(ports(by_node)[0]) == {"a", "b", "k"}


def test_one_of_several_outputs_of_a_node_is_fed() -> None:
    text = f"""{HEAD} g (float[4] x) => (float[2] y) {{ a, b = Split(x)  y = Add(a, b) }}"""
    piece = graphopt.extract(parse(text), "y", inputs=["a", "x"])
    proto = checked(piece)
    a, x = np.array([10, 20], np.float32), np.array([1, 2, 3, 4], np.float32)
    with open_session(proto) as session:
        np.testing.assert_array_equal(session.run({"a": a, "x": x})["y"], [13, 24])


def test_an_overridable_initializer_stays_one() -> None:
    text = (
        f"{HEAD} g (float[4] x, float[4] s = {{1, 2, 3, 4}}) => (float[4] y) {{ a = Relu(x) y = Mul(a, s) }}"
    )
    piece = graphopt.extract(parse(text), "y", inputs="a")
    proto = checked(piece)
    assert [v.name for v in proto.graph.input] == ["a", "s"]
    assert [t.name for t in proto.graph.initializer] == ["s"]
    assert [v.name for v in graphopt.extract(parse(text), "y", inputs=["a", "s"]).model.graph.inputs] == [
        "a",
        "s",
    ]


@pytest.mark.parametrize(
    ("outputs", "inputs", "words"),
    [
        ("nothing", (), "no tensor 'nothing'"),
        ("c", ("b",), "they need 'z' too"),
        ("w", ("x", "z"), "do not depend on 'z'"),
        ("a", ("a",), "not computed in the part"),
        ("bias", (), "not computed in the part"),
        ("c", ("b", "bias", "z"), "is an initializer"),
        (("c", "c"), (), "named twice"),
    ],
)
def test_refuses(outputs: str | tuple[str, ...], inputs: tuple[str, ...], words: str) -> None:
    with pytest.raises(UserError, match=words):
        graphopt.extract(parse(MODEL), outputs, inputs=inputs)


def test_the_original_is_as_it_was_and_weights_stay_in_files(tmp_path: Path) -> None:
    weight = onnx.numpy_helper.from_array(np.ones((64, 64), np.float32), "weight")
    proto = parse(f"{HEAD} g (float[N, 64] x) => (float[N, 64] y) {{ a = Relu(x) b = Neg(a) y = Abs(b) }}")
    proto.graph.node[1].op_type = "MatMul"
    proto.graph.node[1].input.append("weight")
    proto.graph.initializer.append(weight)
    path = tmp_path / "m.onnx"
    onnx.save(proto, path, save_as_external_data=True, location="m.data", size_threshold=0)
    model = graphopt.load(path)
    before = model.to_proto(weights="none").SerializeToString()
    piece = graphopt.extract(model, "b", inputs="a")
    assert not next(iter(piece.model.graph.initializers)).is_loaded
    assert model.to_proto(weights="none").SerializeToString() == before
    saved = piece.model.save(tmp_path / "part.onnx")
    assert [f.name for f in saved.data] == ["part.onnx.data"]
    onnx.checker.check_model(str(saved.model), full_check=True)


def test_a_part_that_computes_something_else_is_seen() -> None:
    from graphopt.validation.pieces import prove_part

    whole = graphopt.load(parse(MODEL))
    part = graphopt.extract(whole, "b", inputs="a", verify=False).model
    (bias,) = part.graph.initializers
    bias.values = bias.values + np.float32(1e-3)
    assert prove_part(whole, part, ["a"], None).verdict == "failed"
