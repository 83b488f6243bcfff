"""What pruning costs, and what layer-wise distillation brings back: accuracy, size and latency.

    python benchmarks/compression.py --case name=digits,model=M.onnx,calib=C.npz,test=T.npz,metric=accuracy

Cases are given as for `recovery.py`. Every row is one pipeline, run by itself and with distill-layers behind
it.
"""

from __future__ import annotations

import argparse
import platform
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from importlib.metadata import version
from pathlib import Path

import numpy as np
import onnx
from recovery import METRICS, Array, Case, outputs, read_case, signal_to_noise

import graphopt
from graphopt.runtime.latency import compare_latency

DISTILL = "distill-layers"
#: What is tried: a name, and a pipeline; each is also run with `DISTILL` behind it.
ROWS: tuple[tuple[str, str], ...] = (
    ("50% of weights, magnitude", "prune-weights{sparsity=0.5 importance=magnitude}"),
    ("50% of weights", "prune-weights{sparsity=0.5}"),
    ("70% of weights", "prune-weights{sparsity=0.7}"),
    ("90% of weights", "prune-weights{sparsity=0.9}"),
    ("2:4", "prune-weights{structure=2:4}"),
    ("25% of channels", "prune-channels{ratio=0.25}"),
    ("50% of channels", "prune-channels{ratio=0.5}"),
    ("50% of FLOPs", "prune-channels{ratio=0.5 budget=flops}"),
    ("27% of latency", "prune-channels{ratio=0.27 budget=latency}"),
    ("64 values per tensor", "share-weights{bits=6}"),
    ("16 values per tensor", "share-weights{bits=4}"),
)
_SECONDS = 3.0


@dataclass(frozen=True)
class Measured:
    """What became of one pipeline on one case.

    Attributes:
        metric: the task metric.
        sqnr: signal-to-noise ratio of the first output against the float model's, in dB.
        nbytes: size of the file over the original's.
        zeros: share of the weights of layers that is zero.
        latency: time over the original's, paired, one sample, one thread.
        seconds: time of the pipeline.
    """

    metric: float
    sqnr: float
    nbytes: float
    zeros: float
    latency: float
    seconds: float


def measure(case: Case, pipeline: str, want: Array, target: Array, timed: bool) -> Measured:
    """Run one pipeline and measure its result."""
    start = time.perf_counter()
    done = graphopt.run(case.model, pipeline, target="ort-cpu", data=dict(case.calib), verify="off")
    seconds = time.perf_counter() - start
    proto = done.model.to_proto(weights="inline")
    got = outputs(proto, case.test, case.batch)
    ratio = float("nan")
    if timed:
        feeds = [{k: v[:1] for k, v in case.test.items()}]
        original = graphopt.load(case.model)
        found = compare_latency(
            original.session_source(), done.model.session_source(), feeds, seconds=_SECONDS
        )
        ratio = found.ratio
    return Measured(
        METRICS[case.metric](got, target),
        signal_to_noise(got, want),
        proto.ByteSize() / case.model.ByteSize(),
        zeros(proto),
        ratio,
        seconds,
    )


def zeros(model: onnx.ModelProto) -> float:
    """Share of zeros in initializers of two axes or more."""
    arrays = [onnx.numpy_helper.to_array(t) for t in model.graph.initializer if len(t.dims) > 1]
    total = sum(a.size for a in arrays)
    return sum(int((a == 0).sum()) for a in arrays) / max(total, 1)


def table(case: Case, only: Sequence[str]) -> list[str]:
    """The case's section of the page."""
    want = outputs(case.model, case.test, case.batch)
    target = want if case.target is None else case.target
    best = METRICS[case.metric](want, target)
    calib, test = (len(next(iter(arrays.values()))) for arrays in (case.calib, case.test))
    lines = [
        f"## {case.name}",
        "",
        f"{case.metric} of the original {best:.4g}; {calib} samples to learn from, {test} to test.",
        "",
        "| what | change | SQNR dB | distilled: change | SQNR dB | file | zeros | latency | s |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for name, pipeline in ROWS:
        if only and not any(word in name for word in only):
            continue
        try:
            plain = measure(case, pipeline, want, target, False)
            fitted = measure(case, f"{pipeline},{DISTILL}", want, target, "weights" not in name)
        except Exception as error:  # a row that fails says so, and the others go on
            lines.append(f"| {name} | {type(error).__name__}: {str(error).splitlines()[0]} | | | | | | | |")
            continue
        latency = "" if np.isnan(fitted.latency) else f"{fitted.latency:.2f}"
        lines.append(
            f"| {name} | {plain.metric - best:+.3g} | {plain.sqnr:.1f} | {fitted.metric - best:+.3g} "
            f"| {fitted.sqnr:.1f} | {fitted.nbytes:.2f} | {fitted.zeros:.0%} | {latency} "
            f"| {fitted.seconds:.0f} |"
        )
        print(case.name, lines[-1], file=sys.stderr, flush=True)
    return [*lines, ""]


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--case", action="append", required=True, metavar="KEY=VALUE,...")
    parser.add_argument("--output", type=Path, help="the page; by default it is printed")
    parser.add_argument("--only", action="append", default=[], help="rows whose name has this in it")
    args = parser.parse_args()
    page = [
        "# Compression: what pruning costs, and what distillation brings back",
        "",
        f"{date.today()}, {platform.machine()}. graphopt {version('graphopt')}, onnx {version('onnx')}, "
        f"onnxruntime {version('onnxruntime')}.",
        "",
        "    python benchmarks/compression.py "
        "--case name=NAME,model=M.onnx,calib=C.npz,test=T.npz,metric=METRIC",
        "",
        "Target ort-cpu, float32 throughout. The first two figures are those of the pruned model, all "
        "others those with `distill-layers` behind it.",
        "",
        "- change: of the metric, on samples that no pass saw",
        "- SQNR: of the first output against the original's, over all test samples",
        "- file: bytes, original = 1; zeros: share of the weights that is zero, both as stored",
        "- latency: original = 1, paired and interleaved, one sample, one thread",
        "- s: seconds of the whole pipeline, on two shared cores",
        "",
    ]
    for text in args.case:
        page += table(read_case(text), args.only)
    if args.output:
        args.output.write_text("\n".join(page), encoding="utf-8")
    else:
        print("\n".join(page))


if __name__ == "__main__":
    main()
