"""JSON lines."""

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from graphopt.calibration.data import Port, batches, open_dataset
from graphopt.errors import UserError

PORTS = [Port("ids", 7, ("batch", "length")), Port("mask", 1, ("batch", "length"))]


def write(path: Path, *lines: Any) -> Path:
    path.write_text("".join((x if isinstance(x, str) else json.dumps(x)) + "\n" for x in lines))
    return path


def test_lists_take_the_type_of_the_input(tmp_path: Path) -> None:
    lines = [{"ids": [[1, 2, 3]], "mask": [[1, 1, 0]]}, {"ids": [4, 5, 6], "mask": [1, 1, 1], "label": 2}]
    dataset = open_dataset(write(tmp_path / "a.jsonl", lines[0], "", lines[1]), PORTS)
    first, second = dataset
    assert (first["ids"].dtype, first["mask"].dtype) == (np.int64, np.float32)
    assert np.array_equal(second["ids"], [[4, 5, 6]])
    assert np.array_equal(second["label"], [2])
    assert [b.size for b in batches(dataset, PORTS)] == [2]
    assert dataset.size is None


def test_objects_with_shape_and_dtype(tmp_path: Path) -> None:
    line = {
        "ids": {"data": [1, 2, 3, 4], "shape": [1, 4], "dtype": "int32"},
        "mask": {"data": [1, 0, 1, 0], "shape": [1, 4]},
    }
    (sample,) = open_dataset(write(tmp_path / "a.ndjson", line), PORTS)
    assert np.array_equal(sample["ids"], [[1, 2, 3, 4]])
    assert sample["mask"].dtype == np.float32


def test_compressed_lines(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.gz"
    with gzip.open(path, "wt") as file:
        for i in range(3):
            print(json.dumps({"ids": [[i]], "mask": [[1]]}), file=file)
    assert [int(s["ids"][0, 0]) for s in open_dataset(path, PORTS)] == [0, 1, 2]
    path.write_bytes(path.read_bytes()[:-12])
    with pytest.raises(UserError, match="not readable as JSON lines"):
        list(open_dataset(path, PORTS))


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("{", "line 2: not JSON"),
        ([1, 2], "line 2: a line is an object from input names to values, not list"),
        ({"ids": [[1]]}, "line 2: the data lacks input 'mask'"),
        ({"ids": [[1, 2], [3]], "mask": [[1]]}, "line 2: input 'ids' is not an array"),
        ({"ids": [[1.5]], "mask": [[1]]}, "line 2: input 'ids' is int64, the data is float64"),
        ({"ids": {"data": [1], "shape": [2]}, "mask": [[1]]}, r"shape \[2\] needs 2 values, there are 1"),
        ({"ids": {"values": [1]}, "mask": [[1]]}, "'ids' is an object with 'values'"),
        ({"ids": {"data": [1], "dtype": "int65"}, "mask": [[1]]}, "line 2: 'ids' is not an array"),
        ({"ids": [[1]], "mask": [[float("nan")]]}, "line 2: input 'mask' holds NaN"),
    ],
)
def test_errors_name_the_line(tmp_path: Path, line: Any, complaint: str) -> None:
    path = write(tmp_path / "a.jsonl", {"ids": [[1]], "mask": [[1]]}, line)
    with pytest.raises(UserError, match=complaint):
        list(open_dataset(path, PORTS))
