"""What each way of recovering accuracy brings back of what plain min-max quantization loses.

    python benchmarks/recovery.py --case name=digits,model=M.onnx,calib=C.npz,test=T.npz,metric=accuracy

`calib` and `test` hold an array per model input, samples along the first axis; `test` may hold `target`
for the metric: `accuracy` (of the largest output, in percent), `psnr` (of outputs in [0, 1], in dB), or
`cosine` (with the float model's output, no target). `outliers=few` or `outliers=uneven` first injects
outlier channels, see `outliers.py`; `samples=N` limits calibration and test samples; `batch=N` is the
batch size.
"""

from __future__ import annotations

import argparse
import platform
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from outliers import with_outliers

import graphopt

Array = NDArray[Any]
Arrays = Mapping[str, Array]

PLAIN = "insert-qdq"
PER_TENSOR = "insert-qdq{per_channel=false}"
#: What is tried: a name, and a pipeline between the default clean-up and the end.
ROWS: tuple[tuple[str, str], ...] = (
    ("min-max, per tensor", PER_TENSOR),
    ("+ equalize-layers", f"equalize-layers,{PER_TENSOR}"),
    ("min-max, per channel", PLAIN),
    ("+ equalize-layers", f"equalize-layers,{PLAIN}"),
    ("+ equalize-layers, activations", f"equalize-layers{{criterion=activations}},{PLAIN}"),
    ("+ smooth-activations", f"smooth-activations,{PLAIN}"),
    ("+ smooth-activations, alpha 0.5", f"smooth-activations{{alpha=0.5}},{PLAIN}"),
    ("+ smooth-activations, no Mul", f"smooth-activations{{insert_mul=never}},{PLAIN}"),
    ("+ percentile ranges", "insert-qdq{observer=percentile}"),
    ("+ entropy ranges", "insert-qdq{observer=entropy}"),
    ("+ mse ranges", "insert-qdq{observer=mse}"),
    ("+ mse weight scales", "insert-qdq{weight_method=mse}"),
    ("+ refine-weights, gptq", f"{PLAIN},refine-weights"),
    ("+ refine-weights, adaround", f"{PLAIN},refine-weights{{method=adaround}}"),
    ("+ correct-bias", f"{PLAIN},correct-bias"),
    ("+ restore-float", f"{PLAIN},restore-float{{min_cosine=0.99 min_sqnr=15}}"),
    ("smooth + refine", f"smooth-activations,{PLAIN},refine-weights"),
    (
        "smooth + refine + restore",
        f"smooth-activations,{PLAIN},refine-weights,restore-float{{min_cosine=0.99 min_sqnr=15}}",
    ),
    ("preset int8", "int8"),
)
BASE = "min-max, per channel"


@dataclass(frozen=True)
class Case:
    """A model with its data.

    Attributes:
        calib, test: inputs by name.
        target: what the metric compares with; None: the float model's output.
    """

    name: str
    model: onnx.ModelProto
    calib: Arrays
    test: Arrays
    target: Array | None
    metric: str
    batch: int


@dataclass(frozen=True)
class Measured:
    """What became of one pipeline on one case.

    Attributes:
        metric: the task metric.
        sqnr: signal-to-noise ratio of the first output against the float model's, in dB.
        floats: how many Conv, Gemm and MatMul stayed float, of how many.
        seconds: time of the pipeline.
    """

    metric: float
    sqnr: float
    floats: str
    seconds: float


def accuracy(output: Array, target: Array) -> float:
    """Percentage of rows whose largest output is the target."""
    return float((output.argmax(axis=1) == target).mean() * 100)


def psnr(output: Array, target: Array) -> float:
    """Mean peak signal-to-noise ratio of images with values in [0, 1], in dB."""
    errors = (
        ((np.clip(output, 0, 1).reshape(target.shape) - target) ** 2).reshape(len(output), -1).mean(axis=1)
    )
    return float((10 * np.log10(1 / errors)).mean())


def cosine(output: Array, target: Array) -> float:
    """Mean cosine similarity of rows."""
    a, b = output.reshape(len(output), -1), target.reshape(len(target), -1)
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return float(((a * b).sum(axis=1) / np.maximum(norms, 1e-12)).mean())


METRICS: dict[str, Callable[[Array, Array], float]] = {"accuracy": accuracy, "psnr": psnr, "cosine": cosine}


