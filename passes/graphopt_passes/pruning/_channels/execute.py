"""Remove units group by group: chosen on what the pruned model's consumers see, which are refitted."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from graphopt.passkit import PassContext, RefusedRewrite, Rewriter
from graphopt.quantkit import noise
from graphopt_passes.linear.moments import LayerMoments, Sums
from graphopt_passes.pruning._channels.axes import Axes, Consumer
from graphopt_passes.pruning._channels.groups import Group, spare_parts
from graphopt_passes.pruning._channels.importance import (
    Importance,
    activation_scores,
    unit_numbers,
    weight_norms,
)
from graphopt_passes.pruning._channels.labels import Ints, Mask
from graphopt_passes.pruning._channels.plan import Curve
from graphopt_passes.pruning._channels.readers import Floats, Reader, is_affordable, read, watch
from graphopt_passes.pruning._channels.reconstruction import Elimination, Problem, make_problem, refit
from graphopt_passes.pruning._channels.surgery import Surgery

# Bytes of moments that are held at a time.
_HELD = 1 << 29
# Multiplications of all sweeps over the data together, per sample: groups of larger models share a sweep.
_SWEEP_WORK = 1 << 35
_SWEEPS = 4
# Shares of each group that are removed to see what that does to the outputs.
_MEASURED = (0.5, 0.75)
# On so many samples.
_SCORED = 64


@dataclass(frozen=True, eq=False)
class Seen:
    """What a consumer saw, and what had been removed by then."""

    reader: Reader
    moments: LayerMoments
    gone: Mask


class Operation:
    """The removal of units from one body.

    Args:
        graph, ctx: what is pruned, and who measures.
        axes: what is known of the body.
        importance: how units are chosen.
        refits: weights of consumers are refitted to the data.
        compensates: without refitting, biases of consumers take the mean of what is removed.
    """

    def __init__(
        self,
        graph: Rewriter,
        ctx: PassContext,
        axes: Axes,
        importance: Importance,
        *,
        refits: bool,
        compensates: bool,
    ) -> None:
        self.graph, self.ctx, self.axes = graph, ctx, axes
        self.importance = importance
        self.refits, self.compensates = refits, compensates
        self.gone: Mask = np.zeros(axes.labels.count, bool)

    @property
    def _uses_moments(self) -> bool:
        wanted = self.importance == "reconstruction" or self.refits or self.compensates
        return self.ctx.has_data and wanted

    # -- what matters how much -----------------------------------------------------------------------

    def scores(self, groups: Sequence[Group]) -> list[Floats]:
        """By group and unit, for every importance but reconstruction."""
        if self.importance in ("activation", "variance"):
            return activation_scores(self.graph, self.ctx, self.axes, groups, self.gone, self.importance)
        power = 1 if self.importance == "l1" else 2
        return [weight_norms(self.graph, self.axes, g, self.gone, power) for g in groups]

    def curves(self, groups: Sequence[Group], *, timed: bool) -> list[Curve]:
        """For each group the order in which units go, down to the last one, on the model as it is.

        With data, costs are what removing the group's units alone does to the outputs.

        Args:
            groups: the groups.
            timed: measure what removing units saves of the latency.
        """
        if not self.ctx.has_data:
            return [_curve(s, normalize=True) for s in self.scores(groups)]
        found: dict[Group, Curve] = {}
        for part in self.sweeps(groups, one=True):
            seen = self.see(part)
            for group in part:
                found[group] = self._measured(group, seen, timed=timed)
        return [found[group] for group in groups]

    def _measured(self, group: Group, seen: dict[Consumer, Seen], *, timed: bool) -> Curve:
        """The curve of one group, its costs scaled to the noise that is measured at the outputs."""
        if self.importance == "reconstruction":
            curve = self._reconstruction_curve(group, seen, group.size - 1)
        else:
            curve = _curve(self.scores([group])[0], normalize=True)
        local = np.concatenate([[0.0], np.cumsum(np.maximum.accumulate(np.maximum(curve.costs, 0.0)))])
        points, noises, saved = [0.0], [0.0], None
        for share in _MEASURED:
            count = min(group.size - 1, max(1, round(group.size * share)))
            going = np.zeros(group.size, bool)
            going[curve.order[:count]] = True
            spare_parts(group, going, _complete(curve.order, group.size))
            try:
                with self.graph.trial(group.root):
                    if not self._cut(group, going, seen):
                        continue
                    points.append(float(local[count]))
                    noises.append(noise(self.ctx.score(self.graph, _SCORED)))
                    if timed:
                        saved = max(1 - self.ctx.latency(self.graph), 1e-4) / count
            except RefusedRewrite:
                # It cannot be cut: its units go last, and the site of its removal says why it stays.
                return Curve(curve.order, np.full(len(curve.costs), np.inf))
        if len(points) < 2 or not points[-1] > 0 or not np.isfinite(noises).all():
            return curve
        slopes = np.diff(np.maximum.accumulate(noises)) / np.maximum(np.diff(points), 1e-30)
        at = np.searchsorted(points[1:-1], local[1:], side="left")
        return Curve(curve.order, np.diff(local) * slopes[at], saved)

    def _reconstruction_curve(self, group: Group, seen: dict[Consumer, Seen], most: int) -> Curve:
        problems = [p for c in group.consumers if (p := self._problem(group, seen.get(c))) is not None]
        if not problems:
            return _curve(weight_norms(self.graph, self.axes, group, self.gone, 2), normalize=True)
        order, costs = Elimination(problems, group.size).order(most)
        return Curve(order, costs / len(problems))

    # -- looking ---------------------------------------------------------------------------------------

    def sweeps(self, groups: Sequence[Group], *, one: bool = False) -> list[list[Group]]:
        """Groups that share a sweep over the data: as many as their work and memory allow.

        Args:
            groups: in order.
            one: all share one as far as memory allows.
        """
        per_sweep = 1
        if not self._uses_moments or one:
            per_sweep = len(groups)
        else:
            work = sum(self._work(g) for g in groups)
            allowed = max(_SWEEPS, _SWEEP_WORK // max(work, 1))
            per_sweep = -(-len(groups) // min(allowed, max(len(groups), 1)))
        parts: list[list[Group]] = []
        held = 0
        for number, group in enumerate(groups):
            size = sum(self._bytes(c) for c in group.consumers) if self._uses_moments else 0
            if number % per_sweep == 0 or held + size > _HELD:
                parts.append([])
                held = 0
            parts[-1].append(group)
            held += size
        return parts

    def _bytes(self, consumer: Consumer) -> int:
        reader = read(self.graph, self.axes, consumer, self.gone)
        if reader is None or not is_affordable(reader):
            return 0
        groups, outputs, inputs = reader.weights(self.graph).shape
        return int(16 * groups * inputs * (inputs + outputs))

    def _work(self, group: Group) -> int:
        total = 0
        for c in group.consumers:
            constant = self.graph.constant(c.node.inputs[c.slot])
            shape = self.graph.shape(c.node.outputs[0]) or ()
            places = math.prod(d for d in shape[2:] if isinstance(d, int))
            total += places * math.prod(int(d) for d in constant.shape) if constant is not None else 0
        return total

    def see(self, groups: Sequence[Group]) -> dict[Consumer, Seen]:
        """Observe the consumers of `groups` on the model as it is."""
        if not self._uses_moments:
            return {}
        readers = {}
        for group in groups:
            for consumer in group.consumers:
                reader = read(self.graph, self.axes, consumer, self.gone)
                if reader is not None and is_affordable(reader):
                    readers[consumer] = reader
        watches = [watch(self.graph, self.ctx, r) for r in readers.values()]
        found = self.ctx.observe(self.graph, watches) if watches else []
        gone = self.gone.copy()
        return {c: Seen(r, m, gone) for (c, r), m in zip(readers.items(), found, strict=True)}

    def refreshed(self, group: Group, seen: dict[Consumer, Seen]) -> dict[Consumer, Seen]:
        """`seen`, or what the consumers see now that another group has taken away some of their inputs."""
        stale = any(self.gone[seen[c].reader.columns].any() for c in group.consumers if c in seen)
        return self.see([group]) if stale else seen

    def _problem(self, group: Group, seen: Seen | None, half: int | None = None) -> Problem | None:
        """A consumer's problem, on all data or one half of it."""
        if seen is None or not seen.moments.is_finite:
            return None
        sums = seen.moments.total if half is None else seen.moments.halves[half]
        if not sums.count:
            return None
        then = seen.reader
        columns = ~self.gone[then.columns]
        rows = None if then.rows is None else ~self.gone[then.rows]
        now = read(self.graph, self.axes, then.consumer, self.gone)
        if now is None:
            return None
        weights = now.weights(self.graph)
        fitting = _shrunk(sums, columns, rows, weights.shape)
        if fitting is None:
            return None
        units = unit_numbers(self.axes, group, now.columns)
        return make_problem(fitting, weights, units, centred=now.bias(self.graph) is not None)

    # -- doing -----------------------------------------------------------------------------------------

    def choose(self, group: Group, count: int, seen: dict[Consumer, Seen]) -> Mask:
        """Which units go, bool (units,)."""
        if self.importance == "reconstruction":
            curve = self._reconstruction_curve(group, seen, count)
        else:
            curve = _curve(self.scores([group])[0], normalize=True)
        going = np.zeros(group.size, bool)
        going[curve.order[:count]] = True
        spare_parts(group, going, _complete(curve.order, group.size))
        return going

    def remove(self, group: Group, going: Mask, seen: dict[Consumer, Seen]) -> bool:
        """Take units out in one site, after having the consumers make up for it; False when refused."""
        done = self._cut(group, going, seen)
        if done is None:
            return False
        done.note(self.ctx)
        self.gone[group.units[going]] = True
        return True

    def _cut(self, group: Group, going: Mask, seen: dict[Consumer, Seen]) -> Surgery | None:
        after = self.gone.copy()
        after[group.units[going]] = True
        left = group.size - int(going.sum())
        why = f"{left} of {group.size} {group.kind} are left"
        done: list[Surgery] = []
        with self.graph.site(group.root, why):
            for consumer in group.consumers:
                self._make_up(group, going, seen.get(consumer))
            surgery = Surgery(self.graph, self.axes, self.gone, after)
            surgery.perform()
            done.append(surgery)
        return done[0] if done and done[0].lasts() else None

    def _make_up(self, group: Group, going: Mask, seen: Seen | None) -> None:
        """New weights for what is left of a consumer's inputs, or a bias that takes the mean of the rest."""
        problem = self._problem(group, seen)
        if problem is None or seen is None:
            return
        reader = read(self.graph, self.axes, seen.reader.consumer, self.gone)
        assert reader is not None
        columns = (problem.units < 0) | ~going[problem.units]
        if self.refits and reader.refits:
            halves = [self._problem(group, seen, half) for half in (0, 1)]
            weights = refit(problem, [h for h in halves if h is not None], columns)
            try:
                reader.set_weights(self.graph, weights)
            except RefusedRewrite:
                weights = np.where(columns, problem.weights, 0.0)
        else:
            weights = np.where(columns, problem.weights, 0.0)
        shift = problem.shift(weights)
        if shift is not None and (self.refits or self.compensates):
            reader.shift_bias(self.graph, shift.reshape(-1))


