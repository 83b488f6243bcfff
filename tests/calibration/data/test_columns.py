"""Arrays read row by row are the arrays that were written, and are never held whole."""

import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from graphopt.calibration.data import Port, batches, open_dataset
from graphopt.calibration.data.columns import Column, Inflated, Mapped, npy_column, npz_columns
from graphopt.errors import UserError

ARRAYS = {
    "plain": np.arange(24, dtype=np.float32).reshape(4, 3, 2),
    "fortran": np.asfortranarray(np.arange(24, dtype=np.int64).reshape(4, 6)),
    "swapped": np.arange(5, dtype=">i4"),
    "half": np.arange(3, dtype=np.float16),
    "text": np.array(["a", "bcd"]),
    "scalar": np.array(7.5),
    "nothing": np.empty((0, 3), np.float32),
    "hollow": np.empty((3, 0), np.float32),
    "dotted/name.weight": np.ones((2, 2), bool),
}


def check(columns: dict[str, Column]) -> None:
    assert set(columns) == set(ARRAYS)
    for name, array in ARRAYS.items():
        column = columns[name]
        assert (column.shape, column.dtype) == (array.shape, array.dtype)
        assert np.array_equal(column.whole(), array)
        assert column.whole().flags.writeable
        if array.ndim:
            rows = list(column.rows())
            assert len(rows) == len(array)
            assert all(np.array_equal(r, a) and r.flags.writeable for r, a in zip(rows, array, strict=True))


@pytest.mark.parametrize(("save", "kind"), [(np.savez, Mapped), (np.savez_compressed, Inflated)])
def test_npz(tmp_path: Path, save: Callable[..., None], kind: type[Column]) -> None:
    save(tmp_path / "a.npz", **ARRAYS)
    columns = npz_columns(tmp_path / "a.npz")
    assert all(isinstance(c, kind) for c in columns.values())
    check(columns)


def test_members_with_extra_fields_in_front(tmp_path: Path) -> None:
    """numpy forces 64-bit headers on members; other writers pad them as they like."""
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        for name, array in ARRAYS.items():
            info = zipfile.ZipInfo(f"{name}.npy")
            info.extra = b"\x99\x99\x03\x00abc"
            with archive.open(info, "w", force_zip64=True) as file:
                np.lib.format.write_array(file, array)
    check(npz_columns(tmp_path / "a.npz"))


def test_npy(tmp_path: Path) -> None:
    for i, (name, array) in enumerate(ARRAYS.items()):
        np.save(tmp_path / f"{i}.npy", array)
        assert np.array_equal(npy_column(tmp_path / f"{i}.npy").whole(), array), name
    with (tmp_path / "v2.npy").open("wb") as file:
        np.lib.format.write_array(file, ARRAYS["plain"], version=(2, 0))
    assert np.array_equal(npy_column(tmp_path / "v2.npy").whole(), ARRAYS["plain"])


def test_pickles_are_never_loaded(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.array([{}], dtype=object))
    with pytest.raises(UserError, match="pickled Python objects"):
        npz_columns(tmp_path / "a.npz")
    np.save(tmp_path / "a.npy", np.array([{}], dtype=object))
    with pytest.raises(UserError, match="pickled Python objects"):
        npy_column(tmp_path / "a.npy")


def test_what_is_no_numpy_file(tmp_path: Path) -> None:
    (tmp_path / "a.npz").write_bytes(b"nothing")
    with pytest.raises(UserError, match="neither"):
        npz_columns(tmp_path / "a.npz")
    (tmp_path / "a.npy").write_bytes(b"nothing at all")
    with pytest.raises(UserError, match="neither"):
        npy_column(tmp_path / "a.npy")


def test_what_ends_too_early(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros(100))
    data = (tmp_path / "a.npy").read_bytes()
    (tmp_path / "a.npy").write_bytes(data[:-8])
    with pytest.raises(UserError, match="800 bytes are declared, 792 are there"):
        npy_column(tmp_path / "a.npy")


def zeros(path: Path, compressed: bool) -> None:
    """200 MB of zeros."""
    kind = zipfile.ZIP_DEFLATED if compressed else zipfile.ZIP_STORED
    with (
        zipfile.ZipFile(path, "w", kind, compresslevel=1) as archive,
        archive.open("x.npy", "w", force_zip64=True) as file,
    ):
        header = {"descr": "<f4", "fortran_order": False, "shape": (200, 250_000)}
        np.lib.format.write_array_header_1_0(file, header)
        for _ in range(200):
            file.write(bytes(1_000_000))


@pytest.mark.parametrize("compressed", [False, True])
def test_memory_does_not_grow_with_the_file(tmp_path: Path, compressed: bool) -> None:
    zeros(tmp_path / "x.npz", compressed)
    ports = [Port("x", 1, ("n", 250_000))]
    tracemalloc.start()
    try:
        dataset = open_dataset(tmp_path / "x.npz", ports)
        assert dataset.size == 200
        assert sum(b.size for b in batches(dataset, ports, max_batch=4)) == 200
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 20e6
