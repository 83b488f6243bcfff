"""Mish from its parts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from graphopt.passkit import (
    Match,
    Numerics,
    OpPattern,
    PassContext,
    PatternBuilder,
    PatternPass,
    RefusedRewrite,
    Rewriter,
)
from graphopt_passes.fusion._region import Region, accepts


@dataclass(frozen=True)
class FuseMish(PatternPass):
    """x * tanh(softplus(x)) = Mish(x) (opset 18), softplus also written as log(1 + exp(x)).

    Refuses when: an intermediate result has another reader or is a graph output; the opset has no Mish
    for x's type; the constant 1 would broadcast x to a higher rank.
    """

    name: ClassVar[str] = "fuse-mish"
    numerics: ClassVar[Numerics] = Numerics.CLOSE

    def pattern(self, p: PatternBuilder) -> OpPattern:
        """Mul(x, Tanh(Softplus(x)))."""
        x = p.var("x")
        spelled = p.op(
            "Log", p.op("Add", p.op("Exp", x), p.const("one", check=lambda v: bool((v == 1).all())))
        )
        return p.op("Mul", x, p.op("Tanh", p.either(p.op("Softplus", x), spelled)))

    def rewrite(self, m: Match, graph: Rewriter, ctx: PassContext) -> None:
        """Replace the Mul by a Mish."""
        x = m["x"]
        if not accepts(graph, "Mish", graph.dtype(m.output)):
            raise RefusedRewrite(f"no Mish for the type of {x.name} at opset {graph.opset}")
        region = Region(graph)
        if m.get("one") is not None and region.scalar(m["one"]) is None:
            raise RefusedRewrite(f"{m['one'].name} is not a scalar")
        region.check_rank(x)
        graph.replace(m.output, "Mish", [x])
