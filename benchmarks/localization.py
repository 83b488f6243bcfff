"""How often localization names the node whose weight was changed, in models that were optimized and renamed.

    python benchmarks/localization.py > docs/measurements/localization.md

Each model is optimized by graphopt and by onnxruntime (extended, offline), with and without numbers in place
of all names of nodes and tensors. In each result a weight is drawn, an eighth of it is made 10% larger, and
the node is looked for that reads it. Changes that no output shows are not counted.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from onnx import numpy_helper

import graphopt
from graphopt.model import Model
from graphopt.validation.localize import Search
from graphopt.validation.matching import match
from graphopt.validation.net import Net
from graphopt.validation.oracles import JUDGE, Oracles
from graphopt.validation.reference import Options, Reference
from graphopt.validation.standard import Standard

MODELS = Path(__file__).resolve().parents[1] / "models"


@dataclass
class Tally:
    """What came of one kind of candidate."""

    counts: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0
    misses: list[str] = field(default_factory=list)


def optimized(path: Path) -> onnx.ModelProto:
    """The model as onnxruntime's optimizer writes it."""
    with tempfile.TemporaryDirectory() as folder:
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
        options.optimized_model_filepath = str(Path(folder) / "optimized.onnx")
        options.log_severity_level = 4
        ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        return onnx.load(options.optimized_model_filepath)


def renamed(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The model with numbers for names, except of its inputs and outputs; its metadata is gone as well."""
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    names = {v.name: v.name for v in (*copy.graph.input, *copy.graph.output)} | {"": ""}
    stack = [(copy.graph, True)]
    while stack:
        graph, main = stack.pop()
        for tensor in graph.initializer:
            tensor.name = names.setdefault(tensor.name, str(1000 + len(names)))
        for value in () if main else (*graph.input, *graph.output):
            value.name = names.setdefault(value.name, str(1000 + len(names)))
        del graph.value_info[:]
        for i, node in enumerate(graph.node):
            for names_of in (node.input, node.output):
                new = [names.setdefault(n, str(1000 + len(names))) for n in names_of]
                del names_of[:]
                names_of.extend(new)
            node.name, node.doc_string = f"n{i}" if main else f"n{i}_{id(graph)}", ""
            del node.metadata_props[:]
            stack += [(a.g, False) for a in node.attribute if a.type == onnx.AttributeProto.GRAPH]
    return copy


def spoiled(proto: onnx.ModelProto, draw: random.Random) -> tuple[onnx.ModelProto, list[onnx.NodeProto]]:
    """A copy with a weight changed, and the nodes that read it."""
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    read = {n for node in copy.graph.node for n in node.input}
    weights = [
        t
        for t in copy.graph.initializer
        if t.data_type == onnx.TensorProto.FLOAT and t.name in read and np.prod(t.dims) >= 4
    ]
    tensor = draw.choice(weights)
    values = numpy_helper.to_array(tensor).copy()
    flat = values.reshape(-1)
    flat[: max(1, flat.size // 8)] *= 1.1
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    return copy, [n for n in copy.graph.node if tensor.name in n.input]


def try_one(reference: Reference, proto: onnx.ModelProto, draw: random.Random, tally: Tally) -> None:
    """Spoil, localize, count."""
    wrong, readers = spoiled(proto, draw)
    candidate = Model.load(wrong)
    finding = Oracles(reference, Standard()).under(JUDGE, candidate)
    if not finding.misses:
        tally.counts["not seen"] += 1
        return
    start = time.perf_counter()
    original = reference.subject
    assert isinstance(original, Model)
    targets = [m.verdict.name for m in finding.misses]
    found = Search(match(Net(original), Net(candidate)), reference.feeds(0), targets).run()
    tally.seconds += time.perf_counter() - start
    if found.found and found.node in [n.name for n in readers]:
        tally.counts["named"] += 1
    elif any(n.name in found.reason or repr(n.output[0]) in found.reason for n in readers):
        tally.counts["listed"] += 1
    else:
        tally.counts["missed"] += 1
        tally.misses.append(f"{[n.name for n in readers]}: {found.reason}")


def main() -> None:
    """Measure, and print the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", type=Path, help="default: those of models/")
    parser.add_argument("--times", type=int, default=6, help="faults per model and kind (default: 6)")
    args = parser.parse_args()
    draw = random.Random(5)
    tallies: dict[str, Tally] = {}
    paths = args.models or sorted(MODELS.glob("*.onnx"))
    for path in paths:
        original = Model.load(path)
        options = Options(probe_sets=1, floor_runs="lean", default_run=False)
        reference = Reference(original, None, options)
        for tool, proto in (
            ("graphopt", graphopt.run(path).model.to_proto()),
            ("onnxruntime", optimized(path)),
        ):
            for kind, candidate in ((tool, proto), (f"{tool}, renamed", renamed(proto))):
                for _ in range(args.times):
                    try_one(reference, candidate, draw, tallies.setdefault(kind, Tally()))
        print(path.name, file=sys.stderr, flush=True)
    print(page([p.stem for p in paths], tallies))
    for tally in tallies.values():
        for miss in tally.misses:
            print(miss, file=sys.stderr)


def page(models: list[str], tallies: dict[str, Tally]) -> str:
    """The page of results."""
    lines = [
        "# Localization of seeded faults",
        "",
        f"In {len(models)} models ({', '.join(models)}),",
        "as optimized by graphopt and by onnxruntime (extended, offline), an eighth of a weight drawn at",
        "random is made 10% larger. *Named*: localization names a node that reads this weight. *Listed*: it",
        "names another one, and lists that node as one that may be at fault instead. *Renamed*: all tensors",
        "and nodes have numbers for names.",
        "",
        "| candidate | faults | named | listed | missed | seconds each |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for kind, tally in tallies.items():
        counts = tally.counts
        n = counts["named"] + counts["listed"] + counts["missed"]
        each = tally.seconds / n if n else 0
        row = f"| {kind} | {n} | {counts['named']} | {counts['listed']} | {counts['missed']} | {each:.1f} |"
        lines.append(row)
    packages = ", ".join(f"{p} {version(p)}" for p in ("onnxruntime", "onnx", "numpy"))
    return "\n".join([*lines, "", f"{packages}.", "", "    python benchmarks/localization.py"])


if __name__ == "__main__":
    main()