def _complete(order: Ints, size: int) -> Ints:
    """An order of all units: those that are not in `order` are the most important."""
    return np.concatenate([order, np.setdiff1d(np.arange(size), order)])


def _curve(scores: Floats, *, normalize: bool) -> Curve:
    order = np.argsort(scores, kind="stable")
    costs = scores[order]
    if normalize:
        costs = costs / max(float(costs.sum()), 1e-30)
    return Curve(order, costs)


def _shrunk(sums: Sums, columns: Mask, rows: Mask | None, shape: tuple[int, ...]) -> Sums | None:
    """Sums as they would be of fewer inputs and outputs; None where they do not fit the weights."""
    groups, outputs, inputs = shape
    if sums.xx.shape[0] == groups and int(columns.sum()) == inputs:
        at: Ints = np.flatnonzero(columns)
        left = Sums(xx=sums.xx[:, at[:, None], at[None, :]], x=sums.x[:, at], count=sums.count)
        if not sums.xd.size:
            return left
        keep = np.arange(sums.d.shape[1])
        if rows is not None:
            by_group = rows.reshape(groups, -1)
            if rows.size != sums.d.size or not (by_group == by_group[:1]).all():
                return left
            keep = np.flatnonzero(by_group[0])
        if keep.size != outputs:
            return left
        left.xd = sums.xd[:, at][:, :, keep]
        for name in ("d", "dd", "y", "yy"):
            setattr(left, name, getattr(sums, name)[:, keep])
        return left
    return None
