"""Leave out the residual blocks that matter least."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, Final, Literal

from graphopt.passkit import (
    GraphView,
    Numerics,
    Part,
    Pass,
    PassContext,
    Rewriter,
    UserError,
    Watch,
    glob_of,
)
from graphopt.quantkit import Budget, Score, noise
from graphopt_passes.pruning._blocks import Block, find_blocks, pairs, skip, weights
from graphopt_passes.pruning._influence import Influence

Importance = Literal["output", "influence"]
Unit = Literal["block", "pair"]
Goal = Literal["params", "flops", "latency"]

_MEASURES: Final = {"params": weights, "flops": GraphView.flops}


@dataclass(frozen=True, eq=False)
class _Candidate:
    """One way to leave blocks out.

    Attributes:
        blocks: in order.
        behind: norms behind them go as well.
        cost: what they matter; the least goes first.
        words: what was measured.
    """

    blocks: tuple[Block, ...]
    behind: bool
    cost: float = 0.0
    words: str = ""

    @property
    def name(self) -> str:
        return " + ".join(block.name for block in self.blocks)


@dataclass(frozen=True)
class DropLayers(Pass):
    """x + f(x) -> x, for the residual blocks f whose absence changes the outputs least.

    A block is everything by which an Add depends on one of its own operands, x: an attention or MLP block
    of a transformer with its norm, the convolutions beside an identity shortcut. With `unit=pair`, whole
    transformer layers go (an attention block and the block behind it), or two neighbors of the same
    stage. A Relu behind the Add goes if x comes from one; a norm behind it, as in post-norm transformers,
    if that is better.

    What a block matters is the noise that the outputs have without it, over those of the original, on
    data (`output`); or its influence, 1 - mean cosine(x, x + f(x)) (`influence`: X. Men et al.,
    "ShortGPT: Layers in large language models are more redundant than you expect", arXiv:2403.03853,
    2024), which takes one sweep over the data. The block that matters least goes, and the others are
    ranked again, until the goal is reached (`count`, `fraction`, `params`, `flops`, `latency`) or what
    goes next would cost more than the budget allows (`min_sqnr`, `min_cosine`, or those of the run).

    Refuses when: there is no data; a tensor inside of a block is read outside of it, is an output
    (present keys and values), or is captured by a body; the shapes of x and of the sum are not proven
    equal, or there is a layer on the shortcut; a block draws random numbers; the sum is an output that x
    cannot take the name of; a node is in a nested body or a local function. More blocks than there are is
    an error, and so is a goal that dropping all of them does not reach.
    """

    name: ClassVar[str] = "drop-layers"
    numerics: ClassVar[Numerics] = Numerics.LOSSY

    count: int | None = field(default=None, metadata={"help": "how many blocks (or pairs) go"})
    fraction: float | None = field(default=None, metadata={"help": "share of the blocks that goes"})
    params: float | None = field(default=None, metadata={"help": "share of the parameters to get rid of"})
    flops: float | None = field(default=None, metadata={"help": "share of the operations to get rid of"})
    latency: float | None = field(default=None, metadata={"help": "latency to reach, over the original's"})
    min_sqnr: float | None = field(
        default=None, metadata={"help": "least signal-to-noise ratio of every output in dB, not the run's"}
    )
    min_cosine: float | None = field(
        default=None, metadata={"help": "least cosine similarity of every output, not the run's"}
    )
    importance: Importance = field(default="output", metadata={"help": "what a block matters"})
    unit: Unit = field(default="block", metadata={"help": "single blocks, or whole layers of two"})
    layers: tuple[str, ...] = field(
        default=(), metadata={"help": "only blocks with a node or sum that matches one of these globs"}
    )
    rerank: bool = field(default=True, metadata={"help": "rank the others again after each that goes"})
    samples: int = field(default=64, metadata={"help": "samples to rank on; the budget is held on more"})

    def __post_init__(self) -> None:
        """Check the request."""
        goals = [
            g for g in ("count", "fraction", "params", "flops", "latency") if getattr(self, g) is not None
        ]
        if len(goals) > 1:
            raise ValueError(f"{' and '.join(goals)} are goals: give one of them")
        if self.count is not None and self.count < 1:
            raise ValueError(f"count is how many blocks go, at least 1, not {self.count}")
        for goal in ("fraction", "params", "flops", "latency"):
            share = getattr(self, goal)
            if share is not None and not 0 < share <= 1:
                raise ValueError(f"{goal} is a share above 0, at most 1, not {share:g}")
        if self.samples < 1:
            raise ValueError("samples must be at least 1")

    def parts(self, graph: Rewriter, ctx: PassContext) -> list[Part]:
        """One block each, whatever it costs."""
        if not graph.is_main:
            return []
        one = replace(self, count=1, fraction=None, params=None, flops=None, latency=None)
        one = replace(one, min_sqnr=None, min_cosine=None)
        units = self._units(find_blocks(graph)[0])
        return [Part(unit[0].root, replace(one, layers=(glob_of(unit[0].root),))) for unit in units]

    def run(self, graph: Rewriter, ctx: PassContext) -> None:
        """Drop blocks of the main graph."""
        blocks, declined = find_blocks(graph)
        if not graph.is_main:
            for block in blocks:
                graph.refuse(block.root, "blocks of nested bodies and functions are not dropped")
            return
        for node, reason in declined.items():
            graph.refuse(node, reason)
        units = self._units(blocks)
        wanted = self._wanted(graph, ctx, units, len(declined))
        if not units or not wanted:
            return
        chosen: _Candidate | None = None
        start = {goal: measure(graph) for goal, measure in _MEASURES.items()}
        ranked = self._ranked(graph, ctx, units)
        for left in range(wanted - 1, -1, -1):
            chosen = self._affordable(graph, ctx, ranked)
            if chosen is None:
                break
            with graph.site(chosen.blocks[0].root, f"{chosen.name} left out: {chosen.words}"):
                skip(graph, chosen.blocks, chosen.behind)
            done = not left or self._is_reached(graph, ctx, start)
            ranked = self._remaining(graph, ctx, ranked, measure=not done)
            if done:
                break
        why = "the budget does not allow to leave it out" if chosen is None else "others matter less"
        for candidate in ranked:
            graph.refuse(candidate.blocks[0].root, f"{why}: {candidate.words}")

    # -- what is asked for -------------------------------------------------------------------------

    def _budget(self, ctx: PassContext) -> Budget | None:
        if self.min_cosine is None and self.min_sqnr is None:
            return ctx.budget
        return Budget(self.min_cosine, self.min_sqnr)

    def _units(self, blocks: Sequence[Block]) -> list[tuple[Block, ...]]:
        units = pairs(blocks) if self.unit == "pair" else [(block,) for block in blocks]
        return [unit for unit in units if not self.layers or any(self._is_named(b) for b in unit)]

    def _is_named(self, block: Block) -> bool:
        names = {node.name for node in block.nodes} | {end.name for end in block.ends}
        return any(fnmatch.fnmatchcase(name, glob) for name in names for glob in self.layers)

    def _wanted(
        self, graph: Rewriter, ctx: PassContext, units: Sequence[tuple[Block, ...]], declined: int
    ) -> int:
        """How many units go at most; raises UserError for a request that cannot be met."""
        what = "pairs of blocks" if self.unit == "pair" else "residual blocks"
        others = f" ({declined} more cannot be: --explain says why)" if declined else ""
        named = f" that match {', '.join(self.layers)}" if self.layers else ""
        have = f"there are {len(units)} {what}{named} that can be left out{others}"
        if self.count is not None and self.count > len(units):
            raise UserError(
                f"drop-layers cannot leave out {self.count} {what}: {have}", fix=f"count={len(units)} at most"
            )
        if self.layers and not units:
            raise UserError(f"drop-layers has nothing to leave out: {have}", fix="correct `layers`")
        goals = (self.count, self.fraction, self.params, self.flops, self.latency)
        if all(goal is None for goal in goals) and self._budget(ctx) is None:
            raise UserError(
                "drop-layers does not know how much to leave out",
                fix="say how many (count=2), what to gain (latency=0.8), or what to keep (min_sqnr=20)",
            )
        if units and not ctx.has_data:
            raise UserError(
                "drop-layers ranks blocks by what they do on data",
                fix="hand in typical inputs: --data calib.npz",
            )
        self._reachable(graph, ctx, units)
        if self.count is not None:
            return self.count
        return len(units) if self.fraction is None else math.floor(self.fraction * len(units) + 0.5)

    def _reachable(self, graph: Rewriter, ctx: PassContext, units: Sequence[tuple[Block, ...]]) -> None:
        """Raise UserError when leaving out everything does not reach the goal."""
        goal: Goal
        for goal in ("params", "flops", "latency"):
            asked = getattr(self, goal)
            if asked is None:
                continue
            most = "there is no block that can be left out"
            if units:
                start = {name: measure(graph) for name, measure in _MEASURES.items()}
                with graph.trial(units[0][0].root):
                    for unit in reversed(units):
                        skip(graph, unit, True)
                    graph.snapshot(swept=True)
                    found = self._progress(graph, ctx, start, goal)
                if found >= asked if goal != "latency" else found <= asked:
                    continue
                most = f"leaving out all {len(units)} candidates gives {found:.3f}"
            raise UserError(
                f"drop-layers cannot reach {goal}={asked:g}: {most}", fix=f"ask for a {goal} in reach"
            )

    def _progress(self, graph: Rewriter, ctx: PassContext, start: dict[str, int], goal: Goal) -> float:
        if goal == "latency":
            return ctx.latency(graph)
        return 1 - _MEASURES[goal](graph) / max(start[goal], 1)

    def _is_reached(self, graph: Rewriter, ctx: PassContext, start: dict[str, int]) -> bool:
        if self.latency is not None:
            return self._progress(graph, ctx, start, "latency") <= self.latency
        if self.params is not None:
            return self._progress(graph, ctx, start, "params") >= self.params
        return self.flops is not None and self._progress(graph, ctx, start, "flops") >= self.flops

    # -- what is measured --------------------------------------------------------------------------

    def _ranked(
        self, graph: Rewriter, ctx: PassContext, units: Sequence[tuple[Block, ...]]
    ) -> list[_Candidate]:
        """The units, those first that matter least."""
        if self.importance == "influence":
            ends = [(unit[0].source, unit[-1].ends[-1]) for unit in units]
            watches = [Watch(Influence(u[0].axis), student=e) for u, e in zip(units, ends, strict=True)]
            values = [found.value for found in ctx.observe(graph, watches)]
            candidates = [
                _Candidate(unit, True, _or_most(value), f"influence {value:.4g}")
                for unit, value in zip(units, values, strict=True)
            ]
        else:
            candidates = [self._scored(graph, ctx, unit) for unit in units]
        return sorted(candidates, key=lambda c: c.cost)

    def _remaining(
        self, graph: Rewriter, ctx: PassContext, ranked: Sequence[_Candidate], measure: bool
    ) -> list[_Candidate]:
        """The units that are left once one is gone, measured again if that matters."""
        units = self._units(find_blocks(graph)[0])
        if measure and self.rerank:
            return self._ranked(graph, ctx, units)
        at = {unit[0].root: unit for unit in units}
        return [replace(old, blocks=at[old.blocks[0].root]) for old in ranked if old.blocks[0].root in at]

    def _scored(self, graph: Rewriter, ctx: PassContext, unit: tuple[Block, ...]) -> _Candidate:
        """The better way to leave a unit out."""
        ways = (False, True) if any(len(block.ends) > 1 for block in unit) else (False,)
        found = []
        for behind in ways:
            score = self._score(graph, ctx, unit, behind, self.samples)
            words = f"SQNR {score.sqnr_db:.1f} dB, cosine {score.cosine:.4f} without it"
            found.append(_Candidate(unit, behind, noise(score), words))
        return min(found, key=lambda c: c.cost)

    def _score(
        self, graph: Rewriter, ctx: PassContext, unit: Sequence[Block], behind: bool, samples: int | None
    ) -> Score:
        with graph.trial(unit[0].root):
            skip(graph, unit, behind)
            return ctx.score(graph, samples)

    def _affordable(
        self, graph: Rewriter, ctx: PassContext, ranked: Sequence[_Candidate]
    ) -> _Candidate | None:
        """The first that keeps the budget."""
        budget = self._budget(ctx)
        if budget is None:
            return ranked[0]
        for candidate in ranked:
            score = self._score(graph, ctx, candidate.blocks, candidate.behind, None)
            if not budget.misses(score):
                return candidate
        return None


def _or_most(value: float) -> float:
    """An influence that is not known counts as more than any."""
    return math.inf if math.isnan(value) else value
