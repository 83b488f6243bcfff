"""Paths: which source they are, and errors that say what is wrong with them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import numpy_helper

from graphopt.calibration.data import Dataset, Port, open_dataset
from graphopt.errors import UserError

X = np.arange(12, dtype=np.float32).reshape(3, 4)
ONE = [Port("x", 1, ("n", 4))]
TWO = [Port("x", 1, ("n", 4)), Port("z", 1, ("n",))]


def rows(dataset: Dataset, name: str = "x") -> np.ndarray:
    """The samples, joined; reading twice gives the same, and as many as announced."""
    first, second = ([np.asarray(s[name]) for s in dataset] for _ in range(2))
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))
    assert dataset.size in (None, len(first))
    return np.concatenate(first)


def test_npz(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=X, z=X[:, 0], label=[1, 2, 3])
    for path in (tmp_path / "a.npz", str(tmp_path / "a.npz")):
        dataset = open_dataset(path, TWO)
        assert (dataset.name, dataset.size) == (str(path), 3)
        assert np.array_equal(rows(dataset), X)
        assert np.array_equal(rows(dataset, "label"), [1, 2, 3])


def test_npy_for_one_input(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", X)
    assert np.array_equal(rows(open_dataset(tmp_path / "a.npy", ONE)), X)
    with pytest.raises(UserError, match=r"the model has 2 inputs, an \.npy file holds one array"):
        open_dataset(tmp_path / "a.npy", TWO)


def test_folder_of_npz_stacks_and_samples(tmp_path: Path) -> None:
    np.savez(tmp_path / "b.npz", x=X[2:])
    np.savez(tmp_path / "a.npz", x=X[:2])
    np.savez(tmp_path / "c.npz", x=X[0])
    dataset = open_dataset(tmp_path, ONE)
    assert dataset.size == 4
    assert np.array_equal(rows(dataset), [*X, X[0]])


def test_folder_of_npy_by_input(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", X)
    np.save(tmp_path / "z.npy", X[:, 0])
    np.save(tmp_path / "label.npy", [1, 2, 3])
    dataset = open_dataset(tmp_path, TWO)
    assert np.array_equal(rows(dataset), X)
    assert np.array_equal(rows(dataset, "z"), X[:, 0])
    assert np.array_equal(rows(dataset, "label"), [1, 2, 3])


def test_folder_of_npy_by_sample(tmp_path: Path) -> None:
    for i in range(12):
        np.save(tmp_path / f"{i:02}.npy", X[i % 3])
    assert np.array_equal(rows(open_dataset(tmp_path, ONE)), np.tile(X, (4, 1)))
    with pytest.raises(UserError, match="lacks inputs 'x', 'z'"):
        open_dataset(tmp_path, TWO)


def test_onnx_test_data_sets(tmp_path: Path) -> None:
    for i in range(2):
        folder = tmp_path / f"test_data_set_{i}"
        folder.mkdir()
        (folder / "input_0.pb").write_bytes(numpy_helper.from_array(X[i : i + 1], "x").SerializeToString())
        (folder / "input_1.pb").write_bytes(numpy_helper.from_array(X[i, :1]).SerializeToString())
    assert np.array_equal(rows(open_dataset(tmp_path, TWO)), X[:2])
    assert np.array_equal(rows(open_dataset(tmp_path, TWO), "z"), X[:2, 0])
    assert np.array_equal(rows(open_dataset(tmp_path / "test_data_set_1", ONE)), X[1:2])
    (tmp_path / "test_data_set_0" / "input_0.pb").write_bytes(b"\xff\xff")
    with pytest.raises(UserError, match="not a TensorProto"):
        rows(open_dataset(tmp_path, TWO))


def test_errors_name_file_and_sample(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=X)
    np.savez(tmp_path / "b.npz", x=np.where(X == 5, np.nan, X))
    with pytest.raises(UserError, match=r"b\.npz, sample 1: input 'x' holds NaN"):
        rows(open_dataset(tmp_path, ONE))


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("missing.npz", None, "no such file or folder"),
        ("bad.npz", b"nothing", "not readable as numpy data: it is neither"),
        ("data.csv", b"1,2,3", "not readable as numpy data: it is neither"),
        ("photo.JPG", b"", "images alone do not say how they become inputs"),
    ],
)
def test_what_cannot_be_read(tmp_path: Path, name: str, content: Any, complaint: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=complaint):
        rows(open_dataset(tmp_path / name, ONE))


def test_folders_without_data(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no inputs found"):
        open_dataset(tmp_path, ONE)
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "1.png").write_bytes(b"")
    with pytest.raises(UserError, match="images alone"):
        open_dataset(tmp_path, ONE)
