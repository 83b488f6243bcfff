"""Closed-loop mixed precision: float where quantization costs more than the budget allows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from graphopt.passkit import Node, Numerics, Pass, PassContext, Rewriter
from graphopt.quantkit import Budget, Exploration, Score, Search, Sensitivity, Tradeoff, noise, spare_least
from graphopt_passes.quantization import _restore

#: Under this key of the context's notes the pass leaves what it measured.
NOTE = "exploration"


@dataclass(frozen=True)
class RestoreFloat(Pass):
    """Put the quantized nodes back into float without which the model keeps its accuracy budget.

    The budget is the user's (`--min-cosine`, `--min-sqnr`, `--max-drop`), a preset's, or this pass's own
    options. Every quantized Conv, Gemm and MatMul is put back by itself, and the outputs compared with the
    float model's on calibration data: that is its sensitivity. As few nodes as possible are then put back,
    those with the greatest gain first, found by bisection and confirmed on the real outputs each time; every
    one of them is at last tried in integers again.

    Pairs that no integer kernel needs any more go as well.

    Refuses when: there is no data, or no budget; a node is in a nested body.

    Attributes:
        min_cosine: least cosine similarity of every float output, instead of the run's budget.
        min_sqnr: least signal-to-noise ratio of every float output in dB, instead of the run's budget.
        samples: how many samples each node's sensitivity is measured on; decisions use all of them.
        explore: measure every node's sensitivity both ways even if the budget is kept as it is, and the
            accuracy, size and latency of configurations between all integer and all float.
    """

    name: ClassVar[str] = "restore-float"
    numerics: ClassVar[Numerics] = Numerics.LOSSY
    quantizes: ClassVar[bool] = True

    min_cosine: float | None = None
    min_sqnr: float | None = None
    samples: int = 32
    explore: bool = False

    def run(self, graph: Rewriter, ctx: PassContext) -> None:
        """Search and restore, in the main graph."""
        units = _restore.quantized_nodes(graph)
        budget = self._budget(ctx)
        if not units:
            return
        if not ctx.has_data or (budget is None and not self.explore):
            what = "budget" if ctx.has_data else "data"
            graph.refuse(units[0], f"there is no {what} to decide by")
            return
        if not graph.is_main:
            graph.refuse(units[0], "nodes of nested bodies are not searched")
            return

        def measure(spared: tuple[int, ...], samples: int | None = None) -> Score:
            with graph.trial(units[0]):
                self._restore(graph, [units[i] for i in spared], ctx)
                return ctx.score(graph, samples)

        found = spare_least(
            [float(max(_restore.weight_elements(graph, n), 1)) for n in units],
            measure,
            budget or Budget(None, None),
            screen=lambda spared: measure(spared, self.samples),
            everything=self.explore,
        )
        ctx.notes[NOTE] = self._exploration(graph, ctx, units, found, measure)
        for i in found.spared:
            with graph.site(units[i], _why(found, i)):
                self._restore(graph, [units[i]], ctx)

    def _exploration(
        self,
        graph: Rewriter,
        ctx: PassContext,
        units: Sequence[Node],
        found: Search,
        measure: Callable[[tuple[int, ...], int | None], Score],
    ) -> Exploration:
        """What was found out, for the report; when exploring, also what a search does not need."""
        weights = [_restore.weight_elements(graph, n) for n in units]
        ranked = sorted(found.gains, key=lambda i: (-_gain(found, i), i))
        alone: dict[int, Score] = {}
        tradeoffs: list[Tradeoff] = []
        if self.explore:
            everything = tuple(range(len(units)))
            for i in ranked:
                alone[i] = measure((*everything[:i], *everything[i + 1 :]), self.samples)
            counts = sorted({0, *(2**k for k in range(len(ranked).bit_length())), len(ranked)})
            for count in counts:
                spared = tuple(sorted(ranked[:count]))
                with graph.trial(units[0]):
                    self._restore(graph, [units[i] for i in spared], ctx)
                    score, latency = ctx.score(graph), ctx.latency(graph)
                    size = graph.snapshot(swept=True).nbytes
                names = tuple(_name(units[i]) for i in spared)
                tradeoffs.append(Tradeoff(names, len(units), score, size, latency))
        rows = (
            Sensitivity(_name(units[i]), units[i].op, weights[i], found.gains[i], alone.get(i))
            for i in ranked
        )
        return Exploration(found.points[0].score, tuple(rows), tuple(tradeoffs))

    def _budget(self, ctx: PassContext) -> Budget | None:
        if self.min_cosine is None and self.min_sqnr is None:
            return ctx.budget
        return Budget(self.min_cosine, self.min_sqnr)

    def _restore(self, graph: Rewriter, nodes: Sequence[Node], ctx: PassContext) -> None:
        for node in nodes:
            _restore.restore(graph, node, ctx)
        if nodes:
            _restore.tidy(graph)


def _name(node: Node) -> str:
    return node.name or str(node.outputs[0].name)


def _gain(found: Search, unit: int) -> float:
    """By how much the noise falls when `unit` alone is in float."""
    return noise(found.points[0].score) - noise(found.gains[unit])


def _why(found: Search, unit: int) -> str:
    """Why a node is put back, with what it gained by itself."""
    base, alone = found.points[0].score, found.gains.get(unit)
    if alone is None:
        return "put back in float to keep the accuracy budget"
    return (
        "put back in float to keep the accuracy budget: without it alone the SQNR goes from "
        f"{base.sqnr_db:.1f} to {alone.sqnr_db:.1f} dB"
    )
