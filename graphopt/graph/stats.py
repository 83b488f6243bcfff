"""How big a model is: nodes, parameters, and the bytes of its weights."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from graphopt import ir
from graphopt.graph.text import op_text
from graphopt.io.dtypes import NP_DTYPES, onnx_dtype
from graphopt.ir import Body, Constant
from graphopt.report.document import ModelStats

if TYPE_CHECKING:
    from graphopt.model import Model


def model_stats(model: Model) -> ModelStats:
    """Count what `model` consists of, nested bodies and local functions included; no weight is loaded."""
    ops: Counter[str] = Counter()
    parameters = nbytes = initializers = 0
    for body in ir.bodies(model.graph):
        ops.update(map(op_text, body.nodes))
        initializers += len(body.initializers) + len(body.defaults)
        for constant in constants(body):
            nbytes += constant.nbytes
            if is_float(constant):
                parameters += int(np.prod(constant.shape, dtype=np.int64))
    return ModelStats(
        nodes=ops.total(),
        nodes_without_constants=ops.total() - ops["Constant"],
        initializers=initializers,
        parameters=parameters,
        bytes=nbytes,
        ops=dict(sorted(ops.items(), key=lambda item: (-item[1], item[0]))),
        opsets=dict(model.opset_imports),
        ir_version=model.ir_version,
    )


def constants(body: Body) -> Iterator[Constant]:
    """Initializers, default values of inputs, and the tensors of Constant nodes of one body."""
    yield from body.initializers
    yield from body.defaults.values()
    for node in body.nodes:
        if node.op == "Constant" and not node.domain:
            value = node.attrs.get("value")
            if isinstance(value, Constant):
                yield value


def is_float(constant: Constant) -> bool:
    """The elements are floating-point numbers of any width."""
    # ml_dtypes' kinds vary from one release to the next; its names do not.
    return "float" in NP_DTYPES[onnx_dtype(constant.dtype)].name
