"""graphopt's int8 preset beside onnxruntime's quantize_static: accuracy and paired latency.

    python benchmarks/static_int8.py MODEL.onnx DATA.npz [MODEL DATA ...] [--passes int8]

For every model: graphopt's result, and quantize_static's with each of its sensible settings, on the same
calibration samples. Accuracy is the SQNR of the outputs against the float model's on the samples that neither
saw (every 8th). Latency is paired and interleaved with the float model's, one sample, one thread. Prints a
Markdown table.
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quant_pre_process
from onnxruntime.quantization import quantize_static as ort_quantize_static

import graphopt
from graphopt.runtime.latency import compare_latency

Feeds = dict[str, Any]
HOLD_BACK = 8


@dataclass(frozen=True)
class Row:
    """One quantized model."""

    tool: str
    sqnr_db: float = math.nan
    ratio: float = math.nan
    low: float = math.nan
    high: float = math.nan
    bytes: int = 0
    note: str = ""


class Reader:
    """Samples for onnxruntime's calibrators."""

    def __init__(self, samples: list[Feeds]) -> None:
        self._samples = iter(samples)

    def get_next(self) -> Feeds | None:
        """The next sample, None at the end."""
        return next(self._samples, None)


def samples_of(path: Path) -> tuple[list[Feeds], list[Feeds]]:
    """Calibration and held-back samples, each with a batch axis of 1."""
    with np.load(path) as data:
        arrays = {name: data[name] for name in data.files}
    count = len(next(iter(arrays.values())))
    every = [{k: v[i : i + 1] for k, v in arrays.items()} for i in range(count)]
    held = [s for i, s in enumerate(every) if i % HOLD_BACK == HOLD_BACK - 1]
    return [s for i, s in enumerate(every) if i % HOLD_BACK != HOLD_BACK - 1], held


def session(path: Path) -> ort.InferenceSession:
    """One thread, default optimizations, quiet."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def outputs(path: Path, samples: list[Feeds]) -> list[list[Any]]:
    """Outputs per sample."""
    runner = session(path)
    names = [i.name for i in runner.get_inputs()]
    return [runner.run(None, {n: s[n] for n in names}) for s in samples]


def sqnr(reference: list[list[Any]], other: list[list[Any]]) -> float:
    """SQNR of the worst float output over all samples, in dB."""
    worst = math.inf
    for i, first in enumerate(reference[0]):
        if first.dtype.kind != "f":
            continue
        signal = sum(float((r[i].astype(np.float64) ** 2).sum()) for r in reference)
        error = sum(
            float(((r[i].astype(np.float64) - o[i].astype(np.float64)) ** 2).sum())
            for r, o in zip(reference, other, strict=True)
        )
        worst = min(worst, 10 * math.log10(signal / max(error, 1e-30)))
    return worst


def ort_settings() -> Iterator[tuple[str, Mapping[str, Any]]]:
    """quantize_static's settings: calibration method, and all operators or products with weights only."""
    for method in ("MinMax", "Percentile", "Entropy"):
        for scope in ("all", "weights only"):
            options: dict[str, Any] = {"calibrate_method": getattr(CalibrationMethod, method)}
            if scope == "weights only":
                options["op_types_to_quantize"] = ["MatMul", "Gemm", "Conv"]
                options["extra_options"] = {"MatMulConstBOnly": True}
            yield f"quantize_static {method}, {scope}", options


def measure(tool: str, original: Path, result: Path, reference: list[list[Any]], held: list[Feeds]) -> Row:
    """Accuracy and latency of one result."""
    found = compare_latency(
        graphopt.load(original).session_source(),
        graphopt.load(result).session_source(),
        held[:1],
        seconds=2.0,
        threads=1,
    )
    return Row(
        tool,
        sqnr(reference, outputs(result, held)),
        found.ratio,
        found.low,
        found.high,
        result.stat().st_size,
    )


def rows_of(model: Path, data: Path, passes: str, folder: Path) -> Iterator[Row]:
    """graphopt's row, then quantize_static's."""
    calibration, held = samples_of(data)
    reference = outputs(model, held)
    ours = folder / f"{model.stem}.graphopt.onnx"
    result = graphopt.run(model, passes, data=data, verify="final")
    result.save(ours, over_budget=True)
    yield measure(f"graphopt {passes}", model, ours, reference, held)
    clean = folder / f"{model.stem}.clean.onnx"
    try:
        quant_pre_process(str(model), str(clean))
    except Exception:  # its symbolic shape inference fails on some models
        clean = model
    for number, (name, options) in enumerate(ort_settings()):
        out = folder / f"{model.stem}.{number}.onnx"
        try:
            ort_quantize_static(
                str(clean),
                str(out),
                Reader(calibration),
                quant_format=QuantFormat.QDQ,
                per_channel=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                **options,
            )
            yield measure(name, model, out, reference, held)
        except Exception as e:  # a peer that fails is a row, too
            yield Row(name, note=f"{type(e).__name__}: {str(e).splitlines()[0][:60]}")


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("files", nargs="+", help="MODEL DATA pairs")
    parser.add_argument("--passes", default="int8")
    args = parser.parse_args()
    if len(args.files) % 2:
        sys.exit("give MODEL DATA pairs")
    print("| model | tool | SQNR dB | latency / float | bytes / float | |")
    print("|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for name, data in zip(args.files[::2], args.files[1::2], strict=True):
            model = Path(name)
            for row in rows_of(model, Path(data), args.passes, Path(folder)):
                size = row.bytes / model.stat().st_size
                timed = f"{row.ratio:.2f} ({row.low:.2f}-{row.high:.2f})"
                print(
                    f"| {model.stem} | {row.tool} | {row.sqnr_db:.1f} | {timed} | {size:.2f} | {row.note} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
