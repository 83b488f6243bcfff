"""What does not depend on the inputs is computed once, ahead of time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from graphopt.passkit import Array, GraphView, Node, Numerics, Pass, PassContext, Rewriter, Tensor
from graphopt_passes.folding._foldable import is_exact, may_fold
from graphopt_passes.folding._plan import Plan
from graphopt_passes.folding._store import store

# Of all folds together; a single one may add Limits.growth_bytes.
_ALLOWANCE = 16
# Results computed in one go, in bytes, so that not all of them are in memory twice.
_BATCH_BYTES = 1 << 24
_FAILED = "fold-constants: cannot be computed"
_SPENT = "fold-constants: bytes added"


@dataclass(frozen=True)
class FoldConstants(Pass):
    """Nodes whose inputs are all constant are computed by the reference runtime and become constants.

    Only what the rest of the model reads is stored, and only while the model does not grow by it: a
    result may outweigh the constants that it replaces by `Limits.growth_bytes`. Sizes are known before
    anything runs. Where storing is refused, what leads up to that node is still folded.

    Refuses when: the result is too large, or of a size not known beforehand; the operator is random, in
    training mode, custom, a call of a local function, or holds bodies; it makes no tensor (sequences,
    optionals) or strings; it quantizes or dequantizes, which would undo quantization; an input can be
    overridden; the runtime refuses to run it (an integer division by zero, say).

    Results are those of the very kernels that would run without any optimization, in one thread. Arithmetic
    and rounding in half precision are not among them: it is `fold-half-constants`' business.
    """

    name: ClassVar[str] = "fold-constants"
    numerics: ClassVar[Numerics] = Numerics.EXACT

    def folds(self, node: Node, graph: GraphView) -> bool:
        """Whether `node` may be computed ahead of time by this pass."""
        return may_fold(node, graph) and is_exact(node, graph)

    def run(self, graph: Rewriter, ctx: PassContext) -> None:
        """Fold everything foldable in one body."""
        failed: dict[Node, str] = {}
        # Kept from run to run: what was added so far, and what cannot be computed.
        spent: int = ctx.notes.get((_SPENT, graph.body), 0)
        hopeless: set[Node] = ctx.notes.setdefault((_FAILED, graph.body), set())
        while True:
            plan = Plan(graph, self.folds, ctx.limits, _ALLOWANCE * ctx.limits.growth_bytes - spent, hopeless)
            before = len(failed)
            for batch in _batches(plan):
                spent += self._fold(batch, plan, graph, ctx, failed)
            ctx.notes[_SPENT, graph.body] = spent
            if len(failed) == before:
                break
            hopeless.update(failed)
        for node, reason in {**plan.refused, **failed}.items():
            if graph.is_live(node):
                graph.refuse(node, reason)

    def _fold(
        self,
        tensors: Sequence[Tensor],
        plan: Plan,
        graph: Rewriter,
        ctx: PassContext,
        failed: dict[Node, str],
    ) -> int:
        """Store `tensors` as far as they can be computed; the bytes that this adds to the model."""
        nodes = plan.needed(tensors)
        computed = set(nodes)
        feeds: dict[Tensor, Array] = {}
        for node in nodes:
            for t in node.inputs:
                if t.name and t not in feeds and graph.producer(t) not in computed:
                    array = graph.array(t)
                    assert array is not None
                    feeds[t] = array
        values, reasons = ctx.evaluate(nodes, feeds, {"": graph.opset}, wanted=tensors)
        failed.update(reasons)
        added = 0
        for t in tensors:
            value = values.get(t)
            if value is None or value.nbytes > ctx.limits.folded_bytes:
                continue
            producer = graph.producer(t)
            if producer is not None and store(t, value, graph, f"{producer.op} of constants"):
                added += plan.stored[t]
        return added


def _batches(plan: Plan) -> list[list[Tensor]]:
    """The tensors to store, split where what is computed for them gets large."""
    batches: list[list[Tensor]] = []
    room = 0
    for t in plan.stored:
        if not batches or room < plan.nbytes[t]:
            batches.append([])
            room = _BATCH_BYTES
        batches[-1].append(t)
        room -= plan.nbytes[t]
    return batches
