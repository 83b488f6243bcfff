"""How many units of each group are to go, for a budget of channels, parameters, multiplications or time."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np

from graphopt.passkit import RefusedRewrite, Rewriter, UserError
from graphopt_passes.pruning._channels.axes import Axes
from graphopt_passes.pruning._channels.groups import Cost, Group, spare_parts
from graphopt_passes.pruning._channels.labels import Ints, Mask
from graphopt_passes.pruning._channels.readers import Floats
from graphopt_passes.pruning._channels.surgery import remove

Budget: TypeAlias = Literal["channels", "params", "flops", "latency"]
Scope: TypeAlias = Literal["auto", "uniform", "global"]

# The amount to remove is found to about this precision, by so many halvings.
_HALVINGS = 9
# ONNX Runtime's CPU kernels for convolutions work on blocks of 16 channels with AVX-512, its matrix
# products on panels of as many columns. Of a single block, half is still worth it.
_BLOCK = 16


@dataclass(frozen=True, eq=False)
class Curve:
    """In which order the units of a group go, and what that costs.

    Attributes:
        order: units by number, the least important first.
        costs: what each removal adds, comparable between groups.
        saved: share of the latency that one unit saves, where it was measured.
    """

    order: Ints
    costs: Floats
    saved: float | None = None


@dataclass(frozen=True, eq=False)
class Planner:
    """Counts for any amount between nothing and everything that may be removed.

    Attributes:
        graph, axes: the body and what is known of it.
        cost: what the body costs.
        groups: those that may be pruned.
        totals: units that each group had in the teacher.
        ratio: share of the budget's measure to take away.
        budget, scope: see the pass.
        multiple: kept channels are rounded up to multiples of it; 0: what the target likes.
        least: least share, or number, of units to keep.
        curves: per group, for `scope=global`.
    """

    graph: Rewriter
    axes: Axes
    cost: Cost
    groups: Sequence[Group]
    totals: Sequence[int]
    ratio: float
    budget: Budget
    scope: Scope
    multiple: int
    least: float
    curves: Sequence[Curve] = ()

    def counts(self, latency: Callable[[], float]) -> list[int]:
        """How many units of each group go.

        Args:
            latency: measures the body as it stands, relative to the teacher.

        Raises:
            UserError: the budget cannot be met.
        """
        if self.budget == "channels" and self.scope == "uniform":
            return self.at(self.ratio)
        goal = 1 - self.ratio
        if self.measure(self.at(0.0), latency) <= goal:
            return self.at(0.0)
        most = self.most(latency)
        low, high = 0.0, 1.0
        tried = {tuple(self.at(1.0)): most}
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            counts = tuple(self.at(middle))
            if counts not in tried:
                tried[counts] = self.measure(list(counts), latency)
            low, high = (low, middle) if tried[counts] <= goal else (middle, high)
        return self.at(high)

    def most(self, latency: Callable[[], float]) -> float:
        """What is left of the budget's measure, of 1, when everything goes that may.

        Raises:
            UserError: that is more than what may be left.
        """
        left = self.measure(self.at(1.0), latency)
        if left > 1 - self.ratio:
            possible = math.floor(100 * max(0.0, 1 - left)) / 100
            raise UserError(
                f"prune-channels cannot take away {self.ratio:.0%} of the model's {self.budget}: without "
                f"all that may be removed, {left:.1%} are left",
                fix=f"ask for at most ratio={possible:.2f}, lower least={self.least:g}, or see "
                "with --explain what is left alone",
            )
        return left

    def at(self, amount: float) -> list[int]:
        """Counts for an amount between 0 and 1."""
        if self.scope == "uniform":
            return [
                self._rounded(group, total, total * (1 - amount))
                for group, total in zip(self.groups, self.totals, strict=True)
            ]
        return [
            self._rounded(group, total, group.size - count)
            for group, total, count in zip(self.groups, self.totals, self._cheapest(amount), strict=True)
        ]

    def rounded(self, group: Group, total: int, kept: int) -> int:
        """How many units go if about `kept` of them are to stay."""
        return self._rounded(group, total, float(kept))

    def _rounded(self, group: Group, total: int, kept: float) -> int:
        least = self.least if self.least >= 1 else max(1.0, math.ceil(self.least * total - 1e-9))
        wanted = math.ceil(max(kept, least) - 1e-9)
        block = self._block(group)
        wanted = -(-wanted // block) * block
        return max(0, group.size - wanted)

    def _block(self, group: Group) -> int:
        """Units in whose multiples a group is kept."""
        if self.multiple:
            return self.multiple // math.gcd(self.multiple, group.width)
        if group.kind == "heads":
            return 1
        block = _BLOCK if group.size * group.width > _BLOCK else _BLOCK // 2
        return block // math.gcd(block, group.width)

    def _cheapest(self, amount: float) -> list[int]:
        """By group, how many units are among the cheapest that make up `amount` of all that can go."""
        found: list[tuple[float, int, float]] = []
        for number, (group, curve) in enumerate(zip(self.groups, self.curves, strict=True)):
            gain = curve.saved if curve.saved is not None else self._gain(group)
            # A unit does not go before those that went before it.
            price = np.maximum.accumulate(curve.costs) / max(gain, 1e-30)
            found.extend((float(p), number, gain) for p in price)
        found.sort(key=lambda x: x[0])
        whole = sum(gain for _, _, gain in found) * amount
        counts = [0] * len(self.groups)
        spent = 0.0
        for _, number, gain in found:
            if spent + gain > whole * (1 + 1e-9):
                break
            spent += gain
            counts[number] += 1
        return counts

    def _gain(self, group: Group) -> float:
        """What removing one unit takes off the budget's measure."""
        if self.budget == "channels":
            return float(group.width)
        gone = np.zeros(self.axes.labels.count, bool)
        gone[group.units[0]] = True
        params, flops = self.cost.of(gone)
        return self.cost.params - params if self.budget == "params" else self.cost.flops - flops

    def measure(self, counts: Sequence[int], latency: Callable[[], float]) -> float:
        """The share of the budget's measure that is left."""
        if self.budget == "channels":
            whole = sum(total * g.width for g, total in zip(self.groups, self.totals, strict=True))
            left = sum((g.size - n) * g.width for g, n in zip(self.groups, counts, strict=True))
            return left / max(whole, 1)
        gone = self.gone(counts)
        if self.budget == "latency":
            before, root = np.zeros_like(gone), self.groups[0].root
            try:
                with self.graph.trial(root):
                    if gone.any() and not remove(self.graph, self.axes, before, gone, root, "trial"):
                        return 1.0
                    return latency()
            except RefusedRewrite:
                return 1.0  # not all of it can be cut, so nothing is known to be saved
        params, flops = self.cost.of(gone)
        if self.budget == "params":
            return params / max(self.cost.params, 1)
        return flops / max(self.cost.flops, 1)

    def gone(self, counts: Sequence[int]) -> Mask:
        """By label, whether it is gone when the units go in the curves' order, or the last ones do."""
        gone = np.zeros(self.axes.labels.count, bool)
        curves = self.curves or [Curve(np.arange(g.size)[::-1], np.zeros(g.size)) for g in self.groups]
        for group, curve, count in zip(self.groups, curves, counts, strict=True):
            going = np.zeros(group.size, bool)
            going[curve.order[:count]] = True
            spare_parts(group, going, _whole_order(curve.order, group.size))
            gone[group.units[going]] = True
        return gone


def _whole_order(order: Ints, size: int) -> Ints:
    """An order of all units: those that are not in `order` are the most important."""
    rest = np.setdiff1d(np.arange(size), order)
    return np.concatenate([order, rest])
