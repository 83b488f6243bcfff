"""A student of another architecture learns from a teacher."""

from __future__ import annotations

import importlib.util
import json
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import onnxruntime
import pytest

import graphopt
from graphopt.cli.main import main
from graphopt.errors import UserError
from graphopt.model import Model
from tests.distillation.students import thin_cnn

ROOT = Path(__file__).resolve().parents[2]
TEACHER = ROOT / "models" / "digits_cnn.onnx"
DATA = ROOT / "models" / "digits.npz"
HEAD = '<ir_version: 8, opset_import: ["" : 17]>'
HAS_TORCH = importlib.util.find_spec("torch") is not None


def outputs(model: onnx.ModelProto | Model | Path, feeds: dict[str, Any]) -> np.ndarray:
    if isinstance(model, Model):
        model = model.to_proto(weights="inline")
    source = str(model) if isinstance(model, Path) else model.SerializeToString()
    session = onnxruntime.InferenceSession(source, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, feeds)[0])


def held_back() -> tuple[dict[str, Any], np.ndarray]:
    """Every 8th sample, which nothing is learned from, and its labels."""
    data = np.load(DATA)
    return {"image": data["image"][7::8]}, data["label"][7::8]


def sqnr(want: np.ndarray, got: np.ndarray) -> float:
    want, got = want.astype(np.float64), got.astype(np.float64)
    return float(10 * np.log10((want**2).sum() / ((want - got) ** 2).sum()))


def mlp(widths: list[int], seed: int, activation: str = "Relu") -> onnx.ModelProto:
    """A chain of Gemms with tensors h0, h1, ..."""
    lines, x = [], "x"
    for i in range(len(widths) - 2):
        lines.append(
            f"[fc{i}] h{i} = Gemm(x{i}, w{i}, b{i}) x{i + 1} = {activation}(h{i})".replace("x0,", "x,")
        )
        x = f"x{i + 1}"
    last = len(widths) - 2
    lines.append(f"[fc{last}] y = Gemm({x}, w{last}, b{last})")
    model = onnx.parser.parse_model(
        f"{HEAD} g (float[N, {widths[0]}] x) => (float[N, {widths[-1]}] y) {{ {' '.join(lines)} }}"
    )
    rng = np.random.default_rng(seed)
    for i, (a, b) in enumerate(pairwise(widths)):
        for name, values in (
            (f"w{i}", rng.standard_normal((a, b)) / np.sqrt(a)),
            (f"b{i}", rng.standard_normal(b)),
        ):
            model.graph.initializer.append(onnx.numpy_helper.from_array(values.astype(np.float32), name))
    return model


def inputs(n: int = 400, width: int = 6) -> dict[str, Any]:
    return {"x": np.random.default_rng(9).standard_normal((n, width)).astype(np.float32)}


# -- what is learned -------------------------------------------------------------------------------


def test_random_thin_student_learns_digits() -> None:
    feeds, labels = held_back()
    want = outputs(TEACHER, feeds)
    before = outputs(thin_cnn(), feeds)
    done = graphopt.distill(TEACHER, thin_cnn(), data=DATA)
    after = outputs(done.model, feeds)
    assert done.report.before.sqnr_db == pytest.approx(sqnr(want, before), abs=0.01)
    assert done.report.after.sqnr_db == pytest.approx(sqnr(want, after), abs=0.01)
    assert sqnr(want, after) > sqnr(want, before) + 3
    assert (before.argmax(1) == labels).mean() < 0.3
    assert (after.argmax(1) == labels).mean() > 0.8
    assert [t.student for t in done.report.taught] == ["c0", "c1", "c2", "c3", "logits"]
    assert done.report.taught[-1].how == "output"
    assert all(done.report.done(t).startswith("weights and bias fitted") for t in done.report.taught)
    assert done.report.is_better


def test_the_student_handed_in_is_not_changed() -> None:
    student = Model.load(thin_cnn())
    graphopt.distill(TEACHER, student, data=DATA)
    assert student.to_proto(weights="inline").graph.initializer[0] == thin_cnn().graph.initializer[0]


def test_same_architecture_becomes_the_teacher() -> None:
    """With as many channels as the teacher, every layer can be what the teacher's is."""
    teacher, feeds = mlp([6, 10, 8, 3], 1), inputs()
    for match in ("auto", "correlation"):
        done = graphopt.distill(teacher, mlp([6, 10, 8, 3], 2), data=feeds, match=match)  # type: ignore[arg-type]
        assert done.report.before.sqnr_db < 5
        assert done.report.after.sqnr_db > 40
        assert [(t.student, t.teacher) for t in done.report.taught] == [
            ("h0", "h0"),
            ("h1", "h1"),
            ("y", "y"),
        ]


