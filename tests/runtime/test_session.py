"""Sessions: dtypes, types, errors, weights from memory and from files."""

import builtins
from pathlib import Path
from types import SimpleNamespace

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper, parser

from graphopt.errors import ProviderError
from graphopt.runtime import session as sessions
from graphopt.runtime import values
from graphopt.runtime.session import RuntimeFailure, open_session, resolve_provider


def identity(elem_type: int, shape: list[int]) -> onnx.ModelProto:
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", elem_type, shape)],
        [helper.make_tensor_value_info("y", elem_type, shape)],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2])
def test_dtypes_that_numpy_lacks(dtype: type) -> None:
    x = np.array([1.5, -0.0, 0.25]).astype(dtype)
    elem_type = values.elem_type_of_array(x)
    y = open_session(identity(elem_type, [3])).run({"x": x})["y"]
    assert y.dtype == x.dtype
    assert np.array_equal(y.view(np.uint8), x.view(np.uint8))


@pytest.mark.parametrize("name", ["INT4", "UINT4"])
def test_packed_inputs(name: str) -> None:
    elem_type = TensorProto.DataType.Value(name)
    graph = helper.make_graph(
        [helper.make_node("DequantizeLinear", ["x", "s"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", elem_type, [5])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [5])],
        [numpy_helper.from_array(np.array(0.5, np.float32), "s")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    x = np.array([1, 7, 0, 3, 5]).astype(values.numpy_dtype(elem_type))
    if name == "INT4":
        x = -x
    y = open_session(model).run({"x": x})["y"]
    assert np.array_equal(y, x.astype(np.float32) * 0.5)


@pytest.mark.parametrize("name", ["INT4", "UINT4", "FLOAT4E2M1", "BFLOAT16"])
@pytest.mark.parametrize("count", [1, 4, 5])
def test_pack_and_unpack_are_inverse(name: str, count: int) -> None:
    elem_type = TensorProto.DataType.Value(name)
    x = np.array([-3, 2, 1, 0, -1][:count]).astype(np.float32).astype(values.numpy_dtype(elem_type))
    again = values.unpack(values.pack(x, elem_type).tobytes(), elem_type, x.shape)
    assert again.dtype == x.dtype
    assert again.tobytes() == x.tobytes()


def test_sequences_and_optionals() -> None:
    model = parser.parse_model(
        '<ir_version: 8, opset_import: ["":17]>'
        "g(optional(seq(float[2])) a) => (bool y) { y = OptionalHasElement(a) }"
    )
    session = open_session(model)
    assert session.inputs[0].elem_type is None
    assert not session.run({"a": None})["y"]
    assert session.run({"a": [np.ones(2, np.float32)]})["y"]


def test_failures_are_typed() -> None:
    custom = (
        '<ir_version: 8, opset_import: ["":17, "foo":1]> g(float[2] a) => (float[2] y) { y = foo.Bar(a) }'
    )
    with pytest.raises(RuntimeFailure, match="foo:Bar") as e:
        open_session(parser.parse_model(custom))
    assert e.value.kind == "no-kernel"
    assert "ONNXRuntimeError" not in e.value.message
    with pytest.raises(RuntimeFailure) as e:
        open_session(b"not a model")
    assert e.value.kind == "load"
    with pytest.raises(RuntimeFailure) as e:
        open_session(identity(TensorProto.FLOAT, [3])).run({"x": np.ones(4, np.float32)})
    assert e.value.kind == "run"


def test_a_failing_run_prints_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    model = parser.parse_model(
        '<ir_version: 8, opset_import: ["":17]> g(int64[2] a, int64[2] b) => (int64[2] y) { y = Div(a, b) }'
    )
    with pytest.raises(RuntimeFailure, match="division by zero"):
        open_session(model).run({"a": np.ones(2, np.int64), "b": np.zeros(2, np.int64)})
    assert capfd.readouterr() == ("", "")


def test_a_missing_provider_names_what_is_there() -> None:
    with pytest.raises(ProviderError) as e:
        resolve_provider("NoSuchExecutionProvider")
    assert "CPUExecutionProvider" in str(e.value)
    assert resolve_provider("cpu") == "CPUExecutionProvider"


def test_without_onnxruntime_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def fake(name: str, *args: object, **kwargs: object) -> object:
        if name == "onnxruntime":
            raise ImportError("No module named 'onnxruntime'")
        return real(name, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(builtins, "__import__", fake)
    with pytest.raises(ProviderError, match=r"graphopt\[cpu\]"):
        sessions.onnxruntime()


def test_weights_from_a_folder(tmp_path: Path) -> None:
    w = np.arange(512, dtype=np.float32).reshape(2, 256)
    (tmp_path / "w.bin").write_bytes(w.tobytes())
    tensor = TensorProto(name="w", data_type=1, dims=w.shape, data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="w.bin")
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", 1, [1, 2])],
        [helper.make_tensor_value_info("y", 1, [1, 256])],
        [tensor],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    source = SimpleNamespace(proto=model.SerializeToString(), folder=str(tmp_path))
    x = np.array([[1, 2]], np.float32)
    for optimize in ("none", "basic", "all"):
        y = open_session(source, optimize=optimize, prepack=False).run({"x": x})["y"]
        assert np.array_equal(y, x @ w)


def test_overridable_initializers_are_listed() -> None:
    model = identity(TensorProto.FLOAT, [3])
    model.graph.initializer.append(numpy_helper.from_array(np.ones(3, np.float32), "x"))
    session = open_session(model)
    assert [p.name for p in session.overridable] == ["x"]
    assert session.run({})["y"].tolist() == [1, 1, 1]
    assert session.run({"x": np.zeros(3, np.float32)})["y"].tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    "words",
    [
        "Exception during initialization: std::bad_alloc",
        "[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : bfc_arena.cc Failed to allocate memory for requested buffer",
    ],
)
def test_running_out_of_memory_says_nothing_about_the_model(words: str) -> None:
    assert isinstance(sessions.failure(RuntimeError(words), while_running=True), MemoryError)
