from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import numpy_helper

MODELS = Path(__file__).resolve().parents[2] / "models"

WRONG = '''
from __future__ import annotations
from dataclasses import dataclass
from typing import ClassVar
from graphopt.passkit import Node, NodePass, Numerics, PassContext, Rewriter

@dataclass(frozen=True)
class Wrong(NodePass):
    """x + c = x - c, which it is not."""
    name: ClassVar[str] = "wrong"
    numerics: ClassVar[Numerics] = Numerics.EXACT
    ops: ClassVar[tuple[str, ...]] = ("Add",)
    crash: bool = False

    def visit(self, node: Node, graph: Rewriter, ctx: PassContext) -> None:
        if self.crash:
            raise IndexError("off by one")
        with graph.site(node, "wrong on purpose"):
            graph.replace(node.outputs[0], "Sub", list(node.inputs))
'''


def files(folder: Path) -> set[str]:
    return {file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()}


def ops(path: Path) -> list[str]:
    return [node.op_type for node in onnx.load(path).graph.node]


# --------------------------------------------------------------------------------------- the main job


def test_the_default_pipeline_is_proven_and_written_beside_the_input(cli: Any, model: Path) -> None:
    code, out, err = cli("run", model, "--passes")
    assert code == 0, err
    assert out.startswith("PROVEN")
    assert out.rstrip().splitlines()[-1].startswith(f"written: {model.with_name('model.opt.onnx')}")
    assert "running the passes" in err  # progress goes to stderr, in plain lines
    assert files(model.parent) == {"model.onnx", "model.opt.onnx"}
    assert "Identity" not in ops(model.with_name("model.opt.onnx"))


def test_passes_may_be_left_out(cli: Any, model: Path) -> None:
    assert cli("run", model)[0] == 0
    assert "Identity" not in ops(model.with_name("model.opt.onnx"))


