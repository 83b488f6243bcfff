from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

import graphopt
from graphopt.errors import UserError
from graphopt.pipeline.registry import installed
from graphopt.testing import apply, assert_rewrites, parse
from graphopt_passes.conversion.freeze_dims import FreezeDims

HEAD = '<ir_version: 8, opset_import: ["" : 17]>'
MODEL = f"""{HEAD} g (float[N, T, 4] x, float[N] s) => (float[N, T, 4] y, float[M] r) <int64[1] one = {{1}}> {{
    a = Relu(x)  n = Shape<start = 0, end = 1>(x)  r = Expand(s, n)  y = Sigmoid(a)
}}"""


def dims(value: onnx.ValueInfoProto) -> list[int | str]:
    return [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]


def test_everywhere() -> None:
    done = assert_rewrites(FreezeDims(("N=3",)), MODEL, once=True)
    graph = done.proto.graph
    assert [dims(v) for v in graph.input] == [[3, "T", 4], [3]]
    # r was declared [M]: that it is N long is what inference found out
    assert [dims(v) for v in graph.output] == [[3, "T", 4], [3]]
    assert {(e.kind, e.name) for e in done.model.interface} == {
        ("input", "x"), ("input", "s"), ("output", "y"), ("output", "r")
    }  # fmt: skip


def test_by_input_and_axis() -> None:
    done = assert_rewrites(FreezeDims(("x:-2=5",)), MODEL, once=True)
    assert [dims(v) for v in done.proto.graph.input] == [["N", 5, 4], ["N"]]


def test_dim_without_a_name() -> None:
    text = f"{HEAD} g (float[?, 4] x, float[?, 4] z) => (float[?, 4] y) {{ y = Relu(x) w = Relu(z) }}"
    done = assert_rewrites(FreezeDims(("x:0=2",)), text, once=True)
    assert dims(done.proto.graph.input[0]) == [2, 4]
    assert dims(done.proto.graph.input[1]) == [0, 4]
    assert dims(done.proto.graph.output[0]) == [2, 4]


def test_bodies_and_value_info() -> None:
    text = f"""{HEAD} g (float[N, 4] x, bool c) => (float[N, 4] y) <float[N, 4] a> {{
        a = Relu(x)
        y = If (c) <
            then_branch = t () => (float[N, 4] p) {{ p = Neg(a) }},
            else_branch = e () => (float[N, 4] q) {{ q = Abs(a) }}
        >
    }}"""
    done = assert_rewrites(FreezeDims(("N=2",)), text, once=True)
    graph = done.proto.graph
    held = [a.g for node in graph.node for a in node.attribute if a.type == onnx.AttributeProto.GRAPH]
    assert [dims(g.output[0]) for g in held] == [[2, 4], [2, 4]]
    assert [dims(v) for v in graph.value_info] == [[2, 4]]


def test_shape_arithmetic_folds_behind_it(tmp_path: Path) -> None:
    text = f"""{HEAD} g (float[N, 2, 3] x) => (float[N, 6] y) <int64[1] six = {{6}}> {{
        n = Shape<start = 0, end = 1>(x)  to = Concat<axis = 0>(n, six)  y = Reshape(x, to)
    }}"""
    result = graphopt.run(parse(text), "freeze-dims{dims=[N=4]},default")
    assert result.report.verdict == "proven"
    assert {n.op for n in result.model.graph.nodes} == {"Reshape"}
    ports = {(p.kind, p.name): (p.before, p.after) for p in result.report.interface}
    assert ports["input", "x"] == ("float[N,2,3]", "float[4,2,3]")


def test_user_data_of_another_size_is_cut() -> None:
    data = {
        "x": np.random.default_rng(0).standard_normal((5, 7, 4)).astype(np.float32),
        "s": np.ones(5, "f4"),
    }
    result = graphopt.run(parse(MODEL), "freeze-dims{dims=[N=2,T=9]}", data=data)
    assert result.report.verdict == "proven"


def test_a_size_that_the_model_does_not_run_with_is_rolled_back() -> None:
    text = f"""{HEAD} g (float[N, T] x) => (float[N, 3] y) <float[2, 3] w = {{1, 2, 3, 4, 5, 6}}>
    {{ y = MatMul(x, w) }}"""
    result = graphopt.run(parse(text), "freeze-dims{dims=[T=7]}")
    assert [c.pass_name for c in result.report.culprits] == ["freeze-dims"]
    assert dims(result.model.to_proto().graph.input[0]) == ["N", "T"]
    assert not result.report.interface


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (("Q=1",), "no input has a dim 'Q'"),
        (("x:2=5",), "is 4 already"),
        (("x:3=1",), "has 3 dims"),
        (("N=1", "s:0=2"), "two sizes"),
    ],
)
def test_refused_before_any_work(given: tuple[str, ...], words: str) -> None:
    with pytest.raises(UserError, match=words):
        graphopt.run(parse(MODEL), [FreezeDims(given)])
    with pytest.raises(UserError, match=words):
        apply(FreezeDims(given), MODEL)


def test_unknown_names_are_answered_with_those_there_are() -> None:
    with pytest.raises(UserError) as caught:
        graphopt.run(parse(MODEL), "freeze-dims{dims=[batch=1]}")
    assert "N (x:0), T (x:1)" in str(caught.value)


@pytest.mark.parametrize("text", ["dims=[N=0]", "dims=[N=x]", "dims=[N]", "dims=[]"])
def test_options_that_make_no_sense(text: str) -> None:
    with pytest.raises(UserError, match="freeze-dims"):
        installed().resolve(f"freeze-dims{{{text}}}")


def test_the_number_that_is_there_already_changes_nothing() -> None:
    assert not apply(FreezeDims(("x:2=4",)), MODEL).journal.changes


def test_options_survive_a_round_trip() -> None:
    registry = installed()
    text = registry.format(registry.resolve("freeze-dims{dims=[N=1,x:1=2]}"))
    assert registry.resolve(text) == (FreezeDims(("N=1", "x:1=2")),)