def test_batch_normalization_is_folded_first() -> None:
    done = graphopt.distill(TEACHER, thin_cnn(bn=True), data=DATA)
    assert done.report.folded == 1
    assert "BatchNormalization" not in {n.op for n in done.model.graph.nodes}
    assert done.report.is_better


def test_wider_layers_are_left_as_they_are() -> None:
    done = graphopt.distill(mlp([6, 5, 3], 1), mlp([6, 9, 3], 2), data=inputs())
    assert done.report.unmatched == ("h0",)
    assert done.report.left["h0"].startswith("the teacher does not compute this tensor")
    assert done.report.is_better  # the last layer learns all the same


def test_names_and_map() -> None:
    teacher, student = mlp([6, 8, 8, 8, 3], 1), mlp([6, 8, 3], 2)
    given = graphopt.distill(teacher, student, data=inputs(), map={"h0": "h2"}).report
    assert [(t.teacher, t.how) for t in given.taught] == [("h2", "map"), ("y", "output")]
    by_node = graphopt.distill(teacher, student, data=inputs(), map={"fc0": "fc1"}).report
    assert by_node.taught[0].teacher == "h1"
    named = graphopt.distill(teacher, student, data=inputs(), match="name").report
    assert [(t.teacher, t.how) for t in named.taught] == [("h0", "name"), ("y", "output")]


def test_pruned_weights_stay_zero() -> None:
    student = mlp([6, 8, 3], 2)
    weight = onnx.numpy_helper.to_array(student.graph.initializer[0]).copy()
    weight[::2] = 0
    student.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(weight, "w0"))
    done = graphopt.distill(mlp([6, 8, 3], 1), student, data=inputs())
    (node,) = [n for n in done.model.graph.nodes if n.name == "fc0"]
    assert (node.inputs[1].values[::2] == 0).all()
    assert not np.array_equal(node.inputs[1].values, weight)


def test_keep() -> None:
    done = graphopt.distill(mlp([6, 8, 3], 1), mlp([6, 8, 3], 2), data=inputs(), keep="fc0")
    assert "h0" not in done.report.fitted
    assert "y" in done.report.fitted


def test_inputs_and_outputs_of_other_names() -> None:
    teacher = mlp([6, 8, 3], 1)
    for node in teacher.graph.node:
        for names in (node.input, node.output):
            for i, name in enumerate(names):
                # Its h0 is the input: a name that the student has for something else.
                names[i] = {"x": "features", "y": "scores", "h0": "y"}.get(name, name)
    teacher.graph.input[0].name, teacher.graph.output[0].name = "features", "scores"
    done = graphopt.distill(teacher, mlp([6, 8, 3], 2), data=inputs())
    assert done.report.after.sqnr_db > 40
    assert [t.name for t in done.model.graph.outputs] == ["y"]


