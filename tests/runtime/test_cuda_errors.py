"""What is said of a GPU that cannot be used. The messages were recorded from onnxruntime-gpu 1.31.1."""

import shutil
import struct
import subprocess
from pathlib import Path
from types import SimpleNamespace

import onnxruntime
import pytest

from graphopt.errors import ProviderError, UserError
from graphopt.runtime import cuda, providers
from graphopt.runtime.cuda import DeviceMemoryError, MissingLibrary
from graphopt.runtime.elf import needed
from graphopt.runtime.logs import LogLine
from graphopt.runtime.session import RuntimeFailure, create, open_session, session_options

CUDA, TENSORRT = providers.CUDA, providers.TENSORRT
CALL = (
    "/onnxruntime_src/onnxruntime/core/providers/cuda/cuda_call.cc:154 std::conditional_t<THRW, void, "
    "onnxruntime::common::Status> onnxruntime::CudaCall(ERRTYPE, const char*, const char*, SUCCTYPE, const "
    "char*, const char*, int) [with ERRTYPE = cudaError; bool THRW = true; SUCCTYPE = cudaError] CUDA failure "
    "{0} ; GPU=-1 ; hostname=vm ; file=/onnxruntime_src/onnxruntime/core/providers/cuda/"
    "cuda_execution_provider.cc ; line=355 ; expr=cudaSetDevice(info_.device_id); "
)
OPTION = (
    "/onnxruntime_src/onnxruntime/core/providers/cuda/cuda_execution_provider_info.cc:63 static "
    "onnxruntime::CUDAExecutionProviderInfo onnxruntime::CUDAExecutionProviderInfo::FromProviderOptions("
    "const onnxruntime::ProviderOptions&) [ONNXRuntimeError] : 1 : FAIL : "
)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        ("100: no CUDA-capable device is detected", "there is no GPU"),
        ("35: CUDA driver version is insufficient for CUDA runtime version", "driver is older"),
        ("101: invalid device ordinal", "there is no GPU 7"),
        ("209: no kernel image is available for execution on the device", "architecture"),
        ("804: forward compatibility was attempted on non supported HW", "older driver"),
    ],
)
def test_failures_of_cuda(call: str, words: str) -> None:
    told = cuda.explain(CUDA, CALL.format(call), {"device_id": "7"})
    assert isinstance(told, ProviderError)
    assert words in told.what
    assert call.partition(":")[0] in told.what
    assert told.fix
    assert told.exit_code == 2


def test_a_failure_that_is_not_known_is_still_said() -> None:
    told = cuda.explain(CUDA, CALL.format("719: unspecified launch failure"), {})
    assert told is not None
    assert "719, unspecified launch failure" in told.what


def test_a_hidden_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    told = cuda.explain(CUDA, CALL.format("100: no CUDA-capable device is detected"), {})
    assert told is not None
    assert "CUDA_VISIBLE_DEVICES is '-1'" in (told.fix or "")


def test_options() -> None:
    unknown = cuda.explain(
        CUDA, OPTION + 'provider_options_utils.h:182 Parse Unknown provider option: "nonsense".', {}
    )
    assert unknown is not None
    assert "no option 'nonsense'" in unknown.what
    bad = cuda.explain(
        CUDA,
        OPTION + 'provider_options_utils.h:187 Parse Failed to parse provider option "gpu_mem_limit": '
        'parse_string.h:116 ParseStringWithClassicLocale Failed to parse value: "18446744073709551615"',
        {"gpu_mem_limit": "-3"},
    )
    assert bad is not None
    assert "'-3'" in bad.what


def test_a_bad_device_because_of_the_driver_is_the_drivers_fault() -> None:
    text = (
        OPTION
        + 'Failed to parse provider option "device_id": CUDA failure 35: CUDA driver version is insufficient '
        "for CUDA runtime version ; GPU=-1 ; hostname=vm ; expr=cudaGetDeviceCount(&num_devices); "
    )
    told = cuda.explain(CUDA, text, {"device_id": "7"})
    assert told is not None
    assert "driver" in told.what


