"""Whatever the architecture: the pruned model equals the original with masked consumers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from channel_models import Builder, declared, masked, prune
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from graphopt.pipeline.base import Numerics
from graphopt.runtime.session import open_session
from graphopt.testing import assert_same_interface, assert_same_numbers
from graphopt_passes.pruning.prune_channels import PruneChannels

# A block takes a builder, a tensor (N, c, 8, 8) and c, and returns a tensor and its channels.
Block = Callable[[Builder, str, int], tuple[str, int]]
Head = Callable[[Builder, str, int], str]


def plain(b: Builder, x: str, c: int) -> tuple[str, int]:
    return b.op("Relu", b.batch_norm(b.conv(x, c, 12), 12)), 12


def residual(b: Builder, x: str, c: int) -> tuple[str, int]:
    y = b.op("Relu", b.conv(x, c, 8))
    y = b.conv(y, 8, c)
    return b.op("Relu", b.op("Add", x, y)), c


def inverted_residual(b: Builder, x: str, c: int) -> tuple[str, int]:
    y = b.op("HardSwish", b.conv(x, c, 2 * c, k=1))
    y = b.op("Clip", b.batch_norm(b.conv(y, 2 * c, 2 * c, groups=2 * c), 2 * c), b.const(0.0), b.const(6.0))
    return b.op("Add", b.conv(y, 2 * c, c, k=1), x), c


def dense(b: Builder, x: str, c: int) -> tuple[str, int]:
    y = b.op("Relu", b.conv(x, c, 6))
    return b.op("Concat", x, y, axis=1), c + 6


def inception(b: Builder, x: str, c: int) -> tuple[str, int]:
    parts = [
        b.conv(x, c, 4, k=1),
        b.op("Sigmoid", b.conv(x, c, 6)),
        b.op("MaxPool", x, kernel_shape=[3, 3], pads=[1] * 4),
    ]
    return b.op("Concat", *parts, axis=1), 10 + c


def few_groups(b: Builder, x: str, c: int) -> tuple[str, int]:
    y = b.conv(x, c, 8)
    return b.op("Relu", b.conv(y, 8, 12, groups=2)), 12


def many_groups(b: Builder, x: str, c: int) -> tuple[str, int]:
    y = b.op("Relu", b.conv(x, c, 16))
    return b.op("Tanh", b.conv(y, 16, 32, groups=8)), 32


def gated(b: Builder, x: str, c: int) -> tuple[str, int]:
    y = b.conv(x, c, 16)
    left, right = b.op("Split", y, b.const([8, 8], np.int64), outputs=2, axis=1)
    return b.op("Mul", left, b.op("Sigmoid", right)), 8


def unequal_split(b: Builder, x: str, c: int) -> tuple[str, int]:
    y = b.conv(x, c, 14)
    left, right = b.op("Split", y, b.const([4, 10], np.int64), outputs=2, axis=1)
    return b.op("Concat", b.op("Relu", right), b.op("Tanh", left), axis=1), 14


def squeeze_excite(b: Builder, x: str, c: int) -> tuple[str, int]:
    y = b.conv(x, c, 12)
    s = b.op("Relu", b.conv(b.op("GlobalAveragePool", y), 12, 6, k=1))
    s = b.op("HardSigmoid", b.conv(s, 6, 12, k=1))
    return b.op("Mul", y, s), 12


def spatial_gate(b: Builder, x: str, c: int) -> tuple[str, int]:
    return b.op("Mul", x, b.op("Sigmoid", b.conv(x, c, 1))), c


def shuffle(b: Builder, x: str, c: int) -> tuple[str, int]:
    y = b.conv(x, c, 12)
    y = b.op("Reshape", y, b.const([0, 2, 6, 8, 8], np.int64))
    y = b.op("Transpose", y, perm=[0, 2, 1, 3, 4])
    return b.op("Relu", b.op("Reshape", y, b.const([-1, 12, 8, 8], np.int64))), 12


def sliced(b: Builder, x: str, c: int) -> tuple[str, int]:
    y = b.conv(x, c, 16)
    one, ends = b.const([1], np.int64), b.const([9, 2**31], np.int64)
    left = b.op("Slice", y, b.const([2], np.int64), b.const([9], np.int64), one)
    right = b.op("Slice", y, b.const([9], np.int64), b.const([2**31], np.int64), one)
    del ends
    return b.op("Concat", right, left, axis=1), 14


def permuted(b: Builder, x: str, c: int) -> tuple[str, int]:
    y = b.conv(x, c, 10)
    order = b.rng.permutation(10)[:7]
    return b.op("Gather", y, b.const(order, np.int64), axis=1), 7


def up_and_down(b: Builder, x: str, c: int) -> tuple[str, int]:
    w = b.random(c, 6, 2, 2, fan=c)
    y = b.op("ConvTranspose", x, w, b.random(6), strides=[2, 2])
    y = b.op("Pad", b.op("Elu", y), b.const([0, 0, 1, 1, 0, 0, 1, 1], np.int64))
    return b.op("AveragePool", y, kernel_shape=[4, 4], strides=[2, 2]), 6


def depth_to_space(b: Builder, x: str, c: int) -> tuple[str, int]:
    y = b.conv(x, c, 24)
    y = b.op("Relu", b.op("DepthToSpace", y, blocksize=2, mode=["DCR", "CRD"][b.seed % 2]))
    y = b.op("SpaceToDepth", b.conv(y, 6, 5), blocksize=2)
    return y, 20


def scaled(b: Builder, x: str, c: int) -> tuple[str, int]:
    y = b.op("Mul", b.conv(x, c, 9), b.random(9, 1, 1))
    y = b.op("PRelu", b.op("Sub", b.random(1, 9, 1, 1), y), b.random(9, 1, 1))
    return b.op("InstanceNormalization", y, b.random(9), b.random(9)), 9


def resized(b: Builder, x: str, c: int) -> tuple[str, int]:
    y = b.op("Resize", b.conv(x, c, 7), "", b.const([1, 1, 2, 2]), mode="nearest")
    return b.op("MaxPool", y, kernel_shape=[2, 2], strides=[2, 2]), 7


BLOCKS: list[Block] = [
    plain, residual, inverted_residual, dense, inception, few_groups, many_groups, gated, unequal_split,
    squeeze_excite, spatial_gate, shuffle, sliced, permuted, up_and_down, depth_to_space, scaled, resized,
]  # fmt: skip


# A head takes (N, c, 8, 8) and returns the output, (N, 3).


def flatten_head(b: Builder, x: str, c: int) -> str:
    y = b.op("Flatten", b.op("AveragePool", x, kernel_shape=[4, 4], strides=[4, 4]))
    y = b.op("Relu", b.op("Gemm", y, b.random(10, 4 * c, fan=4 * c), b.random(10), transB=1))
    return b.op("Gemm", y, b.random(10, 3, fan=10), b.random(3), alpha=0.5)


def pooled_head(b: Builder, x: str, c: int) -> str:
    y = b.op("ReduceMean", x, axes=[2, 3], keepdims=0)
    y = b.op("Gelu" if b.opset >= 20 else "Relu", b.linear(y, c, 9))
    return b.linear(y, 9, 3)


def tokens(b: Builder, x: str, c: int) -> str:
    """(N, 64, 16)."""
    y = b.op(
        "Transpose", b.op("Reshape", b.conv(x, c, 16, k=1), b.const([0, 16, 64], np.int64)), perm=[0, 2, 1]
    )
    return b.op("Mul", y, b.const(0.3))


def mlp_head(b: Builder, x: str, c: int) -> str:
    y = tokens(b, x, c)
    n = b.op("LayerNormalization", y, b.random(16), b.random(16), axis=-1)
    y = b.op("Add", y, b.linear(b.op("Tanh", b.linear(n, 16, 24)), 24, 16))
    return b.linear(b.op("ReduceMean", y, axes=[1], keepdims=0), 16, 3)


def attention_head(b: Builder, x: str, c: int) -> str:
    y = tokens(b, x, c)
    n = b.op("LayerNormalization", y, b.random(16), b.random(16), axis=-1)
    q, k, v = (
        b.op(
            "Transpose",
            b.op("Reshape", b.linear(n, 16, 20), b.const([0, 0, 5, 4], np.int64)),
            perm=[0, 2, 3, 1] if which == "k" else [0, 2, 1, 3],
        )
        for which in "qkv"
    )
    p = b.op("Softmax", b.op("Mul", b.op("MatMul", q, k), b.const(0.5)), axis=-1)
    o = b.op(
        "Reshape", b.op("Transpose", b.op("MatMul", p, v), perm=[0, 2, 1, 3]), b.const([0, 0, -1], np.int64)
    )
    y = b.op("Add", y, b.linear(o, 20, 16))
    return b.linear(b.op("ReduceMean", y, axes=[1], keepdims=0), 16, 3)


def merged_attention_head(b: Builder, x: str, c: int) -> str:
    y = tokens(b, x, c)
    m = b.op("Reshape", b.linear(y, 16, 60), b.const([-1, 64, 3, 5, 4], np.int64))
    m = b.op("Transpose", m, perm=[2, 0, 3, 1, 4])
    q, k, v = (b.op("Gather", m, b.const(i, np.int64), axis=0) for i in range(3))
    p = b.op("Softmax", b.op("MatMul", q, b.op("Transpose", k, perm=[0, 1, 3, 2])), axis=-1)
    o = b.op("Transpose", b.op("MatMul", p, v), perm=[0, 2, 1, 3])
    shape = b.op(
        "Concat",
        b.op("Slice", b.op("Shape", o), b.const([0], np.int64), b.const([2], np.int64)),
        b.const([20], np.int64),
        axis=0,
    )
    y = b.linear(b.op("Reshape", o, shape), 20, 16)
    return b.linear(b.op("ReduceMean", y, axes=[1], keepdims=0), 16, 3)


def lstm_head(b: Builder, x: str, c: int) -> str:
    y = b.op("Transpose", tokens(b, x, c), perm=[1, 0, 2])
    w, r = b.random(2, 48, 16, fan=16), b.random(2, 48, 12, fan=12)
    first = b.op("LSTM", y, w, r, b.random(2, 96), hidden_size=12, direction="bidirectional")
    y = b.op("Reshape", b.op("Transpose", first, perm=[0, 2, 1, 3]), b.const([0, 0, -1], np.int64))
    w, r = b.random(1, 32, 24, fan=24), b.random(1, 32, 8, fan=8)
    _, last = b.op("LSTM", y, w, r, b.random(1, 64), outputs=2, hidden_size=8)
    return b.linear(b.op("Squeeze", last, b.const([0], np.int64)), 8, 3)


def gru_head(b: Builder, x: str, c: int) -> str:
    y = b.op("Transpose", tokens(b, x, c), perm=[1, 0, 2])
    w, r = b.random(1, 27, 16, fan=16), b.random(1, 27, 9, fan=9)
    _, last = b.op("GRU", y, w, r, b.random(1, 54), outputs=2, hidden_size=9)
    return b.linear(b.op("Reshape", last, b.const([-1, 9], np.int64)), 9, 3)


HEADS = [
    flatten_head, pooled_head, mlp_head, attention_head, merged_attention_head, lstm_head, gru_head,
]  # fmt: skip


def build(blocks: list[Block], head: Head, seed: int) -> onnx.ModelProto:
    b = Builder(seed)
    x, c = b.conv("x", 3, 8), 8
    for block in blocks:
        x, c = block(b, x, c)
        x = b.op("Div", x, b.const(1.5))
    y = head(b, x, c)
    b.nodes[-1].output[0] = "y"
    del y
    return b.model({"x": ["N", 3, 8, 8]}, {"y": ["N", 3]})


def check(model: onnx.ModelProto, ratio: float) -> dict[str, int]:
    """Prune, compare with the masked original; sizes of what shrank."""
    pruning = PruneChannels(ratio=ratio, multiple=1, least=1)
    done, kept = prune(pruning, model)
    assert_same_interface(model, done.proto)
    onnx.shape_inference.infer_shapes(done.proto, strict_mode=True, check_type=True)
    rng = np.random.default_rng(1)
    feeds = [{"x": rng.standard_normal((n, 3, 8, 8)).astype(np.float32)} for n in (1, 3)]
    assert_same_numbers(masked(model, kept), done.proto, Numerics.CLOSE, feeds)
    sizes = declared(done.proto)
    for name, (axis, indices) in kept.items():
        if name in sizes:
            assert sizes[name][axis] == len(indices), f"{name} is declared as {sizes[name]}"
    return {name: len(indices) for name, (_, indices) in kept.items()}


@pytest.mark.parametrize("block", BLOCKS, ids=lambda f: f.__name__)
def test_block(block: Block) -> None:
    assert check(build([block, plain], flatten_head, 3), 0.5)


@pytest.mark.parametrize("head", HEADS, ids=lambda f: f.__name__)
def test_head(head: Head) -> None:
    assert check(build([plain], head, 5), 0.4)


@given(
    blocks=st.lists(st.sampled_from(BLOCKS), min_size=1, max_size=4),
    head=st.sampled_from(HEADS),
    ratio=st.sampled_from([0.2, 0.5, 0.8]),
    seed=st.integers(0, 1000),
)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_any_architecture(blocks: list[Block], head: Head, ratio: float, seed: int) -> None:
    check(build(blocks, head, seed), ratio)


@pytest.mark.parametrize(
    ("block", "head", "scope"),
    [
        (few_groups, merged_attention_head, "uniform"),
        (dense, lstm_head, "uniform"),
        (gated, gru_head, "global"),
        (up_and_down, attention_head, "uniform"),
        (inverted_residual, flatten_head, "global"),
    ],
)
def test_with_data_it_is_closer(block: Block, head: Head, scope: Any) -> None:
    model = build([block, plain], head, 2)
    rng = np.random.default_rng(0)
    feeds = {"x": rng.standard_normal((96, 3, 8, 8)).astype(np.float32)}
    fresh = {"x": rng.standard_normal((32, 3, 8, 8)).astype(np.float32)}

    def error(data: Any) -> float:
        pruning = PruneChannels(ratio=0.3, multiple=1, scope=scope if data else "uniform")
        done, kept = prune(pruning, model, data=data)
        assert kept
        onnx.shape_inference.infer_shapes(done.proto, strict_mode=True, check_type=True)
        with open_session(model) as before, open_session(done.proto) as after:
            return float(np.square(before.run(fresh)["y"] - after.run(fresh)["y"]).sum())

    assert error(feeds) < 0.8 * error(None)
