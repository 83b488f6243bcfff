"""Wrong passes are found, named, rolled back, and reproduced; the rest of the pipeline is kept."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
import wrong_passes as wrong

import graphopt
from graphopt.pipeline.base import Pass
from graphopt_passes.cleanup.cse import Cse
from graphopt_passes.cleanup.dead_nodes import DeadNodes
from graphopt_passes.cleanup.dedup_initializers import DedupInitializers
from graphopt_passes.cleanup.lift_constants import LiftConstants
from graphopt_passes.cleanup.remove_identity import RemoveIdentity
from graphopt_passes.folding.fold_constants import FoldConstants
from graphopt_passes.fusion.fold_conv_affine import FoldConvAffine
from graphopt_passes.fusion.fold_conv_bn import FoldConvBatchNorm
from graphopt_passes.fusion.fold_gemm_bn import FoldGemmBatchNorm

ROOT = Path(__file__).parents[2]
CNN = ROOT / "models" / "digits_cnn.onnx"
# One BatchNormalization of the nine in the model.
ONE = "residual.1/first"


def ten(*bad: Pass) -> list[Pass]:
    """A pipeline of ten passes in which `bad` stand among good ones."""
    good = [
        LiftConstants(),
        DeadNodes(),
        DedupInitializers(),
        RemoveIdentity(),
        FoldConstants(),
        FoldConvAffine(),
        FoldGemmBatchNorm(),
        Cse(),
        FoldConvBatchNorm(),
    ]
    pipeline = [*good[:4], *bad, *good[4:]]
    return pipeline[:10]


def run(passes: Sequence[Pass], tmp_path: Path, **options: object) -> graphopt.Result:
    return graphopt.run(CNN, passes, repro_dir=tmp_path / "repro", **options)


def accuracy(model: onnx.ModelProto) -> float:
    import onnxruntime as ort

    data = np.load(ROOT / "models" / "digits.npz")
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {"image": data["image"]})
    return float((logits.argmax(1) == data["label"]).mean())


def reproduce(folder: str, command: str) -> subprocess.CompletedProcess[str]:
    """Run the reproducer's own command in its folder, with the fixture module importable."""
    words = shlex.split(command)
    assert words[0] == "graphopt"
    return subprocess.run(
        [sys.executable, "-m", *words],
        check=False,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
        env={"PYTHONPATH": ":".join(map(str, (ROOT, ROOT / "passes", ROOT / "tests" / "support")))},
    )


def test_a_wrong_site_is_found_among_ten_passes(tmp_path: Path) -> None:
    result = run(ten(wrong.WrongEpsilon(only=ONE)), tmp_path)
    report = result.report
    assert report.verdict == "rolled back"
    assert report.exit_code() == 3
    (culprit,) = report.culprits
    assert culprit.pass_name == "wrong-epsilon"
    assert ONE in culprit.site
    assert culprit.with_passes == ()
    assert "CLOSE allows" in culprit.why
    by_name = {p.name: p for p in report.passes}
    assert by_name["wrong-epsilon"].rolled_back_sites == 1
    assert by_name["wrong-epsilon"].rewrites == 7  # the eight Conv-BatchNormalization pairs but one
    # What was rolled back is left for the pass that does it right, and the rest is kept.
    assert by_name["fold-conv-bn"].rewrites == 1
    assert "BatchNormalization" not in report.after.ops
    assert accuracy(result.model.to_proto()) == pytest.approx(accuracy(onnx.load(CNN)), abs=1e-9)


def test_the_reproducer_reproduces(tmp_path: Path) -> None:
    (culprit,) = run(ten(wrong.WrongEpsilon(only=ONE)), tmp_path).report.culprits
    folder = Path(culprit.reproducer)
    small = onnx.load(folder / "model.onnx")
    assert len(small.graph.node) <= 4
    assert set(json.loads((folder / "versions.json").read_text())) >= {"onnx", "onnxruntime", "numpy"}
    assert "wrong-epsilon" in (folder / "README.md").read_text()
    again = reproduce(culprit.reproducer, culprit.command)
    assert again.returncode == 3, again.stderr
    assert "wrong-epsilon" in again.stdout


def test_a_pass_that_is_wrong_everywhere_is_left_out(tmp_path: Path) -> None:
    report = run(ten(wrong.WrongEpsilon()), tmp_path).report
    assert report.verdict == "rolled back"
    assert {c.pass_name for c in report.culprits} == {"wrong-epsilon"}
    assert report.culprits[-1].site == ""
    assert next(p for p in report.passes if p.name == "wrong-epsilon").skipped == "rolled back"
    assert next(p for p in report.passes if p.name == "fold-conv-bn").rewrites == 8


def test_two_passes_that_are_wrong_only_together(tmp_path: Path) -> None:
    pipeline = ten(wrong.ReluToClip(), wrong.LowerClip())
    assert graphopt.run(CNN, [wrong.ReluToClip()]).report.verdict == "proven"
    assert graphopt.run(CNN, [wrong.LowerClip()]).report.verdict == "proven"
    report = run(pipeline, tmp_path).report
    assert report.verdict == "rolled back"
    assert {c.pass_name for c in report.culprits} == {"lower-clip"}
    assert all(c.with_passes == ("relu-to-clip",) for c in report.culprits)
    before = report.before.ops
    assert report.after.ops["Clip"] == before["Relu"] + before["Clip"]  # relu-to-clip is right, and kept
    first = report.culprits[0]
    again = reproduce(first.reproducer, first.command)
    assert again.returncode == 3, again.stderr
    assert "relu-to-clip" in again.stdout


def test_a_pass_that_raises_is_left_out_with_its_traceback(tmp_path: Path) -> None:
    report = run(ten(wrong.Crashes()), tmp_path).report
    assert report.verdict == "rolled back"
    (culprit,) = report.culprits
    assert culprit.pass_name == "crashes"
    assert "one by nought" in culprit.why
    assert "ZeroDivisionError" in culprit.trace
    again = reproduce(culprit.reproducer, culprit.command)
    assert again.returncode == 3, again.stderr


def test_a_pass_that_breaks_the_structure_is_named(tmp_path: Path) -> None:
    report = run(ten(wrong.Dangles()), tmp_path).report
    assert report.verdict == "rolled back"
    (culprit,) = report.culprits
    assert culprit.pass_name == "dangles"
    assert "nowhere" in culprit.why


def test_verify_each_finds_the_same_culprit(tmp_path: Path) -> None:
    report = run(ten(wrong.WrongEpsilon(only=ONE)), tmp_path, verify="each").report
    assert report.verdict == "rolled back"
    assert [c.pass_name for c in report.culprits] == ["wrong-epsilon"]


def test_verify_off_proves_nothing_and_says_so(tmp_path: Path) -> None:
    report = run([wrong.WrongEpsilon()], tmp_path, verify="off").report
    assert report.verdict == "not verified"
    assert not report.culprits


def test_nothing_is_left_of_a_pipeline_that_is_wrong_throughout(tmp_path: Path) -> None:
    report = run([wrong.WrongEpsilon(), wrong.Crashes()], tmp_path).report
    assert report.verdict == "rolled back"
    assert report.after.ops == report.before.ops


def test_a_deadline_ends_the_search() -> None:
    with pytest.raises(graphopt.UserError, match="time limit"):
        graphopt.run(CNN, timeout=0.0)