@pytest.mark.parametrize(
    ("options", "words"),
    [({}, "ran out of the GPU's memory"), ({"gpu_mem_limit": "1000000"}, "1,000,000 bytes")],
)
def test_the_gpus_memory(options: dict[str, str], words: str) -> None:
    text = (
        "Non-zero status code returned while running Conv node. Name:'c' Status Message: bfc_arena.cc:376 void* "
        "onnxruntime::BFCArena::AllocateRawInternal(size_t, bool) Failed to allocate memory for requested buffer "
        "of size 4294967296"
    )
    told = cuda.explain(CUDA, text, options)
    assert isinstance(told, DeviceMemoryError)
    assert isinstance(told, MemoryError)  # says nothing about the model
    assert words in told.what
    assert "4,294,967,296" in told.what
    assert isinstance(cuda.explain(CUDA, CALL.format("2: out of memory"), options), DeviceMemoryError)


def test_a_failure_of_the_model_is_left_alone() -> None:
    assert cuda.explain(CUDA, "Invalid rank for input: x Got: 2 Expected: 4", {}) is None


def fake_ort(tmp_path: Path, version: str = "13.0") -> SimpleNamespace:
    (tmp_path / "capi").mkdir()
    (tmp_path / "capi" / "libonnxruntime_providers_cuda.so").touch()
    return SimpleNamespace(__file__=str(tmp_path / "__init__.py"), cuda_version=version)


def test_missing_libraries_name_their_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = ("libcublasLt.so.13", "libcuda.so.1", "libcudart.so.13", "libc.so.6")
    monkeypatch.setattr(cuda, "needed", lambda path: wanted)
    monkeypatch.setattr(cuda, "conflict", lambda: "")
    gone = "cannot open shared object file: No such file or directory"
    monkeypatch.setattr(cuda, "_why_not", lambda name: "" if name == "libc.so.6" else f"{name}: {gone}")
    error = cuda.not_started(CUDA, fake_ort(tmp_path))
    assert "libcublasLt.so.13, libcudart.so.13, libcudnn.so.9, libcuda.so.1" in error.what
    assert "pip install nvidia-cublas nvidia-cuda-runtime nvidia-cudnn-cu13" in (error.fix or "")
    assert "libcuda.so.1 comes with NVIDIA's driver: install one that can do CUDA 13.0" in (error.fix or "")


def test_cudnn_by_itself_keeps_nothing_from_starting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "needed", lambda path: ("libcudart.so.13",))
    monkeypatch.setattr(cuda, "_why_not", lambda name: "gone" if "cudnn" in name else "")
    assert cuda.missing_libraries(CUDA, fake_ort(tmp_path)) == ()


@pytest.mark.parametrize(
    ("text", "library", "package"),
    [
        (
            "cuDNN is not available. Install cuDNN, update the system library search path, or set "
            "enable_cudnn=0 to force native CUDA paths where available.",
            "libcudnn.so.9",
            "nvidia-cudnn-cu13",
        ),
        ("cuFFT is unavailable for CUDA Execution Provider: not found", "libcufft.so", "nvidia-cufft"),
    ],
)
def test_libraries_that_are_loaded_when_first_used(text: str, library: str, package: str) -> None:
    told = cuda.explain(CUDA, text, {})
    assert isinstance(told, ProviderError)
    assert library in told.what
    assert package in (told.fix or "")


def test_a_library_that_lacks_another_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "needed", lambda path: ("libcudnn.so.9",))
    why = "libcudnn_graph.so.9: cannot open shared object file: No such file or directory"
    monkeypatch.setattr(cuda, "_why_not", lambda name: why)
    found = cuda.missing_libraries(CUDA, fake_ort(tmp_path, "12.8"))
    assert found == (MissingLibrary("libcudnn_graph.so.9", why, "nvidia-cudnn-cu12"),)


