from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import onnx
import onnx.parser
import pytest
import wrong_passes as wrong

import graphopt
from graphopt.errors import UserError

PASSES = Path(__file__).parent / "support" / "wrong_passes.py"
TEXT = """
<ir_version: 8, opset_import: ["" : 17]>
g (float[batch, 4] x) => (float[batch, 4] y)
{
    a = Relu(x)
    b = Identity(a)
    c = Neg(b)
    d = Relu(c)
    e = Sub(d, x)
    y = Identity(e)
}
"""


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.onnx"
    onnx.save(onnx.parser.parse_model(TEXT), path)
    return path


def test_the_users_check_finds_the_rewrite_that_it_minds(model: Path, tmp_path: Path) -> None:
    # Nothing is wrong with the numbers: the user wants no Clip.
    found = graphopt.bisect(
        model,
        ["default", wrong.ReluToClip()],
        check="! grep -q Clip {model}",
        repro_dir=tmp_path / "repro",
    )
    assert found.verdict == "found"
    assert found.exit_code() == 1
    assert [(c.pass_name, c.rewrite, c.removed, c.added) for c in found.culprits] == [
        ("relu-to-clip", "Relu is a Clip", ("Relu",), ("Clip",))
    ] * 2
    assert {c.site for c in found.culprits} == {"a", "d"}
    assert found.rest == "the check passes"
    assert found.rewrites >= 1  # the Identity is still removed
    assert found.checks >= 3
    folders = sorted((tmp_path / "repro").iterdir())
    assert len(folders) == 2
    for folder in folders:
        before, after = (onnx.load(folder / name) for name in ("before.onnx", "after.onnx"))
        clips = [sum(n.op_type == "Clip" for n in m.graph.node) for m in (before, after)]
        assert clips[1] == clips[0] + 1
        assert "graphopt reduce after.onnx" in (folder / "README.md").read_text()


def test_a_rewrite_that_is_wrong_together_with_another_pass(model: Path) -> None:
    # lower-clip changes nothing by itself: there is no Clip before relu-to-clip makes one.
    code = f"{sys.executable} -c \"import onnx, sys; m = onnx.load(sys.argv[1]); sys.exit(any(t.name.startswith('low') for t in m.graph.initializer))\" {{model}}"
    found = graphopt.bisect(model, [wrong.ReluToClip(), wrong.LowerClip()], check=code)
    assert found.verdict == "found"
    assert {c.pass_name for c in found.culprits} == {"lower-clip"}
    assert found.culprits[0].with_passes == ("relu-to-clip",)


def test_without_a_check_the_original_decides(model: Path) -> None:
    found = graphopt.bisect(model, ["default", wrong.SwapsSub()])
    assert found.verdict == "found"
    assert [c.pass_name for c in found.culprits] == ["swaps-sub"]
    assert found.rest == "it computes the same as the input"
    assert found.checks == 0
    right = graphopt.bisect(model, "default")
    assert right.verdict == "right"
    assert right.exit_code() == 0


def test_nothing_to_find(model: Path) -> None:
    found = graphopt.bisect(model, "default", check="test -f {model}")
    assert (found.verdict, found.exit_code(), found.culprits) == ("right", 0, ())
    assert found.checks == 2


def test_a_pass_that_crashes_is_named(model: Path) -> None:
    found = graphopt.bisect(model, [wrong.Crashes()], check="test -f {model}")
    assert found.verdict == "found"
    assert found.culprits[0].pass_name == "crashes"
    assert "ZeroDivisionError" in found.culprits[0].trace


def test_a_check_that_cannot_tell(model: Path) -> None:
    # It can judge the original, and nothing else.
    found = graphopt.bisect(model, "default", check="cmp -s {model} {original} || exit 125")
    assert found.verdict in ("undecided", "right")
    found = graphopt.bisect(model, "default", check="grep -q Identity {model} || exit 125")
    assert found.verdict == "undecided"
    assert found.exit_code() == 0


@pytest.mark.parametrize(
    ("check", "says"),
    [
        ("false {model}", "does not pass on the model itself"),
        ("false", "does not say where the model goes"),
        ("no-such-command {model}", "cannot be run"),
    ],
)
def test_wrong_checks(model: Path, check: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        graphopt.bisect(model, "default", check=check)


def test_run_takes_a_check_besides_its_own_proof(model: Path) -> None:
    result = graphopt.run(model, ["default", wrong.ReluToClip()], check="! grep -q Clip {model}")
    assert result.report.verdict == "rolled back"
    assert "Clip" not in result.report.after.ops
    assert result.report.outputs  # and it was compared with the original
    both = graphopt.run(model, [wrong.SwapsSub()], check="test -f {model}")
    assert both.report.culprits[0].pass_name == "swaps-sub"


def test_names_with_spaces_are_quoted(tmp_path: Path) -> None:
    path = tmp_path / "a model.onnx"
    onnx.save(onnx.parser.parse_model(TEXT), path)
    found = graphopt.bisect(path, "default", check="test -f {original} && test -f {model}")
    assert found.verdict == "right"


def test_the_command_line(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from graphopt.cli.main import main

    words = ["bisect", str(model), "--passes", f"{PASSES}:ReluToClip", "--check", "! grep -q Clip {model}"]
    assert main(words) == 1
    out = capsys.readouterr().out
    assert out.startswith("FOUND: the check fails because of 2 rewrites")
    assert "culprit relu-to-clip: at a" in out
    assert "Relu is a Clip: Relu -> Clip" in out
    assert main([*words, "--json"]) == 1
    found: Any = json.loads(capsys.readouterr().out)
    assert found["schema"] == "graphopt.bisect/1"
    assert found["culprits"][0]["added"] == ["Clip"]
    run = ["run", str(model), "--passes", f"{PASSES}:ReluToClip", "--check", "! grep -q Clip {model}", "-q"]
    assert main([*run, "-o", str(model.parent / "out.onnx")]) == 3
    assert "Clip" not in {n.op_type for n in onnx.load(model.parent / "out.onnx").graph.node}
    capsys.readouterr()
    assert main([*words, "-q"]) == 1
    assert capsys.readouterr().out == ""
    assert main(["bisect", str(model), "--check", "test -f {model}"]) == 0
    assert main(["bisect", str(model), "--check", "nothing"]) == 2
    assert not list(model.parent.glob("*.opt.onnx"))
