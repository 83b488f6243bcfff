"""What fits an input, what is converted, and what is refused."""

from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest

from graphopt.calibration.data import Port, open_dataset
from graphopt.errors import UserError

T = onnx.TensorProto


def only(value: Any, elem_type: int = T.FLOAT, dims: Any = ("n", 2), **options: Any) -> np.ndarray:
    sample = next(iter(open_dataset({"x": value}, [Port("x", elem_type, dims)], **options)))
    return np.asarray(sample["x"])


@pytest.mark.parametrize(
    ("value", "elem_type", "wanted"),
    [
        (np.ones((1, 2)), T.FLOAT, np.float32),
        (np.ones((1, 2), np.float32), T.FLOAT16, np.float16),
        (np.ones((1, 2), np.float32), T.BFLOAT16, ml_dtypes.bfloat16),
        (np.ones((1, 2), ">f4"), T.FLOAT, np.float32),
        (np.ones((1, 2), np.int32), T.INT64, np.int64),
        (np.ones((1, 2), np.int64), T.UINT8, np.uint8),
        (np.ones((1, 2), bool), T.INT64, np.int64),
        (np.ones((1, 2), ml_dtypes.bfloat16).view("V2"), T.BFLOAT16, ml_dtypes.bfloat16),
        ([[1, 2]], T.FLOAT, np.float32),
        ([[1, 2]], T.INT64, np.int64),
        ([[True, False]], T.BOOL, np.bool_),
        ([["a", "b"]], T.STRING, object),
    ],
)
def test_what_is_a_matter_of_width_is_converted(value: Any, elem_type: int, wanted: Any) -> None:
    found = only(value, elem_type)
    assert found.dtype == wanted
    assert found.dtype.isnative
    assert found.shape == (1, 2)


@pytest.mark.parametrize(
    ("value", "elem_type", "complaint"),
    [
        (np.ones((1, 2), np.uint8), T.FLOAT, "is float32, the data is uint8"),
        (np.ones((1, 2), np.float32), T.INT64, "is int64, the data is float32"),
        (np.ones((1, 2), np.int64), T.BOOL, "is bool, the data is int64"),
        (np.array([[1, 300]]), T.UINT8, "is uint8, the data holds 300"),
        (np.array([[1, -3]]), T.UINT8, "is uint8, the data holds -3"),
        (np.array([[1, 1e6]]), T.FLOAT16, "cannot hold 1e\\+06"),
        (np.ones((1, 2)), T.STRING, "is string, the data is float64"),
        ([["a", "b"]], T.FLOAT, "not made of numbers"),
        ([[1.0], [1.0, 2.0]], T.FLOAT, "not an array"),
        ([[0.5, 1]], T.INT64, "is int64, the data is float64"),
    ],
)
def test_other_kinds_are_refused(value: Any, elem_type: int, complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        only(value, elem_type)


def test_pictures_are_told_where_to_go() -> None:
    with pytest.raises(UserError, match="data TOML"):
        only(np.zeros((1, 3, 8, 8), np.uint8), dims=("n", 3, 8, 8))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite(bad: float) -> None:
    values = np.zeros((9, 2), np.float32)
    values[5, 1] = bad
    with pytest.raises(UserError, match=r"data, sample 5: input 'x' holds (NaN|an infinite value)"):
        list(open_dataset({"x": values}, [Port("x", T.FLOAT, ("n", 2))]))
    assert len(list(open_dataset({"x": values}, [Port("x", T.FLOAT, ("n", 2))], strict=False))) == 9


@pytest.mark.parametrize(
    ("shape", "dims", "complaint"),
    [
        ((5, 3), ("n", 2), r"takes \[n,2\], the data is \[1,3\]"),
        ((5,), ("n", 2, 2), r"takes \[n,2,2\], the data is \[5\]"),
        ((5, 4, 3, 2), ("n", 2), r"takes \[n,2\], the data is \[5,4,3,2\]"),
        ((5, 3), (5, 2), r"takes \[5,2\], the data is \[1,3\]"),
        ((3,), (), r"^$"),
    ],
)
def test_shapes_that_do_not_fit(shape: tuple[int, ...], dims: Any, complaint: str) -> None:
    if complaint == "^$":
        assert only(np.zeros(shape, np.float32), dims=dims).shape == ()  # a stack of scalars
        return
    with pytest.raises(UserError, match=complaint):
        only(np.zeros(shape, np.float32), dims=dims)


def test_a_batch_axis_that_is_missing_is_added() -> None:
    assert only(np.zeros(2, np.float32)).shape == (1, 2)
    assert only(np.zeros((3, 8, 8), np.float32), dims=(1, 3, 8, 8)).shape == (1, 3, 8, 8)


def test_missing_inputs_and_what_they_may_be_called() -> None:
    ports = [Port("image", T.FLOAT, ("n", 2)), Port("mask", T.FLOAT, ("n", 2))]
    with pytest.raises(UserError) as e:
        list(open_dataset({"imgae": np.zeros((1, 2)), "mask": np.zeros((1, 2))}, ports))
    assert "the data lacks input 'image'" in str(e.value)
    assert "rename 'imgae' -> 'image'?" in str(e.value)
    with pytest.raises(UserError, match="lacks inputs 'image', 'mask'"):
        list(open_dataset({}, ports))
    (sample,) = open_dataset({"mask": np.zeros((1, 2))}, ports, strict=False)
    assert list(sample) == ["mask"]
    with pytest.raises(UserError, match="lacks input 'image'"):
        list(open_dataset({"q": np.zeros((1, 2)), "mask": np.zeros((1, 2))}, ports, strict=False))


def test_arrays_that_numpy_named() -> None:
    (sample,) = open_dataset({"arr_0": np.zeros((1, 2))}, [Port("x", T.FLOAT, ("n", 2))])
    assert list(sample) == ["x"]


def test_overridable_initializers_are_checked_too() -> None:
    ports, overridable = [Port("x", T.FLOAT, ("n", 2))], [Port("w", T.FLOAT, (2, 4))]
    samples = list(open_dataset({"x": np.zeros((3, 2)), "w": np.ones((2, 4))}, ports, overridable))
    assert [s["w"].shape for s in samples] == [(2, 4)] * 3
    assert samples[0]["w"].dtype == np.float32
    with pytest.raises(UserError, match="axis 1 of input 'w' is 4, the data has 5"):
        list(open_dataset({"x": np.zeros((3, 2)), "w": np.ones((2, 5))}, ports, overridable))


def test_inputs_that_are_no_tensors() -> None:
    (sample,) = open_dataset({"x": [np.zeros(2), np.zeros(3)]}, [Port("x", None, None)])
    assert len(sample["x"]) == 2


def test_an_unknown_rank() -> None:
    assert len(list(open_dataset({"x": np.zeros((3, 2))}, [Port("x", T.FLOAT, None)]))) == 3
