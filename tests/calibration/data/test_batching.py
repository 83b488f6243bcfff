"""How samples are grouped into feeds, and divided into parts."""

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from graphopt.calibration.data import Batch, Dataset, Part, Port, batches, open_dataset
from graphopt.errors import UserError

FLOAT = 1


def x(*dims: Any) -> Port:
    return Port("x", FLOAT, dims)


def numbered(count: int, *shape: int) -> np.ndarray:
    """[count, *shape], where sample i is full of i."""
    return np.broadcast_to(np.arange(count, dtype=np.float32).reshape(-1, *[1] * len(shape)), (count, *shape))


def samples_in(found: list[Batch]) -> list[int]:
    return [int(row.flat[0]) for b in found for row in b.feeds["x"]]


def run(data: Any, ports: list[Port], **options: Any) -> list[Batch]:
    return list(batches(open_dataset(data, ports), ports, **options))


@given(count=st.integers(1, 60), most=st.integers(1, 40))
def test_an_open_batch(count: int, most: int) -> None:
    found = run({"x": numbered(count, 2)}, [x("n", 2)], max_batch=most)
    assert samples_in(found) == list(range(count))
    assert [b.size for b in found] == [most] * (count // most) + [count % most] * bool(count % most)
    assert all(b.feeds["x"].shape == (b.size, 2) for b in found)


@given(count=st.integers(1, 70), most=st.integers(1, 9))
def test_parts_are_a_partition(count: int, most: int) -> None:
    calibration, held_back = (
        samples_in(run({"x": numbered(count, 2)}, [x("n", 2)], max_batch=most, part=part))
        for part in ("calibration", "held-back")
    )
    if count < 8:
        assert calibration == held_back == list(range(count))
    else:
        assert sorted(calibration + held_back) == list(range(count))
        assert held_back == list(range(7, count, 8))
        assert calibration == sorted(calibration)


@given(count=st.integers(1, 90), size=st.integers(2, 5))
def test_a_fixed_batch(count: int, size: int) -> None:
    ports = [x(size, 2)]
    dataset = open_dataset({"x": numbered(count, 2)}, ports)
    if count < size:
        with pytest.raises(UserError, match=f"takes {size} samples at a time, the data has {count}"):
            list(batches(dataset, ports))
        return
    found = {p: list(batches(dataset, ports, part=p)) for p in ("all", "calibration", "held-back")}  # type: ignore[arg-type]
    assert all(b.feeds["x"].shape == (size, 2) and b.size == size for f in found.values() for b in f)
    groups = count // size
    assert samples_in(found["all"]) == list(range(groups * size))
    assert bool(dataset.notes) == bool(count % size)
    if groups < 8:
        assert samples_in(found["calibration"]) == samples_in(found["held-back"]) == samples_in(found["all"])
    else:
        both = samples_in(found["calibration"]) + samples_in(found["held-back"])
        assert sorted(both) == list(range(groups * size))
        assert len(found["held-back"]) == groups // 8


@given(st.lists(st.integers(1, 3), min_size=1, max_size=30), st.integers(1, 5))
def test_ragged_samples(lengths: list[int], most: int) -> None:
    data = [{"x": np.full((1, n), i, np.float32)} for i, n in enumerate(lengths)]
    found = run(data, [x("batch", "length")], max_batch=most)
    assert samples_in(found) == list(range(len(lengths)))
    assert all(b.size <= most for b in found)
    assert [n for b in found for n in [b.feeds["x"].shape[1]] * b.size] == lengths
    for one, next_ in itertools.pairwise(found):
        assert one.size == most or one.feeds["x"].shape[1] != next_.feeds["x"].shape[1]


def test_one_at_a_time() -> None:
    found = run({"x": numbered(3, 2)}, [x(1, 2)])
    assert [b.feeds["x"].shape for b in found] == [(1, 2)] * 3


def test_a_stack_of_feeds() -> None:
    """The arrays have one axis more than the input."""
    found = run({"x": numbered(3, 4, 2)}, [x(4, 2)])
    assert [(b.feeds["x"].shape, b.size) for b in found] == [((4, 2), 1)] * 3
    found = run({"x": numbered(3, 5, 1, 2)}, [x("time", 1, 2)])
    assert [b.feeds["x"].shape for b in found] == [(5, 1, 2)] * 3


def test_an_axis_of_time_is_not_divided() -> None:
    for dims in (("seq_len", 1, 4), (None, "batch", 4), ("T", "B", 4)):
        (batch,) = run({"x": numbered(6, 1, 4)}, [x(*dims)])
        assert (batch.feeds["x"].shape, batch.size) == ((6, 1, 4), 1)


def test_inputs_of_different_length_are_one_feed() -> None:
    ports = [x("n", 2), Port("y", FLOAT, ("m", 2))]
    (batch,) = run({"x": numbered(3, 2), "y": numbered(5, 2)}, ports)
    assert (batch.feeds["x"].shape, batch.feeds["y"].shape, batch.size) == ((3, 2), (5, 2), 1)
    # An index of edges, of which there are as many as declared.
    ports = [x("n", 2), Port("y", FLOAT, (2, "edges"))]
    (batch,) = run({"x": numbered(3, 2), "y": numbered(2, 9)}, ports)
    assert batch.feeds["x"].shape == (3, 2)


def test_the_same_symbol_of_different_length() -> None:
    ports = [x("n", 2), Port("y", FLOAT, ("n", 2))]
    with pytest.raises(UserError, match="differ in their number of samples: x has 3, y has 5"):
        run({"x": numbered(3, 2), "y": numbered(5, 2)}, ports)


def test_what_all_samples_share() -> None:
    """A setting of fixed shape does not follow the batch; when it changes, a new batch starts."""
    ports = [x("n", 2), Port("scales", FLOAT, (3,))]
    found = run({"x": numbered(5, 2), "scales": np.ones(3, np.float32)}, ports)
    assert [(b.size, b.feeds["scales"].shape) for b in found] == [(5, (3,))]
    data = [{"x": numbered(1, 2), "scales": np.full(3, i // 2, np.float32)} for i in range(5)]
    assert [b.size for b in run(data, ports)] == [2, 2, 1]


def test_what_may_depend_on_the_batch_is_not_shared() -> None:
    ports = [x("batch", 2), Port("state", FLOAT, (2, "batch", 3))]
    data = [{"x": numbered(1, 2), "state": np.zeros((2, 1, 3), np.float32)} for _ in range(3)]
    assert [b.size for b in run(data, ports)] == [1, 1, 1]


def test_several_inputs_keep_together() -> None:
    ports = [x("n", 2), Port("ids", 7, ("n", "length"))]
    found = run({"x": numbered(10, 2), "ids": np.arange(40).reshape(10, 4)}, ports, max_batch=4)
    assert [b.feeds["ids"].shape for b in found] == [(4, 4), (4, 4), (2, 4)]
    assert np.array_equal(found[1].feeds["ids"][:, 0], [16, 20, 24, 28])


def test_extra_values() -> None:
    data = {"x": numbered(5, 2), "label": np.arange(5), "classes": np.array(["a", "b", "c"])}
    first, last = run(data, [x("n", 2)], max_batch=3)
    assert set(first.feeds) == {"x"}
    assert np.array_equal(first.extra["label"], [0, 1, 2])
    assert np.array_equal(last.extra["label"], [3, 4])
    assert np.array_equal(first.extra["classes"], ["a", "b", "c"])
    (batch,) = run({"x": numbered(2, 2), "label": [3, 4], "tree": [[1], [2, 3]]}, [x("n", 2)])
    assert batch.extra["label"].tolist() == [3, 4]
    assert batch.extra["tree"] == [[1], [2, 3]]
    lines = [{"x": np.zeros(2, np.float32), "label": i, "box": [1.0, 2.0]} for i in range(2)]
    (batch,) = run(lines, [x("n", 2)])
    assert np.array_equal(batch.extra["label"], [0, 1])
    assert batch.extra["box"].shape == (2, 2)


def test_a_unit_left_over_is_not_the_part_that_is_held_back() -> None:
    """Seven groups of four and two more samples: an incomplete group must not be all that is held back."""
    found = run({"x": numbered(30, 2)}, [x(4, 2)], part="held-back")
    assert samples_in(found) == list(range(28))


@pytest.mark.parametrize("part", ["all", "calibration", "held-back"])
def test_no_samples(part: Part) -> None:
    with pytest.raises(UserError, match="holds no samples"):
        run([], [x("n", 2)], part=part)


def test_held_back_samples_are_not_needed_in_memory() -> None:
    """Batches come as they are read, not when all is read."""
    read = 0

    class Endless(Dataset):
        def __iter__(self) -> Iterator[Any]:
            nonlocal read
            while True:
                read += 1
                yield {"x": np.zeros((1, 2), np.float32)}

    ports = [x("n", 2)]
    dataset = open_dataset(Endless("endless"), ports)
    assert next(batches(dataset, ports, 2, "held-back")).size == 2
    assert read <= 25


def test_inputs_that_take_different_numbers() -> None:
    ports = [x(2, 3), Port("y", FLOAT, (4, 3))]
    with pytest.raises(UserError, match="different numbers of samples: 2, 4"):
        run([{"x": numbered(1, 3), "y": numbered(1, 3)}], ports)


def test_large_arrays_of_another_length_are_left_alone() -> None:
    """Files often hold the training data too."""
    (batch,) = run({"x": numbered(3, 2), "x_train": np.zeros((10_000, 64))}, [x("n", 2)])
    assert not batch.extra
