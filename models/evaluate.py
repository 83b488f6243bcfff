"""Score models of this folder, or optimized versions of them, on the held-out digits.

    python models/evaluate.py models/digits_cnn.onnx digits_cnn.opt.onnx

Needs numpy and onnxruntime only. Classifiers are scored by accuracy in percent, the denoiser by the mean
peak signal-to-noise ratio in dB.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

DATA = Path(__file__).with_name("digits.npz")


def accuracy(logits: np.ndarray[Any, Any], data: Mapping[str, np.ndarray[Any, Any]]) -> float:
    """Percentage of (N, C) `logits` whose largest entry is at `data["label"]`."""
    return 100.0 * float(np.mean(np.argmax(logits, axis=1) == data["label"]))


def psnr(restored: np.ndarray[Any, Any], data: Mapping[str, np.ndarray[Any, Any]]) -> float:
    """Mean peak signal-to-noise ratio in dB of the pictures `restored` (N, 1, H, W) to `data["clean"]`."""
    error = np.mean((restored.astype(np.float64) - data["clean"]) ** 2, axis=(1, 2, 3))
    return float(np.mean(-10.0 * np.log10(np.maximum(error, 1e-12))))


METRICS = {"image": ("accuracy", accuracy), "noisy": ("psnr", psnr)}
"""By the name of the model's input: what the metric is called, and its function."""


def evaluate(model: Path, data: Path = DATA, *, optimize: bool = False) -> tuple[str, float]:
    """Run `model` on the held-out data on one CPU thread.

    Args:
        model: a model whose only input is an array of `data`.
        data: the .npz file.
        optimize: let ONNX Runtime apply its own graph optimizations.

    Returns:
        The metric's name and its value.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    if not optimize:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    (name,) = (given.name for given in session.get_inputs())
    metric, function = METRICS[name]
    with np.load(data, allow_pickle=False) as arrays:
        held_out = {key: arrays[key] for key in arrays.files}
    (output,) = session.run(None, {name: held_out[name]})
    return metric, function(output, held_out)


def main() -> None:
    """Command line."""
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="+", type=Path, metavar="MODEL")
    parser.add_argument("--data", type=Path, default=DATA, help="held-out arrays (default: digits.npz)")
    args = parser.parse_args()
    for model in args.models:
        metric, value = evaluate(model, args.data)
        print(f"{model}: {metric} {value:.3f}")


if __name__ == "__main__":
    main()
