"""All folds of linear operators together, on random chains in which channels, height and width are equal."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from graphopt.pipeline.base import Numerics, Pass
from graphopt.testing import apply, assert_same_interface, assert_same_numbers
from graphopt_passes.fusion.fold_affine_conv import FoldAffineConv
from graphopt_passes.fusion.fold_affine_gemm import FoldAffineGemm
from graphopt_passes.fusion.fold_bn_conv import FoldBatchNormConv
from graphopt_passes.fusion.fold_bn_gemm import FoldBatchNormGemm
from graphopt_passes.fusion.fold_conv_affine import FoldConvAffine
from graphopt_passes.fusion.fold_conv_bn import FoldConvBatchNorm
from graphopt_passes.fusion.fold_gemm_affine import FoldGemmAffine
from graphopt_passes.fusion.fold_gemm_bn import FoldGemmBatchNorm
from graphopt_passes.fusion.fold_pad import FoldPad
from graphopt_passes.fusion.fold_transpose_gemm import FoldTransposeGemm
from graphopt_passes.fusion.fuse_matmul_add import FuseMatMulAdd
from graphopt_passes.fusion.merge_affine import MergeAffine
from graphopt_passes.fusion.normalize_gemm import NormalizeGemm

PASSES: list[Pass] = [
    FoldConvBatchNorm(), FoldGemmBatchNorm(), FoldBatchNormConv(), FoldBatchNormGemm(), FoldConvAffine(),
    FoldGemmAffine(), FoldAffineConv(), FoldAffineGemm(), MergeAffine(), FoldPad(), FuseMatMulAdd(),
    FoldTransposeGemm(), NormalizeGemm(),
]  # fmt: skip
C = 4


class Chain:
    """Grows a model operator by operator from a tensor with dims of size C."""

    def __init__(self, seed: int, rank: int) -> None:
        self.rng, self.rank = np.random.default_rng(seed), rank
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self.tip = "x"

    def pick(self, *options: Any) -> Any:
        return options[int(self.rng.integers(len(options)))]

    def const(self, *shape: int, spread: float = 1.0, least: float = 0.0) -> str:
        values = self.rng.standard_normal(shape) * spread
        values = (np.sign(values) * (np.abs(values) + least)).astype(np.float32)
        name = f"c{len(self.weights)}"
        self.weights.append(onnx.numpy_helper.from_array(np.asarray(values), name))
        return name

    def given(self, values: Any) -> str:
        name = f"c{len(self.weights)}"
        self.weights.append(onnx.numpy_helper.from_array(np.asarray(values), name))
        return name

    def add(self, op: str, *inputs: str, **attrs: Any) -> None:
        out = f"t{len(self.nodes)}"
        self.nodes.append(onnx.helper.make_node(op, inputs, [out], **attrs))
        self.tip = out

    def affine(self) -> None:
        op = self.pick("Mul", "Add", "Sub", "Div")
        shapes = [(), (1,), (C,), (1, C), (C, 1)]
        if self.rank == 4:
            shapes += [(C, 1, 1), (C, 1, 1), (C, 1, 1), (1, C, 1, 1), (1, C, 1), (C, C)]
        operands = [self.tip, self.const(*self.pick(*shapes), least=0.3)]
        self.add(op, *(operands if self.rng.random() < 0.8 else operands[::-1]))
        if operands[0] != self.nodes[-1].input[0] and op == "Div":  # keep away from poles
            self.nodes.pop()
            self.tip = operands[0]

    def batch_norm(self) -> None:
        var = self.given((self.rng.random(C) + 0.2).astype(np.float32))
        shift = self.pick(0.0, 1.0)
        parameters = [self.const(C, least=0.2), self.const(C, spread=shift), self.const(C, spread=shift), var]
        self.add("BatchNormalization", self.tip, *parameters, epsilon=self.pick(1e-5, 0.1))

    def conv(self) -> None:
        groups, bias = self.pick(1, 2, 4), self.pick(True, False)
        op = self.pick("Conv", "Conv", "ConvTranspose")
        k = self.pick(1, 3)
        weight = self.const(C, C // groups, k, k, spread=0.4)
        # Each of these keeps the size.
        attrs = (
            {"pads": [k // 2] * 4} if self.pick(True, False) or op != "Conv" else {"auto_pad": "SAME_UPPER"}
        )
        self.add(op, self.tip, weight, *([self.const(C)] if bias else []), group=groups, **attrs)

    def padded(self) -> None:
        """Pad by one on each side, and what brings the size back."""
        value = self.pick(0.0, 0.0, -np.inf, 1.0)
        op = self.pick("Conv", "AveragePool", "MaxPool")
        value = self.given(np.float32(0.0 if np.isinf(value) and op != "MaxPool" else value))
        self.add("Pad", self.tip, self.given(np.array([0, 0, 1, 1, 0, 0, 1, 1])), value)
        if op == "Conv":
            self.add(op, self.tip, self.const(C, C, 3, 3, spread=0.4))
        else:
            extra = {"count_include_pad": self.pick(0, 1)} if op == "AveragePool" else {}
            self.add(op, self.tip, kernel_shape=[3, 3], ceil_mode=self.pick(0, 1), **extra)

    def gemm(self) -> None:
        weight = self.const(C, C, spread=0.6)
        if self.rank != 2 or self.pick(True, False):
            self.add("MatMul", *(self.pick((self.tip, weight), (self.tip, weight), (weight, self.tip))))
            return
        bias = self.pick([], [self.const(C)], [self.const(C, 1)], [self.const(C, C)], [self.const()])
        attrs = {name: self.pick(0, 1) for name in ("transA", "transB")}
        factors = {"alpha": self.pick(1.0, 0.5), "beta": self.pick(1.0, 2.0)}
        operands = self.pick((self.tip, weight), (weight, self.tip))
        self.add("Gemm", *operands, *bias, **attrs, **factors)

    def step(self) -> None:
        steps = [self.affine, self.affine, self.batch_norm]
        if self.rank == 4:
            steps += [self.conv, self.conv, self.padded]
        else:
            steps += [self.gemm, self.gemm]
        if self.rank == 2:
            steps.append(lambda: self.add("Transpose", self.tip))
        self.pick(*steps)()

    def model(self) -> onnx.ModelProto:
        dims = ["N", C, C, C][: self.rank] if self.rank > 2 else [C, C]
        x = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, dims)
        y = onnx.helper.make_tensor_value_info(self.tip, onnx.TensorProto.FLOAT, [None] * self.rank)
        graph = onnx.helper.make_graph(self.nodes, "chain", [x], [y], self.weights)
        opset = onnx.helper.make_opsetid("", 17)
        return onnx.helper.make_model(graph, ir_version=8, opset_imports=[opset])


def chain(seed: int, rank: int) -> onnx.ModelProto:
    made = Chain(seed, rank)
    for _ in range(10):
        made.step()
    return made.model()


@pytest.mark.parametrize("rank", [2, 3, 4])
def test_random_chains(rank: int) -> None:
    folded = 0
    for seed in range(30):
        before = chain(seed, rank)
        done = apply([*PASSES, *PASSES], before)
        folded += len(done.journal.changes)
        try:
            assert_same_interface(before, done.proto)
            # Ten layers deep, float32 agrees to five digits.
            assert_same_numbers(before, done.proto, Numerics.CLOSE)
        except AssertionError as error:
            raise AssertionError(f"rank {rank}, seed {seed}: {error}") from error
    assert folded > 20