def test_passes_may_be_named_and_repeated(cli: Any, model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.onnx"
    assert cli("run", model, "--passes", "prune-initializers", "-o", out)[0] == 0
    assert ops(out) == ["Identity", "MatMul", "Add"]
    assert [t.name for t in onnx.load(out).graph.initializer] == ["w", "b"]
    code, report, _ = cli(
        "run", model, "--passes=prune-initializers", "--passes", "remove-identity", "-o", out, "--json"
    )
    assert code == 0
    assert ops(out) == ["MatMul", "Add"]
    assert json.loads(report)["pipeline"] == "prune-initializers,remove-identity"


def test_none_only_loads_and_saves(cli: Any, model: Path) -> None:
    assert cli("run", model, "--passes", "none")[0] == 0
    assert onnx.load(model.with_name("model.opt.onnx")) == onnx.load(model)


def test_in_place(cli: Any, model: Path) -> None:
    assert cli("run", model, "--in-place")[0] == 0
    assert files(model.parent) == {"model.onnx"}
    assert "Identity" not in ops(model)


def test_json_is_all_there_is_on_stdout(cli: Any, model: Path) -> None:
    code, out, _ = cli("run", model, "--json")
    report = json.loads(out)
    assert code == 0
    assert report["schema"] == "graphopt.run/1"
    assert report["verdict"] == "proven"
    assert report["input"]["path"] == str(model)
    assert report["output"]["path"] == str(model.with_name("model.opt.onnx"))
    assert report["output"]["bytes"] == model.with_name("model.opt.onnx").stat().st_size
    assert report["after"]["nodes"] < report["before"]["nodes"]
    assert report["outputs"][0]["name"] == "y"


def test_the_reported_pipeline_reproduces_the_run(cli: Any, model: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "1.onnx", tmp_path / "2.onnx"
    pipeline = json.loads(cli("run", model, "-o", first, "--json")[1])["pipeline"]
    assert cli("run", model, "--passes", pipeline, "-o", second)[0] == 0
    assert first.read_bytes() == second.read_bytes()


def test_quiet_says_nothing(cli: Any, model: Path) -> None:
    assert cli("run", model, "-q") == (0, "", "")
    assert model.with_name("model.opt.onnx").exists()


def test_verbose_leaves_nothing_out(cli: Any, model: Path) -> None:
    _, out, err = cli("run", model, "-v")
    assert "pipeline" in out
    assert "versions" in out
    assert "pass: remove-identity" in err


def test_keep_is_honoured(cli: Any, model: Path) -> None:
    assert cli("run", model, "--keep", "a*")[0] == 0
    assert "Identity" in ops(model.with_name("model.opt.onnx"))


def test_external_data_on_demand(cli: Any, tmp_path: Path) -> None:
    out = tmp_path / "out.onnx"
    assert cli("run", MODELS / "digits_cnn.onnx", "--passes", "none", "-o", out, "--external-data")[0] == 0
    assert files(tmp_path) == {"out.onnx", "out.onnx.data"}
    assert cli("run", out, "--in-place", "--no-external-data", "--passes", "none")[0] == 0
    assert not any(t.external_data for t in onnx.load(out, load_external_data=False).graph.initializer)


def test_real_data_and_shapes(cli: Any, model: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", x=np.ones((3, 4), np.float32))
    code, out, err = cli("run", model, "--data", tmp_path / "data.npz", "-o", tmp_path / "o.onnx", "--json")
    assert code == 0, err
    assert any("data.npz" in probe for probe in json.loads(out)["probes"])
    code, out, err = cli("run", model, "--input-shape", "x:7,4", "-o", tmp_path / "o.onnx", "--json")
    assert code == 0, err
    assert any("7" in probe for probe in json.loads(out)["probes"])


def test_a_pipeline_file_and_the_command_line_wins(cli: Any, model: Path, tmp_path: Path) -> None:
    config, out = tmp_path / "p.toml", tmp_path / "o.onnx"
    config.write_text('verify = "off"\nkeep = "zz*"\n[[pass]]\nname = "remove-identity"\n')
    assert cli("run", model, "--config", config, "-o", out)[0] == 2  # keep matches nothing
    report = json.loads(cli("run", model, "--config", config, "--keep", "w", "-o", out, "--json")[1])
    assert (report["pipeline"], report["verdict"]) == ("remove-identity", "not verified")
    code, text, _ = cli(
        "run", model, "--config", config, "--keep", "w", "--passes=cse", "--verify=final", "-o", out, "--json"
    )
    assert code == 0
    assert (json.loads(text)["pipeline"], json.loads(text)["verdict"]) == ("cse", "proven")


# --------------------------------------------------------------------------------------- verdicts


def test_a_wrong_pass_is_named_first_rolled_back_and_reproduced(
    cli: Any, model: Path, tmp_path: Path
) -> None:
    (tmp_path / "wrong.py").write_text(WRONG)
    passes = f"remove-identity,{tmp_path}/wrong.py:Wrong"
    code, out, err = cli("run", model, "--passes", passes)
    assert code == 3, err
    lines = out.splitlines()
    assert lines[0].startswith("ROLLED BACK")
    assert lines[1].startswith("culprit wrong: at ")
    assert ops(model.with_name("model.opt.onnx")) == ["MatMul", "Add"]  # the rest was kept
    repro = model.with_name("model.opt.repro")
    (command,) = [line.partition(": ")[2] for line in lines if "see it again" in line]
    assert str(repro) in out
    (folder,) = repro.iterdir()
    words = command.rpartition("&& ")[2].split()
    assert words[:2] == ["graphopt", "run"]
    again = subprocess.run(
        [sys.executable, "-m", *words], cwd=folder, capture_output=True, text=True, check=False
    )
    assert again.returncode == 3, again.stderr


def test_repro_dir(cli: Any, model: Path, tmp_path: Path) -> None:
    (tmp_path / "wrong.py").write_text(WRONG)
    where = tmp_path / "elsewhere"
    code, *_ = cli("run", model, "--passes", f"{tmp_path}/wrong.py:Wrong", "--repro-dir", where)
    assert code == 3
    assert len(list(where.iterdir())) == 1


def test_a_pass_that_raises_is_rolled_back_with_its_traceback(cli: Any, model: Path, tmp_path: Path) -> None:
    (tmp_path / "wrong.py").write_text(WRONG)
    passes = f"remove-identity,{tmp_path}/wrong.py:Wrong{{crash=true}}"
    code, out, _ = cli("run", model, "--passes", passes)
    assert code == 3
    assert "IndexError: off by one" in out
    assert out.count("Traceback") == 1
    assert "1 pass crashed" in out
    (readme,) = (model.parent / "model.opt.repro").rglob("README.md")
    assert "crashes on this model" in readme.read_text()
    assert ops(model.with_name("model.opt.onnx")) == ["MatMul", "Add"]


def test_quiet_still_tells_of_a_rollback_on_stderr(cli: Any, model: Path, tmp_path: Path) -> None:
    (tmp_path / "wrong.py").write_text(WRONG)
    code, out, err = cli("run", model, "--passes", f"{tmp_path}/wrong.py:Wrong", "-q")
    assert (code, out) == (3, "")
    assert "culprit wrong" in err


def test_unproven_is_said_and_strict_writes_nothing(cli: Any, tmp_path: Path) -> None:
    path = tmp_path / "random.onnx"
    text = """<ir_version: 8, opset_import: ["" : 17]>
              g (float[2] x) => (float[2] y) { r = RandomNormalLike(x)  y = Add(x, r) }"""
    onnx.save(onnx.parser.parse_model(text), path)
    code, out, _ = cli("run", path, "--strict")
    assert code == 1
    assert out.startswith("UNPROVEN")
    assert "nothing was written" in out
    assert files(tmp_path) == {"random.onnx"}
    assert cli("run", path)[0] == 0
    assert files(tmp_path) == {"random.onnx", "random.opt.onnx"}


def test_not_verified_is_said(cli: Any, model: Path) -> None:
    code, out, _ = cli("run", model, "--verify", "off")
    assert code == 0
    assert out.startswith("NOT VERIFIED")
    assert cli("run", model, "--verify", "off", "--strict")[0] == 1


def test_verify_each(cli: Any, model: Path) -> None:
    assert cli("run", model, "--verify", "each")[0] == 0


# --------------------------------------------------------------------------------------- bad input


def truncated(model: Path) -> None:
    model.write_bytes(model.read_bytes()[:-20])


def not_a_model(model: Path) -> None:
    model.write_text("this is no model\n")


def checkpoint(model: Path) -> None:
    model.write_bytes(b"PK\x03\x04" + bytes(100))


def empty(model: Path) -> None:
    model.write_bytes(b"")


def missing(model: Path) -> None:
    model.unlink()


def without_its_data(model: Path) -> None:
    proto = onnx.load(model)
    for tensor in proto.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor), tensor.name))
    onnx.save(proto, model, save_as_external_data=True, location="weights.bin", size_threshold=0)
    model.with_name("weights.bin").unlink()


