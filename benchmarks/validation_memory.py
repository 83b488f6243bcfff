"""Peak memory of validating and localizing in pairs of models above 2 GiB, against the size of their weights.

    python benchmarks/validation_memory.py > docs/measurements/validation-memory.md

Builds a residual network of large matrices, and a copy in which one row of one weight is wrong and every
tensor has another name. Each step runs in a process of its own. Needs twice the size of the weights on
disk, in a temporary folder that is removed. Linux only.
"""

from __future__ import annotations

import argparse
import platform
import shutil
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

from measure import Usage, run

WIDTH, INNER = 2048, 8192
WRONG = 0.6  # how far along the depth


def build(folder: Path, layers: int) -> tuple[int, str]:
    """Write reference.onnx and candidate.onnx; returns bytes of weights of each, and the wrong node."""
    import numpy as np
    import onnx
    from onnx import TensorProto, helper

    rng = np.random.default_rng(0)
    noise = rng.standard_normal(1 << 22).astype(np.float32)
    wrong = int(WRONG * layers)
    nodes, places, last = [], {}, "x"
    offset = 0
    with (folder / "reference.onnx.data").open("wb") as file:
        for i in range(layers):
            for name, shape in ((f"up{i}", (WIDTH, INNER)), (f"down{i}", (INNER, WIDTH))):
                count, scale = shape[0] * shape[1], np.float32(shape[0] ** -0.5)
                places[name] = (shape, offset, 4 * count)
                for start in range(0, count, 1 << 21):
                    at = int(rng.integers(0, 1 << 21))
                    file.write((scale * noise[at : at + min(1 << 21, count - start)]).tobytes())
                offset += 4 * count
            nodes += [
                helper.make_node("LayerNormalization", [last, "gain"], [f"n{i}"], f"norm{i}"),
                helper.make_node("MatMul", [f"n{i}", f"up{i}"], [f"u{i}"], f"up{i}/MatMul"),
                helper.make_node("Relu", [f"u{i}"], [f"r{i}"], f"relu{i}"),
                helper.make_node("MatMul", [f"r{i}", f"down{i}"], [f"d{i}"], f"down{i}/MatMul"),
                helper.make_node("Add", [last, f"d{i}"], [f"h{i}"], f"add{i}"),
            ]
            last = f"h{i}"
    nodes.append(helper.make_node("Identity", [last], ["y"], "out"))
    shape = ["batch", "sequence", WIDTH]
    graph = helper.make_graph(
        nodes,
        "large",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        [helper.make_tensor("gain", TensorProto.FLOAT, [WIDTH], [1.0] * WIDTH)],
    )
    for name, (dims, at, length) in places.items():
        tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=dims)
        tensor.data_location = TensorProto.EXTERNAL
        entries = {"location": "reference.onnx.data", "offset": at, "length": length}
        for key, value in entries.items():
            tensor.external_data.add(key=key, value=str(value))
        graph.initializer.append(tensor)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, folder / "reference.onnx")

    shutil.copyfile(folder / "reference.onnx.data", folder / "candidate.onnx.data")
    with (folder / "candidate.onnx.data").open("r+b") as file:
        _, at, _ = places[f"down{wrong}"]
        file.seek(at + 4 * WIDTH * 100)
        row = np.frombuffer(file.read(4 * WIDTH), np.float32)
        file.seek(at + 4 * WIDTH * 100)
        file.write((row * np.float32(1.5)).tobytes())
    names: dict[str, str] = {"x": "x", "y": "y", "": ""}
    for tensor in model.graph.initializer:
        tensor.name = names.setdefault(tensor.name, f"t{len(names)}")
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = "candidate.onnx.data"
    for i, node in enumerate(model.graph.node):
        node.name = f"n{i}"
        for field in (node.input, node.output):
            new = [names.setdefault(n, f"t{len(names)}") for n in field]
            del field[:]
            field.extend(new)
    onnx.save(model, folder / "candidate.onnx")
    return offset, f"n{5 * wrong + 3}"


def main() -> None:
    """Measure, and print the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gigabytes", type=float, default=2.6, help="weights of each model (default: 2.6)")
    args = parser.parse_args()
    layers = round(args.gigabytes * 1e9 / (8 * WIDTH * INNER))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        weights, wrong = build(folder, layers)
        a, b = str(folder / "reference.onnx"), str(folder / "candidate.onnx")
        tool = [sys.executable, "-m", "graphopt", "validate", a]
        shape = ["--input-shape", f"x:2,16,{WIDTH}", "--probes", "1"]
        bare = [sys.executable, "-c", "import graphopt.validating"]
        rows = [
            ("import graphopt.validating", run(bare, timeout=300), 0),
            ("`validate A A`", run([*tool, a, *shape], timeout=3600), 0),
            ("`validate A B`", run([*tool, b, *shape], timeout=3600), 1),
            ("`validate A B --localize`", run([*tool, b, *shape, "--localize"], timeout=3600), 1),
            ("`validate A B --layers`", run([*tool, b, *shape, "--layers"], timeout=3600), 1),
        ]
    found = f">>> off MatMul {wrong}" in rows[3][1].output
    print(page(layers, weights, rows, found))
    if not found or any(usage.status != status for _, usage, status in rows):
        sys.exit("\n".join(usage.output for _, usage, _ in rows))


def page(layers: int, weights: int, rows: list[tuple[str, Usage, int]], found: bool) -> str:
    """The page of results."""
    lines = [
        "# Memory of validation",
        "",
        f"{layers} residual blocks of two matrices, {weights / 1e9:.2f} GB of weights in each of two models "
        "(external data).",
        "In B one row of one weight is wrong, and all tensors have other names. Each row is a process of its",
        "own: the peak of its resident set with the pages of mapped files, and without.",
        "",
        "| | peak, MB | over the weights, MB | anonymous, MB | wall, s |",
        "|---|---:|---:|---:|---:|",
    ]
    for name, usage, _ in rows:
        over = f"{usage.peak_mb - weights / 2**20:+,.0f}" if "validate A" in name else ""
        lines.append(
            f"| {name} | {usage.peak_mb:,.0f} | {over} | {usage.anonymous_mb:,.0f} | {usage.wall:.0f} |"
        )
    lines += [
        "",
        f"The wrong node is {'found' if found else 'NOT found'}. 1 MB is 2^20 bytes.",
        "",
        ", ".join(f"{p} {version(p)}" for p in ("onnxruntime", "onnx", "numpy"))
        + f", Python {platform.python_version()}, {platform.system()}, two cores.",
        "",
        "    python benchmarks/validation_memory.py",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
