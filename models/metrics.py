"""Task metrics of the models in this folder, for `graphopt run --metric`.

    graphopt run models/digits_cnn.onnx --passes int8 --data models/digits.npz \\
        --metric models/metrics.py:accuracy --max-drop accuracy=0.5

A metric is called with an iterable of (sample, outputs): mappings from names to arrays, whose first axis
counts samples. A sample holds what the data holds: the model's inputs, and the answers. A metric returns a
number, or numbers by name; higher is better.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias

import numpy as np

Arrays: TypeAlias = Mapping[str, np.ndarray[Any, Any]]


def accuracy(results: Iterable[tuple[Arrays, Arrays]]) -> float:
    """Percentage of samples whose largest logit (N, C) is at their `label` (N,)."""
    right = total = 0
    for sample, outputs in results:
        hits = np.argmax(outputs["logits"], axis=1) == sample["label"]
        right += int(hits.sum())
        total += hits.size
    return 100.0 * right / total


def psnr(results: Iterable[tuple[Arrays, Arrays]]) -> float:
    """Mean peak signal-to-noise ratio in dB of `restored` (N, 1, H, W) to `clean`, from 0 to 1."""
    found: list[float] = []
    for sample, outputs in results:
        error = np.mean((outputs["restored"].astype(np.float64) - sample["clean"]) ** 2, axis=(1, 2, 3))
        found += (-10.0 * np.log10(np.maximum(error, 1e-12))).tolist()
    return float(np.mean(found))
