"""How much of a model's weights is zero."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np

from graphopt import ir
from graphopt.graph.stats import constants, is_float
from graphopt.ir import Body, Constant
from graphopt.model import Model
from graphopt.report.document import SparseTensor, SparsityReport

# Smaller tensors are no weights that pruning is about.
_LEAST: Final = 64
#: Share of zeros from which on a model is worth calling sparse.
SPARSE: Final = 0.1


def sparsity(model: Model) -> SparsityReport | None:
    """Zeros of all weights of two axes or more; None where they are less than a tenth.

    Integers count where a DequantizeLinear reads them and 0 stands for 0. Weights are read one at a time.
    """
    tensors: list[SparseTensor] = []
    stored = packed = 0
    seen: set[Constant] = set()
    for body in model.bodies():
        for constant in _weights(body):
            if constant in seen:
                continue
            seen.add(constant)
            model.lend(constant.nbytes)
            values = np.asarray(constant.values)
            zeros = values.size - int(np.count_nonzero(values))
            tensors.append(SparseTensor(constant.name, values.size, zeros))
            stored += constant.nbytes
            item = constant.nbytes / values.size
            packed += int((values.size - zeros) * item + values.size / 8)
        model.release()
    weights, zeros = sum(t.weights for t in tensors), sum(t.zeros for t in tensors)
    if not weights or zeros < SPARSE * weights:
        return None
    return SparsityReport(weights, zeros, stored, packed, tuple(tensors))


def _weights(body: Body) -> Iterator[Constant]:
    integers = {n.inputs[0] for n in body.nodes if n.op == "DequantizeLinear" and _keeps_zero(n)}
    for constant in constants(body):
        is_matrix = len(constant.shape) >= 2 and int(np.prod(constant.shape)) >= _LEAST
        if is_matrix and (is_float(constant) or constant in integers):
            yield constant


def _keeps_zero(node: ir.Node) -> bool:
    if len(node.inputs) < 3 or not node.inputs[2].name:
        return True
    zero = node.inputs[2]
    return isinstance(zero, Constant) and not np.asarray(zero.values).astype(np.float32).any()
