"""Pages through the Python API and the command line."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import made_reports
import onnx
import pytest

import graphopt
from graphopt import pages
from graphopt.calibration.ranges import RangeBook
from graphopt.cli.main import main
from graphopt.errors import UserError
from graphopt.evidence import calibrated

MODELS = Path(__file__).parents[1] / "models"
Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Cli:
    def run(*words: object) -> tuple[int, str, str]:
        code = main([str(word) for word in words])
        return code, *capsys.readouterr()

    return run


def test_a_page_of_a_result() -> None:
    source = graphopt.load(MODELS / "digits_cnn.onnx")
    result = graphopt.run(source)
    text = graphopt.html(result.report, before=source, after=result.model)
    assert "PROVEN" in text
    assert 'id="graph-data"' in text
    assert 'id="graph-data"' not in graphopt.html(result.report)
    with pytest.raises(TypeError, match="no page"):
        graphopt.html("report")  # type: ignore[arg-type]


def test_run_writes_a_page_and_prints_the_same_as_without(cli: Cli, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    code, out, _ = cli(
        "run", MODELS / "digits_cnn.onnx", "-o", tmp_path / "out.onnx", "--html", page, "--json"
    )
    assert code == 0
    report = json.loads(out)
    text = page.read_text(encoding="utf-8")
    assert report["verdict"].upper() in text
    assert f"{report['before']['nodes']} → {report['after']['nodes']}" in text
    assert sorted(f.name for f in tmp_path.iterdir()) == ["out.onnx", "report.html"]


def test_run_in_place_draws_what_was_there_before(cli: Cli, tmp_path: Path) -> None:
    model = tmp_path / "model.onnx"
    model.write_bytes((MODELS / "digits_cnn.onnx").read_bytes())
    before = graphopt.load(model).graph.nodes
    code, _, _ = cli("run", model, "--in-place", "--html", tmp_path / "r.html", "-q")
    assert code == 0
    assert f"{len(before)} nodes before" in (tmp_path / "r.html").read_text(encoding="utf-8")


def test_a_result_that_is_not_written_has_a_page_too(cli: Cli, tmp_path: Path) -> None:
    passes = ("--passes", "prune-weights{sparsity=0.95}", "--min-sqnr", "90")
    words = ("run", MODELS / "digits_cnn.onnx", *passes, "--data", MODELS / "digits.npz")
    code, _, _ = cli(*words, "-o", tmp_path / "o.onnx", "--html", tmp_path / "r.html", "-q")
    assert code == 1
    assert not (tmp_path / "o.onnx").exists()
    text = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert "OVER BUDGET" in text
    assert "nothing was written" in text


def test_diff_writes_a_page(cli: Cli, tmp_path: Path) -> None:
    a, b = MODELS / "digits_cnn.onnx", tmp_path / "b.onnx"
    graphopt.run(a, verify="off").save(b)
    code, out, _ = cli("diff", a, b, "--html", tmp_path / "d.html", "--json")
    assert code == 1
    found = json.loads(out)
    text = (tmp_path / "d.html").read_text(encoding="utf-8")
    for kind in ("removed", "added", "changed"):
        n = sum(node["kind"] == kind for node in found["nodes"])
        assert f"<dt>nodes {kind}</dt><dd>{n}</dd>" in text
    code, _, _ = cli("diff", a, a, "--html", tmp_path / "same.html", "-q")
    assert code == 0
    assert "THE SAME" in (tmp_path / "same.html").read_text(encoding="utf-8")


def test_calibrate_writes_a_page_with_all_histograms(cli: Cli, tmp_path: Path) -> None:
    words = ("calibrate", MODELS / "digits_cnn.onnx", "--data", MODELS / "digits.npz", "-q")
    code, _, _ = cli(*words, "-o", tmp_path / "r.json", "--html", tmp_path / "r.html")
    assert code == 0
    book = RangeBook.load(tmp_path / "r.json")
    text = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert text.count('<svg class="chart"') == len(book.tensors)
    code, _, _ = cli("calibrate", "--show", tmp_path / "r.json", "--html", tmp_path / "shown.html")
    assert code == 0
    assert (tmp_path / "shown.html").read_text(encoding="utf-8") == text
    # Coarser bins lose no value.
    report = calibrated(book)
    for tensor in report.tensors:
        histogram = book.tensors[tensor.name].histogram
        assert sum(tensor.counts) == histogram.counts.sum()
        assert len(tensor.counts) + 1 == len(tensor.edges) <= 97
        assert tensor.edges[0] <= tensor.minimum
        assert tensor.maximum <= tensor.edges[-1]
        assert tensor.outside == 0  # ranges by minmax cut nothing off


def test_sensitivity_writes_a_page(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("graphopt.surveying.survey", lambda *args, **options: made_reports.survey())
    words = ("sensitivity", MODELS / "digits_cnn.onnx", "--data", MODELS / "digits.npz", "--json")
    code, out, _ = cli(*words, "--passes", "prune-weights{sparsity=0.5}", "--html", tmp_path / "s.html")
    assert code == 0
    found = json.loads(out)
    text = (tmp_path / "s.html").read_text(encoding="utf-8")
    assert found["layers"][0]["node"] in text
    assert found["measured_on"] in text


def test_validate_bench_and_gate_write_pages(cli: Cli, tmp_path: Path) -> None:
    a, b = MODELS / "digits_cnn.onnx", tmp_path / "b.onnx"
    graphopt.run(a, verify="off").save(b)
    code, out, _ = cli("validate", a, b, "--layers", "--html", tmp_path / "v.html", "--json", "-q")
    assert code == 0
    report = json.loads(out)
    text = (tmp_path / "v.html").read_text(encoding="utf-8")
    assert "PROVEN" in text
    assert all(f">{row['tensor']}" in text for row in report["layers"])
    assert "40 nodes before, 23 after" in text
    code, _, _ = cli("validate", a, "--html", tmp_path / "one.html", "-q")  # one model on several runtimes
    assert code == 0
    assert "40 nodes" in (tmp_path / "one.html").read_text(encoding="utf-8")
    words = ("bench", a, b, "--runs", 20, "--sessions", 2, "--no-memory", "--json", "-q")
    code, out, _ = cli(*words, "--html", tmp_path / "b.html")
    assert code == 0
    ratio = json.loads(out)["ratios"][0]
    text = (tmp_path / "b.html").read_text(encoding="utf-8")
    assert f"<dd>{ratio['ratio']:.4f} <small>{ratio['verdict']}</small></dd>" in text
    policy = tmp_path / "gate.toml"
    policy.write_text("[file]\nmax_mb = 0.001\n[ops]\nbanned = ['Mul']\n")
    code, out, _ = cli(
        "gate", b, "--policy", policy, "--against", a, "--html", tmp_path / "g.html", "--json", "-q"
    )
    assert code == 1
    text = (tmp_path / "g.html").read_text(encoding="utf-8")
    for check in json.loads(out)["checks"]:
        assert f"<code>{check['name']}</code>" in text
    assert "1 of 2 checks passed; not: file.max_mb" in text
    assert "40 nodes before, 23 after" in text


def test_gate_has_a_page_of_a_model_that_cannot_be_read(cli: Cli, tmp_path: Path) -> None:
    model, policy = tmp_path / "m.onnx", tmp_path / "gate.toml"
    external = onnx.load(MODELS / "digits_cnn.onnx")
    onnx.save(external, model, save_as_external_data=True, location="gone.data", size_threshold=0)
    (tmp_path / "gone.data").unlink()
    policy.write_text("[external_data]\ninside_folder = true\n")
    code, _, _ = cli("gate", model, "--policy", policy, "--html", tmp_path / "g.html", "-q")
    assert code == 1
    text = (tmp_path / "g.html").read_text(encoding="utf-8")
    assert "FAILED" in text
    assert 'id="graph-data"' not in text


@pytest.mark.parametrize(
    ("name", "said"),
    [("report.txt", "call it report.html"), ("no/report.html", "mkdir"), (".", "names a folder")],
)
def test_a_file_that_cannot_be_is_refused_before_any_work(
    cli: Cli, tmp_path: Path, name: str, said: str
) -> None:
    for words in (("run", "no-such-model.onnx"), ("diff", "a.onnx", "b.onnx"), ("calibrate", "m.onnx")):
        code, _, err = cli(*words, "--html", tmp_path / name)
        assert code == 2
        assert said in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_is_not_writable(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(UserError, match="cannot be written"):
        pages.write(tmp_path / "r.html", "text")


def test_a_failed_write_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "r.html"
    pages.write(file, "old")

    def refuse(source: object, target: object) -> None:
        raise OSError(28, "no space left")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(UserError, match="cannot be written"):
        pages.write(file, "new")
    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]
