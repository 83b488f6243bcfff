"""`grep` stands in for the user's check: it starts in a millisecond, and what it looks for is in the file."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest

from graphopt.errors import UserError
from graphopt.reducing.search import minimize, reduce
from graphopt.report.searched import ReduceReport


def save(text: str, path: Path) -> Path:
    onnx.save(onnx.parser.parse_model(text), path)
    return path


def chain(ops: list[str], path: Path) -> Path:
    """x -> ops[0] -> ops[1] -> ... -> y, with a second output in the middle."""
    names = ["x", *(f"t{i}" for i in range(len(ops) - 1)), "y"]
    body = "\n".join(f"{names[i + 1]} = {op}({names[i]})" for i, op in enumerate(ops))
    middle = names[len(ops) // 2]
    text = f"""
        <ir_version: 8, opset_import: ["" : 17]>
        g (float[batch, 4] x, float[batch, 4] spare) => (float[batch, 4] y, float[batch, 4] {middle})
        {{ {body} }}
    """
    return save(text, path)


def containing(*words: str, code: int = 3) -> str:
    """A check that fails on models which have all these operators."""
    tests = " && ".join(f"grep -q {word} {{model}}" for word in words)
    return f"if {tests}; then exit {code}; fi"


@pytest.fixture
def small(tmp_path: Path) -> Callable[..., tuple[ReduceReport, onnx.ModelProto]]:
    """Reduces a model: (report, what was written)."""

    def run(model: Path, check: str, **options: Any) -> tuple[ReduceReport, onnx.ModelProto]:
        report = reduce(model, tmp_path / "small.onnx", check=check, **options)
        proto = onnx.load(tmp_path / "small.onnx")
        onnx.checker.check_model(proto, full_check=True)
        return report, proto

    return run


def ops(proto: onnx.ModelProto) -> list[str]:
    return [n.op_type for n in proto.graph.node]


def test_one_guilty_node_is_all_that_is_left(tmp_path: Path, small: Any) -> None:
    model = chain(["Relu", "Abs"] * 20 + ["Sinh"] + ["Neg", "Tanh"] * 20, tmp_path / "m.onnx")
    report, proto = small(model, containing("Sinh"))
    assert ops(proto) == ["Sinh"]
    assert len(proto.graph.input) == len(proto.graph.output) == 1
    assert report.minimal
    assert (report.before.nodes, report.after.nodes) == (81, 1)
    assert report.failure == "exit code 3"
    assert report.checks < 40  # bisection, not one by one
    assert report.steps[-1].nodes == 1
    assert "Sinh(" in report.text


def test_two_nodes_far_apart(tmp_path: Path, small: Any) -> None:
    model = chain(["Abs", "Sinh", "Neg", *["Tanh"] * 30, "Erf", "Relu"], tmp_path / "m.onnx")
    report, proto = small(model, containing("Sinh", "Erf"))
    assert ops(proto) == ["Sinh", "Erf"]
    assert report.minimal


def test_two_branches_that_meet(tmp_path: Path, small: Any) -> None:
    model = save(
        """
        <ir_version: 8, opset_import: ["" : 17]>
        g (float[batch, 4] x) => (float[batch, 4] y, float[batch, 4] z)
        {
            a = Relu(x)
            b = Sinh(a)
            c = Abs(x)
            d = Erf(c)
            e = Add(b, d)
            f = Exp(e)
            y = Neg(f)
            z = Tanh(d)
        }
        """,
        tmp_path / "m.onnx",
    )
    _, proto = small(model, containing("Sinh", "Erf"))
    assert sorted(ops(proto)) == ["Erf", "Sinh"]
    _, proto = small(model, containing("Add"))
    assert ops(proto) == ["Add"]


def test_what_lies_between_two_nodes_goes_although_the_first_leads_nowhere_else(
    tmp_path: Path, small: Any
) -> None:
    model = save(
        """
        <ir_version: 8, opset_import: ["" : 17]>
        g (float[1, 2] x) => (float[1, 3] y)
        <float[2, 3] w = {1, 2, 3, 4, 5, 6}>
        { a = Relu(x)  b = Sinh(a)  c = MatMul(b, w)  d = Erf(c)  y = Exp(d) }
        """,
        tmp_path / "m.onnx",
    )
    _, proto = small(model, containing("Sinh", "Erf"))
    assert sorted(ops(proto)) == ["Erf", "Sinh"]  # not one behind the other any more


def test_initializers_that_nobody_reads_any_more_are_gone(tmp_path: Path, small: Any) -> None:
    model = save(
        """
        <ir_version: 8, opset_import: ["" : 17]>
        g (float[1, 2] x) => (float[1, 2] y)
        <float[2, 2] w = {1, 2, 3, 4}, float[2] b = {0.5, -0.5}>
        { m = MatMul(x, w)  n = Add(m, b)  y = Sinh(n) }
        """,
        tmp_path / "m.onnx",
    )
    _, proto = small(model, containing("Sinh"))
    assert ops(proto) == ["Sinh"]
    assert not proto.graph.initializer
    _, proto = small(model, containing("Add"))
    assert [t.name for t in proto.graph.initializer] == ["b"]


CONTROL = """
<ir_version: 8, opset_import: ["" : 17]>
g (bool c, float[2, 3] x) => (float[2, 3] y)
{
    a = Abs(x)
    i = If (c) <
        then_branch = t () => (float[2, 3] p) { q = Relu(a)  r = Sinh(q)  p = Neg(r) },
        else_branch = e () => (float[2, 3] s) { s = Tanh(a) }
    >
    y = Exp(i)
}
"""


def test_a_node_in_a_branch(tmp_path: Path, small: Any) -> None:
    model = save(CONTROL, tmp_path / "m.onnx")
    _, proto = small(model, containing("Sinh"))
    assert ops(proto) == ["Sinh"]


def test_a_branch_whose_if_is_needed(tmp_path: Path, small: Any) -> None:
    model = save(CONTROL, tmp_path / "m.onnx")
    _, proto = small(model, containing("Sinh", "then_branch"))
    assert ops(proto) == ["If"]
    bodies = {a.name: [n.op_type for n in a.g.node] for a in proto.graph.node[0].attribute}
    assert bodies["then_branch"] == ["Sinh"]


def test_a_node_in_a_function(tmp_path: Path, small: Any) -> None:
    model = save(
        """
        <ir_version: 8, opset_import: ["" : 17, "local" : 1]>
        g (float[2, 3] x) => (float[2, 3] y) { a = Abs(x)  b = local.f(a)  y = Neg(b) }
        <domain: "local", opset_import: ["" : 17]>
        f (u) => (v) { w = Relu(u)  v = Sinh(w) }
        """,
        tmp_path / "m.onnx",
    )
    _, proto = small(model, containing("Sinh"))
    assert "Sinh" in ops(proto)
    assert len(proto.graph.node) <= 2
    assert not proto.functions


def test_checks_that_feed_fixed_inputs_get_constants(tmp_path: Path, small: Any) -> None:
    model = chain(["Exp", "Neg", "Sinh", "Relu"], tmp_path / "m.onnx")
    x = np.array([[0.0, 1.0, 2.0, 3.0]], np.float32)
    np.savez(tmp_path / "x.npz", x=x, spare=x)
    report, proto = small(model, containing("Sinh"), keep_inputs=True, data=tmp_path / "x.npz")
    assert ops(proto) == ["Sinh"]
    (value,) = proto.graph.initializer
    np.testing.assert_allclose(onnx.numpy_helper.to_array(value), -np.exp(x), rtol=1e-6)
    assert report.inputs == ""


def test_inputs_for_the_model_at_hand_are_handed_to_the_check(tmp_path: Path, small: Any) -> None:
    model = chain(["Exp", "Neg", "Sinh", "Relu"], tmp_path / "m.onnx")
    x = np.array([[0.0, 1.0, 2.0, 3.0]], np.float32)
    np.savez(tmp_path / "x.npz", x=x, spare=x)
    check = f"if test -f {{data}} && {containing('Sinh')[3:]}"
    report, proto = small(model, check, data=tmp_path / "x.npz")
    assert ops(proto) == ["Sinh"]
    with np.load(report.inputs) as found:
        (name,) = found.files
        assert name == proto.graph.input[0].name
        np.testing.assert_allclose(found[name], -np.exp(x), rtol=1e-6)


def test_another_way_to_fail_does_not_count(tmp_path: Path, small: Any) -> None:
    model = chain(["Abs", "Sinh", "Neg", "Erf", "Relu"], tmp_path / "m.onnx")
    # With Erf it fails as it does on the model; without, in another way.
    check = "if grep -q Erf {model}; then exit 3; else exit 4; fi"
    _, proto = small(model, check)
    assert ops(proto) == ["Erf"]
    check = "if grep -q Erf {model}; then echo AssertionError; else echo ValueError; fi; exit 1"
    _, proto = small(model, check)
    assert ops(proto) == ["Erf"]
    check = "if grep -q Erf {model}; then echo too large; else echo missing; fi; exit 1"
    _, proto = small(model, check, expect="too l.rge")
    assert ops(proto) == ["Erf"]
    check = "if grep -q Erf {model}; then kill -SEGV $$; fi; exit 1"
    report, proto = small(model, check)
    assert ops(proto) == ["Erf"]
    assert report.failure == "killed by SIGSEGV"


def test_a_check_that_hangs(tmp_path: Path, small: Any) -> None:
    model = chain(["Abs", "Sinh"], tmp_path / "m.onnx")
    report, proto = small(model, "if grep -q Sinh {model}; then sleep 60; fi", check_timeout=0.3)
    assert ops(proto) == ["Sinh"]
    assert report.failure == "it did not end in time"


def test_a_model_that_no_runtime_loads(tmp_path: Path, small: Any) -> None:
    model = save(
        """
        <ir_version: 8, opset_import: ["" : 17, "nowhere" : 1]>
        g (float[1, 2] x) => (float[1, 2] y) { a = Abs(x)  b = nowhere.Sinh(a)  y = Neg(b) }
        """,
        tmp_path / "m.onnx",
    )
    report = reduce(model, tmp_path / "small.onnx", check=containing("Sinh"))
    assert report.after.nodes <= 2  # the type of what it computes is unknown, so it cannot be cut behind it


def test_the_search_can_be_bounded(tmp_path: Path, small: Any) -> None:
    model = chain(["Relu", "Abs"] * 20 + ["Sinh"], tmp_path / "m.onnx")
    report, proto = small(model, containing("Sinh"), max_checks=4)
    assert not report.minimal
    assert report.stopped == "the check was run 4 times"
    assert report.checks == 4
    assert "Sinh" in ops(proto)
    report, _ = small(model, containing("Sinh"), timeout=0.0)
    assert report.stopped == "the time is up"


@pytest.mark.parametrize(
    ("check", "says"),
    [
        ("true {model}", "the check passes"),
        ("exit 125; {model}", "cannot judge"),
        ("false", "does not say where the model goes"),
        ("no-such-command {model}", "cannot be run"),
    ],
)
def test_wrong_checks(tmp_path: Path, check: str, says: str) -> None:
    model = chain(["Abs", "Sinh"], tmp_path / "m.onnx")
    with pytest.raises(UserError, match=says):
        reduce(model, tmp_path / "small.onnx", check=check)
    assert not (tmp_path / "small.onnx").exists()


def test_wrong_expectations(tmp_path: Path) -> None:
    model = chain(["Abs", "Sinh"], tmp_path / "m.onnx")
    with pytest.raises(UserError, match="does not match"):
        reduce(model, tmp_path / "s.onnx", check="echo no; false {model}", expect="yes")
    with pytest.raises(UserError, match="not a regular expression"):
        reduce(model, tmp_path / "s.onnx", check="false {model}", expect="(")


def test_ddmin_finds_parts_of_which_none_can_be_left_out() -> None:
    items = [str(i) for i in range(50)]
    for wanted in ({"3"}, {"3", "47"}, {"0", "24", "25", "49"}):
        tried: list[int] = []

        def fails(part: Any, wanted: set[str] = wanted, tried: list[int] = tried) -> bool:
            tried.append(len(part))
            return wanted <= set(part)

        assert set(minimize(items, fails)) == wanted
        assert len(tried) < 250


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from graphopt.cli.main import main

    model = chain(["Abs", "Sinh", "Relu"], tmp_path / "m.onnx")
    assert main(["reduce", str(model), "--check", containing("Sinh")]) == 0
    out = capsys.readouterr().out
    assert out.startswith("REDUCED: 3 -> 1 node; nothing more can be left out")
    assert "m.min.onnx" in out
    assert (tmp_path / "m.min.onnx").exists()
    assert main(["reduce", str(model), "--check", containing("Sinh"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["schema"] == "graphopt.reduce/1"
    assert found["after"]["nodes"] == 1
    assert main(["reduce", str(model)]) == 2
    assert "--check" in capsys.readouterr().err
    assert main(["reduce", str(model), "--check", containing("Sinh"), "-o", str(model)]) == 2
    assert main(["reduce", str(tmp_path / "none.onnx"), "--check", "false {model}"]) == 2
