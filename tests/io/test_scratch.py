"""Large arrays made by passes: out of memory, bit for bit the same, and written like any other weight."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import helper

from graphopt.io import scratch
from graphopt.io.scratch import Scratch
from graphopt.io.sources import Sources
from graphopt.io.weights import FileValues
from graphopt.model import Model
from graphopt.testing import apply
from graphopt_passes.folding.fold_constants import FoldConstants


@pytest.fixture(autouse=True)
def _tight(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scratch, "STOWED_BYTES", 1000)
    monkeypatch.setattr(scratch, "HELD_BYTES", 5000)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16, np.int64, np.bool_])
def test_values_come_back_bit_for_bit(dtype: type) -> None:
    rng = np.random.default_rng(0)
    scratchpad, sources = Scratch(), Sources()
    arrays = [rng.integers(0, 2, (50, 100)).astype(dtype) for _ in range(5)]
    stored = [scratchpad.stow(a, sources) for a in arrays]
    assert isinstance(stored[-1], FileValues)
    for array, values in zip(arrays, stored, strict=True):
        loaded = values.load() if isinstance(values, FileValues) else values
        assert (loaded.dtype, loaded.shape) == (array.dtype, array.shape)
        assert loaded.tobytes() == array.tobytes()


def test_little_and_small_arrays_stay_in_memory() -> None:
    scratchpad, sources = Scratch(), Sources()
    small = np.zeros(10, np.float32)
    assert all(scratchpad.stow(small, sources) is small for _ in range(1000))
    first = np.zeros(1000, np.float32)
    assert scratchpad.stow(first, sources) is first
    assert isinstance(scratchpad.stow(first.copy(), sources), FileValues)


def test_text_and_packed_arrays_stay_in_memory() -> None:
    scratchpad, sources = Scratch(), Sources()
    for array in (np.array(["a"] * 9999, object), np.zeros(99999, ml_dtypes.int4)):
        assert scratchpad.stow(array, sources) is array


def test_without_room_memory_has_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(scratch.tempfile, "TemporaryFile", full)
    array = np.zeros(9999, np.float32)
    assert Scratch().stow(array, Sources()) is array


def folded(tmp_path: Path) -> tuple[onnx.ModelProto, Model]:
    rng = np.random.default_rng(1)
    weights = [
        onnx.numpy_helper.from_array(rng.standard_normal((32, 48)).astype(np.float32), f"w{i}")
        for i in range(8)
    ]
    nodes = []
    last = "x"
    for i in range(8):
        nodes.append(helper.make_node("Transpose", [f"w{i}"], [f"t{i}"], perm=[1, 0]))
        nodes.append(helper.make_node("Gemm", [last, f"t{i}"], [f"h{i}"], transB=1 - i % 2))
        last = f"h{i}"
    shapes = [48 if i % 2 else 32 for i in range(8)]
    nodes[-1].output[0] = "y"
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", 1, ["N", shapes[1]])],
        [helper.make_tensor_value_info("y", 1, ["N", shapes[1]])],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return model, apply(FoldConstants(), model).model


@pytest.mark.parametrize("external", [False, True])
def test_stowed_weights_are_saved(tmp_path: Path, external: bool) -> None:
    before, model = folded(tmp_path)
    stowed = [c for c in model.graph.initializers if isinstance(c._values, FileValues)]
    assert len(stowed) > 4
    path = tmp_path / "m.onnx"
    model.save(path, external_data=external)
    saved = {t.name: t for t in onnx.load(str(path)).graph.initializer}
    expected = {t.name: onnx.numpy_helper.to_array(t).T for t in before.graph.initializer}
    assert len(saved) == len(expected)
    got = sorted(onnx.numpy_helper.to_array(t).tobytes() for t in saved.values())
    assert got == sorted(np.ascontiguousarray(a).tobytes() for a in expected.values())
    again = Model.load(path)
    assert len(again.graph.initializers) == 8


def test_a_loaded_view_is_still_copied_from_the_file() -> None:
    scratchpad, sources = Scratch(), Sources()
    array = np.arange(9999, dtype=np.float32)
    values = scratchpad.stow(array, sources)
    assert isinstance(values, FileValues)
    region = sources.locate(values.load().reshape(9, 1111))
    assert region is not None
    assert region.view().tobytes() == array.tobytes()