def nothing(model: Path) -> None:
    pass


def wrong_data(model: Path) -> None:
    np.savez(model.with_name("wide.npz"), x=np.zeros((2, 5), np.float32))
    model.with_name("text.npz").write_text("label = 3")


@pytest.mark.parametrize(
    ("prepare", "words", "says"),
    [
        (truncated, [], "truncated"),
        (not_a_model, [], "not an ONNX model"),
        (checkpoint, [], "zip archive"),
        (empty, [], "empty"),
        (missing, [], "no such file"),
        (without_its_data, [], "weights.bin"),
        (nothing, ["--passes", "remove-identty"], "did you mean 'remove-identity'"),
        (nothing, ["--passes", "remove-identity{x=1}"], "no option 'x'"),
        (nothing, ["--passes", "remove-identity{"], "never closed"),
        (nothing, ["--passes", "./none.py:X"], "no such pass file"),
        (nothing, ["--keep", "zzz*"], "matches no node and no tensor"),
        (nothing, ["--target", "ort-cpuu"], "unknown target 'ort-cpuu'"),
        (nothing, ["--providers", "cuda"], "'cuda' is not available"),
        (nothing, ["--providers", "warp"], "warp"),
        (nothing, ["--verify", "sometimes"], "one of: final, each, off"),
        (nothing, ["--input-shape", "z:1"], "'z'"),
        (nothing, ["--input-shape", "1,2"], "NAME:DIMS"),
        (nothing, ["--data", "none.npz"], "none.npz"),
        (nothing, ["--config", "none.toml"], "none.toml"),
        (nothing, ["--timeout", "soon"], "not a duration"),
        (nothing, ["--timeout", "0.000001s"], "time limit"),
        (nothing, ["--memory-limit", "little"], "not a size"),
        (nothing, ["-o", "{folder}"], "is a folder"),
        (nothing, ["-o", "{folder}/no/such/out.onnx"], "does not exist"),
        (nothing, ["-o", "{folder}/out.pt"], "extension is '.pt'"),
        (nothing, ["-o", "{folder}/out"], "the output has no extension"),
        (nothing, ["--input-shape", "x:0,4"], "at least 1"),
        (nothing, ["--passes", "./p.json:X"], "a pass file ends in .py"),
        (wrong_data, ["--data", "{folder}/wide.npz"], "axis 1 of input 'x' is 4, the data has 5"),
        (wrong_data, ["--data", "{folder}/text.npz"], "it is neither .npz nor .npy"),
        (nothing, ["-o", "{folder}/model.onnx"], "--in-place"),
        (nothing, ["-o", "{folder}/o.onnx", "--in-place"], "exclude each other"),
    ],
    ids=lambda value: value.__name__ if callable(value) else None,
)
def test_bad_input_is_one_clear_message_exit_2_and_no_output(
    cli: Any, model: Path, monkeypatch: pytest.MonkeyPatch, prepare: Any, words: list[str], says: str
) -> None:
    if "cuda" in words:
        import onnxruntime

        if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
            pytest.skip("CUDA is here")
    monkeypatch.chdir(model.parent)
    prepare(model)
    before = {name: (model.parent / name).read_bytes() for name in files(model.parent)}
    code, out, err = cli("run", model, *(word.replace("{folder}", str(model.parent)) for word in words))
    (first, *_) = [line for line in err.splitlines() if line.startswith("error: ")]
    assert code == 2
    assert says in err
    assert err.count("error: ") == 1
    assert len(first) < 400
    assert "Traceback" not in err
    assert out == ""
    assert {name: (model.parent / name).read_bytes() for name in files(model.parent)} == before


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_is_not_writable(cli: Any, model: Path) -> None:
    locked = model.parent / "locked"
    locked.mkdir(mode=0o500)
    code, _, err = cli("run", model, "-o", locked / "out.onnx")
    assert code == 2
    assert "not writable" in err


def test_passes_before_the_model_is_explained(cli: Any, model: Path) -> None:
    code, _, err = cli("run", "--passes", model)
    assert code == 2
    assert "MODEL comes first" in err


def test_an_interrupt_leaves_nothing_behind(cli: Any, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from graphopt import api

    def interrupted(*args: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(api, "model_stats", interrupted)
    code, out, err = cli("run", model)
    assert (code, out) == (130, "")
    assert "interrupted" in err
    assert files(model.parent) == {"model.onnx"}
