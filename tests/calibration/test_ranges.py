import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import parser

from graphopt.calibration.data import open_dataset, ports_of
from graphopt.calibration.fingerprint import Fingerprint
from graphopt.calibration.observers import METHODS
from graphopt.calibration.ranges import Choice, RangeBook
from graphopt.calibration.service import CalibrationService
from graphopt.errors import UserError
from graphopt.model import Model

MODELS = Path(__file__).resolve().parents[2] / "models"
SMALL = """<ir_version: 8, opset_import: ["" : 17]> g (float[N, 4] x) => (float[N, 2] y)
    <float[4, 2] w = {1, -1, 2, 0.5, 0, 3, -2, 1}> { a = Relu(x) b = MatMul(a, w) y = Neg(b) }"""


def model(text=SMALL):
    return Model.load(parser.parse_model(text))


def measured(source, data, choice=None, **options):
    dataset = open_dataset(data, *ports_of(source.skeleton()))
    service = CalibrationService(dataset, max_batch=1, part="all")
    return service.ranges(source, choice or Choice(), passes="default", **options)


@pytest.fixture(scope="module")
def book():
    x = np.random.default_rng(0).normal(size=(40, 4)).astype(np.float32)
    return measured(model(), {"x": x}, Choice("mse", "int8", True), per_channel=True)


@pytest.fixture
def saved(book, tmp_path):
    book.save(tmp_path / "r.json")
    return tmp_path / "r.json"


def change(path, edit):
    data = json.loads(path.read_text())
    edit(data)
    path.write_text(json.dumps(data))
    return path


def test_a_book_has_every_tensor_and_comes_back_as_it_was(book, saved):
    assert list(book.tensors) == ["x", "a", "b", "y"]
    again = RangeBook.load(saved)
    again.save(saved.with_name("again.json"))
    assert saved.with_name("again.json").read_bytes() == saved.read_bytes()
    assert again.get("a") == book.get("a") == book.tensors["a"].methods["mse"]
    assert again.get("nowhere") is None
    assert again.tensors["b"].channels.high.tolist() == book.tensors["b"].channels.high.tolist()
    assert set(book.tensors["b"].methods) == set(METHODS)
    again.check(model())


def test_edited_ranges_win(saved):
    change(saved, lambda d: d["tensors"]["a"].update(low=-0.5, high=9))
    assert RangeBook.load(saved).get("a") == (-0.5, 9)


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda d: d["tensors"]["a"].update(low=2, high=1), "low 2 above high 1"),
        (lambda d: d["tensors"]["a"].update(low="x"), "'x', not a number"),
        (lambda d: d["tensors"]["a"].update(low=float("nan")), "NaN is no number"),
        (lambda d: d["tensors"]["a"].update(lo=2), "'lo', which means nothing"),
        (lambda d: d["tensors"]["a"].pop("high"), "lacks high"),
        (lambda d: d["tensors"]["a"].update(max=3), "max of tensor 'a' is measured"),
        (lambda d: d["tensors"]["a"]["histogram"].pop("channels"), "histogram of tensor 'a' is damaged"),
        (lambda d: d["tensors"]["a"]["methods"].pop("mse"), "methods of tensor 'a' lacks mse"),
        (lambda d: d["tensors"]["a"]["methods"].update(mse=[1]), "is not \\[low, high\\]"),
        (lambda d: d.update(schema="graphopt.ranges/9"), "graphopt.ranges/9"),
        (lambda d: d.update(comment="mine"), "'comment', which means nothing"),
        (lambda d: d.update(method="best"), "'best' is none of"),
        (lambda d: d.update(type="float8"), "'float8' is none of"),
        (lambda d: d.update(percentile=0), "percentile"),
        (lambda d: d.update(samples=-1), "number of samples"),
        (lambda d: d["model"].pop("nodes"), "model is damaged"),
        (lambda d: d.update(tensors=[]), "not an object"),
    ],
)
def test_what_is_wrong_in_a_file_is_said(saved, edit, words):
    with pytest.raises(UserError, match=words) as caught:
        RangeBook.load(change(saved, edit))
    assert caught.value.where == str(saved)


def test_files_that_are_none(tmp_path):
    with pytest.raises(UserError, match="cannot be read"):
        RangeBook.load(tmp_path / "none.json")
    (tmp_path / "x.json").write_text("{")
    with pytest.raises(UserError, match="not a file of ranges"):
        RangeBook.load(tmp_path / "x.json")
    (tmp_path / "y.json").write_text("[]")
    with pytest.raises(UserError, match="not an object"):
        RangeBook.load(tmp_path / "y.json")


