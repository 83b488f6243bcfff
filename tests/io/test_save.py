"""Saving: what is written, and that a failure at any moment leaves everything as it was."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from graphopt import ir
from graphopt.errors import UserError
from graphopt.io import save, sources
from graphopt.model import Model

Check = Callable[[onnx.ModelProto, onnx.ModelProto], None]


def _snapshot(folder: Path) -> dict[str, bytes]:
    return {f.name: f.read_bytes() for f in folder.iterdir() if f.is_file()}


def _load(path: Path) -> onnx.ModelProto:
    """onnx.load, without the marks that it leaves on tensors whose data was external."""
    model = onnx.load(path)
    stack = [model.graph]
    while stack:
        graph = stack.pop()
        tensors = list(graph.initializer)
        for attribute in (a for node in graph.node for a in node.attribute):
            if attribute.HasField("g"):
                stack.append(attribute.g)
            if attribute.HasField("t"):
                tensors.append(attribute.t)
        for tensor in tensors:
            tensor.ClearField("data_location")
    return model


@pytest.fixture
def embedded(tmp_path: Path, linear: onnx.ModelProto) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    path = folder / "m.onnx"
    onnx.save(linear, path)
    return path


# -- what is written


def test_embedded_copy_is_the_same_model(embedded: Path, tmp_path: Path, linear: onnx.ModelProto) -> None:
    saved = Model.load(embedded).save(tmp_path / "out.onnx")
    assert (saved.model, saved.data) == (tmp_path / "out.onnx", ())
    assert saved.nbytes == saved.model.stat().st_size == embedded.stat().st_size
    assert _load(saved.model) == linear


def test_saving_does_not_load_weights(
    embedded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Model.load(embedded)
    monkeypatch.setattr(sources.FileSource, "view", lambda *a: pytest.fail("weights were read"))
    for external in (False, True):
        model.save(tmp_path / f"{external}.onnx", external_data=external)


def test_nested_weights_are_spliced_at_every_depth(tmp_path: Path, weight: np.ndarray) -> None:
    def branch(depth: int) -> onnx.GraphProto:
        nodes = [helper.make_node("Identity", [f"w{depth}"], [f"o{depth}"])]
        if depth:
            inner = branch(depth - 1)
            nodes.append(
                helper.make_node("If", ["c"], [f"i{depth}"], then_branch=inner, else_branch=branch(0))
            )
        out = helper.make_tensor_value_info(f"o{depth}", TensorProto.FLOAT, [32, 32])
        return helper.make_graph(
            nodes, f"g{depth}", [], [out], [numpy_helper.from_array(weight + depth, f"w{depth}")]
        )

    graph = branch(5)
    graph.input.append(helper.make_tensor_value_info("c", TensorProto.BOOL, []))
    graph.node.append(helper.make_node("Constant", [], ["k"], value=numpy_helper.from_array(weight)))
    model = helper.make_model(graph)
    path = tmp_path / "m.onnx"
    onnx.save(model, path)
    loaded = Model.load(path)
    assert _load(loaded.save(tmp_path / "a.onnx").model) == model
    external = loaded.save(tmp_path / "b.onnx", external_data=True)
    assert _load(external.model) == model
    assert external.model.stat().st_size < 5000


def test_external_input_gives_external_output(
    external: Path, tmp_path: Path, linear: onnx.ModelProto
) -> None:
    saved = Model.load(external).save(tmp_path / "out.onnx")
    assert saved.data == (tmp_path / "out.onnx.data",)
    assert _load(saved.model) == linear
    assert saved.nbytes == sum(f.stat().st_size for f in (saved.model, *saved.data))
    assert saved.model.stat().st_size < 1000


def test_external_data_can_be_embedded(external: Path, tmp_path: Path, linear: onnx.ModelProto) -> None:
    saved = Model.load(external).save(tmp_path / "out.onnx", external_data=False)
    assert saved.data == ()
    assert onnx.load(saved.model, load_external_data=False) == linear


def test_many_data_files_become_one(linear: onnx.ModelProto, tmp_path: Path) -> None:
    folder = tmp_path / "many"
    folder.mkdir()
    reference = onnx.ModelProto()
    reference.CopyFrom(linear)
    onnx.save(
        linear,
        folder / "m.onnx",
        save_as_external_data=True,
        all_tensors_to_one_file=False,
        size_threshold=0,
    )
    assert len(list(folder.iterdir())) == 3
    saved = Model.load(folder / "m.onnx").save(tmp_path / "out.onnx")
    assert _load(saved.model) == reference


def test_data_is_aligned(tmp_path: Path) -> None:
    tensors = [
        numpy_helper.from_array(np.full(n, i, np.float32), f"w{i}") for i, n in enumerate((401, 300_001, 777))
    ]
    model = Model.load(helper.make_model(helper.make_graph([], "g", [], [], tensors)))
    saved = model.save(tmp_path / "m.onnx", external_data=True)
    entries = [
        {e.key: e.value for e in t.external_data}
        for t in onnx.load(saved.model, load_external_data=False).graph.initializer
    ]
    assert [int(e["offset"]) for e in entries] == [0, 4096, 4096 + 1_200_064]
    assert [t.raw_data for t in _load(saved.model).graph.initializer] == [t.raw_data for t in tensors]


def test_small_models_need_no_data_file(tmp_path: Path) -> None:
    tiny = Model.load(
        helper.make_model(helper.make_graph([], "g", [], [], [numpy_helper.from_array(np.ones(3), "w")]))
    )
    saved = tiny.save(tmp_path / "m.onnx", external_data=True)
    assert saved.data == ()
    assert [f.name for f in tmp_path.iterdir()] == ["m.onnx"]


def test_pass_made_and_reshaped_weights(embedded: Path, tmp_path: Path, weight: np.ndarray) -> None:
    """An array that is a view of the mapped file is still copied from it; a new one is written."""
    for external in (False, True):
        model = Model.load(embedded)
        w = next(iter(model.graph.initializers))
        view = ir.Constant("view", w.values.reshape(16, 64), made_by="p")
        new = ir.Constant("new", w.values * 2, made_by="p")
        text = ir.Constant("text", np.array(["a", "b\u00e9"] * 600, object), made_by="p")
        model.graph.initializers.update(dict.fromkeys((view, new, text)))
        region = model._sources.locate(view.values)
        assert region is not None
        assert region.source.path == embedded.resolve()
        assert model._sources.locate(new.values) is None
        saved = model.save(tmp_path / f"{external}.onnx", external_data=external)
        written = {t.name: numpy_helper.to_array(t) for t in _load(saved.model).graph.initializer}
        np.testing.assert_array_equal(written["view"], weight.reshape(16, 64))
        np.testing.assert_array_equal(written["new"], weight * 2)
        assert written["text"].tolist() == ["a", "b\u00e9"] * 600
        if external:  # the view and the weight are one region
            assert saved.data[0].stat().st_size == 2 * weight.nbytes


def test_typed_and_packed_data_survive_both_ways(tmp_path: Path) -> None:
    values = np.arange(4001) % 16 - 8
    int4 = helper.make_tensor("int4", TensorProto.INT4, [4001], values.tolist())
    raw4 = numpy_helper.from_array(numpy_helper.to_array(int4), "raw4")
    floats = TensorProto(name="f", data_type=TensorProto.FLOAT, dims=[600], float_data=[0.5] * 600)
    bf16 = helper.make_tensor("bf16", TensorProto.BFLOAT16, [700], [1.5] * 700)
    model = helper.make_model(helper.make_graph([], "g", [], [], [int4, raw4, floats, bf16]))
    path = tmp_path / "m.onnx"
    onnx.save(model, path)
    for external in (False, True):
        loaded = Model.load(path)
        saved = loaded.save(tmp_path / f"o{external}.onnx", external_data=external)
        written = _load(saved.model).graph.initializer
        for before, after in zip(model.graph.initializer, written, strict=True):
            np.testing.assert_array_equal(numpy_helper.to_array(before), numpy_helper.to_array(after))
            assert before.data_type == after.data_type
        packed = next(c for c in loaded.graph.initializers if c.name == "raw4")
        np.testing.assert_array_equal(packed.values.astype(int), values)
        again = _load(loaded.save(tmp_path / "again.onnx", external_data=external).model)
        assert again.graph.initializer[1] == raw4


# -- names, folders, permissions


def test_names_in_use_are_not_taken(external: Path, linear: onnx.ModelProto) -> None:
    out = external.with_name("out.onnx")
    precious = external.with_name("out.onnx.data")
    precious.write_bytes(b"somebody else's")
    saved = Model.load(external).save(out)
    assert precious.read_bytes() == b"somebody else's"
    assert saved.data == (external.with_name("out.onnx.1.data"),)
    assert _load(out) == linear


def test_in_place_embedded(embedded: Path, weight: np.ndarray, linear: onnx.ModelProto) -> None:
    model = Model.load(embedded)
    model.graph.doc_string = ""
    model.save(embedded)
    assert _load(embedded) == linear
    assert [f.name for f in embedded.parent.iterdir()] == ["m.onnx"]
    # The model in memory still reads what it was loaded from.
    np.testing.assert_array_equal(next(iter(model.graph.initializers)).values, weight)
    model.save(embedded)
    assert _load(embedded) == linear


def test_in_place_external_twice(external: Path, weight: np.ndarray, linear: onnx.ModelProto) -> None:
    first = Model.load(external)
    first.save(external)
    # weights.bin is not named after the model: another model may use it.
    assert sorted(_snapshot(external.parent)) == ["m.onnx", "m.onnx.data", "weights.bin"]
    second = Model.load(external)
    third = second.copy()
    second.save(external)
    assert sorted(_snapshot(external.parent)) == ["m.onnx", "m.onnx.1.data", "weights.bin"]
    assert _load(external) == linear
    # Its data file is gone, but the loaded model still holds it open.
    np.testing.assert_array_equal(next(iter(third.graph.initializers)).values, weight)
    third.save(external, external_data=False)
    assert sorted(_snapshot(external.parent)) == ["m.onnx", "weights.bin"]
    assert onnx.load(external, load_external_data=False) == linear


def test_data_that_the_input_reads_is_not_removed(external: Path, linear: onnx.ModelProto) -> None:
    """The replaced output refers to a file that the input (another model) refers to as well."""
    (external.parent / "weights.bin").rename(external.parent / "out.onnx.data")
    model = onnx.load(external, load_external_data=False)
    for tensor in model.graph.initializer:
        tensor.external_data[0].value = "out.onnx.data"
    external.write_bytes(model.SerializeToString())
    out = external.with_name("out.onnx")
    out.write_bytes(model.SerializeToString())
    Model.load(external).save(out)
    assert _load(external) == linear
    assert _load(out) == linear


def test_a_data_file_is_never_overwritten_by_a_model(external: Path) -> None:
    before = _snapshot(external.parent)
    with pytest.raises(UserError, match="is a data file"):
        Model.load(external).save(external.parent / "weights.bin")
    assert _snapshot(external.parent) == before


def test_a_link_is_replaced_and_its_target_stays(embedded: Path, linear: onnx.ModelProto) -> None:
    link = embedded.with_name("link.onnx")
    link.symlink_to(embedded)
    before = embedded.read_bytes()
    model = Model.load(link)
    model.graph.name = "renamed"
    model.save(link)
    assert not link.is_symlink()
    assert _load(link).graph.name == "renamed"
    assert embedded.read_bytes() == before


def test_existing_files_are_kept_when_asked(embedded: Path) -> None:
    before = _snapshot(embedded.parent)
    with pytest.raises(UserError, match="exists already"):
        Model.load(embedded).save(embedded, overwrite=False)
    assert _snapshot(embedded.parent) == before


def test_permissions_follow_the_replaced_file_or_the_umask(embedded: Path, tmp_path: Path) -> None:
    embedded.chmod(0o640)
    model = Model.load(embedded)
    model.save(embedded, external_data=True)
    assert embedded.stat().st_mode & 0o777 == 0o640
    assert embedded.with_name("m.onnx.data").stat().st_mode & 0o777 == 0o640
    umask = os.umask(0o027)
    try:
        assert model.save(tmp_path / "new.onnx").model.stat().st_mode & 0o777 == 0o640
    finally:
        os.umask(umask)


@pytest.mark.parametrize("kind", ["missing folder", "folder", "device", "long name", "file as folder"])
def test_places_that_cannot_be_written_to(embedded: Path, tmp_path: Path, kind: str) -> None:
    path = {
        "missing folder": tmp_path / "no" / "m.onnx",
        "folder": tmp_path,
        "device": Path("/dev/null"),
        "long name": tmp_path / ("x" * 300),
        "file as folder": embedded / "m.onnx",
    }[kind]
    with pytest.raises(UserError) as caught:
        Model.load(embedded).save(path)
    assert str(path) in str(caught.value)
    assert caught.value.fix


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_folder_without_permission(embedded: Path) -> None:
    model = Model.load(embedded)
    embedded.parent.chmod(0o500)
    try:
        with pytest.raises(UserError, match="Permission denied"):
            model.save(embedded)
    finally:
        embedded.parent.chmod(0o700)


def test_more_than_two_gib_goes_external_by_itself(
    embedded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(save, "MAX_MESSAGE", 4000)
    model = Model.load(embedded)
    with pytest.raises(UserError, match="more than 2 GiB") as caught:
        model.save(tmp_path / "no.onnx", external_data=False)
    assert "--external-data" in str(caught.value.fix)
    assert not (tmp_path / "no.onnx").exists()
    assert model.save(tmp_path / "yes.onnx").data == (tmp_path / "yes.onnx.data",)


# -- failures


class Boom(BaseException):
    """What a signal handler may raise at any moment."""


def _fails(
    monkeypatch: pytest.MonkeyPatch, module: object, name: str, nth: int, error: BaseException
) -> None:
    real = getattr(module, name)
    calls = 0

    def failing(*args: object, **kwargs: object) -> object:
        nonlocal calls
        calls += 1
        if calls == nth:
            raise error
        return real(*args, **kwargs)

    monkeypatch.setattr(module, name, failing)


_NO_SPACE = OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("external_data", [False, True])
@pytest.mark.parametrize(
    ("name", "nth"),
    [
        ("write", 1),
        ("write", 2),
        ("fsync", 1),
        ("fsync", 2),
        ("replace", 1),
        ("copy_file_range", 1),
        ("open", 1),
    ],
)
@pytest.mark.parametrize("error", [_NO_SPACE, Boom()], ids=["disk full", "interrupted"])
@pytest.mark.parametrize("in_place", [False, True])
def test_a_failure_leaves_everything_as_it_was(
    external: Path,
    monkeypatch: pytest.MonkeyPatch,
    external_data: bool,
    name: str,
    nth: int,
    error: BaseException,
    in_place: bool,
) -> None:
    model = Model.load(external)
    model.graph.initializers[ir.Constant("new", np.ones(900))] = None
    out = external if in_place else external.with_name("out.onnx")
    before = _snapshot(external.parent)
    if name == "open" and in_place:
        nth += 1  # the first one looks at what is going to be replaced
    with monkeypatch.context() as patch:
        _fails(patch, os, name, nth, error)
        if external_data or (name, nth) != ("fsync", 2):
            with pytest.raises((UserError, Boom)) as caught:
                model.save(out, external_data=external_data)
            if isinstance(caught.value, UserError):
                assert "No space left" in str(caught.value)
    if external_data or (name, nth) != ("fsync", 2):
        assert _snapshot(external.parent) == before
    # And the model is still good for another try.
    model.save(out, external_data=external_data)
    written = _load(out).graph.initializer
    assert [t.name for t in written] == ["w", "b", "new"]


def test_an_interruption_right_after_the_commit_keeps_the_new_data(
    external: Path, monkeypatch: pytest.MonkeyPatch, linear: onnx.ModelProto
) -> None:
    real = os.replace

    def replace_then_fail(*args: str) -> None:
        real(*args)
        raise Boom

    monkeypatch.setattr(os, "replace", replace_then_fail)
    with pytest.raises(Boom):
        Model.load(external).save(external)
    assert _load(external) == linear


def test_kernel_copies_that_do_not_work_fall_back(
    embedded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, linear: onnx.ModelProto
) -> None:
    calls = []

    def refuse(code: int) -> Callable[..., int]:
        def call(*args: object) -> int:
            calls.append(code)
            raise OSError(code, "no")

        return call

    monkeypatch.setattr(os, "copy_file_range", refuse(errno.EXDEV))
    monkeypatch.setattr(os, "sendfile", refuse(errno.EINVAL))
    saved = Model.load(embedded).save(tmp_path / "o.onnx")
    assert calls == [errno.EXDEV, errno.EINVAL]
    assert _load(saved.model) == linear


def test_partial_kernel_copies_are_continued(
    embedded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, linear: onnx.ModelProto
) -> None:
    real = os.copy_file_range
    monkeypatch.setattr(os, "copy_file_range", lambda s, o, n, at: real(s, o, min(n, 1000), at))
    assert _load(Model.load(embedded).save(tmp_path / "o.onnx").model) == linear


def test_a_source_that_shrank_is_an_error(external: Path, tmp_path: Path) -> None:
    model = Model.load(external)
    os.truncate(external.parent / "weights.bin", 100)
    with pytest.raises(UserError, match="changed or replaced"):
        model.save(tmp_path / "o.onnx")
    assert not list(tmp_path.glob("*.onnx*"))


@pytest.mark.slow
def test_more_than_two_gib_of_real_offsets(tmp_path: Path) -> None:
    """A sparse data file of 4.5 GiB: offsets beyond 32 bits on load, read and save."""
    n = 1 << 29  # 2 GiB of float32
    tensors = []
    for i in range(2):
        tensor = TensorProto(name=f"w{i}", data_type=TensorProto.FLOAT, dims=[n], data_location=1)
        for key, value in (("location", "big.bin"), ("offset", str(i * 5 * n)), ("length", str(4 * n))):
            tensor.external_data.add(key=key, value=value)
        tensors.append(tensor)
    path = tmp_path / "m.onnx"
    path.write_bytes(helper.make_model(helper.make_graph([], "g", [], [], tensors)).SerializeToString())
    with (tmp_path / "big.bin").open("wb") as file:
        file.truncate(9 * n)
        file.seek(9 * n - 4)
        file.write(np.float32(7).tobytes())
    model = Model.load(path)
    assert model.nbytes == 8 * n
    assert [float(c.values[-1]) for c in model.graph.initializers] == [0, 7]
    with pytest.raises(UserError, match="more than 2 GiB"):
        model.save(tmp_path / "o.onnx", external_data=False)
    saved = model.save(tmp_path / "o.onnx")
    assert saved.data[0].stat().st_size == 8 * n
    again = Model.load(saved.model)
    assert [float(c.values[-1]) for c in again.graph.initializers] == [0, 7]
