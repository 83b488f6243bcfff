"""Run, prove, and when the proof fails find the guilty rewrite, leave it out, and prove the rest.

The search replays the pipeline on a fresh copy of the model with a limit on the number of rewrites, which
bisects over all rewrite sites of all passes at once. When a site is guilty only together with an earlier
pass, that is found by leaving the earlier passes out one by one.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from graphopt.budget import Score
from graphopt.errors import PassError
from graphopt.graph.journal import Change, SiteKey
from graphopt.model import Model
from graphopt.pipeline.base import Numerics, Pass
from graphopt.pipeline.instruments import Instrument
from graphopt.pipeline.manager import Execution, Settings, execute, flatten, without
from graphopt.pipeline.registry import Step

# Guilty sites of one pass after which the whole pass is left out.
SITES_PER_PASS = 3
# Rounds of rolling back before everything is given up.
MAX_ROLLBACKS = 12

Tell = Callable[[str, str], None]


@dataclass(frozen=True)
class Judgement:
    """The verdict on one candidate.

    Attributes:
        verdict: "proven", "unproven", "failed", or "over budget": nothing is wrong with it, but it moves the
            numbers further than the user allows.
        why: the reason, with figures where it failed.
        proof: whatever the judge wants to hand to the report.
        score: how close a LOSSY result is to the original, None for others.
        misses: what of the budget it does not keep, in words.
    """

    verdict: str
    why: str = ""
    proof: object = None
    score: Score | None = None
    misses: tuple[str, ...] = ()


class Judge(Protocol):
    """Compares candidates with one reference model."""

    def judge(self, candidate: Model, numerics: Numerics) -> Judgement:
        """Compare `candidate` with the reference under the allowance `numerics`."""
        ...

    def against(self, reference: Model) -> Judge:
        """A judge that compares with another reference on the same inputs."""
        ...


@dataclass
class Guilt:
    """A rewrite, or a whole pass, that made the result wrong.

    Attributes:
        pass_name: the pass.
        site: where; None when the whole pass is meant.
        why: what went wrong, with figures.
        op: operator type of the root node of the site.
        partners: other passes without which it does not happen.
        trace: the traceback, if the pass raised.
        proof: the judge's evidence.
        change: the rewrite; None when the pass raised.
        around: makes the model right before that rewrite, and right after it.
    """

    pass_name: str
    site: SiteKey | None
    why: str
    op: str = ""
    partners: tuple[str, ...] = ()
    trace: str = ""
    proof: object = None
    change: Change | None = None
    around: Callable[[], tuple[Model, Model]] | None = None


@dataclass
class Outcome:
    """What a transaction ended with.

    Attributes:
        run: the execution whose model is to be used.
        verdict: "proven", "unproven", "rolled back", "over budget", "failed" or "not verified".
        why: one sentence.
        judgement: the last comparison with the original.
        guilty: what was rolled back.
        skip: the sites that were left out.
        dropped: the passes that were left out.
    """

    run: Execution
    verdict: str
    why: str = ""
    judgement: Judgement | None = None
    guilty: list[Guilt] = field(default_factory=list)
    skip: frozenset[SiteKey] = frozenset()
    dropped: frozenset[str] = frozenset()


class Transaction:
    """One pipeline on one model, with everything needed to run it again.

    Args:
        fresh: makes a new copy of the original model; called once per run.
        steps: the pipeline.
        settings: target, limits, what to keep.
        judge: compares with the original; None: nothing is verified.
        each: verify after every pass that changed something, not only at the end.
        instruments: watchers of the main runs.
        tell: told what is going on.
    """

    def __init__(
        self,
        fresh: Callable[[], Model],
        steps: Sequence[Step],
        settings: Settings,
        *,
        judge: Judge | None,
        each: bool = False,
        instruments: Sequence[Instrument] = (),
        tell: Tell = lambda stage, detail: None,
    ) -> None:
        self.fresh, self.steps, self.settings = fresh, tuple(steps), settings
        self.judge, self.each, self.instruments, self.tell = judge, each, list(instruments), tell
        self._numerics = {p.name: p.numerics for p in flatten(steps)}

    def run(self) -> Outcome:
        """Run until what is left is proven, or nothing is left."""
        guilty: list[Guilt] = []
        skip: frozenset[SiteKey] = frozenset()
        dropped: frozenset[str] = frozenset()
        while True:
            try:
                done = self._execute(skip, dropped)
            except PassError as error:
                if error.pass_name not in self._numerics or error.pass_name in dropped:
                    raise
                guilty.append(self._crash(error))
                dropped |= {error.pass_name}
                continue
            if self.judge is None:
                return Outcome(done, "not verified", "", None, guilty, skip, dropped)
            self.tell("prove", "comparing with the original")
            judged = self._judge_run(done, skip, dropped)
            if judged.verdict != "failed":
                verdict = "rolled back" if guilty and judged.verdict == "proven" else judged.verdict
                return Outcome(done, verdict, judged.why, judged, guilty, skip, dropped)
            if len(guilty) >= MAX_ROLLBACKS:
                return self._give_up(guilty, judged)
            culprit = self._locate(done, judged, skip, dropped)
            if culprit is None:
                return self._give_up(guilty, judged)
            guilty.append(culprit)
            same_pass = sum(1 for g in guilty if g.pass_name == culprit.pass_name)
            if culprit.site is None or same_pass > SITES_PER_PASS:
                culprit.site = None
                dropped |= {culprit.pass_name}
            else:
                skip |= {culprit.site}

    # -- runs ----------------------------------------------------------------------------------------

    def _execute(
        self,
        skip: frozenset[SiteKey],
        dropped: Collection[str],
        limit: int | None = None,
        quiet: bool = False,
    ) -> Execution:
        instruments: list[Instrument] = [] if quiet else list(self.instruments)
        if self.each and not quiet and self.judge is not None:
            instruments.append(_JudgeEach(self))
        steps = without(self.steps, dropped) if dropped else self.steps
        return execute(self.fresh(), steps, self.settings, limit=limit, skip=skip, instruments=instruments)

    def allowance(self, changes: Sequence[Change]) -> Numerics:
        """The weakest numerics that the passes behind `changes` declare."""
        order = list(Numerics)
        found = (self._numerics.get(c.key.pass_name, Numerics.CLOSE) for c in changes)
        return max(found, key=order.index, default=Numerics.EXACT)

    def _judge_run(self, done: Execution, skip: frozenset[SiteKey], dropped: Collection[str]) -> Judgement:
        """The final model against the original; around LOSSY passes, segment by segment."""
        assert self.judge is not None
        changes = done.journal.changes
        allowance = self.allowance(changes)
        if allowance is Numerics.LOSSY:
            for start, end in self._exact_segments(changes):
                before = self._at(done, start, skip, dropped)
                after = self._at(done, end, skip, dropped)
                judge = self.judge if start == 0 else self.judge.against(before)
                judged = judge.judge(after, self.allowance(changes[start:end]))
                if judged.verdict == "failed":
                    return judged
        return self.judge.judge(done.model, allowance)

    def _at(self, done: Execution, applied: int, skip: frozenset[SiteKey], dropped: Collection[str]) -> Model:
        """The model of the run `done` after so many rewrites."""
        if applied == len(done.journal.changes):
            return done.model
        if applied in done.between:
            return done.between[applied]
        return self._execute(skip, dropped, limit=applied, quiet=True).model

    def _exact_segments(self, changes: Sequence[Change]) -> list[tuple[int, int]]:
        """Maximal runs of changes that no LOSSY pass made."""
        segments: list[tuple[int, int]] = []
        start: int | None = None
        for serial, change in enumerate(changes):
            lossy = self._numerics.get(change.key.pass_name) is Numerics.LOSSY
            if not lossy and start is None:
                start = serial
            elif lossy and start is not None:
                segments.append((start, serial))
                start = None
        if start is not None:
            segments.append((start, len(changes)))
        return segments

    # -- search --------------------------------------------------------------------------------------

    def _locate(
        self, done: Execution, judged: Judgement, skip: frozenset[SiteKey], dropped: frozenset[str]
    ) -> Guilt | None:
        """The first rewrite that turns a right model wrong, and what it needs for that."""
        assert self.judge is not None
        good, bad = 0, len(done.journal.changes)
        if bad == 0:
            return None
        why, proof, change = judged.why, judged.proof, done.journal.changes[-1]
        while bad - good > 1:
            middle = (good + bad) // 2
            self.tell("bisect", f"between rewrites {good} and {bad}")
            self.settings.check_deadline()
            try:
                trial = self._execute(skip, dropped, limit=middle, quiet=True)
            except PassError:
                # A pass that cannot cope with half a pipeline says nothing about this half.
                good = middle
                continue
            verdict = self._judge_run(trial, skip, dropped)
            if verdict.verdict == "failed":
                bad, why, proof = middle, verdict.why, verdict.proof
                change = trial.journal.changes[-1]
            else:
                good = middle
        if bad == 1:
            trial = self._execute(skip, dropped, limit=1, quiet=True)
            change = trial.journal.changes[-1]
        guilt = Guilt(
            change.key.pass_name,
            change.key,
            why,
            change.op,
            proof=proof,
            change=change,
            around=lambda: self._around(change, skip, dropped),
        )
        guilt.partners = self._partners(guilt, done.journal.changes[: bad - 1], skip, dropped)
        return guilt

    def _around(
        self, change: Change, skip: frozenset[SiteKey], dropped: frozenset[str]
    ) -> tuple[Model, Model]:
        """The models right before and right after a rewrite of the run with these left out."""
        before, after = (
            self._execute(skip, dropped, limit=limit, quiet=True).model
            for limit in (change.serial, change.serial + 1)
        )
        return before, after

    def _partners(
        self, guilt: Guilt, earlier: Sequence[Change], skip: frozenset[SiteKey], dropped: frozenset[str]
    ) -> tuple[str, ...]:
        """The smallest set of earlier passes (none can be left out) without which the fault vanishes."""
        needed = list(dict.fromkeys(c.key.pass_name for c in earlier if c.key.pass_name != guilt.pass_name))
        if self._fails_with({guilt.pass_name}, skip, dropped):
            return ()
        for name in list(needed):
            rest = {guilt.pass_name, *needed} - {name}
            if self._fails_with(rest, skip, dropped):
                needed.remove(name)
        return tuple(needed)

    def _fails_with(self, names: set[str], skip: frozenset[SiteKey], dropped: frozenset[str]) -> bool:
        """Whether the result is wrong when only the passes `names` run."""
        self.tell("bisect", f"only {', '.join(sorted(names))}")
        self.settings.check_deadline()
        others = frozenset(self._numerics) - names | dropped
        try:
            trial = self._execute(skip, others, quiet=True)
        except PassError:
            return False
        return self._judge_run(trial, skip, others).verdict == "failed"

    # -- ends ----------------------------------------------------------------------------------------

    def _crash(self, error: PassError) -> Guilt:
        # What the pass raised; that the engine wrapped it is no news.
        trace = "".join(traceback.format_exception(error.__cause__ or error))
        return Guilt(error.pass_name, None, str(error), trace=trace)

    def _give_up(self, guilty: list[Guilt], judged: Judgement) -> Outcome:
        """The original, untouched."""
        done = execute(self.fresh(), (), self.settings)
        names = frozenset(self._numerics)
        return Outcome(done, "failed", judged.why, judged, guilty, frozenset(), names)


class _JudgeEach(Instrument):
    """Compares with the original after every pass that changed something."""

    def __init__(self, transaction: Transaction) -> None:
        self.transaction = transaction

    def after_pass(self, item: Pass, state: object, changes: int) -> None:
        """Stop the run at the first pass after which the model is wrong.

        The run is cut short by exhausting its journal: what follows would only hide the culprit.
        """
        from graphopt.graph.state import GraphState

        assert isinstance(state, GraphState)
        judge = self.transaction.judge
        if not changes or judge is None:
            return
        self.transaction.tell("prove", f"after {item.name}")
        allowance = self.transaction.allowance(state.journal.changes)
        if judge.judge(state.finish(), allowance).verdict == "failed":
            state.journal.limit = len(state.journal.changes)
