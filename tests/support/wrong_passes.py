"""Third-party passes that are wrong on purpose, each in its own way. A fixture, never an example."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from graphopt.passkit import (
    Match,
    Node,
    NodePass,
    Numerics,
    OpPattern,
    Pass,
    PassContext,
    PatternBuilder,
    PatternPass,
    Rewriter,
)


@dataclass(frozen=True)
class WrongEpsilon(PatternPass):
    """Fold BatchNormalization into Conv, with epsilon ten times too large and then some."""

    name: ClassVar[str] = "wrong-epsilon"
    numerics: ClassVar[Numerics] = Numerics.CLOSE

    only: str = ""

    def pattern(self, p: PatternBuilder) -> OpPattern:
        conv = p.op("Conv", p.var("x"), p.const("w"), name="conv", exact=False)
        stats = [p.const(name) for name in ("gamma", "beta", "mean", "var")]
        return p.op("BatchNormalization", conv, *stats, name="bn", outputs=1)

    def rewrite(self, m: Match, graph: Rewriter, ctx: PassContext) -> None:
        bn, conv = m.node("bn"), m.node("conv")
        wrong = not self.only or self.only in m.output.name
        epsilon = graph.attr(bn, "epsilon") + (0.05 if wrong else 0.0)
        scale = m.array("gamma") / np.sqrt(m.array("var") + np.float32(epsilon))
        bias = graph.array(graph.input(conv, 2))
        shift = m.array("beta") + ((0 if bias is None else bias) - m.array("mean")) * scale
        weight = m.array("w") * scale.reshape(-1, *[1] * (m.array("w").ndim - 1))
        graph.replace(
            m.output,
            "Conv",
            [
                m["x"],
                graph.new_constant("w", weight.astype(np.float32)),
                graph.new_constant("b", shift.astype(np.float32)),
            ],
            attrs=conv.attrs,
        )


@dataclass(frozen=True)
class ReluToClip(NodePass):
    """Relu(x) = Clip(x, 0): right by itself."""

    name: ClassVar[str] = "relu-to-clip"
    numerics: ClassVar[Numerics] = Numerics.CLOSE
    ops: ClassVar[tuple[str, ...]] = ("Relu",)

    def visit(self, node: Node, graph: Rewriter, ctx: PassContext) -> None:
        zero = graph.new_constant("zero", np.float32(0))
        graph.replace(node.outputs[0], "Clip", [node.inputs[0], zero], why="Relu is a Clip")


@dataclass(frozen=True)
class LowerClip(NodePass):
    """Clip(x, 0) = Clip(x, -1): wrong, but there is no such Clip unless another pass makes one."""

    name: ClassVar[str] = "lower-clip"
    numerics: ClassVar[Numerics] = Numerics.CLOSE
    ops: ClassVar[tuple[str, ...]] = ("Clip",)

    def visit(self, node: Node, graph: Rewriter, ctx: PassContext) -> None:
        if graph.scalar(graph.input(node, 1)) == 0 and len(node.inputs) == 2:
            low = graph.new_constant("low", np.float32(-1))
            graph.set_input(node, 1, low, why="a lower bound is as good")


@dataclass(frozen=True)
class Crashes(Pass):
    """Raise in the middle of a rewrite."""

    name: ClassVar[str] = "crashes"
    numerics: ClassVar[Numerics] = Numerics.EXACT

    def run(self, graph: Rewriter, ctx: PassContext) -> None:
        for node in graph.by_op("Relu"):
            with graph.site(node, "about to crash"):
                graph.replace(node.outputs[0], "Neg", [node.inputs[0]])
                raise ZeroDivisionError("one by nought")


@dataclass(frozen=True)
class Dangles(NodePass):
    """Make Relu read a tensor that nothing computes."""

    name: ClassVar[str] = "dangles"
    numerics: ClassVar[Numerics] = Numerics.EXACT
    ops: ClassVar[tuple[str, ...]] = ("Relu",)

    def visit(self, node: Node, graph: Rewriter, ctx: PassContext) -> None:
        from graphopt.passkit import Variable

        if node.inputs[0].name != "nowhere":
            graph.set_input(node, 0, Variable("nowhere"), why="nonsense")


@dataclass(frozen=True)
class SwapsSub(NodePass):
    """Sub(a, b) = Sub(b, a): wrong numbers in valid structure."""

    name: ClassVar[str] = "swaps-sub"
    numerics: ClassVar[Numerics] = Numerics.EXACT
    ops: ClassVar[tuple[str, ...]] = ("Sub",)

    def visit(self, node: Node, graph: Rewriter, ctx: PassContext) -> None:
        if not node.name.endswith("!"):
            a, b = node.inputs
            graph.replace(node.outputs[0], "Sub", [b, a], why="swapped").name = node.name + "!"
