import json

import numpy as np
import onnx
import pytest

from graphopt.calibration.histogram import Histogram
from graphopt.calibration.ranges import RangeBook
from graphopt.cli.calibrate import sparkline


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "calib.npz"
    np.savez(path, x=np.random.default_rng(0).normal(size=(20, 4)).astype(np.float32))
    return path


def test_measures_what_the_preset_quantizes(cli, model, data, tmp_path):
    code, out, _ = cli("calibrate", model, "--data", data, "-q")
    assert (code, out) == (0, "")
    book = RangeBook.load(tmp_path / "model.ranges.json")
    assert book.samples == 20
    assert "a" not in book.tensors  # the Identity is gone
    assert {"x", "y"} <= book.tensors.keys()


def test_all_samples_or_those_that_are_not_held_back(cli, model, data, tmp_path):
    cli("calibrate", model, "--data", data, "-o", tmp_path / "r.json", "--hold-back", "--passes", "none")
    book = RangeBook.load(tmp_path / "r.json")
    assert book.samples == 18
    assert book.passes == "none"
    assert "a" in book.tensors


def test_merged_halves_are_the_whole(cli, model, data, tmp_path):
    x = np.load(data)["x"]
    for name, part in (("a", x[:7]), ("b", x[7:])):
        np.savez(tmp_path / f"{name}.npz", x=part)
        code, _, err = cli(
            "calibrate",
            model,
            "--data",
            tmp_path / f"{name}.npz",
            "-o",
            tmp_path / f"{name}.json",
            "--per-channel",
        )
        assert code == 0, err
    cli("calibrate", model, "--data", data, "-o", tmp_path / "whole.json", "--per-channel")
    code, out, _ = cli(
        "calibrate", "--merge", tmp_path / "b.json", tmp_path / "a.json", "-o", tmp_path / "merged.json"
    )
    assert code == 0
    assert "20 samples" in out.replace("\n", "")
    assert (tmp_path / "merged.json").read_bytes() == (tmp_path / "whole.json").read_bytes()


def test_shows_a_file(cli, model, data, tmp_path):
    file = tmp_path / "r.json"
    cli("calibrate", model, "--data", data, "-o", file, "--method", "mse")
    content = json.loads(file.read_text())
    content["tensors"]["y"]["high"] = 123.0
    file.write_text(json.dumps(content))
    code, out, _ = cli("calibrate", "--show", file)
    assert code == 0
    assert "20 samples" in out.replace("\n", "")
    assert "mse" in out
    assert "123 (edited)" in out.replace("\n", " ")
    assert "█" in out
    code, out, _ = cli("calibrate", "--show", file, "-v")
    assert "entropy" in out


def test_bars_stand_for_counts():
    histogram = Histogram(64)
    histogram.update(np.concatenate([np.zeros(1000), np.linspace(0, 1, 100)]))
    bars = sparkline(histogram)
    assert len(bars) == 20
    assert bars[0] == "█"
    assert set(bars[1:-1]) <= set("▂▃▄")
    single = Histogram()
    single.update(np.full(3, 2.0))
    assert sparkline(single) == "█"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "say what to do"),
        (["MODEL", "--show", "x.json"], "say what to do"),
        (["MODEL"], "nothing to measure on"),
        (["MODEL", "--data", "DATA", "--method", "best"], "--method cannot be 'best'"),
        (["MODEL", "--data", "DATA", "--type", "float8"], "--type cannot be 'float8'"),
        (["MODEL", "--data", "DATA", "--percentile", "0"], "percentile"),
        (["MODEL", "--data", "DATA", "--bins", "1"], "bins"),
        (["MODEL", "--data", "DATA", "--target", "moon"], "moon"),
        (["MODEL", "--data", "nowhere.npz"], "nowhere.npz"),
        (["--merge", "a.json"], "name it with -o"),
        (["--show", "nowhere.json"], "cannot be read"),
    ],
)
def test_mistakes(cli, model, data, words, message):
    words = [{"MODEL": model, "DATA": data}.get(w, w) for w in words]
    code, _, err = cli("calibrate", *words)
    assert code == 2
    assert message in err


def test_ranges_take_the_place_of_data_and_stale_ones_are_refused(cli, model, data, tmp_path):
    ranges, result = tmp_path / "r.json", tmp_path / "q.onnx"
    cli("calibrate", model, "--data", data, "-o", ranges)
    words = ["run", model, "--passes", "default,insert-qdq", "--ranges", ranges, "-o", result]
    code, _, err = cli(*words)
    assert code == 0, err
    assert any(n.op_type == "QuantizeLinear" for n in onnx.load(result).graph.node)
    changed = onnx.load(model)
    changed.graph.initializer[0].float_data[0] = 9
    onnx.save(changed, model)
    code, _, err = cli(*words)
    assert code == 2
    assert "the weights differ" in err
