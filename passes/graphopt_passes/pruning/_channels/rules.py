"""The rule of every operator that channels can pass."""

from __future__ import annotations

from graphopt_passes.pruning._channels import rules_elementwise as elementwise
from graphopt_passes.pruning._channels import rules_linear as linear
from graphopt_passes.pruning._channels import rules_shape as shape
from graphopt_passes.pruning._channels.axes import Rule

#: Operators that can have channels of their own.
MAKERS = frozenset(("Conv", "ConvTranspose", "Gemm", "MatMul", "LSTM", "GRU", "RNN"))

RULES: dict[str, Rule] = {
    **dict.fromkeys(elementwise.UNARY, elementwise.same),
    **dict.fromkeys(elementwise.BROADCASTING, elementwise.broadcasting),
    **dict.fromkeys(("BatchNormalization", "InstanceNormalization"), elementwise.batch_norm),
    **dict.fromkeys(
        ("LayerNormalization", "RMSNormalization", "Softmax", "LogSoftmax", "Hardmax"), elementwise.layer_norm
    ),
    **dict.fromkeys(
        (
            "ReduceMean ReduceSum ReduceMax ReduceMin ReduceL1 ReduceL2 ReduceProd ReduceSumSquare "
            "ReduceLogSum ReduceLogSumExp"
        ).split(),
        elementwise.reduce,
    ),
    **dict.fromkeys(
        "MaxPool AveragePool LpPool GlobalAveragePool GlobalMaxPool GlobalLpPool".split(), elementwise.pool
    ),
    **dict.fromkeys(("QuantizeLinear", "DequantizeLinear"), elementwise.quantize),
    **dict.fromkeys(("Conv", "ConvTranspose"), linear.conv),
    "Gemm": linear.gemm,
    "MatMul": linear.matmul,
    **dict.fromkeys(("LSTM", "GRU", "RNN"), linear.recurrent),
    **dict.fromkeys(("Reshape", "Flatten", "Squeeze", "Unsqueeze"), shape.reshape),
    **dict.fromkeys(("Resize", "Upsample"), shape.resize),
    **dict.fromkeys(("Shape", "Size"), shape.sizes),
    "Concat": shape.concat,
    "DepthToSpace": shape.depth_to_space,
    "Expand": shape.expand,
    "Gather": shape.gather,
    "Pad": shape.pad,
    "Slice": shape.slice_,
    "SpaceToDepth": shape.space_to_depth,
    "Split": shape.split,
    "Tile": shape.tile,
    "Transpose": shape.transpose,
}
