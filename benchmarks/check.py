"""What an optimizer's result is worth, judged in a process of its own.

    python check.py versions
    python check.py count MODEL
    python check.py reference MODEL FOLDER      run the original on two input shapes and keep the outputs
    python check.py compare MODEL FOLDER        run a result on the same inputs and measure its error

Prints one line of JSON. ONNX Runtime runs on one CPU thread with its own optimizations off. Inputs come from
NAME.A.npz and NAME.B.npz beside the model where they exist, and are drawn from its input types otherwise.
"""

from __future__ import annotations

import importlib.metadata
import json
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

Array = Any
PACKAGES = ("onnx", "onnxruntime", "onnxsim", "onnxslim", "onnxoptimizer", "onnxscript")
SIZES = {"A": 1, "B": 3}
"""The smallest size of a symbolic dim per input set; each dim's name adds a bit of its own."""


def versions() -> dict[str, str]:
    """Versions of the tools that are installed here."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _nodes(nodes: Any) -> Iterator[Any]:
    """Every node of a body and of the bodies inside it."""
    for node in nodes:
        yield node
        for attribute in node.attribute:
            for body in (attribute.g, *attribute.graphs):
                yield from _nodes(body.node)


def count(model: Path) -> dict[str, int]:
    """Nodes other than Constant, in subgraphs and functions too, and bytes with external data."""
    import onnx

    proto = onnx.load(model, load_external_data=False)
    bodies = [proto.graph.node, *(function.node for function in proto.functions)]
    nodes = sum(node.op_type != "Constant" for body in bodies for node in _nodes(body))
    files = {model} | {model.parent / name for name in _locations(proto)}
    return {"nodes": nodes, "bytes": sum(file.stat().st_size for file in files)}


def _locations(proto: Any) -> set[str]:
    """Names of the external data files of the main graph's initializers."""
    entries = (entry for tensor in proto.graph.initializer for entry in tensor.external_data)
    return {entry.value for entry in entries if entry.key == "location"}


def _session(model: Path) -> Any:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def _size(dim: Any, smallest: int) -> int:
    """A fixed dim as it is; a symbolic one from its name, so that equal names get equal sizes."""
    if isinstance(dim, int):
        return dim
    return smallest + (0 if smallest == 1 else 2 * (zlib.crc32(str(dim).encode()) % 4))


def _draw(session: Any, smallest: int) -> dict[str, Array]:
    import numpy as np

    random = np.random.default_rng(0)
    feeds = {}
    for given in session.get_inputs():
        shape = [_size(dim, smallest) for dim in given.shape]
        if "float" in given.type or "double" in given.type:
            dtype = {"tensor(double)": np.float64, "tensor(float16)": np.float16}.get(given.type, np.float32)
            feeds[given.name] = random.standard_normal(shape).astype(dtype)
        else:
            dtype = np.dtype(given.type.removeprefix("tensor(").removesuffix(")"))
            feeds[given.name] = random.integers(0, 2, shape).astype(dtype)
    return feeds


def _inputs(model: Path, session: Any, which: str) -> dict[str, Array]:
    import numpy as np

    for stem in (model.stem, model.stem.rsplit(".", 1)[0]):
        stored = model.with_name(f"{stem}.{which}.npz")
        if stored.exists():
            with np.load(stored) as arrays:
                return {given.name: arrays[given.name] for given in session.get_inputs()}
    return _draw(session, SIZES[which])


def reference(model: Path, folder: Path) -> dict[str, list[str]]:
    """Keep inputs and the original's outputs per set in `folder`; says which sets it could run."""
    import numpy as np

    session = _session(model)
    done = []
    for which in SIZES:
        feeds = _inputs(model, session, which)
        try:
            outputs = session.run(None, feeds)
        except Exception as error:
            print(f"{model.name}: input set {which} cannot run: {str(error)[:200]}", file=sys.stderr)
            continue
        np.savez(folder / f"{which}.in.npz", **feeds)
        np.savez(folder / f"{which}.out.npz", **dict(zip(_names(session), outputs, strict=True)))
        done.append(which)
    return {"sets": done}


def _names(session: Any) -> list[str]:
    return [output.name for output in session.get_outputs()]


def compare(model: Path, folder: Path) -> dict[str, float | str]:
    """Per input set: the largest relative error over all outputs (see `_error`), or what failed."""
    import numpy as np

    session = _session(model)
    result: dict[str, float | str] = {}
    for which in SIZES:
        if not (folder / f"{which}.in.npz").exists():
            continue
        with np.load(folder / f"{which}.in.npz") as stored:
            feeds = dict(stored)
        with np.load(folder / f"{which}.out.npz") as stored:
            expected = dict(stored)
        missing = set(expected) - set(_names(session)) or {i.name for i in session.get_inputs()} ^ set(feeds)
        if missing:
            result[which] = f"changed interface: {', '.join(sorted(missing))}"
            continue
        try:
            actual = dict(zip(expected, session.run(list(expected), feeds), strict=True))
            result[which] = max(_error(actual[name], expected[name]) for name in expected)
        except Exception as error:
            result[which] = f"{type(error).__name__}: {error}"[:200].replace("\n", " ")
    return result


def _error(actual: Array, expected: Array) -> float:
    """The largest difference by the largest expected value; raises ValueError where that says nothing."""
    import numpy as np

    if actual.shape != expected.shape:
        raise ValueError(f"shape {actual.shape} instead of {expected.shape}")
    if not expected.size:
        return 0.0
    a, b = actual.astype(np.float64), expected.astype(np.float64)
    differs = (a != b) & ~(np.isnan(a) & np.isnan(b))
    if not (np.isfinite(a[differs]).all() and np.isfinite(b[differs]).all()):
        raise ValueError("NaN or Inf pattern differs")
    difference = np.abs(a[differs] - b[differs]).max(initial=0.0)
    scale = np.abs(b[np.isfinite(b)]).max(initial=0.0)
    return float(difference / (scale + 1e-12))


def main() -> None:
    verb, *arguments = sys.argv[1:]
    verbs: dict[str, Callable[..., Any]] = {
        "versions": versions,
        "count": count,
        "reference": reference,
        "compare": compare,
    }
    print(json.dumps(verbs[verb](*map(Path, arguments))))


if __name__ == "__main__":
    main()
