"""What people read of a measurement."""

import io
from dataclasses import replace

import pytest
from rich.console import Console

from graphopt.report.document import FileInfo
from graphopt.report.timed import BenchReport, OpTime, PairedRatio, Timing
from graphopt.report.timing import sentence, timing

A = Timing(
    "A", FileInfo("a.onnx", 10), 100, 20, True, 1.2, 1.0, 1.1, 1.3, 1.4, 1.5, create_ms=3.0,
    peak_bytes=2_500_000, ops=(OpTime("Conv", "CPUExecutionProvider", 8, 0.9, 0.9), OpTime("Relu", "CPUExecutionProvider", 1, 0.1, 0.1)),
    sessions=20, disturbed=0.01,
)  # fmt: skip
B = replace(
    A,
    label="B",
    file=FileInfo("b.onnx", 10),
    p50_ms=0.55,
    peak_bytes=None,
    ops=(OpTime("FusedConv", "CPUExecutionProvider", 8, 0.5, 1.0),),
    steady=False,
    note="no steady state in 19 of 20 sessions: times still drift",
)
FASTER = PairedRatio("A", "B", 0.5, 0.48, 0.53, 0.99, 400, 0.05, "faster", 20)


def text(report: BenchReport, *, verbose: bool = False, width: int = 100) -> str:
    out = io.StringIO()
    timing(
        report, Console(file=out, markup=False, highlight=False, emoji=False, width=width), verbose=verbose
    )
    return out.getvalue()


def report(*ratios: PairedRatio) -> BenchReport:
    return BenchReport(
        "CPUExecutionProvider",
        "all",
        2,
        affinity=(0, 1),
        inputs=("synthesized: x 1x3",),
        timings=(A, B),
        ratios=ratios,
        notes=("the machine is busy",),
        machine="a processor",
        versions={"onnxruntime": "1"},
    )


def test_the_verdict_comes_first_and_nothing_is_missing() -> None:
    out = text(report(FASTER))
    assert out.startswith("B IS FASTER: it takes x0.500 of A's time, 50.0% less (99%: 0.480 to 0.530)")
    for words in (
        "1.10 ms", "0.55 ms", "2.5 MB", "note on B: no steady state", "note: the machine is busy",
        "Conv", "FusedConv", "-900 µs", "+500 µs", "90.0%", "2 threads, bound to 0, 1", "synthesized: x 1x3",
    ):  # fmt: skip
        assert words in out
    assert "a processor" not in out
    full = text(report(FASTER), verbose=True)
    assert "a processor" in full
    assert "B: fastest 1.00 ms, p95 1.40 ms; 20 sessions, 20 runs to warm up" in full


@pytest.mark.parametrize(
    ("ratio", "words"),
    [
        (replace(FASTER, ratio=1.06, low=1.02, high=1.1, verdict="slower"), "x1.060 of A's time, 6.0% more"),
        (
            replace(FASTER, ratio=1.001, low=0.999, high=1.003, verdict="no difference", equivalent=True),
            "less than 1.0% either way (99%: 0.999 to 1.003)",
        ),
        (
            replace(FASTER, ratio=1.01, low=0.99, high=1.03, resolution=0.02, verdict="no difference"),
            "what there is may be noise (99%: 0.990 to 1.030); less than 2.0% could not be told from noise",
        ),
        (
            replace(FASTER, ratio=1.1, low=0.8, high=1.4, resolution=0.3, verdict="no difference"),
            "30.0% could not be told from noise; measure for longer",
        ),
        (
            replace(FASTER, ratio=1.008, low=1.004, high=1.012, verdict="no difference"),
            "0.8% is below the 1.0% that count",
        ),
        (
            replace(FASTER, ratio=1.0, low=1e-22, high=5e21, resolution=5e21, verdict="no difference"),
            "(99%: anything)",
        ),
    ],
)
def test_sentences(ratio: PairedRatio, words: str) -> None:
    assert words in sentence(ratio)


def test_one_model_and_no_profile() -> None:
    out = text(replace(report(), timings=(replace(A, ops=()),), notes=()))
    assert "FASTER" not in out
    assert "operator" not in out


def test_many_operators_are_shortened() -> None:
    ops = tuple(OpTime(f"Op{i:02}", "CPUExecutionProvider", 1, 1.0 / (i + 1), 0.05) for i in range(20))
    many = replace(report(), timings=(replace(A, ops=ops),))
    assert "8 more operators" in text(many)
    assert "Op19" not in text(many)
    assert "Op19" in text(many, verbose=True)


def test_operators_on_two_providers() -> None:
    ops = (*A.ops, OpTime("Conv", "CUDAExecutionProvider", 2, 0.3, 0.3))
    out = text(replace(report(), timings=(replace(A, ops=ops),)))
    assert "CUDA" in out
    assert "CPU" in out
