from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest

Build = Callable[..., onnx.ModelProto]


@pytest.fixture
def build() -> Build:
    """Make a model from `inputs => outputs { nodes }` and weights.

    A weight is an array, or a shape that is filled with random float32 numbers.
    """

    def make(body: str, opset: int = 17, ir: int = 8, **weights: Any) -> onnx.ModelProto:
        rng = np.random.default_rng(7)
        text = f'<ir_version: {ir}, opset_import: ["" : {opset}, "other.domain" : 1]> g {body}'
        model = onnx.parser.parse_model(text)
        if "other.domain" not in body:
            del model.opset_import[1]
        for name, given in weights.items():
            is_shape = isinstance(given, tuple)
            array = rng.standard_normal(given).astype(np.float32) if is_shape else np.asarray(given)
            model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
        return model

    return make
