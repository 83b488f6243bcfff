from __future__ import annotations

from pathlib import Path

import onnx
import pytest

import graphopt
from graphopt.pipeline.registry import installed
from graphopt.testing import Applied, apply, assert_refuses, assert_rewrites
from graphopt_passes.conversion.lower_opset import LowerOpset
from graphopt_passes.conversion.raise_opset import RaiseOpset

MODELS = Path(__file__).parents[3] / "models"


def text(body: str, opset: int = 18, dims: str = "[2, 6]", out: str = "[2, 6]", type_: str = "float") -> str:
    return f'<ir_version: 8, opset_import: ["" : {opset}]> g ({type_}{dims} x) => ({type_}{out} y) {body}'


def lowered(to: int, model: str, ops: dict[str, int]) -> Applied:
    done = assert_rewrites(LowerOpset(to), model, ops=ops)
    assert done.proto.opset_import[0].version == to
    return done


@pytest.mark.parametrize(
    ("to", "body", "out", "ops"),
    [
        (17, "<int64[1] a = {1}> { y = ReduceMean(x, a) }", "[2, 1]", {"ReduceMean": 1}),
        (12, "<int64[1] a = {1}> { y = ReduceSum(x, a) }", "[2, 1]", {"ReduceSum": 1}),
        (12, "<int64[1] a = {0}> { b = Unsqueeze(x, a) y = Squeeze(b, a) }", "[2, 6]", {"Unsqueeze": 1, "Squeeze": 1}),
        (12, "<int64[2] s = {2, 4}> { a, b = Split<axis = 1>(x, s) y = Concat<axis = 1>(b, a) }", "[2, 6]", {"Split": 1, "Concat": 1}),
        (13, "{ a, b = Split<axis = 1, num_outputs = 2>(x) y = Add(a, b) }", "[2, 3]", {"Split": 1, "Add": 1}),
        (12, "{ y = Softmax(x) }", "[2, 6]", {"Softmax": 1}),
        (12, "{ y = Dropout(x) }", "[2, 6]", {"Dropout": 1}),
        (13, "{ y = HardSwish(x) }", "[2, 6]", {"HardSigmoid": 1, "Mul": 1}),
        (13, "{ y = Mish(x) }", "[2, 6]", {"Softplus": 1, "Tanh": 1, "Mul": 1}),
        (13, "{ b = Cast<to = 11>(x) y = CastLike(b, x) }", "[2, 6]", {"Cast": 2}),
    ],
)  # fmt: skip
def test_adapters(to: int, body: str, out: str, ops: dict[str, int]) -> None:
    lowered(to, text(body, out=out), ops)


@pytest.mark.parametrize("to", [13, 16])
def test_layer_norm(to: int) -> None:
    body = "<float[6] s = {1, 2, 3, 4, 5, 6}, float[6] b = {0, 1, 0, 1, 0, 1}> { y = LayerNormalization(x, s, b) }"
    lowered(to, text(body), {"ReduceMean": 2, "Sub": 1, "Mul": 2, "Add": 2, "Sqrt": 1, "Div": 1})


@pytest.mark.parametrize(
    ("how", "ops"),
    [("none", {"Erf": 1, "Mul": 3, "Add": 1}), ("tanh", {"Tanh": 1, "Mul": 6, "Add": 2})],
)
def test_gelu(how: str, ops: dict[str, int]) -> None:
    lowered(17, text(f'{{ y = Gelu<approximate = "{how}">(x) }}', opset=20), ops)


def test_a_part_of_a_shape() -> None:
    model = text("{ s = Shape<start = 1>(x) y = Expand(x, s) }")
    lowered(14, model, {"Shape": 1, "Slice": 1, "Expand": 1})


def test_bodies_and_functions() -> None:
    model = """<ir_version: 8, opset_import: ["" : 18, "f" : 1]> g (float[2, 6] x, bool c) => (float[2, 6] y) {
        a = f.act(x)
        y = If (c) <then_branch = t () => (float[2, 6] p) { p = Mish(a) },
                    else_branch = e () => (float[2, 6] q) { q = Neg(a) }>
    }
    <domain: "f", opset_import: ["" : 18]> act (p) => (q) { q = HardSwish(p) }"""
    done = lowered(
        13,
        model,
        {"act": 1, "If": 1}
        and {"f::act": 1, "If": 1, "Softplus": 1, "Tanh": 1, "Mul": 2, "Neg": 1, "HardSigmoid": 1},
    )
    assert done.proto.functions[0].opset_import[0].version == 13


@pytest.mark.parametrize(
    ("to", "body", "out", "words"),
    [
        (16, "<int64[1] z = {1}> { a = Abs(x) r = ReduceMax(a) b = Cast<to = 7>(r) c = Reshape(b, z) y = ReduceMean(x, c) }", "[2, 1]", "is computed"),
        (12, "{ y = Softmax<axis = 0>(x) }", "[2, 6]", "not the last"),
        (17, "{ a, b, c, d = Split<axis = 1, num_outputs = 4>(x) y = Identity(a) }", "[2, 2]", "4 equal parts"),
        (13, "{ y = Trilu(x) }", "[2, 6]", "Trilu came with opset 14"),
        (14, "{ y, m, d = LayerNormalization(x, s) z = Add(y, m) }", "[2, 6]", "mean or deviation is read"),
    ],
)  # fmt: skip
def test_refuses(to: int, body: str, out: str, words: str) -> None:
    if "LayerNorm" in body:
        body = f"<float[6] s = {{1, 2, 3, 4, 5, 6}}> {body}"
    assert_refuses(LowerOpset(to), text(body, out=out), words)


def test_types_that_older_versions_do_not_take() -> None:
    model = '<ir_version: 9, opset_import: ["" : 19]> g (float8e4m3fn[4] x) => (float[4] y) { y = Cast<to = 1>(x) }'
    assert_refuses(LowerOpset(18), model, "does not take tensor(float8e4m3fn)")


def test_allowzero() -> None:
    def model(dims: str, target: str) -> str:
        body = f"<int64[2] t = {{{target}}}> {{ y = Reshape<allowzero = 1>(x, t) }}"
        return text(body, dims=dims, out="[a, b]")

    lowered(13, model("[2, 6]", "4, -1"), {"Reshape": 1})
    assert_refuses(LowerOpset(13), model("[0, 6]", "3, 0"), "may be zero")


def test_a_kept_node() -> None:
    assert_refuses(LowerOpset(13), text("{ y = Mish(x) }"), "is kept", keep=["y"])


def test_old_enough() -> None:
    assert not apply(LowerOpset(18), text("{ y = Relu(x) }")).journal.changes


@pytest.mark.parametrize("to", [10, 99])
def test_opsets_that_are_none(to: int) -> None:
    with pytest.raises(ValueError, match="between 11 and"):
        LowerOpset(to)


@pytest.mark.parametrize("name", ["digits_cnn", "digits_lstm", "digits_transformer_dynamo"])
def test_models_there_and_back(name: str) -> None:
    result = graphopt.run(MODELS / f"{name}.onnx", "lower-opset{to=13}")
    assert result.report.verdict == "proven"
    assert result.model.opset_imports[""] == 13
    onnx.checker.check_model(result.model.to_proto(), full_check=True)
    back = graphopt.run(result.model, [RaiseOpset(least=18)])
    assert back.report.verdict == "proven"


def test_the_option_is_needed() -> None:
    with pytest.raises(graphopt.UserError, match="to"):
        installed().resolve("lower-opset")