def outputs(model: onnx.ModelProto, feeds: Arrays, batch: int) -> Array:
    """The first output over all samples, batch by batch, on one thread."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    count = len(next(iter(feeds.values())))
    parts = [
        session.run(None, {k: v[i : i + batch] for k, v in feeds.items()})[0] for i in range(0, count, batch)
    ]
    return np.concatenate(parts)


def signal_to_noise(got: Array, want: Array) -> float:
    """In dB, of all elements together."""
    noise = float(np.square(got.astype(np.float64) - want).sum())
    return float(10 * np.log10(np.square(want.astype(np.float64)).sum() / max(noise, 1e-30)))


def quantize(case: Case, pipeline: str, want: Array, target: Array) -> Measured:
    """Run one pipeline and measure its result."""
    start = time.perf_counter()
    passes = pipeline if pipeline == "int8" else f"default,{pipeline}"
    done = graphopt.run(case.model, passes, target="ort-cpu", data=dict(case.calib), verify="off")
    seconds = time.perf_counter() - start
    proto = done.model.to_proto(weights="inline")
    got = outputs(proto, case.test, case.batch)
    return Measured(METRICS[case.metric](got, target), signal_to_noise(got, want), floats(proto), seconds)


def floats(model: onnx.ModelProto) -> str:
    """How many Conv, Gemm and MatMul do not read a DequantizeLinear in both slots, of how many."""
    producer = {o: n.op_type for n in model.graph.node for o in n.output}
    linear = [n for n in model.graph.node if n.op_type in ("Conv", "ConvTranspose", "Gemm", "MatMul")]
    left = [n for n in linear if any(producer.get(i) != "DequantizeLinear" for i in n.input[:2])]
    return f"{len(left)}/{len(linear)}"


def table(case: Case, only: str | None = None, skip: Sequence[str] = ()) -> list[str]:
    """The case's section of the page; rows whose name has a word of `skip` in it are left out."""
    want = outputs(case.model, case.test, case.batch)
    target = want if case.target is None else case.target
    score = METRICS[case.metric]
    best = score(want, target)
    results: list[tuple[str, str, Measured | str]] = []
    for name, pipeline in ROWS:
        if name != BASE and ((only or "") not in name or any(word in name for word in skip)):
            continue
        try:
            results.append((name, pipeline, quantize(case, pipeline, want, target)))
        except Exception as error:  # a row that fails says so, and the others go on
            results.append((name, pipeline, f"{type(error).__name__}: {str(error).splitlines()[0]}"))
        print(case.name, name, results[-1][2], file=sys.stderr, flush=True)
    base = next(m for name, _, m in results if name == BASE)
    calib, test = (len(next(iter(arrays.values()))) for arrays in (case.calib, case.test))
    lines = [
        f"## {case.name}",
        "",
        f"{case.metric} of the float model {best:.4g}; {calib} samples to calibrate, {test} to test.",
        "",
        f"| passes | {case.metric} | change | SQNR dB | gain dB | loss back | noise back | float | s |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for name, _, found in results:
        if isinstance(found, str) or isinstance(base, str):
            lines.append(f"| {name} | failed: {found} | | | | | | | |")
            continue
        lost, left = best - base.metric, best - found.metric
        back = f"{100 * (1 - left / lost):.0f}%" if lost > 0 else "-"
        gain = found.sqnr - base.sqnr
        noise = f"{100 * (1 - 10 ** (-gain / 10)):.0f}%"
        is_base = name == BASE
        lines.append(
            f"| {name} | {found.metric:.4g} | {found.metric - best:+.3g} | {found.sqnr:.1f} "
            f"| {'' if is_base else f'{gain:+.1f}'} | {'' if is_base else back} | {'' if is_base else noise} "
            f"| {found.floats} | {found.seconds:.1f} |"
        )
    return [*lines, ""]


def read_case(text: str) -> Case:
    """A case from `key=value,key=value`."""
    given = dict(item.split("=", 1) for item in text.split(","))
    limit = int(given.get("samples", 0)) or None
    calib, test = ({k: v[:limit] for k, v in np.load(given[key]).items()} for key in ("calib", "test"))
    target = test.pop("target", None)
    model = onnx.load(given["model"])
    if kind := given.get("outliers"):
        float_model = model
        model = with_outliers(model, kind)  # type: ignore[arg-type]
        few = {k: v[:16] for k, v in test.items()}
        same = signal_to_noise(outputs(model, few, 16), outputs(float_model, few, 16))
        if same < 80:
            raise SystemExit(f"outliers changed the function: SQNR {same:.1f} dB")
    return Case(given["name"], model, calib, test, target, given["metric"], int(given.get("batch", 16)))


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--case", action="append", required=True, metavar="KEY=VALUE,...")
    parser.add_argument("--output", type=Path, help="the page; by default it is printed")
    parser.add_argument("--only", help="rows whose name has this in it")
    parser.add_argument("--skip", action="append", default=[], help="rows to leave out, likewise")
    args = parser.parse_args()
    page = [
        "# Accuracy recovery: what each algorithm brings back",
        "",
        f"{date.today()}, {platform.machine()}. graphopt {version('graphopt')}, onnx {version('onnx')}, "
        f"onnxruntime {version('onnxruntime')}.",
        "",
        "8-bit weights and activations (W8A8), target ort-cpu. Each row is plain min-max quantization with "
        "that one pass or option changed, and the last rows are combinations.",
        "",
        "- SQNR: of the first output against the float model's, over all test samples",
        "- loss back: share of the metric's loss under min-max, per channel, that is recovered",
        "- noise back: the same of the power of the output's error",
        "- float: Conv, Gemm and MatMul that do not run in integers, of all",
        "- s: seconds of the whole pipeline, on one core",
        "",
    ]
    for text in args.case:
        page += table(read_case(text), args.only, args.skip)
    if args.output:
        args.output.write_text("\n".join(page), encoding="utf-8")
    else:
        print("\n".join(page))


if __name__ == "__main__":
    main()
