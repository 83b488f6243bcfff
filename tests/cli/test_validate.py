from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper


def moved(model: Path, by: float) -> Path:
    proto = onnx.load(model)
    bias = proto.graph.initializer[1]
    bias.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(bias) + np.float32(by), bias.name))
    other = model.with_name("other.onnx")
    onnx.save(proto, other)
    return other


def test_the_same_model(cli: Any, model: Path) -> None:
    code, out, _ = cli("validate", model, model)
    assert code == 0
    assert out.startswith("PROVEN")
    assert "float[batch,2]" in out
    assert cli("validate", model, model, "--numerics", "exact")[0] == 0
    assert cli("validate", model, model, "-q") == (0, "", "")


def test_a_model_that_computes_something_else(cli: Any, model: Path) -> None:
    other = moved(model, 0.25)
    code, out, _ = cli("validate", model, other)
    assert code == 1
    assert out.startswith("FAILED")
    assert "0.25" in out
    found = json.loads(cli("validate", model, other, "--json")[1])
    assert found["schema"] == "graphopt.validate/2"
    assert found["verdict"] == "failed"
    assert found["outputs"][0]["name"] == "y"
    assert cli("validate", model, other, "-q") == (1, "", "")


def test_exact_is_stricter_than_close(cli: Any, model: Path) -> None:
    other = moved(model, 1e-7)
    assert cli("validate", model, other)[0] == 0
    assert cli("validate", model, other, "--numerics", "exact")[0] == 1


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--numerics", "roughly"], "exact, close, lossy"),
        (["--providers", "warp"], "warp"),
        (["--data", "none.npz"], "none.npz"),
    ],
)
def test_wrong_use(cli: Any, model: Path, words: list[str], says: str) -> None:
    code, out, err = cli("validate", model, model, *words)
    assert (code, out) == (2, "")
    assert says in err
    assert "Traceback" not in err


def test_lossy_is_held_to_a_budget(cli: Any, model: Path) -> None:
    other = moved(model, 0.25)
    lossy = ("validate", model, other, "--numerics", "lossy")
    assert cli(*lossy, "--min-cosine", "0.1", "--min-sqnr", "-20")[0] == 0
    code, out, _ = cli(*lossy, "--min-cosine", "0.999999")
    assert code == 1
    assert "cosine" in out
    code, _, err = cli("validate", model, other, "--min-cosine", "0.9")
    assert code == 2
    assert "--numerics lossy" in err


def test_the_reason_and_the_table_tell_the_same_difference(cli: Any, model: Path) -> None:
    other = moved(model, 0.5)
    code, out, _ = cli("validate", model, other)
    assert code == 1
    first = " ".join(out.partition("\n\n")[0].split())
    assert "(the worst of 2 comparisons that failed)" in first
    shown = json.loads(cli("validate", model, other, "--json")[1])["outputs"][0]["max_abs"]
    assert f"max difference {shown:.3g}" in first


def test_whose_fault_and_where(cli: Any, model: Path) -> None:
    other = moved(model, 0.25)
    code, out, err = cli("validate", model, other, "--localize", "--layers")
    assert code == 1
    words = " ".join(out.split())
    assert "fault: candidate The candidate itself computes something else" in words
    assert "where: Add" in words
    assert "'y' is the first tensor that differs" in words
    assert ">>> off Add" in out
    assert "ok  MatMul" in out
    assert "looking for the first tensor that differs" in err
    found = json.loads(cli("validate", model, other, "--localize", "--layers", "--json")[1])
    assert found["fault"] == "candidate"
    assert found["localization"]["first"]["tensor"] == "y"
    assert [(row["tensor"], row["ok"]) for row in found["layers"]] == [("a", True), ("m", True), ("y", False)]
    assert found["runtimes"][0]["runtime"] == "CPU, optimizations off"
    assert len(cli("validate", model, other, "--localize", "-v")[1]) > len(out)