def test_a_library_that_is_there_and_broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "needed", lambda path: ("libcudart.so.13",))
    monkeypatch.setattr(cuda, "conflict", lambda: "")
    monkeypatch.setattr(
        cuda, "_why_not", lambda name: f"/usr/lib/{name}: file too short" if "cudart" in name else ""
    )
    error = cuda.not_started(CUDA, fake_ort(tmp_path))
    assert "file too short" in error.what


def test_everything_loads_and_yet_it_does_not_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "needed", lambda path: ())
    monkeypatch.setattr(cuda, "_why_not", lambda name: "")
    monkeypatch.setattr(cuda, "conflict", lambda: "")
    ort = fake_ort(tmp_path)
    assert "all libraries that it needs load" in cuda.not_started(CUDA, ort).what
    log = [
        LogLine(3, "cuda_call.cc:148 CudaCall", "CUDA failure 100: no CUDA-capable device is detected ; x")
    ]
    assert "there is no GPU" in cuda.not_started(CUDA, ort, log).what


@pytest.mark.parametrize(
    ("library", "major", "package"),
    [
        ("libcublasLt.so.13", "13", "nvidia-cublas"),
        ("libcublasLt.so.12", "12", "nvidia-cublas-cu12"),
        ("libcudnn.so.9", "13", "nvidia-cudnn-cu13"),
        ("libcudnn_ops.so.9", "12", "nvidia-cudnn-cu12"),
        ("libnvinfer.so.10", "13", "tensorrt"),
        ("libcuda.so.1", "13", ""),
        ("libfoo.so.1", "13", ""),
    ],
)
def test_packages(library: str, major: str, package: str) -> None:
    assert cuda.package_of(library, major) == package


def test_which_build_is_installed() -> None:
    both = {"onnxruntime": "1.32.0", "onnxruntime-gpu": "1.31.1"}
    assert "both installed" in cuda.conflict(both)
    assert "pip uninstall -y onnxruntime onnxruntime-gpu" in cuda.missing_build(both)
    assert cuda.conflict({"onnxruntime": "1.32.0"}) == ""
    assert "build for CPUs" in cuda.missing_build({"onnxruntime": "1.32.0"})
    assert "graphopt[gpu]" in cuda.missing_build({})


def test_both_builds_explain_a_provider_that_does_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "installed_builds", lambda: {"onnxruntime": "1", "onnxruntime-gpu": "2"})
    assert "overwrite each other" in (cuda.not_started(CUDA, onnxruntime).fix or "")


@pytest.mark.skipif(CUDA in onnxruntime.get_available_providers(), reason="this build has CUDA")
def test_this_build_has_no_cuda() -> None:
    with pytest.raises(ProviderError, match="'cuda' is not available") as e:
        open_session(b"", provider="cuda")
    assert "build for CPUs" in str(e.value)


class FakeOrt:
    """An onnxruntime whose sessions do as told."""

    def __init__(self, outcome: Exception | list[str]) -> None:
        self.outcome, self.calls = outcome, []  # type: ignore[var-annotated]
        self.__file__ = onnxruntime.__file__

    def InferenceSession(self, proto: bytes, options: object, **kwargs: object) -> SimpleNamespace:
        self.calls.append(kwargs)
        if isinstance(self.outcome, Exception):
            raise self.outcome
        return SimpleNamespace(get_providers=lambda: self.outcome)


def test_how_a_session_on_cuda_is_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    options = session_options(optimize="all")
    good = FakeOrt([CUDA, "CPUExecutionProvider"])
    settings = providers.ProviderSettings(tf32=False, memory_limit=10**9, device_id=1)
    create(good, b"", options, CUDA, settings)
    given = {"use_tf32": "0", "gpu_mem_limit": "1000000000", "device_id": "1"}
    assert good.calls == [{"providers": [(CUDA, given), "CPUExecutionProvider"], "enable_fallback": 0}]
    with pytest.raises(ProviderError, match="there is no GPU"):
        create(FakeOrt(RuntimeError(CALL.format("100: none"))), b"", options, CUDA, settings)
    with pytest.raises(RuntimeFailure, match="no such op"):
        create(FakeOrt(RuntimeError("no such op")), b"", options, CUDA, settings)
    monkeypatch.setattr(cuda, "missing_libraries", lambda provider, ort: ())
    with pytest.raises(ProviderError, match="could not start"):
        create(FakeOrt(["CPUExecutionProvider"]), b"", options, CUDA, settings)