def test_saving_replaces_the_file_or_leaves_it(book, tmp_path):
    with pytest.raises(UserError, match="cannot be written"):
        book.save(tmp_path / "no" / "r.json")
    book.save(tmp_path / "r.json")
    book.save(tmp_path / "r.json")
    assert [p.name for p in tmp_path.iterdir()] == ["r.json"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (SMALL.replace("y = Neg(b)", "n = Neg(b) y = Abs(n)"), "3 nodes became 4"),
        (SMALL.replace('"" : 17', '"" : 18'), "ai.onnx 17 became ai.onnx 18"),
        (SMALL.replace("3, -2", "3, -3"), "the weights differ"),
        (
            SMALL.replace("a = Relu(x) b = MatMul(a, w)", "c = Relu(x) b = MatMul(c, w)"),
            "1 of its tensors are not there: 'a'",
        ),
        (SMALL.replace("Neg(b)", "Abs(b)"), "Abs 0 -> 1, Neg 1 -> 0"),
    ],
)
def test_ranges_of_another_model_are_refused(saved, text, words):
    with pytest.raises(UserError, match=words) as caught:
        RangeBook.load(saved).check(model(text))
    assert "graphopt calibrate" in caught.value.fix


def test_once_accepted_ranges_hold_for_what_becomes_of_the_model(saved):
    book = RangeBook.load(saved)
    book.check(model())
    book.check(model(SMALL.replace("Neg(b)", "Abs(b)")))


def test_the_fingerprint_is_the_models_not_the_files(tmp_path):
    proto = parser.parse_model(SMALL)
    before = Fingerprint.of(Model.load(proto))
    proto.graph.name = "renamed"
    proto.producer_name = "somebody"
    proto.graph.node[0].name = "first"
    proto.graph.node[0].doc_string = "words"
    onnx.save(proto, tmp_path / "a.onnx")
    onnx.save(proto, tmp_path / "b.onnx", save_as_external_data=True, size_threshold=0)
    assert Fingerprint.of(Model.load(tmp_path / "a.onnx")) == before
    assert Fingerprint.of(Model.load(tmp_path / "b.onnx")) == before


def test_the_fingerprint_sees_attributes_bodies_and_constants():
    text = """<ir_version: 8, opset_import: ["" : 17]> g (float[4] x, bool c) => (float[4] y) {
        k = Constant <value = float {1.5}> ()
        t = Softmax <axis = 0> (x)
        y = If (c) < then_branch = t () => (float[4] p) { p = Add(t, k) },
                     else_branch = e () => (float[4] q) { q = Sub(t, k) } > }"""
    prints = [
        Fingerprint.of(model(t))
        for t in (
            text,
            text.replace("1.5", "1.25"),
            text.replace("axis = 0", "axis = -1"),
            text.replace("Sub", "Mul"),
        )
    ]
    assert all(prints[0].differences(p) for p in prints[1:])
    assert Fingerprint.of(model(text)) == prints[0]
    assert prints[0].nodes == 5


def test_merging_what_does_not_belong_together(book):
    x = np.ones((3, 4), np.float32)
    with pytest.raises(UserError, match="Choice"):
        book.merge(measured(model(), {"x": x}))
    with pytest.raises(UserError, match="weights"):
        book.merge(measured(model(SMALL.replace("0.5", "0.25")), {"x": x}, book.choice))
    with pytest.raises(UserError, match="measured differently"):
        book.merge(measured(model(), {"x": x}, book.choice, bins=16))


def test_edits_survive_a_merge(book, saved):
    edited = RangeBook.load(change(saved, lambda d: d["tensors"]["a"].update(low=0, high=7)))
    other = RangeBook.load(change(saved, lambda d: d["tensors"]["a"].update(low=0, high=8)))
    for a, b in ((edited, book), (book, edited), (edited, edited)):
        merged = a.merge(b)
        assert merged.get("a") == (0, 7)
        assert merged.samples == 80
    with pytest.raises(UserError, match="they differ"):
        edited.merge(other)


@pytest.mark.parametrize(
    ("name", "orders"), [("digits_cnn.onnx", ("abc", "cab")), ("digits_transformer.onnx", ("cba",))]
)
def test_parts_of_the_data_merge_to_one_whole_run_byte_for_byte(name, orders, tmp_path):
    source = Model.load(MODELS / name)
    images = np.load(MODELS / "digits.npz")
    images = {p.name: images[p.name][:24] for p in ports_of(source.skeleton())[0]}
    cuts = {"whole": slice(0, 24), "a": slice(0, 5), "b": slice(5, 18), "c": slice(18, 24)}
    books = {
        k: measured(source, {n: v[cut] for n, v in images.items()}, Choice("entropy"), per_channel=True)
        for k, cut in cuts.items()
    }
    books["whole"].save(tmp_path / "whole.json")
    for order in orders:
        first, second, third = (books[k] for k in order)
        first.merge(second).merge(third).save(tmp_path / "merged.json")
        assert (tmp_path / "merged.json").read_bytes() == (tmp_path / "whole.json").read_bytes()
