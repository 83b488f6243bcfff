"""Random chains of movement, cast and neutral operators: all passes together, to the fixpoint, bit for bit."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from graphopt.model import Model
from graphopt.passkit import Numerics
from graphopt.pipeline.manager import Settings, execute
from graphopt.pipeline.registry import Fixpoint
from graphopt.pipeline.targets import get_target
from graphopt.testing import assert_same_interface, assert_same_numbers
from graphopt_passes.cleanup.bypass_shape import BypassShape
from graphopt_passes.cleanup.cancel_squeeze_unsqueeze import CancelSqueezeUnsqueeze
from graphopt_passes.cleanup.dead_nodes import DeadNodes
from graphopt_passes.cleanup.merge_casts import MergeCasts
from graphopt_passes.cleanup.merge_concats import MergeConcats
from graphopt_passes.cleanup.merge_reduce_unsqueeze import MergeReduceUnsqueeze
from graphopt_passes.cleanup.merge_reshapes import MergeReshapes
from graphopt_passes.cleanup.merge_slices import MergeSlices
from graphopt_passes.cleanup.merge_squeezes import MergeSqueezes
from graphopt_passes.cleanup.merge_transposes import MergeTransposes
from graphopt_passes.cleanup.merge_unsqueezes import MergeUnsqueezes
from graphopt_passes.cleanup.prune_outputs import PruneOutputs
from graphopt_passes.cleanup.remove_identity import RemoveIdentity
from graphopt_passes.cleanup.remove_noop_arithmetic import RemoveNoopArithmetic
from graphopt_passes.cleanup.remove_noop_cast import RemoveNoopCast
from graphopt_passes.cleanup.remove_noop_expand import RemoveNoopExpand
from graphopt_passes.cleanup.remove_noop_reshape import RemoveNoopReshape
from graphopt_passes.cleanup.remove_noop_slice import RemoveNoopSlice
from graphopt_passes.cleanup.remove_noop_tile import RemoveNoopTile
from graphopt_passes.cleanup.remove_noop_transpose import RemoveNoopTranspose
from graphopt_passes.cleanup.remove_single_concat import RemoveSingleConcat
from graphopt_passes.cleanup.remove_single_split import RemoveSingleSplit

PASSES = (
    RemoveIdentity(),
    BypassShape(),
    RemoveNoopCast(),
    RemoveNoopReshape(),
    RemoveNoopTranspose(),
    RemoveNoopSlice(),
    RemoveNoopExpand(),
    RemoveNoopTile(),
    RemoveSingleConcat(),
    RemoveSingleSplit(),
    RemoveNoopArithmetic(),
    CancelSqueezeUnsqueeze(),
    MergeTransposes(),
    MergeReshapes(),
    MergeSqueezes(),
    MergeUnsqueezes(),
    MergeSlices(),
    MergeCasts(),
    MergeConcats(),
    MergeReduceUnsqueeze(),
    PruneOutputs(),
    DeadNodes(),
)
# No float16: ONNX Runtime runs what it lacks a half kernel for in float, and drops a Cast to half that
# stands right before it, so the bits depend on what stands between.
FLOATS = (TensorProto.FLOAT, TensorProto.DOUBLE)
# The batch dim N is 6 while the chain is drawn, so that every dim has divisors.
DRAWN_AT = 6


class Chain:
    """Draws a graph of operators that are valid whenever N is a multiple of 6."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        # name, dims at N = DRAWN_AT, which dims are multiples of N (only one is), element type
        self.tensors: list[tuple[str, list[int], int, int]] = [("x", [DRAWN_AT, 4, 6], 0, TensorProto.FLOAT)]
        for _ in range(int(self.rng.integers(6, 16))):
            self.step()

    def pick(self, options: int) -> int:
        return int(self.rng.integers(options))

    def ints(self, values: list[int]) -> str:
        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.array(values, np.int64), name))
        return name

    def add(self, op: str, inputs: list[str], **attributes: object) -> str:
        name = f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [name], **attributes))
        return name

    def step(self) -> None:
        recent = max(0, len(self.tensors) - 2 - self.pick(2))
        name, dims, batch, dtype = self.tensors[recent + self.pick(len(self.tensors) - recent)]
        rank = len(dims)
        choice = self.pick(13)
        if choice <= 2:
            dims, batch, target = self.target(dims, batch)
            name = self.add("Reshape", [name, self.ints(target)])
        elif choice == 3 and rank > 1:
            perm = [int(i) for i in self.rng.permutation(rank)]
            name = self.add("Transpose", [name], perm=perm)
            dims, batch = [dims[i] for i in perm], perm.index(batch)
        elif choice == 4 and rank < 6:
            at = self.pick(rank + 1)
            name = self.add("Unsqueeze", [name, self.ints([at - self.pick(2) * (rank + 1)])])
            dims, batch = [*dims[:at], 1, *dims[at:]], batch + (at <= batch)
        elif choice == 5 and 1 in dims:
            ones = [i for i, d in enumerate(dims) if d == 1]
            at = ones[self.pick(len(ones))]
            name = self.add("Squeeze", [name, self.ints([at - self.pick(2) * rank])])
            dims, batch = [d for i, d in enumerate(dims) if i != at], batch - (at < batch)
        elif choice == 6:
            at = self.pick(rank)
            if at == batch or dims[at] < 2 or self.pick(2):
                bounds = [[0], [2**63 - 1], [at]]
            else:
                bounds = [[self.pick(2)], [dims[at] - self.pick(2)], [at - rank]]
                dims = [*dims]
                dims[at] = bounds[1][0] - bounds[0][0]
                if dims[at] < 1:
                    return
            name = self.add("Slice", [name, *(self.ints(b) for b in bounds)])
        elif choice == 7:
            dtype = FLOATS[self.pick(2)]
            name = self.add("Cast", [name], to=dtype)
        elif choice == 8:
            name = self.add("Expand", [name, self.add("Shape", [self.add("Abs", [name])])])
        elif choice == 9:
            name = self.add(("Identity", "Neg", "Relu")[self.pick(3)], [name])
        elif choice == 10 and dims[(at := self.pick(rank))] <= 8 and at != batch:
            parts = [name] * (1 + self.pick(2))
            name = self.add("Concat", parts, axis=at - self.pick(2) * rank)
            dims = [d * len(parts) if i == at else d for i, d in enumerate(dims)]
        elif choice == 11:
            name = self.add("Reshape", [name, self.add("Shape", [name])])
        elif choice == 12 and rank > 1:
            at = self.pick(rank)
            if at == batch:
                return
            keep = self.pick(2)
            name = self.add("ReduceMax", [name], axes=[at], keepdims=keep)
            dims = [*dims[:at], *([1] if keep else []), *dims[at + 1 :]]
            batch -= at < batch and not keep
        else:
            return
        self.tensors.append((name, dims, batch, dtype))

    def target(self, dims: list[int], batch: int) -> tuple[list[int], int, list[int]]:
        """New dims of the same size with the batch in front or merged, and how to ask for them."""
        rest = int(np.prod(dims)) // dims[batch]
        before = int(np.prod(dims[:batch]))
        if before == 1 and not self.pick(3):
            lead = dims[batch] * rest // max(1, (inner := self.divisor(rest)))
            return [lead, inner], 0, [-1, inner]
        # Keep the dims up to the batch, and split or merge what comes after.
        after = rest // before
        inner = self.divisor(after)
        new = [*dims[: batch + 1], after // inner, inner]
        ask = [0 if self.pick(2) else d for d in dims[:batch]]
        ask += [0, after // inner, inner] if self.pick(2) else [-1, after // inner, inner]
        return new, batch, ask

    def divisor(self, n: int) -> int:
        options = [d for d in range(1, n + 1) if n % d == 0]
        return options[self.pick(len(options))]

    def model(self) -> onnx.ModelProto:
        outputs = {self.tensors[-1][0]: self.tensors[-1]}
        for t in self.tensors[1:]:
            if not self.pick(6):
                outputs[t[0]] = t
        outputs.pop("x", None)
        graph = helper.make_graph(
            self.nodes,
            "chain",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 4, 6])],
            [
                helper.make_tensor_value_info(n, t, [f"{n}_{i}" for i in range(len(d))])
                for n, d, _, t in outputs.values()
            ],
            self.constants,
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        onnx.checker.check_model(model)
        return model


@pytest.mark.parametrize("block", range(8))
def test_bit_for_bit(block: int) -> None:
    rewritten = 0
    for seed in range(block * 25, block * 25 + 25):
        before = Chain(seed).model()
        if not before.graph.output:
            continue
        done = execute(Model.load(before), [Fixpoint(PASSES)], Settings(get_target("portable")))
        after = done.model.to_proto()
        onnx.checker.check_model(after)
        assert_same_interface(before, after)
        rng = np.random.default_rng(seed)
        feeds = [{"x": rng.standard_normal((n, 4, 6)).astype(np.float32)} for n in (DRAWN_AT, 2 * DRAWN_AT)]
        assert_same_numbers(before, after, Numerics.EXACT, feeds)
        rewritten += len(done.journal.changes)
    assert rewritten > 50
