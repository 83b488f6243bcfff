"""Running passes over a model: order, fixpoint groups, instruments. One call is one deterministic run.

Nothing here proves anything: `transaction` runs this again, with a limit or with sites left out, to find
out which rewrite is wrong. That works because a run depends on nothing but the model, the steps, and the
journal's `limit` and `skip`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Hashable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from graphopt.budget import Budget
from graphopt.errors import GraphOptError, PassError, UserError
from graphopt.graph.journal import Journal, SiteKey
from graphopt.graph.rewriter import Rewriter
from graphopt.graph.shapes import infer
from graphopt.graph.state import GraphState
from graphopt.model import Model
from graphopt.pipeline.base import Evaluator, Limits, NodePass, Numerics, Pass, PassContext
from graphopt.pipeline.instruments import CheckStructure, Instrument, Timing
from graphopt.pipeline.registry import Fixpoint, Stage, Step
from graphopt.pipeline.services import Services
from graphopt.pipeline.targets import Target
from graphopt.pipeline.teacher import Teacher

# Rounds after which a fixpoint group that still changes something is stopped.
MAX_ROUNDS = 32


@dataclass(frozen=True)
class Settings:
    """What a run depends on besides the model and the steps.

    Attributes:
        target: who will execute the model.
        limits: bounds on what passes may produce.
        keep: globs over node and tensor names that no pass may touch.
        evaluator: runs constant nodes; None where no runtime is installed.
        deadline: `time.monotonic()` at which to give up, None for never.
        services: runs models on the user's data; None where there is none.
        budget: what passes that move the numbers have to keep, None: only measured.
        ranges: activation ranges that the user handed in.
        teacher: makes the teacher of passes that move the numbers; None: the model before the first of them.
    """

    target: Target
    limits: Limits = field(default_factory=Limits)
    keep: tuple[str, ...] = ()
    evaluator: Evaluator | None = None
    deadline: float | None = None
    services: Services | None = None
    budget: Budget | None = None
    ranges: Any = None
    teacher: Callable[[GraphState, PassContext], Teacher] | None = None

    def context(self) -> PassContext:
        """What passes may ask for; a new one for every run."""
        return PassContext(
            self.target,
            self.limits,
            self.evaluator,
            services=self.services,
            budget=self.budget,
            ranges=self.ranges,
        )

    def check_deadline(self) -> None:
        """Raise UserError if the time is up."""
        if self.deadline is not None and time.monotonic() > self.deadline:
            raise UserError("the time limit is reached", fix="raise --timeout, or run fewer passes")


@dataclass
class Execution:
    """One finished run.

    Attributes:
        model: the rewritten model.
        journal: what happened.
        timing: how long each pass took.
        order: the passes that ran, in order of their first run.
        between: copies of the model at every change between LOSSY passes and others, by the number of
            rewrites applied until then.
        teacher: the model before the first LOSSY pass, None if there was none.
        notes: what the passes noted.
    """

    model: Model
    journal: Journal
    timing: Timing
    order: list[Pass]
    between: dict[int, Model] = field(default_factory=dict)
    teacher: Model | None = None
    notes: dict[Hashable, Any] = field(default_factory=dict)


def flatten(steps: Iterable[Step]) -> list[Pass]:
    """The passes of a pipeline, each once, in order of appearance."""
    found: dict[Pass, None] = {}
    for step in steps:
        inner = flatten(step.steps) if isinstance(step, Fixpoint | Stage) else [step]
        found.update(dict.fromkeys(inner))
    return list(found)


def without(steps: Sequence[Step], names: Collection[str]) -> tuple[Step, ...]:
    """`steps` less the passes called `names`."""
    kept: list[Step] = []
    for step in steps:
        if isinstance(step, Fixpoint):
            inner = without(step.steps, names)
            if inner:
                kept.append(Fixpoint(inner, step.limit))
        elif isinstance(step, Stage):
            kept.append(replace(step, steps=without(step.steps, names)))
        elif step.name not in names:
            kept.append(step)
    return tuple(kept)


def execute(
    model: Model,
    steps: Sequence[Step],
    settings: Settings,
    *,
    limit: int | None = None,
    skip: frozenset[SiteKey] = frozenset(),
    only: frozenset[SiteKey] | None = None,
    instruments: Sequence[Instrument] = (),
) -> Execution:
    """Run `steps` on `model`, which is changed in place.

    Args:
        model: the model.
        steps: passes and fixpoint groups.
        settings: target, limits, what to keep.
        limit: apply only this many rewrites (bisection).
        skip: sites not to rewrite (rolled back earlier).
        only: sites to rewrite, and no others; None: all.
        instruments: watchers, besides timing and structural verification.

    Raises:
        PassError: a pass raised, or left the graph malformed; it says which.
        UserError: the time limit is reached.
    """
    journal = Journal(limit=limit, skip=skip, only=only)
    state = GraphState(model, infer(model), journal, settings.keep)
    timing = Timing()
    ctx = settings.context()
    runner = _Runner(state, ctx, settings, [timing, CheckStructure(), *instruments])
    runner.run(steps)
    for instrument in runner.instruments:
        instrument.at_end(state)
    teacher = ctx.snapshot.model if ctx.snapshot is not None else None
    return Execution(state.finish(), journal, timing, list(runner.order), runner.between, teacher, ctx.notes)


class _Runner:
    def __init__(
        self, state: GraphState, ctx: PassContext, settings: Settings, instruments: list[Instrument]
    ) -> None:
        self.state, self.ctx, self.settings, self.instruments = state, ctx, settings, instruments
        self.order: dict[Pass, None] = {}
        self.last_run: dict[Pass, int] = {}
        self.between: dict[int, Model] = {}
        self.was_lossy = False
        self.other_lossy = False  # a pass that moves the numbers and does not quantize has run

    def run(self, steps: Sequence[Step]) -> None:
        for step in steps:
            if isinstance(step, Fixpoint):
                self.fixpoint(step)
            elif isinstance(step, Stage):
                self.stage(step)
            else:
                self.run_pass(step)

    def stage(self, stage: Stage) -> None:
        """Run a stage; its passes that search for what a budget allows search for what its gate does."""
        ctx, outer = self.ctx, self.ctx.budget
        if stage.gate is not None and stage.gate.needs_data:
            ctx.budget = stage.gate.budget
        before = len(self.state.journal.changes)
        self.run(stage.steps)
        ctx.budget = outer
        if self.state.journal.exhausted:
            return
        for instrument in self.instruments:
            instrument.after_stage(stage, self.state, len(self.state.journal.changes) - before)

    def fixpoint(self, group: Fixpoint) -> None:
        changes = self.state.journal.changes
        for _ in range(group.limit or MAX_ROUNDS):
            before = len(changes)
            self.run(group.steps)
            if len(changes) == before:
                return

    def run_pass(self, item: Pass) -> None:
        state, journal = self.state, self.state.journal
        self.order.setdefault(item)
        # Passes are deterministic: on a graph that has not changed since, the answer is the same.
        if self.last_run.get(item) == len(journal.changes) or journal.exhausted:
            return
        self.settings.check_deadline()
        state.pass_name = item.name
        before = len(journal.changes)
        self.note_border(item, before)
        for instrument in self.instruments:
            instrument.before_pass(item, state)
        for body in state.live_bodies():
            if not state.is_attached(body):
                continue
            try:
                item.run(Rewriter(state, body), self.ctx)
            except (GraphOptError, MemoryError):
                raise  # running out of memory is not the pass's fault
            except Exception as e:
                raise PassError(item.name, f"{type(e).__name__}: {e}") from e
        state.model.release()
        for instrument in self.instruments:
            instrument.after_pass(item, state, len(journal.changes) - before)
        # A NodePass ends where it has nothing left to do; any other pass may find more on a second run.
        self.last_run[item] = len(journal.changes) if isinstance(item, NodePass) else before

    def note_border(self, item: Pass, applied: int) -> None:
        """Keep the model where the passes turn LOSSY, or turn from that: each side is proven by itself."""
        lossy = item.numerics is Numerics.LOSSY
        if lossy and self.ctx.snapshot is None:
            if self.settings.teacher is not None:
                self.ctx.snapshot = self.settings.teacher(self.state, self.ctx)
                self.between[applied] = self.state.finish().copy()
            else:
                self.ctx.snapshot = Teacher(self.state)
                self.between[applied] = self.ctx.snapshot.model
        elif lossy != self.was_lossy and applied not in self.between:
            self.between[applied] = self.state.finish().copy()
        self.was_lossy = lossy
        if item.quantizes and self.ctx.float_snapshot is None:
            self.ctx.float_snapshot = Teacher(self.state) if self.other_lossy else self.ctx.snapshot
        self.other_lossy |= lossy and not item.quantizes
