"""One other optimizer on one model, in its own process: `python peer.py TOOL IN OUT`.

Runs under the Python that has the tools installed. Every tool gets its documented defaults, and external data
where the model is too large for one file.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

LARGE = 1_900_000_000
"""Bytes beyond which a model no longer fits one protobuf file."""


def onnxsim(source: str, target: str, large: bool) -> None:
    import onnx
    import onnxsim as tool

    if large:
        sys.argv = ["onnxsim", "--save-as-external-data", source, target]
        tool.main()
        return
    model, same = tool.simplify(source)
    if not same:
        raise SystemExit("onnxsim: its own check failed")
    onnx.save(model, target)


def onnxslim(source: str, target: str, large: bool) -> None:
    import onnxslim as tool

    tool.slim(source, target, save_as_external_data=large)


def onnxoptimizer(source: str, target: str, large: bool) -> None:
    import onnx
    import onnxoptimizer as tool

    passes = tool.get_fuse_and_elimination_passes()
    model = tool.optimize(onnx.load(source), passes, fixed_point=True)
    onnx.save(model, target, save_as_external_data=large)


def onnxscript(source: str, target: str, large: bool) -> None:
    import onnx_ir
    from onnxscript import optimizer, rewriter

    model = onnx_ir.load(source)
    optimizer.optimize(model)
    rewriter.rewrite(model)
    onnx_ir.save(model, target, external_data=f"{Path(target).name}.data" if large else None)


def ort_basic(source: str, target: str, large: bool) -> None:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = target
    if large:
        key = "session.optimized_model_external_initializers_"
        options.add_session_config_entry(f"{key}file_name", f"{Path(target).name}.data")
        options.add_session_config_entry(f"{key}min_size_in_bytes", "1024")
    ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])


TOOLS: dict[str, Callable[[str, str, bool], None]] = {
    "onnxsim": onnxsim,
    "onnxslim": onnxslim,
    "onnxoptimizer": onnxoptimizer,
    "onnxscript": onnxscript,
    "ort_basic": ort_basic,
}


def main() -> None:
    tool, source, target = sys.argv[1:]
    model = Path(source)
    data = model.with_name(f"{model.name}.data")
    size = model.stat().st_size + (data.stat().st_size if data.exists() else 0)
    TOOLS[tool](source, target, size > LARGE)


if __name__ == "__main__":
    main()
