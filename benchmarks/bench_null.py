"""How often `graphopt bench` is right: on models that are equal, and on one that has a twentieth more to do.

    python benchmarks/bench_null.py --out results.jsonl --case equal:models/digits_cnn.onnx --trials 100
    python benchmarks/bench_null.py --out results.jsonl --case more:1ms --trials 50
    python benchmarks/bench_null.py --out results.jsonl --report docs/measurements/bench.md

Cases: `equal:MODEL[@NAME:DIMS]` times a model against itself; `once:MODEL[@NAME:DIMS]` does so as is often
done, in one session of each, with an interval from resampling the pairs; `equal:SIZE` and `more:SIZE` time a
chain of 20 layers against itself, and against one of 21 such layers. SIZE is 0.1ms, 1ms or 10ms. Results are
appended, so that a long experiment can be run in pieces, on a machine that others use as they will.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from graphopt import summary
from graphopt.cli.arguments import input_shapes
from graphopt.model import Model
from graphopt.runtime.inputs import synthesize
from graphopt.runtime.machine import load, machine
from graphopt.runtime.measure import Contestant, Plan, measure
from graphopt.runtime.providers import AS_DEPLOYED, CPU
from graphopt.runtime.session import open_session

LAYERS = 20
#: Size -> channels and edge of a layer, a 3x3 convolution.
SIZES = {"0.1ms": (16, 8), "1ms": (32, 16), "10ms": (64, 32)}


def chain(layers: int, channels: int, edge: int) -> onnx.ModelProto:
    """Layers of equal work, one after the other: 3x3 convolutions without anything to fuse."""
    rng = np.random.default_rng(0)
    nodes, weights, last = [], [], "x"
    for i in range(layers):
        w = rng.standard_normal((channels, channels, 3, 3)).astype(np.float32) / math.sqrt(9 * channels)
        weights.append(numpy_helper.from_array(w, f"w{i}"))
        out = "y" if i == layers - 1 else f"t{i}"
        nodes.append(helper.make_node("Conv", [last, f"w{i}"], [out], name=f"conv{i}", pads=[1, 1, 1, 1]))
        last = out
    ports = [helper.make_tensor_value_info(n, 1, [1, channels, edge, edge]) for n in ("x", "y")]
    graph = helper.make_graph(nodes, "chain", ports[:1], ports[1:], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def contestants(case: str) -> tuple[Contestant, Contestant]:
    """The two sides of a case."""
    kind, _, what = case.partition(":")
    if what in SIZES:
        channels, edge = SIZES[what]
        x = np.random.default_rng(1).standard_normal((1, channels, edge, edge)).astype(np.float32)
        feeds = [{"x": x}]
        a = Contestant(chain(LAYERS, channels, edge), feeds)
        return a, Contestant(chain(LAYERS + 1, channels, edge), feeds) if kind == "more" else a
    path, _, shape = what.partition("@")
    model = Model.load(path)
    probes = synthesize(model.skeleton(), count=1, input_shapes=input_shapes([shape] if shape else []))
    one = Contestant(model.session_source(), [probes[0].feeds])
    return one, one


def trial(case: str, seconds: float, seed: int) -> dict[str, Any]:
    """One measurement."""
    a, b = contestants(case)
    start = time.perf_counter()
    if case.startswith("once:"):
        low, ratio, high = once(a, seconds)
        verdict = "no difference" if low <= 1 <= high else "faster" if ratio < 1 else "slower"
        found = {"ratio": ratio, "low": low, "high": high, "verdict": verdict}
    else:
        measured = measure([a, b], Plan(seconds=seconds, seed=seed))
        r = measured.ratios[0]
        found = {
            "ratio": r.ratio,
            "low": r.low,
            "high": r.high,
            "verdict": r.verdict,
            "resolution": r.resolution,
            "rounds": r.rounds,
            "ms": float(np.median(measured.times(0))) * 1e3,
            "disturbed": float(np.mean(np.concatenate([i.disturbed for i in measured.instances[0]]))),
        }
    return {
        "case": case,
        "seconds": seconds,
        "seed": seed,
        **found,
        "wall": time.perf_counter() - start,
        "load": load(),
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def once(one: Contestant, seconds: float) -> tuple[float, float, float]:
    """Two sessions of the same model, opened once, in alternating pairs; the pairs are resampled for 95%."""
    first, second = (open_session(one.source, optimize="all", settings=AS_DEPLOYED) for _ in range(2))
    ratios: list[float] = []
    with first, second:
        for session in (first, second) * 5:
            session.run(one.feeds[0])
        end = time.perf_counter() + seconds
        while time.perf_counter() < end and len(ratios) < 2000:
            order = (first, second) if len(ratios) % 2 else (second, first)
            took = {}
            for session in order:
                start = time.perf_counter()
                session.run(one.feeds[0])
                took[id(session)] = time.perf_counter() - start
            ratios.append(took[id(second)] / took[id(first)])
    x = np.array(ratios)
    rng = np.random.default_rng(0)
    medians = np.median(x[rng.integers(0, len(x), (500, len(x)))], axis=1)
    low, high = np.quantile(medians, [0.025, 0.975])
    return float(low), float(np.median(x)), float(high)


def report(results: Sequence[dict[str, Any]]) -> str:
    """The table, as Markdown."""
    cases = list(dict.fromkeys((r["case"], r["seconds"]) for r in results))
    rows = [[r for r in results if (r["case"], r["seconds"]) == key] for key in cases]
    groups = [
        ("Equal models", "no difference", [x for x in rows if x[0]["case"].startswith("equal:")]),
        ("A twentieth more work", "slower", [x for x in rows if x[0]["case"].startswith("more:")]),
        (
            "Equal models, one session each",
            "no difference",
            [x for x in rows if x[0]["case"].startswith("once:")],
        ),
    ]
    lines = list(_head(results))
    for title, right, members in groups:
        if not members:
            continue
        lines += ["", f"## {title}", "", *_NOTES[title], ""]
        lines += [
            "| model | one run | seconds | right | trials | ratio, median | worst | resolution | wall |",
            "|---|---|---|---|---|---|---|---|---|",
        ]
        lines += [_row(member, right) for member in members]
    return "\n".join(lines) + "\n"


def _row(member: Sequence[dict[str, Any]], right: str) -> str:
    correct = sum(r["verdict"] == right for r in member)
    ratios = np.array([r["ratio"] for r in member])
    worst = ratios[int(np.argmax(np.abs(np.log(ratios / np.median(ratios)))))]
    name = member[0]["case"].partition(":")[2]
    if name in SIZES:
        name = f"chain, {name}"
    name = Path(name.partition("@")[0]).name + (f" ({name.partition('@')[2]})" if "@" in name else "")
    ms = f"{np.median([r['ms'] for r in member]):.3g} ms" if "ms" in member[0] else ""
    resolution = f"{np.median([r['resolution'] for r in member]):.1%}" if "resolution" in member[0] else ""
    wall = f"{np.median([r['wall'] for r in member]):.1f} s"
    cells = [name, ms, f"{member[0]['seconds']:g}", f"**{correct}**", len(member)]
    cells += [f"{np.median(ratios):.4f}", f"{worst:.4f}", resolution, wall]
    return f"| {' | '.join(map(str, cells))} |"


def _head(results: Sequence[dict[str, Any]]) -> Iterator[str]:
    loads = [r["load"] for r in results if r["load"] is not None]
    versions = summary.versions()
    yield "# How often `graphopt bench` is right"
    yield ""
    yield (
        f"Made with `benchmarks/bench_null.py` between {min(r['when'] for r in results)[:16]} and "
        f"{max(r['when'] for r in results)[:16]} UTC on {machine(CPU, AS_DEPLOYED)}, which other processes "
        f"used meanwhile as they liked: a load of {np.quantile(loads, 0.1):.1f} to "
        f"{np.quantile(loads, 0.9):.1f} (10% to 90%), this one included. onnxruntime "
        f"{versions['onnxruntime']}, one thread, 99% intervals, a difference below 1% does not count."
    )


_NOTES = {
    "Equal models": [
        'A model against itself. *Right* is "no difference". Chains are 20 convolutions of equal work.',
    ],
    "A twentieth more work": [
        'A chain of 20 equal convolutions against one of 21. *Right* is "slower". The true ratio is about '
        "1.05; the median of all trials shows it.",
    ],
    "Equal models, one session each": [
        "For comparison, how it is often done: one session of each, pairs in alternating order, 95% interval "
        "of the median by resampling the pairs. It should be right 95 times of 100. What it finds is mostly "
        "below 2% and there: two sessions of one file differ a little for as long as they live.",
    ],
}


def main() -> None:
    """Run trials, or write the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--out", type=Path, required=True, help="results, one JSON object a line; appended to"
    )
    parser.add_argument("--case", action="append", default=[])
    parser.add_argument("--trials", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--limit", type=float, default=math.inf, help="start no trial after so many seconds")
    parser.add_argument("--report", type=Path, help="write the table here")
    args = parser.parse_args()
    done = [json.loads(x) for x in args.out.read_text().splitlines()] if args.out.exists() else []
    end = time.monotonic() + args.limit
    with args.out.open("a") as file:
        for case in args.case:
            before = sum((r["case"], r["seconds"]) == (case, args.seconds) for r in done)
            for seed in range(before, args.trials):
                if time.monotonic() > end:
                    break
                result = trial(case, args.seconds, seed)
                file.write(json.dumps(result) + "\n")
                file.flush()
                done.append(result)
            mine = [r for r in done if (r["case"], r["seconds"]) == (case, args.seconds)]
            verdicts = {v: sum(r["verdict"] == v for r in mine) for v in {r["verdict"] for r in mine}}
            print(case, verdicts, f"ratio {np.median([r['ratio'] for r in mine]):.4f}" if mine else "")
    if args.report:
        text = report(done)
        temporary = args.report.with_suffix(".tmp")
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, args.report)


if __name__ == "__main__":
    main()