def test_settings() -> None:
    settings = providers.parse_settings({"cudnn_conv_algo_search": "HEURISTIC"}, tf32=True, memory_limit=5)
    assert settings.options(CUDA) == {
        "use_tf32": "1",
        "gpu_mem_limit": "5",
        "cudnn_conv_algo_search": "HEURISTIC",
    }
    assert settings.describe(CUDA)["TF32"] == "on"
    assert providers.AS_DEPLOYED.describe(CUDA) == {"TF32": "on"}
    assert providers.EXACT_MATH.describe(CUDA) == {"TF32": "off"}
    assert providers.AS_DEPLOYED.eps(CUDA) == 2**-10
    assert providers.EXACT_MATH.eps(CUDA) is None
    assert providers.AS_DEPLOYED.eps(providers.CPU) is None
    assert providers.EXACT_MATH.options(providers.CPU) == {}
    assert providers.ProviderSettings(device_id=2, tf32=True).options(TENSORRT) == {"device_id": "2"}


@pytest.mark.parametrize(
    ("pairs", "words"),
    [
        ({"use_tf32": "yes"}, "cannot be 'yes'"),
        ({"device_id": "one"}, "whole number"),
        ({"arena_extend_strategy": "x"}, "kSameAsRequested"),
    ],
)
def test_settings_that_make_no_sense(pairs: dict[str, str], words: str) -> None:
    with pytest.raises(UserError, match=words):
        providers.parse_settings(pairs)


def test_a_setting_given_twice() -> None:
    with pytest.raises(UserError, match="say the same"):
        providers.parse_settings({"use_tf32": "1"}, tf32=True)


def elf(names: list[str]) -> bytes:
    """A file with nothing but a dynamic section, by hand: loaded at 0x1000, where it starts with strings."""
    strings = b"\0" + b"".join(n.encode() + b"\0" for n in names)
    strings += b"\0" * (-len(strings) % 16)
    entries, at = [], 1
    for name in names:
        entries.append((1, at))
        at += len(name) + 1
    header_size = 64 + 2 * 56
    dynamic = b"".join(struct.pack("<qQ", *e) for e in [*entries, (5, 0x1000), (0, 0)])
    start, size = header_size, len(strings) + len(dynamic)
    ident = b"\x7fELF" + bytes([2, 1, 1]) + bytes(9)
    header = ident + struct.pack("<HHIQQQIHHHHHH", 3, 62, 1, 0, 64, 0, 0, 64, 56, 2, 0, 0, 0)
    load = struct.pack("<IIQQQQQQ", 1, 4, start, 0x1000, 0x1000, size, size, 16)
    at = start + len(strings)
    table = struct.pack("<IIQQQQQQ", 2, 4, at, 0x1000, 0, len(dynamic), len(dynamic), 8)
    return header + load + table + strings + dynamic


def test_needed_libraries_of_a_file_made_by_hand(tmp_path: Path) -> None:
    file = tmp_path / "lib.so"
    file.write_bytes(elf(["libcublasLt.so.13", "libc.so.6"]))
    assert needed(file) == ("libcublasLt.so.13", "libc.so.6")
    for broken in (b"not ELF", b"\x7fELF" + bytes(60), elf(["a"])[:100]):
        file.write_bytes(broken)
        assert needed(file) == ()


@pytest.mark.skipif(shutil.which("readelf") is None, reason="there is no readelf to compare with")
def test_needed_libraries_of_onnxruntime() -> None:
    file = next(Path(onnxruntime.__file__).parent.glob("capi/onnxruntime_pybind11_state*.so"))
    said = subprocess.run(["readelf", "-d", file], capture_output=True, text=True, check=True).stdout
    expected = tuple(x.split("[")[1].rstrip("]") for x in said.splitlines() if "(NEEDED)" in x)
    assert needed(file) == expected != ()
