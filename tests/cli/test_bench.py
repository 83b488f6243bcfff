import json
from pathlib import Path

import pytest

from .conftest import MODELS, Cli

CNN = MODELS / "digits_cnn.onnx"


def test_two_models(cli: Cli) -> None:
    code, out, err = cli("bench", CNN, CNN, "--seconds", "0.3", "--sessions", "3", "--no-memory")
    assert code == 0
    assert "between A and B" in out or " IS " in out
    assert "operator" in out
    assert "measuring latency" in err


def test_json_and_nothing_else(cli: Cli) -> None:
    code, out, _ = cli(
        "bench", CNN, "--seconds", "0.2", "--json", "--no-profile", "--no-memory", "--optimize", "basic",
        "--threads", "2", "--affinity", "0", "--input-shape", "image:3,1,8,8",
    )  # fmt: skip
    found = json.loads(out)
    assert code == 0
    assert found["schema"] == "graphopt.bench/1"
    assert (found["optimizations"], found["threads"], found["affinity"]) == ("basic", 2, [0])
    assert "image 3x1x8x8" in found["inputs"][0]
    assert found["timings"][0]["ops"] == []


def test_quietly(cli: Cli) -> None:
    code, out, err = cli("bench", CNN, "--seconds", "0.1", "-q", "--no-profile", "--no-memory")
    assert (code, out, err) == (0, "", "")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--optimize", "best"), "--optimize cannot be 'best'"),
        (("--affinity", "a"), "not a list of processors"),
        (("--provider", "cuda9"), "execution provider 'cuda9' is not available"),
        (("--provider-option", "device_id"), "is not KEY=VALUE"),
        (("--provider-option", "a=1", "--provider-option", "a=2"), "gives a twice"),
        (("--provider-option", "use_tf32=2"), "cannot be '2'"),
        (("--tf32", "maybe"), "--tf32 cannot be 'maybe'"),
        (("--gpu-memory-limit", "much"), "'much' is not a size"),
        (("--seconds", "0"), "seconds cannot be 0"),
        (("--confidence", "2"), "confidence cannot be 2"),
        (("--tf32", "on", "--provider-option", "use_tf32=1"), "say the same"),
    ],
)
def test_wrong_use(cli: Cli, words: tuple[str, ...], message: str) -> None:
    code, out, err = cli("bench", CNN, *words)
    assert (code, out) == (2, "")
    assert message in err


def test_missing_files(cli: Cli, tmp_path: Path) -> None:
    code, _, err = cli("bench", CNN, tmp_path / "nope.onnx")
    assert code == 2
    assert "nope.onnx" in err
    assert cli("bench")[0] == 2