def test_one_model_on_all_runtimes(cli: Any, model: Path) -> None:
    code, out, _ = cli("validate", model)
    assert code == 0
    assert out.startswith("PROVEN: the model computes the same on every runtime that was tried")


def test_tolerances(cli: Any, model: Path) -> None:
    other = moved(model, 0.25)
    assert cli("validate", model, other, "--atol", "0.3")[0] == 0
    assert cli("validate", model, other, "--tolerance", "y:atol=0.3,rtol=0")[0] == 0
    code, out, _ = cli("validate", model, other, "--atol", "0.2", "--rtol", "0")
    assert code == 1
    assert "is more than 0.2 (atol=0.2)" in " ".join(out.split())


def test_several_shapes(cli: Any, model: Path) -> None:
    shapes = ("--input-shape", "x:3,4", "--input-shape", "x:5,4", "--probes", "1")
    found = json.loads(cli("validate", model, model, "--json", *shapes)[1])
    assert found["probes"] == ["synthesized, batch=3", "synthesized, batch=5"]


def test_mapped_names(cli: Any, model: Path) -> None:
    proto = onnx.load(model)
    proto.graph.output[0].name = proto.graph.node[-1].output[0] = "z"
    other = model.with_name("other.onnx")
    onnx.save(proto, other)
    code, out, _ = cli("validate", model, other)
    assert code == 1
    assert "--map z=y" in out
    code, out, _ = cli("validate", model, other, "--map", "z=y")
    assert code == 0
    assert "mapped: z = y" in out


def test_a_metric(cli: Any, model: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((40, 4)).astype(np.float32)
    np.savez(tmp_path / "data.npz", x=x, label=rng.integers(0, 2, 40))
    (tmp_path / "task.py").write_text(
        "def right(pairs):\n    return sum(float((o['y'].argmax(-1) == s['label']).sum()) for s, o in pairs)\n"
    )
    words = (
        "validate",
        model,
        model,
        "--data",
        tmp_path / "data.npz",
        "--metric",
        f"{tmp_path}/task.py:right",
    )
    code, out, _ = cli(*words, "--max-drop", "right=0")
    assert code == 0
    assert "right" in out
    code, _, err = cli(*words, "--max-drop", "left=0")
    assert code == 2
    assert "no metric 'left'" in err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--atol", "-1"], "--atol cannot be -1"),
        (["--tolerance", "y"], "as in: logits:atol=1e-3"),
        (["--tolerance", "y:atol=x"], "is not NAME:LIMITS"),
        (["--tolerance", "y:huh=1"], "is not NAME:LIMITS"),
        (["--tolerance", "y:atol=1", "--tolerance", "y:atol=1"], "twice"),
        (["--tolerance", "q:atol=1"], "the outputs are: y"),
        (["--map", "z"], "new_name=old_name"),
        (["--map", "z=x"], "no input or output 'z'"),
        (["--map", "a=b", "--map", "a=c"], "twice"),
        (["--max-drop", "a=1"], "--metric"),
        (["--max-drop", "a"], "NAME=X"),
        (["--metric", "m:f"], "--data"),
        (["--probes", "0"], "at least 1"),
        (["--input-shape", "x:1,4", "--input-shape", "x:2,4", "--input-shape", "x:y"], "not NAME:DIMS"),
        (["--numerics", "exact", "--rtol", "1"], "exclude each other"),
    ],
)
def test_more_wrong_use(cli: Any, model: Path, words: list[str], says: str) -> None:
    code, out, err = cli("validate", model, model, *words)
    assert (code, out) == (2, "")
    assert says in err
    assert "Traceback" not in err


def test_shapes_that_do_not_go_together() -> None:
    from graphopt.cli.arguments import several_shapes
    from graphopt.errors import UserError

    assert several_shapes([]) == []
    assert several_shapes(["a:1", "b:2", "a:3"]) == [{"a": (1,), "b": (2,)}, {"a": (3,), "b": (2,)}]
    with pytest.raises(UserError, match="equally many"):
        several_shapes(["a:1", "a:2", "a:3", "b:1", "b:2"])
