"""The report of the linter as plain data: which nodes run as integer kernels, and why the others do not."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from graphopt.quantization.kernels import Prediction
from graphopt.report.document import to_json

SCHEMA = "graphopt.lint/1"

_MAIN = frozenset(
    "Conv ConvInteger Gemm MatMul MatMulInteger QLinearConv QLinearMatMul com.microsoft::DynamicQuantizeLSTM "
    "com.microsoft::DynamicQuantizeMatMul com.microsoft::MatMulIntegerToFloat com.microsoft::MatMulNBits "
    "com.microsoft::QGemm".split()
)


@dataclass(frozen=True)
class LintRow:
    """One node.

    Attributes:
        node: its name, or its first output's where it has none.
        op: operator.
        body: the body it stands in.
        kernel: the integer kernel that is predicted; None: it runs in float.
        reason, fix: why it runs in float, and what to do.
        quantized: it stands behind a DequantizeLinear or before a QuantizeLinear.
        eligible: the target has an integer kernel for the operator.
        moves_data: it computes nothing.
        merged: it becomes part of a neighbour's kernel.
        actual: what onnxruntime executes; None when it was not asked, or the node could not be traced.
        actual_integer: that is an integer kernel.
    """

    node: str
    op: str
    body: str
    kernel: str | None
    reason: str = ""
    fix: str = ""
    quantized: bool = False
    eligible: bool = False
    moves_data: bool = False
    merged: bool = False
    actual: str | None = None
    actual_integer: bool = False

    @property
    def is_integer(self) -> bool:
        """It runs as an integer kernel: what was seen counts more than what was predicted."""
        return self.kernel is not None if self.actual is None else self.actual_integer

    @property
    def disagrees(self) -> bool:
        """Seen and predicted differ."""
        return self.actual is not None and self.actual_integer != (self.kernel is not None)

    @property
    def counts(self) -> bool:
        """It computes something for which the target has an integer kernel.

        Operators that are rarely worth it by themselves count only where they are quantized.
        """
        return (
            self.eligible and not self.moves_data and not self.merged and (self.quantized or self.op in _MAIN)
        )

    @property
    def falls_back(self) -> bool:
        """It was quantized, could be an integer kernel, and runs in float."""
        return self.counts and self.quantized and not self.is_integer


@dataclass(frozen=True)
class LeftConversion:
    """A QuantizeLinear or DequantizeLinear that is executed as such in the middle of the model.

    Attributes:
        op: which of the two.
        tensor: the float tensor beside it.
        node: the node of the model that it comes from, "" when onnxruntime inserted it.
        weight: it dequantizes a constant, anew on every run.
    """

    op: str
    tensor: str
    node: str = ""
    weight: bool = False


@dataclass(frozen=True)
class LintReport:
    """What the linter found.

    Attributes:
        model: the file.
        target: target profile.
        rows: the nodes, in topological order, nested bodies first.
        conversions: conversions that cost time inside the model, where the runtime was asked.
        runtime: the provider that was asked what it executes, "" when none was.
        note: why it was not asked, or what else people should know.
    """

    model: str
    target: str
    rows: tuple[LintRow, ...] = ()
    conversions: tuple[LeftConversion, ...] = ()
    runtime: str = ""
    note: str = ""

    @property
    def integer(self) -> int:
        """Number of nodes that compute something as integer kernels."""
        return sum(row.counts and row.is_integer for row in self.rows)

    @property
    def possible(self) -> int:
        """Number of nodes that compute something for which there is an integer kernel."""
        return sum(row.counts for row in self.rows)

    @property
    def fallbacks(self) -> tuple[LintRow, ...]:
        """Quantized nodes that run in float although there is an integer kernel."""
        return tuple(row for row in self.rows if row.falls_back)

    @property
    def kernels(self) -> dict[str, int]:
        """Integer kernel -> how many, without those that only move data."""
        found = Counter((row.actual or row.kernel) for row in self.rows if row.counts and row.is_integer)
        return {str(kernel): n for kernel, n in found.most_common()}

    def to_json(self, *, indent: int | None = 2) -> str:
        """This report as JSON, with its schema version first."""
        return to_json(self, SCHEMA, indent=indent)


def row_of(prediction: Prediction, body: str) -> LintRow:
    """The row of a prediction."""
    node = prediction.node
    return LintRow(
        node.name or next((t.name for t in node.outputs if t.name), ""),
        f"{node.domain}::{node.op}" if node.domain else node.op,
        body,
        prediction.kernel,
        prediction.reason,
        prediction.fix,
        prediction.quantized,
        prediction.eligible,
        prediction.moves_data,
        prediction.merged,
    )
