from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from gate_models import fill
from junitparser import JUnitXml

GOOD = "[model]\nvalid = true\n[file]\nmax_mb = 1\n"
BAD = "[model]\nvalid = true\n[file]\nmax_mb = 0.0001\n"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    fill(tmp_path)
    (tmp_path / "good.toml").write_text(GOOD)
    (tmp_path / "bad.toml").write_text(BAD)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_passing_and_failing(cli: Any, folder: Path) -> None:
    code, out, _ = cli("gate", "model.onnx", "--policy", "good.toml")
    assert code == 0
    assert out.startswith("PASSED: all 2 checks of good")
    code, out, _ = cli("gate", "model.onnx", "--policy", "bad.toml")
    assert code == 1
    assert out.startswith("FAILED: 2 checks of bad: 1 failed\nfailed file.max_mb: size on disk: ")
    assert "bad.toml:4" in out


def test_quiet(cli: Any, folder: Path) -> None:
    assert cli("gate", "model.onnx", "--policy", "good.toml", "-q") == (0, "", "")
    code, out, err = cli("gate", "model.onnx", "--policy", "bad.toml", "-q")
    assert (code, out, err) == (1, "", "FAILED: 2 checks of bad: 1 failed\n")


def test_json(cli: Any, folder: Path) -> None:
    code, out, _ = cli("gate", "model.onnx", "--policy", "bad.toml", "--json")
    assert code == 1
    found = json.loads(out)
    assert found["schema"] == "graphopt.gate/1"
    assert found["verdict"] == "failed"
    assert [c["verdict"] for c in found["checks"]] == ["passed", "failed"]
    assert found["checks"][1]["line"] == 4


@pytest.mark.parametrize(("policy", "code", "failures"), [("good.toml", 0, 0), ("bad.toml", 1, 1)])
def test_files_are_written_whatever_the_verdict(
    cli: Any, folder: Path, policy: str, code: int, failures: int
) -> None:
    assert (
        cli("gate", "model.onnx", "--policy", policy, "--junit", "out.xml", "--markdown", "out.md")[0] == code
    )
    suites = list(JUnitXml.fromfile("out.xml"))
    assert [s.tests for s in suites] == [1, 1]
    assert sum(s.failures for s in suites) == failures
    assert ("Gate failed" in Path("out.md").read_text()) == bool(failures)
    assert {f.name for f in folder.iterdir() if f.name.startswith((".", "out"))} == {"out.xml", "out.md"}


def test_files_that_cannot_be_written(cli: Any, folder: Path) -> None:
    for words in (
        ["--junit", "gone/out.xml"],
        ["--markdown", "."],
        ["--junit", "out", "--markdown", "out"],
    ):
        code, out, err = cli("gate", "model.onnx", "--policy", "good.toml", *words)
        assert code == 2
        assert not out
        assert words[-1] in err
        assert "Traceback" not in err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "no MODEL was named"),
        (["model.onnx"], "no policy was named"),
        (["model.onnx", "--policy", "gone.toml"], "gone.toml: there is no such policy"),
        (["gone.onnx", "--policy", "good.toml"], "gone.onnx: there is no such file"),
        (["model.onnx", "--policy", "typo.toml"], "typo.toml:2: [numerics] has no key 'max_asb'"),
        (["model.onnx", "--policy", "good.toml", "--providers", "cuda"], "'cuda' is not available"),
        (["model.onnx", "--policy", "good.toml", "--refrence", "x"], "has no option '--refrence'"),
        (["model.onnx", "--policy", "good.toml", "--reference", "gone.onnx"], "gone.onnx"),
        (["--init", "int9"], "--init cannot be 'int9'"),
    ],
)
def test_wrong_use(cli: Any, folder: Path, words: list[str], said: str) -> None:
    (folder / "typo.toml").write_text("[numerics]\nmax_asb = 1")
    code, out, err = cli("gate", *words)
    assert (code, out) == (2, "")
    assert said in err
    assert "Traceback" not in err


def test_what_is_handed_in(cli: Any, folder: Path) -> None:
    (folder / "sub").mkdir()
    (folder / "sub/gate.toml").write_text(
        "[numerics]\nmin_cosine = 0.9\n[metrics.accuracy]\nmin = 80\nmax_drop = 5\n"
    )
    words = [
        "--policy",
        "sub/gate.toml",
        "--reference",
        "reference.onnx",
        "--data",
        "data.npz",
        "--metric",
        "metric.py:figures",
    ]
    assert cli("gate", "near.onnx", *words)[0] == 0
    code, out, _ = cli("gate", "far.onnx", *words, "--against", "near.onnx", "-v")
    assert code == 1
    assert "changed since near.onnx:" in out
    assert "1 initializer changed: w" in out
    assert "40 samples" in out


def test_paths_in_a_policy_are_relative_to_it(cli: Any, folder: Path) -> None:
    (folder / "sub").mkdir()
    (folder / "sub/gate.toml").write_text(
        '[measure]\nreference = "../reference.onnx"\ndata = "../data.npz"\nmetric = "../metric.py:figures"\n'
        "[numerics]\nmin_cosine = 0.9\n[metrics.accuracy]\nmin = 80\n"
    )
    assert cli("gate", "near.onnx", "--policy", "sub/gate.toml")[0] == 0


def test_a_policy_to_start_from(cli: Any, folder: Path) -> None:
    for words in (
        ["--init"],
        ["--init", "model.onnx"],
        ["model.onnx", "--init", "minimal"],
        ["model.onnx", "--init"],
    ):
        code, out, _ = cli("gate", *words)
        assert code == 0
        assert ('name = "x"' in out) == ("model.onnx" in words)
        (folder / "new.toml").write_text(out)
        assert cli("gate", "model.onnx", "--policy", "new.toml", "-q") == (0, "", "")


def test_completion_offers_presets(cli: Any) -> None:
    script = cli("completion", "bash")[1]
    assert '_graphopt_presets() { compgen -W "minimal float int8 cuda" -- "$1"; }' in script


def test_the_reader_may_leave(folder: Path) -> None:
    import subprocess
    import sys

    command = (
        f"{sys.executable} -m graphopt gate model.onnx --policy bad.toml | head -c 1; exit ${{PIPESTATUS[0]}}"
    )
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
