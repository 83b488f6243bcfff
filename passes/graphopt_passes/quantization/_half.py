"""What convert-fp16 and convert-bf16 have in common."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Final, Literal

from graphopt.passkit import Constant, Function, Node, Numerics, Pass, PassContext, RefusedRewrite, Rewriter
from graphopt.quantkit import noise
from graphopt_passes.quantization._half_plan import HalfPlan, match_names, plan_body
from graphopt_passes.quantization._half_rewrite import HalfWriter, simulate
from graphopt_passes.quantization._half_search import find_noisy
from graphopt_passes.quantization._precision import FLOAT, HalfFormat, rounding_of

# Smaller initializers are not worth a Cast.
_LEAST_STORED: Final = 1 << 10
_QUANTIZING: Final = ("DequantizeLinear", "QuantizeLinear")
# Samples on which groups of nodes are compared; the outcome is measured on all of them.
_SEARCH_SAMPLES: Final = 64


@dataclass(frozen=True)
class ConvertHalf(Pass):
    """Half precision, of either kind."""

    numerics: ClassVar[Numerics] = Numerics.LOSSY
    quantizes: ClassVar[bool] = True
    format: ClassVar[HalfFormat]

    keep: tuple[str, ...] = field(
        default=(), metadata={"help": "globs over nodes, outputs and operator types that stay in float32"}
    )
    storage: Literal["compute", "weights"] = field(
        default="compute",
        metadata={"help": "compute: nodes compute in half precision; weights: they are only stored so"},
    )
    max_error: float = field(
        default=0.0,
        metadata={"help": "error of the outputs relative to their RMS; 0: 0.01 for fp16, 0.05 for bf16"},
    )
    headroom: float = field(
        default=2.0, metadata={"help": "how many times larger than measured values may become"}
    )

    def run(self, graph: Rewriter, ctx: PassContext) -> None:
        """Convert one body."""
        if isinstance(graph.body, Function):
            return  # its types are those of its callers
        if graph.opset < self.least_opset():
            return  # Cast does not know the format yet
        if self.storage == "weights":
            self._store_weights(graph, ctx)
            return
        first = next(iter(graph.nodes()), None)
        if first is None:
            return
        try:
            plan = plan_body(graph, ctx, self.format, self.keep, self.headroom)
        except RefusedRewrite as refused:
            graph.refuse(first, refused.reason)
            return
        if ctx.has_data:
            self._keep_noisy(graph, ctx, plan)
        elif plan.nodes:
            graph.refuse(first, "no data: activations may overflow where nothing shows it")
        for node, reason in plan.kept.items():
            graph.refuse(node, f"stays in float32: {reason}")
        writer = HalfWriter(graph, self.format)
        for node, slots in plan.nodes.items():
            writer.convert(node, slots, plan.clamped.get(node, ()))

    def _limit(self, ctx: PassContext) -> float:
        """Noise power over signal power that the outputs may have."""
        limit = (self.max_error or self.format.max_error) ** 2
        asked = None if ctx.budget is None else ctx.budget.min_sqnr_db
        return float(limit if asked is None else min(limit, 10.0 ** (-asked / 10)))

    def _keep_noisy(self, graph: Rewriter, ctx: PassContext, plan: HalfPlan) -> None:
        nodes = list(plan.nodes)

        def measure(units: Sequence[int]) -> float:
            if not units:
                return 0.0
            with graph.trial(nodes[0]):
                simulate(graph, self.format, plan, [nodes[u] for u in units])
                return noise(ctx.score(graph, _SEARCH_SAMPLES))

        for unit in find_noisy(len(nodes), measure, self._limit(ctx)):
            node = nodes[unit]
            del plan.nodes[node]
            plan.clamped.pop(node, None)
            plan.kept[node] = "the outputs would move too far"

    def _store_weights(self, graph: Rewriter, ctx: PassContext) -> None:
        chosen = match_names(graph, self.keep)
        weights: list[Constant] = []
        for constant in list(graph.body.initializers):
            readers = graph.consumers(constant)
            if graph.dtype(constant) != FLOAT or constant.nbytes < 4 * _LEAST_STORED or not readers:
                continue
            if graph.is_output(constant) or graph.keeps(constant):
                continue
            if any(graph.is_op(node, *_QUANTIZING) for node in readers):
                continue  # runtimes look for scales that are initializers
            values = graph.array(constant)
            assert values is not None
            reason = rounding_of(values, self.format).trouble()
            if any(node in chosen or graph.keeps(node) for node in readers):
                reason = "asked for"
            if reason:
                graph.refuse(readers[0], f"{constant.name} stays in float32: {reason}")
            else:
                weights.append(constant)
        noisy = self._noisy_weights(graph, ctx, weights) if ctx.has_data else []
        writer = HalfWriter(graph, self.format)
        for place, constant in enumerate(weights):
            if place in noisy:
                reader = graph.consumers(constant)[0]
                graph.refuse(reader, f"{constant.name} stays in float32: the outputs would move too far")
            else:
                writer.store(constant)

    def _noisy_weights(self, graph: Rewriter, ctx: PassContext, weights: list[Constant]) -> list[int]:
        if not weights:
            return []
        root: Node = graph.consumers(weights[0])[0]

        def measure(units: Sequence[int]) -> float:
            if not units:
                return 0.0
            with graph.trial(root):
                for unit in units:
                    values = graph.array(weights[unit])
                    assert values is not None
                    rounded = graph.new_constant(f"{weights[unit].name}_rounded", self.format.round(values))
                    graph.redirect(weights[unit], rounded)
                return noise(ctx.score(graph, _SEARCH_SAMPLES))

        return find_noisy(len(weights), measure, self._limit(ctx))
