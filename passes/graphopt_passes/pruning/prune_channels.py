"""Remove whole output channels, hidden units and attention heads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

import numpy as np

from graphopt.passkit import (
    Node,
    Numerics,
    Part,
    Pass,
    PassContext,
    RefusedRewrite,
    Rewriter,
    glob_of,
    is_selected,
)
from graphopt_passes.pruning._channels.axes import Axes
from graphopt_passes.pruning._channels.execute import Operation
from graphopt_passes.pruning._channels.groups import Cost, Group, find_groups, spare_parts
from graphopt_passes.pruning._channels.importance import Importance
from graphopt_passes.pruning._channels.labels import Mask
from graphopt_passes.pruning._channels.plan import Budget, Planner, Scope
from graphopt_passes.pruning._channels.rules import MAKERS, RULES
from graphopt_passes.pruning._channels.surgery import remove

# Multiplications per sample of models in which what each group matters to the outputs is measured.
_MEASURABLE = 10**9


@dataclass(frozen=True)
class PruneChannels(Pass):
    """Y = f(X) W^T -> f(X_S) W_S^T for the channels S that matter most: shapes shrink, and so does the work.

    A channel goes from everything at once: the row of the weight that makes it, biases and norm parameters
    on the way, the columns of all weights that read it, and whatever the graph ties to it: the other side of
    a residual Add, the filter of a depthwise convolution, all elements of an attention head in queries, keys
    and values, the four gates of an LSTM's unit. Such groups are found as connected components of the
    dependencies between axes (Fang et al., "DepGraph", CVPR 2023, arXiv:2301.12900). The result computes what
    the model would with the removed channels set to zero in front of everything that reads them, and then
    the readers' weights are refitted to the teacher's outputs, given data.

    Which channels matter: by the norm of their weights (`l1`, `l2`), by their mean magnitude (`activation`:
    |o_i|) or `variance` on data, or by what their readers lose (`reconstruction`): the optimal brain
    surgeon's error of a block of columns after refitting the others, one block after another with exact
    downdates of the inverse Hessian (Kurtic et al., "ZipLM", arXiv:2302.04089). Groups are pruned in the
    order of the graph, each on the inputs that the pruned model gives its readers.

    Amounts: the same share of every group (`scope=uniform`), or what is cheapest (`global`): each group is
    pruned alone, and the noise measured at the outputs is weighed against what its units save.

    Leaves alone, with a reason: channels of graph inputs and outputs; what is normalized, reduced or
    concatenated so that removing one channel changes others (LayerNormalization, Softmax, GroupNormalization,
    a mean over channels); operators that it has no rule for; captures by a subgraph; weights that are not
    constant, or that have another reader that cannot be cut alike; kept nodes; sizes that are not known, are
    computed with, or cannot be confirmed; functions. Raises when a glob matches nothing, the budget cannot be
    met, or data is needed and not there.
    """

    name: ClassVar[str] = "prune-channels"
    numerics: ClassVar[Numerics] = Numerics.LOSSY

    ratio: float = field(
        default=0.5, metadata={"help": "how much is taken away: a share, from 0 to below 1, of `budget`"}
    )
    budget: Budget = field(
        default="channels",
        metadata={"help": "what the ratio is a share of: channels, params, flops, or measured latency"},
    )
    importance: Importance = field(
        default="auto",
        metadata={"help": "which channels matter; auto: reconstruction with data, else l2"},
    )
    below: float | None = field(
        default=None,
        metadata={"help": "instead of a ratio: remove channels whose mean magnitude |o_i| is below this"},
    )
    scope: Scope = field(
        default="auto",
        metadata={
            "help": "the same share of every group, or the cheapest of all groups; auto: global with data, "
            "in models of up to 10^9 multiplications per sample"
        },
    )
    multiple: int = field(
        default=0,
        metadata={
            "help": "round kept channels up to multiples; 0: as CPU kernels like them, to 16 (of up to 16 "
            "channels to 8, heads not at all)"
        },
    )
    least: float = field(
        default=0.125, metadata={"help": "least share of a group to keep, or from 1 on the least number"}
    )
    layers: tuple[str, ...] = field(
        default=(), metadata={"help": "only groups all of whose producers match one of these globs"}
    )
    ops: tuple[str, ...] = field(
        default=(), metadata={"help": "only groups all of whose producers are of these types"}
    )
    channels: bool = field(default=True, metadata={"help": "prune channels of Conv, Gemm and MatMul"})
    heads: bool = field(default=True, metadata={"help": "prune heads of attentions"})
    hidden: bool = field(default=True, metadata={"help": "prune hidden units of LSTM, GRU and RNN"})
    refit: bool = field(
        default=True, metadata={"help": "refit the weights that read what is left, given data"}
    )
    compensate: bool = field(
        default=True, metadata={"help": "have biases take the mean of what is removed, given data"}
    )

    def __post_init__(self) -> None:
        """Check the request."""
        if not 0 <= self.ratio < 1:
            raise ValueError(f"ratio is the share to take away, from 0 to less than 1, not {self.ratio:g}")
        if self.below is not None and not self.below >= 0:
            raise ValueError(f"below must not be negative, not {self.below:g}")
        if self.below is not None and self.importance not in ("auto", "activation"):
            raise ValueError("below is a threshold on activations; leave out importance")
        if self.below is not None and (self.budget != "channels" or self.scope == "global"):
            raise ValueError("below says how much goes; leave out budget and scope")
        if self.multiple < 0 or not self.least >= 0:
            raise ValueError("multiple and least must not be negative")
        if unknown := [op for op in self.ops if op not in MAKERS]:
            raise ValueError(f"{unknown[0]} makes no channels; ops are some of {', '.join(sorted(MAKERS))}")

    def parts(self, graph: Rewriter, ctx: PassContext) -> list[Part]:
        """One group of coupled channels each, all by the same ratio."""
        if graph.is_function or not graph.by_op(*sorted(MAKERS)):
            return []
        axes = Axes(graph, RULES, MAKERS)
        axes.run()
        return [
            Part(g.root, replace(self, layers=tuple(glob_of(p.node) for p in g.producers), scope="uniform"))
            for g in self._groups(graph, axes)
        ]

    def run(self, graph: Rewriter, ctx: PassContext) -> None:
        """Prune one body."""
        if graph.is_function or not graph.by_op(*sorted(MAKERS)):
            return
        axes = Axes(graph, RULES, MAKERS)
        axes.run()
        groups = [g for g in self._groups(graph, axes) if _can_be_cut(graph, axes, g)]
        if not groups:
            return
        operation = Operation(
            graph, ctx, axes, self._importance(ctx), refits=self.refit, compensates=self.compensate
        )
        cost = Cost(graph, axes)
        counts = self._counts(graph, ctx, axes, cost, operation, groups)
        for group, count in zip(groups, counts, strict=True):
            if not count:
                graph.refuse(group.root, f"all of its {group.size} {group.kind} are to be kept")
        chosen = {g: n for g, n in zip(groups, counts, strict=True) if n}
        for part in operation.sweeps(list(chosen)):
            seen = operation.see(part)
            for group in part:
                now = operation.refreshed(group, seen)
                operation.remove(group, operation.choose(group, chosen[group], now), now)
        if operation.gone.any():
            ctx.remark(self, _summary(groups, cost, operation.gone))

    def needs_data(self) -> bool:
        """Activations and time are measured."""
        measured = self.importance in ("activation", "variance", "reconstruction")
        return measured or self.below is not None or self.budget == "latency"

    def globs(self) -> tuple[str, ...]:
        """Globs over layers."""
        return self.layers

    def _importance(self, ctx: PassContext) -> Importance:
        if self.below is not None:
            return "activation"
        if self.importance == "auto":
            return "reconstruction" if ctx.has_data else "l2"
        return self.importance

    def _groups(self, graph: Rewriter, axes: Axes) -> list[Group]:
        """The groups that are asked for; the others are refused with a reason."""
        groups, refused = find_groups(axes)
        for node, reason in refused:
            if self._wants(node):
                graph.refuse(node, reason)
        wanted = {"channels": self.channels, "heads": self.heads, "hidden units": self.hidden}
        found = []
        for group in groups:
            out = [p.node for p in group.producers if not self._wants(p.node)]
            if len(out) == len(group.producers) or not wanted[group.kind]:
                continue
            if out:
                name = out[0].name or out[0].outputs[0].name
                graph.refuse(group.root, f"it is coupled with {name}, which is not to be pruned")
                continue
            found.append(group)
        return found

    def _wants(self, node: Node) -> bool:
        return (not self.ops or node.op in self.ops) and is_selected(node, self.layers)

    def _counts(
        self,
        graph: Rewriter,
        ctx: PassContext,
        axes: Axes,
        cost: Cost,
        operation: Operation,
        groups: Sequence[Group],
    ) -> list[int]:
        """How many units of each group go."""
        totals = [_total(graph, ctx, group) for group in groups]
        planner = Planner(
            graph,
            axes,
            cost,
            groups,
            totals,
            self.ratio,
            self.budget,
            "uniform",
            self.multiple,
            self.least,
        )
        if self.below is None:
            scope = self.scope
            if scope == "auto":
                scope = "global" if ctx.has_data and cost.flops <= _MEASURABLE else "uniform"
            if scope == "global":
                planner.most(lambda: ctx.latency(graph))  # before what takes time
                curves = operation.curves(groups, timed=self.budget == "latency")
                planner = replace(planner, scope=scope, curves=curves)
            return planner.counts(lambda: ctx.latency(graph))
        return [
            planner.rounded(group, total, int((scores >= self.below).sum()))
            for group, total, scores in zip(groups, totals, operation.scores(groups), strict=True)
        ]


def _can_be_cut(graph: Rewriter, axes: Axes, group: Group) -> bool:
    """Whether half of a group can go, with every size confirmed; if not, it is refused with the reason."""
    going = np.zeros(group.size, bool)
    going[group.size // 2 :] = True
    spare_parts(group, going, np.arange(group.size))
    nothing = np.zeros(axes.labels.count, bool)
    gone = nothing.copy()
    gone[group.units[going]] = True
    if not going.any():
        return True
    try:
        with graph.trial(group.root):
            remove(graph, axes, nothing, gone, group.root, "trial")
    except RefusedRewrite as refused:
        graph.refuse(group.root, refused.reason)
        return False
    return True


def _summary(groups: Sequence[Group], cost: Cost, gone: Mask) -> str:
    """What was removed, for the report."""
    parts = []
    for kind in dict.fromkeys(g.kind for g in groups):
        mine = [g for g in groups if g.kind == kind]
        width = [1 if kind == "heads" else g.width for g in mine]
        whole = sum(g.size * w for g, w in zip(mine, width, strict=True))
        left = whole - sum(int(gone[g.units].sum()) * w for g, w in zip(mine, width, strict=True))
        parts.append(f"{left:,} of {whole:,} {kind} left")
    params, flops = cost.of(gone)
    parts.append(f"{params / max(cost.params, 1):.0%} of the parameters")
    parts.append(f"{flops / max(cost.flops, 1):.0%} of the multiplications with weights")
    return ", ".join(parts)


def _total(graph: Rewriter, ctx: PassContext, group: Group) -> int:
    """Units that the group had before the first pass of the pipeline removed some."""
    out = group.root.outputs[0]
    extent, kept = ctx.notes.get(("extent", out)), ctx.notes.get(("kept", out))
    if extent is None or kept is None or not len(kept[1]):
        return group.size
    share: float = int(extent) / len(kept[1])
    return round(group.size * share)
