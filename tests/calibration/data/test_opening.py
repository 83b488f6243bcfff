"""What open_dataset takes besides paths."""

from pathlib import Path

import numpy as np
import onnx
import pytest

from graphopt.calibration.data import Port, batches, open_dataset, ports_of
from graphopt.errors import UserError
from graphopt.runtime.session import Port as SessionPort
from graphopt.runtime.session import open_session

MODELS = Path(__file__).parents[3] / "models"
PORTS = [Port("x", 1, ("n", 2))]
X = np.arange(6, dtype=np.float32).reshape(3, 2)


def test_mappings_and_lists_of_them() -> None:
    for spec in ({"x": X}, [{"x": X[:2]}, {"x": X[2]}], ({"x": row} for row in X)):
        dataset = open_dataset(spec, PORTS, strict=False)
        assert np.array_equal(np.concatenate([s["x"] for s in dataset]), X)


def test_a_dataset_stays_what_it_is() -> None:
    dataset = open_dataset({"x": X}, PORTS)
    assert open_dataset(dataset, PORTS) is dataset


def test_iterators_are_refused_because_data_is_read_twice() -> None:
    with pytest.raises(UserError, match="an iterator can be read only once"):
        open_dataset(iter([{"x": X}]), PORTS)


def test_items_that_are_no_mappings() -> None:
    with pytest.raises(UserError, match="data #0: ndarray is no mapping from input names"):
        list(open_dataset(X, PORTS))  # type: ignore[arg-type]


def test_synthetic_data_runs_and_says_what_it_is() -> None:
    for name in ("digits_cnn", "digits_lstm", "digits_transformer"):
        model = onnx.load(MODELS / f"{name}.onnx")
        ports, overridable = ports_of(model)
        dataset = open_dataset("synthetic:5", ports, overridable, model=model)
        assert dataset.size == 5
        assert "mean nothing" in dataset.name
        with open_session(model) as session:
            found = list(batches(dataset, session.inputs))
            again = list(batches(dataset, ports))
            assert sum(b.size for b in found) == 5
            for batch, same in zip(found, again, strict=True):
                session.run(batch.feeds)
                assert all(np.array_equal(batch.feeds[n], same.feeds[n]) for n in batch.feeds)
    assert open_dataset("synthetic", ports, model=model).size == 32


def test_ports_of_a_model() -> None:
    model = onnx.parser.parse_model("""
        <ir_version: 8, opset_import: ["": 17]>
        g (float[n,3] x, float s, float[] w, seq(float) q) => (float[n,3] y) <float[3] b = {1, 2, 3}>
        { a = Add(x, b) y = Mul(a, s) }""")
    model.graph.input.append(onnx.helper.make_tensor_value_info("b", 1, [3]))
    ports, overridable = ports_of(model)
    assert ports == [
        Port("x", 1, ("n", 3)),
        Port("s", 1, ()),
        Port("w", 1, None),
        Port("q", None, None),
    ]
    assert overridable == [Port("b", 1, (3,))]


def test_ports_of_a_session() -> None:
    """An unknown rank and a scalar look the same there."""
    ports = [SessionPort("x", "tensor(float)", 1, ("n", 2)), SessionPort("s", "tensor(float)", 1, ())]
    (sample,) = open_dataset({"x": X[0], "s": np.float32(3)}, ports)
    assert (sample["x"].shape, sample["s"].shape) == ((1, 2), ())


def test_synthetic_data_keeps_defaults() -> None:
    model = onnx.parser.parse_model("""
        <ir_version: 8, opset_import: ["": 17]>
        g (float[n,3] x, float[3] b) => (float[n,3] y) <float[3] b = {1, 2, 3}> { y = Add(x, b) }""")
    ports, overridable = ports_of(model)
    assert overridable
    dataset = open_dataset("synthetic:3", ports, overridable, model=model)
    assert [list(s) for s in dataset] == [["x"]] * 3


@pytest.mark.parametrize("text", ["synthetic:", "synthetic:x", "synthetic:-3"])
def test_a_number_of_synthetic_samples_that_is_none(text: str) -> None:
    with pytest.raises(UserError, match="does not say how many"):
        open_dataset(text, [])
