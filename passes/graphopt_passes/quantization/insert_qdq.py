"""insert-qdq: static quantization of weights and activations."""

from __future__ import annotations

import difflib
import fnmatch
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np

from graphopt.passkit import GraphView, Node, Numerics, Pass, PassContext, Rewriter, Tensor, UserError
from graphopt.quantkit import (
    QUANT_TYPES,
    Histogram,
    Implies,
    MinMax,
    MovingMinMax,
    Plan,
    Profile,
    Selection,
    Watch,
    WeightMethod,
    get_profile,
    make_plan,
    range_of,
    saturates,
)
from graphopt_passes.quantization._placement import Formats, Placer

Observer = Literal["minmax", "moving", "percentile", "entropy", "mse"]


@dataclass(frozen=True)
class InsertQDQ(Pass):
    """x -> QuantizeLinear -> DequantizeLinear -> op, and integer weights -> DequantizeLinear -> op.

    In the places in which the target's runtime makes integer kernels of them: Conv, Gemm and MatMul with the
    Relu or Clip behind them, and the Add, Concat, pools and the like that stand between those. Ranges of
    activations come from calibration data (`--data`), or from a file (`--ranges`).

    Refuses when: the target has no integer kernel for a node (its reason is reported); a weight is no
    constant; values are not float32, not finite, or too small for a scale; the data never gets there; the
    node is in a local function; it is quantized already.

    Attributes:
        ops: operator types to quantize; all that the target has integer kernels for by default.
        nodes: globs of names of nodes to quantize.
        exclude: globs of names of nodes to leave in float.
        activations: integer type of activations; "auto" is the target's.
        weights: integer type of weights; "auto" is the target's.
        per_channel: a scale for each output channel of a weight.
        symmetric: activations without a zero point.
        observer: how a range is chosen from the values seen. minmax: all of them; moving: the average of the
            batches' ranges; percentile: see below; entropy: least Kullback-Leibler divergence; mse: least
            mean squared error.
        percentile: how much of the values a range holds, in percent.
        weight_method: how scales of weights are chosen: all values (minmax), or least squared error (mse).
        power_of_two: scales are powers of two, for fixed-point arithmetic.
        bias: int32 in units of the product, or float; "auto" is the target's.
        reduce_range: weights of 7 bits; "auto" on x86 processors without VNNI, whose sums of 8-bit products
            saturate.
    """

    name: ClassVar[str] = "insert-qdq"
    numerics: ClassVar[Numerics] = Numerics.LOSSY
    quantizes: ClassVar[bool] = True

    ops: tuple[str, ...] = ()
    nodes: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    activations: Literal["auto", "uint8", "int8", "uint16", "int16"] = "auto"
    weights: Literal["auto", "int8", "uint8", "int16", "int4"] = "auto"
    per_channel: bool = True
    symmetric: bool | Literal["auto"] = "auto"
    observer: Observer = "minmax"
    percentile: float = field(default=99.99, metadata={"help": "with observer=percentile"})
    weight_method: WeightMethod = "minmax"
    power_of_two: bool = False
    bias: Literal["auto", "int32", "float"] = "auto"
    reduce_range: bool | Literal["auto"] = "auto"

    def __post_init__(self) -> None:
        """Check ranges."""
        if not 0 < self.percentile <= 100:
            raise ValueError(f"percentile is above 0 and at most 100, not {self.percentile:g}")

    def least_opset(self) -> int:
        """13 for scales per channel and for runtimes, 21 for integers of other than 8 bits."""
        wide = {self.activations, self.weights} & {"uint16", "int16", "int4"}
        return 21 if wide else 13

    def run(self, graph: Rewriter, ctx: PassContext) -> None:
        """Plan, observe, and place, in one body."""
        profile = get_profile(ctx.target.name)
        if graph.is_main:
            self._check_selectors(graph, profile)
        if profile.refusal or graph.is_function:
            reason = (
                profile.refusal or "local functions are not quantized: no values of theirs can be observed"
            )
            hint = "; quantize-weights keeps weights in integers" if profile.refusal else ""
            for node in graph.by_op(*profile.core):
                graph.refuse(node, reason + hint)
            return
        formats = self._formats(profile)
        implies: Implies = "relu" if self.power_of_two else "any"
        if formats.symmetric and formats.activation.signed:
            implies = "none"
        plan = make_plan(graph, profile, Selection(self.ops, self.nodes, self.exclude), implies=implies)
        for node, reason in plan.reasons.items():
            graph.refuse(node, reason)
        if plan.nodes:
            Placer(graph, plan, self._ranges(graph, ctx, plan, formats), formats).place()

    def _formats(self, profile: Profile) -> Formats:
        activation = profile.activation if self.activations == "auto" else self.activations
        weight = profile.weight if self.weights == "auto" else self.weights
        for name, known, what in (
            (activation, profile.activations, "activations"),
            (weight, profile.weights, "weights"),
        ):
            if name not in known:
                raise UserError(
                    f"{profile.name} does not take {name} {what}", fix=f"{what}={' or '.join(known)}"
                )
        bias = profile.bias if self.bias == "auto" else self.bias
        narrow = (
            saturates() and profile.name != "tensorrt" if self.reduce_range == "auto" else self.reduce_range
        )
        return Formats(
            QUANT_TYPES[activation],
            QUANT_TYPES[weight],
            profile.symmetric if self.symmetric == "auto" else self.symmetric,
            self.per_channel,
            narrow,
            self.power_of_two,
            self.weight_method,
            bias == "int32",
        )

    # -- ranges --------------------------------------------------------------------------------------

    def _ranges(
        self, graph: Rewriter, ctx: PassContext, plan: Plan, formats: Formats
    ) -> dict[Tensor, tuple[float, float]]:
        """Least and largest value of every tensor that is quantized; infinite where values are.

        NaN where there were none, as in the branch of an If that the data never takes.
        """
        if ctx.ranges is not None:
            ctx.ranges.check(graph.snapshot())
        ranges: dict[Tensor, tuple[float, float]] = {}
        missing: list[Tensor] = []
        for tensor in plan.sources():
            known = None if ctx.ranges is None else ctx.ranges.get(tensor.name)
            if known is None:
                missing.append(tensor)
            else:
                ranges[tensor] = known
        if not missing:
            return ranges
        if not ctx.has_data and ranges:  # calibration leaves out what had no finite values
            return ranges | dict.fromkeys(missing, (math.nan, math.nan))
        if not ctx.has_data:
            raise UserError(
                "static quantization needs typical inputs to choose the ranges of activations",
                where=None if graph.is_main else graph.label,
                fix="hand them in with --data calib.npz (see `graphopt run --help`), or use a preset that "
                "needs none: int8-dynamic or int8-weights",
            )
        found = ctx.observe(graph, [Watch(self._statistic(), (t,)) for t in missing])
        for tensor, statistic in zip(missing, found, strict=True):
            if _nonfinite(statistic):
                ranges[tensor] = (-math.inf, math.inf)
            elif not np.any(statistic.count):
                ranges[tensor] = (math.nan, math.nan)
            else:
                ranges[tensor] = self._range(statistic, formats)
        return ranges

    def _statistic(self) -> Any:
        if self.observer == "minmax":
            return MinMax()
        return MovingMinMax() if self.observer == "moving" else Histogram()

    def _range(self, statistic: Any, formats: Formats) -> tuple[float, float]:
        low, high = range_of(
            statistic,
            "minmax" if self.observer == "moving" else self.observer,
            formats.activation,
            symmetric=formats.symmetric,
            percentile=self.percentile,
            power_of_two=self.power_of_two,
        )
        return float(low), float(high)

    # -- selectors -----------------------------------------------------------------------------------

    def _check_selectors(self, graph: GraphView, profile: Profile) -> None:
        everything = list(_nodes_of(graph))
        for op in self.ops:
            if op not in profile.ops:
                raise UserError(
                    f"{self.name}: {profile.name} has no integer kernel for the operator {op!r}",
                    fix=f"it has for {', '.join(profile.ops)}",
                )
            if not any(node.op == op for node in everything):
                raise UserError(f"{self.name}: the model has no {op}", fix="leave it out of ops")
        names = sorted({n for node in everything for n in (node.name, *(t.name for t in node.outputs)) if n})
        for what, globs in (("nodes", self.nodes), ("exclude", self.exclude)):
            _check_globs(self.name, what, globs, names)


def _nonfinite(statistic: MinMax | MovingMinMax | Histogram) -> int:
    """How many NaNs and infinities were seen."""
    if isinstance(statistic, Histogram):
        return statistic.nans + statistic.infinities
    return statistic.nonfinite


def _check_globs(owner: str, what: str, globs: Sequence[str], names: Sequence[str]) -> None:
    for glob in globs:
        if not any(fnmatch.fnmatchcase(name, glob) for name in names):
            close = difflib.get_close_matches(glob.replace("*", ""), names, n=3, cutoff=0.4)
            raise UserError(
                f"{owner}: no node has a name like {glob!r} ({what})",
                fix=f"near to it: {', '.join(close)}" if close else "see names with `graphopt inspect`",
            )


def _nodes_of(graph: GraphView) -> Iterator[Node]:
    """The nodes of a body and of the bodies in it."""
    stack = list(graph.nodes())
    while stack:
        node = stack.pop()
        yield node
        stack.extend(inner for body in node.bodies() for inner in body.nodes)