# -- what is refused -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("student", "options", "reason"),
    [
        (mlp([6, 8, 3], 2), {"data": None}, "needs data"),
        (mlp([6, 8, 4], 2), {}, r"shape \[N, 4\], y of the teacher \[N, 3\]"),
        (mlp([5, 8, 3], 2), {}, r"the input x of the student has the shape \[N, 5\]"),
        (thin_cnn(), {}, "has the shape"),
        (mlp([6, 8, 3], 2), {"map": {"nope": "h0"}}, "the student computes no 'nope'"),
        (mlp([6, 8, 3], 2), {"map": {"h0": "nope"}}, "the teacher computes no 'nope'"),
        (mlp([6, 8, 3], 2), {"map": {"h0": "y"}}, r"\[N, 8\] cannot become \[N, 3\]"),
        (mlp([6, 8, 3], 2), {"keep": "nope"}, "matches no node"),
        (mlp([6, 8, 3], 2), {"fine_tune": -1}, "number of epochs"),
    ],
)
def test_refused(student: onnx.ModelProto, options: dict[str, Any], reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        graphopt.distill(mlp([6, 8, 3], 1), student, **{"data": inputs(), **options})


def test_close_names_are_suggested() -> None:
    with pytest.raises(UserError) as e:
        graphopt.distill(TEACHER, thin_cnn(), data=DATA, map={"conv0": "/stem/stem.0/conv"})
    assert "/stem/stem.0/Conv" in str(e.value.fix)


def test_another_number_of_outputs() -> None:
    teacher = mlp([6, 8, 3], 1)
    teacher.graph.output.append(onnx.helper.make_tensor_value_info("h0", 1, ["N", 8]))
    with pytest.raises(UserError, match="the outputs of the two models differ: the teacher has y, h0"):
        graphopt.distill(teacher, mlp([6, 8, 3], 2), data=inputs())


def test_student_that_is_the_teacher_is_not_written(tmp_path: Path) -> None:
    done = graphopt.distill(mlp([6, 8, 3], 1), mlp([6, 8, 3], 1), data=inputs())
    assert not done.report.is_better
    with pytest.raises(UserError, match="no closer"):
        done.save(tmp_path / "out.onnx")
    assert not list(tmp_path.iterdir())


# -- the command -----------------------------------------------------------------------------------


def files(tmp_path: Path, student: onnx.ModelProto) -> list[str]:
    onnx.save(mlp([6, 8, 3], 1), tmp_path / "teacher.onnx")
    onnx.save(student, tmp_path / "student.onnx")
    np.savez(tmp_path / "data.npz", **inputs())
    return ["distill", *(str(tmp_path / n) for n in ("teacher.onnx", "student.onnx"))]


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = [*files(tmp_path, mlp([6, 8, 3], 2)), "--data", str(tmp_path / "data.npz")]
    assert main([*command, "-o", str(tmp_path / "out.onnx")]) == 0
    shown = capsys.readouterr().out
    assert "student before" in shown
    assert "SQNR" in shown
    onnx.checker.check_model(str(tmp_path / "out.onnx"), full_check=True)
    assert main([*command, "--json", "-q"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["schema"] == "graphopt.distill/1"
    assert found["after"]["sqnr_db"] > found["before"]["sqnr_db"]
    assert (tmp_path / "student.distilled.onnx").exists()


def test_command_writes_nothing_that_is_no_better(tmp_path: Path) -> None:
    command = [*files(tmp_path, mlp([6, 8, 3], 1)), "--data", str(tmp_path / "data.npz"), "-q"]
    assert main(command) == 1
    assert not (tmp_path / "student.distilled.onnx").exists()


@pytest.mark.parametrize(
    ("extra", "reason"),
    [
        ([], "needs data"),
        (["--data", "DATA", "--map", "h0"], "--map takes"),
        (["--data", "DATA", "--match", "guess"], "--match"),
        (["--data", "DATA", "-o", "student.onnx"], "output is the input"),
    ],
)
def test_command_refuses(
    extra: list[str], reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    command = files(tmp_path, mlp([6, 8, 3], 2))
    monkeypatch.chdir(tmp_path)
    assert main([*command, *(str(tmp_path / "data.npz") if e == "DATA" else e for e in extra)]) == 2
    assert reason in capsys.readouterr().err


# -- fine-tuning -----------------------------------------------------------------------------------


def test_without_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(UserError, match="needs torch"):
        graphopt.distill(mlp([6, 8, 3], 1), mlp([6, 8, 3], 2), data=inputs(), fine_tune=1)


@pytest.mark.skipif(not HAS_TORCH, reason="needs torch")
def test_fine_tuning_comes_closer() -> None:
    teacher, student = mlp([6, 16, 3], 1), mlp([6, 8, 3], 2)
    plain = graphopt.distill(teacher, student, data=inputs())
    tuned = graphopt.distill(teacher, student, data=inputs(), fine_tune=40, learning_rate=0.01)
    assert tuned.report.epochs == 40
    assert tuned.report.after.sqnr_db > plain.report.after.sqnr_db + 1
    feeds = {"x": inputs()["x"][7::8]}
    assert tuned.report.after.sqnr_db == pytest.approx(
        sqnr(outputs(teacher, feeds), outputs(tuned.model, feeds)), abs=0.01
    )


@pytest.mark.skipif(not HAS_TORCH, reason="needs torch")
def test_operator_without_a_gradient_is_named() -> None:
    student = mlp([6, 8, 3], 2, "Celu")
    with pytest.raises(UserError, match="does not know how to differentiate Celu"):
        graphopt.distill(mlp([6, 8, 3], 1), student, data=inputs(), fine_tune=1)
