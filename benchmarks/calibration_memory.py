"""Peak memory of calibrating a model, against that of one inference.

    python benchmarks/calibration_memory.py --samples 1000 > docs/measurements/calibration-memory.md

Builds a residual network with more than 500 observed tensors and random weights, writes samples to an .npz
file, and measures each step in a process of its own: the peak of its resident set, as the kernel saw it. The
processes import the same modules; what they held after the imports is shown, so that increments can be
compared as well. The baseline is one inference of one sample with onnxruntime's defaults. Linux only.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

METHODS = ("percentile", "entropy", "mse")


def build(path: Path, blocks: int, width: int, size: int) -> int:
    """Bottleneck blocks of three Convs, each with its Relu, and an Add: 7 tensors each. Returns how many."""
    import numpy as np
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(0)
    nodes, weights = [], []

    def conv(x: str, name: str, out: int, into: int, kernel: int, gain: float = 2.0) -> str:
        scale = np.sqrt(gain / (into * kernel * kernel))
        w = (scale * rng.standard_normal((out, into, kernel, kernel))).astype(np.float32)
        weights.append(numpy_helper.from_array(w, f"{name}.w"))
        pads = [kernel // 2] * 4
        nodes.append(helper.make_node("Conv", [x, f"{name}.w"], [name], pads=pads))
        return name

    def relu(x: str) -> str:
        nodes.append(helper.make_node("Relu", [x], [f"{x}.relu"]))
        return f"{x}.relu"

    x = relu(conv("image", "stem", width, 3, 3))
    for b in range(blocks):
        y = relu(conv(x, f"b{b}.reduce", width // 4, width, 1))
        y = relu(conv(y, f"b{b}.conv", width // 4, width // 4, 3))
        y = conv(y, f"b{b}.expand", width, width // 4, 1, gain=0.05)
        nodes.append(helper.make_node("Add", [x, y], [f"b{b}.add"]))
        x = relu(f"b{b}.add")
    nodes.append(helper.make_node("GlobalAveragePool", [x], ["pooled"]))
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 3, size, size])
    result = helper.make_tensor_value_info("pooled", TensorProto.FLOAT, ["N", width, 1, 1])
    graph = helper.make_graph(nodes, "residual", [image], [result], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return 1 + sum(len(n.output) for n in nodes)


def peak() -> float:
    """The most memory that this process has had resident so far, in MB."""
    status = Path("/proc/self/status").read_text()
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM"))) / 1000


def child(what: str, model: str, data: str) -> None:
    """One measurement; prints it as JSON."""
    import numpy as np
    import onnxruntime as ort

    from graphopt.calibration.data import open_dataset, ports_of
    from graphopt.calibration.ranges import Choice
    from graphopt.calibration.service import CalibrationService
    from graphopt.model import Model

    imported = peak()
    tensors = 0
    if what == "inference":
        session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
        shape = [1 if not isinstance(d, int) else d for d in session.get_inputs()[0].shape]
        session.run(None, {session.get_inputs()[0].name: np.zeros(shape, np.float32)})
    else:
        loaded = Model.load(model)
        dataset = open_dataset(data, *ports_of(loaded.skeleton()))
        service = CalibrationService(dataset, part="all")
        tensors = len(service.ranges(loaded, Choice()).tensors)
    print(json.dumps({"peak": peak(), "imported": imported, "tensors": tensors}))


def measure(*words: str) -> dict[str, float]:
    done = subprocess.run(
        [sys.executable, __file__, "--child", *words], stdout=subprocess.PIPE, text=True, check=True
    )
    found: dict[str, float] = json.loads(done.stdout)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--blocks", type=int, default=74)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--size", type=int, default=8)
    args = parser.parse_args()
    if args.child:
        child(*args.child)
        return
    import numpy as np
    import onnx
    import onnxruntime

    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "model.onnx"
        count = build(model, args.blocks, args.width, args.size)
        rng = np.random.default_rng(0)
        files = {}
        for n in sorted({args.samples // 10, args.samples}):
            files[n] = Path(folder) / f"{n}.npz"
            images = rng.standard_normal((n, 3, args.size, args.size), np.float32)
            np.savez(files[n], image=images)
        base = measure("inference", str(model), "")
        rows = [("one inference of one sample", base)]
        for n, file in files.items():
            rows.append((f"calibration on {n:,} samples", measure("calibrate", str(model), str(file))))
        mb = model.stat().st_size / 1e6
    print("# Memory of calibration\n")
    print(
        f"A residual network of {count} tensors and {mb:.0f} MB of weights, inputs 3 x {args.size} x "
        f"{args.size}. Histograms of 2,048 bins of all {int(rows[-1][1]['tensors'])} float tensors that data "
        f"flows through; they serve {', '.join(METHODS)} alike, and those ranges are computed as well. "
        "Each row is a process of its own; peak resident set.\n"
    )
    print("| | peak, MB | after imports, MB | increment, MB | peak / one inference |")
    print("|---|---:|---:|---:|---:|")
    for name, row in rows:
        print(
            f"| {name} | {row['peak']:.0f} | {row['imported']:.0f} | {row['peak'] - row['imported']:.0f} "
            f"| {row['peak'] / base['peak']:.2f} |"
        )
    print(
        f"\nonnxruntime {onnxruntime.__version__}, onnx {onnx.__version__}, numpy {np.__version__}, "
        f"Python {platform.python_version()}, {platform.system()}.\n"
    )
    print("    python benchmarks/calibration_memory.py " + " ".join(sys.argv[1:]))


if __name__ == "__main__":
    main()
