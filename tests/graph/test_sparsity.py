"""What counts as a zero weight."""

from __future__ import annotations

import numpy as np
from weight_models import build

from graphopt.graph.sparsity import sparsity
from graphopt.model import Model
from graphopt.testing import apply
from graphopt_passes.pruning.prune_weights import PruneWeights
from graphopt_passes.quantization.quantize_weights import QuantizeWeights


def test_floats_and_integers_count_alike() -> None:
    model = build("(float[N, 32] x) => (float y) { a = MatMul(x, w)  y = Add(a, b) }", w=(32, 16), b=(16,))
    assert sparsity(Model.load(model)) is None
    done = apply(PruneWeights(sparsity=0.5), model)
    found = sparsity(done.model)
    assert found is not None
    assert (found.weights, found.zeros, found.bytes) == (512, 256, 2048)
    assert found.packed_bytes == 256 * 4 + 512 // 8
    assert [t.weights for t in found.tensors] == [512]
    quantized = sparsity(apply([PruneWeights(sparsity=0.5), QuantizeWeights(min_elements=1)], model).model)
    assert quantized is not None
    assert quantized.weights == 512
    assert quantized.zeros >= 256
    assert quantized.bytes == 512


def test_a_zero_point_that_is_not_zero_says_nothing() -> None:
    w = np.zeros((32, 16), np.float32)
    w[::2] = np.linspace(-0.5, 1, 16)
    model = build("(float[N, 32] x) => (float y) { y = MatMul(x, w) }", w=w)
    done = apply(QuantizeWeights(min_elements=1, symmetric=False), model)
    assert sparsity(done.model) is None
