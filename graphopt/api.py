"""The Python API: `load` and `run`. The command line is a thin layer over it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

import onnx
import onnx_graphsurgeon as gs

from graphopt import collector, lossy, staging, summary
from graphopt.checking import CheckCommand, CheckedJudge
from graphopt.errors import UserError
from graphopt.graph.sparsity import sparsity
from graphopt.graph.stats import model_stats
from graphopt.memory import memory_limited
from graphopt.model import Model
from graphopt.pipeline.base import Evaluator, Limits, Pass
from graphopt.pipeline.instruments import DumpChanges, Instrument, Progress
from graphopt.pipeline.manager import Settings, flatten
from graphopt.pipeline.recipe import Recipe, load_recipe
from graphopt.pipeline.registry import Fixpoint, Stage, Step, installed
from graphopt.pipeline.requests import check_keep, check_requests
from graphopt.pipeline.spec import Spec
from graphopt.pipeline.targets import get_target
from graphopt.pipeline.transaction import Transaction
from graphopt.report.document import RunReport
from graphopt.reproducing import report_culprit

if TYPE_CHECKING:
    from graphopt.budget import Budget, Score
    from graphopt.calibration.service import CalibrationService
    from graphopt.io.save import SavedFiles
    from graphopt.judging import ProverJudge

Source: TypeAlias = "str | Path | onnx.ModelProto | gs.Graph | Model"
Passes: TypeAlias = "str | Pass | Fixpoint | Sequence[str | Step | Spec] | None"
Verify: TypeAlias = Literal["final", "each", "off"]
Tell: TypeAlias = Callable[[str, str], None]


@dataclass
class Result:
    """What `run` returns: the optimized model, and what was done to it with the evidence.

    Attributes:
        model: the model.
        report: the report.
        removed_by: what removed nodes computed, by name of their first output -> the pass that removed them.
    """

    model: Model
    report: RunReport
    removed_by: Mapping[str, str] = field(default_factory=dict)

    def __repr__(self) -> str:
        nodes = f"{self.report.before.nodes} -> {self.report.after.nodes} nodes"
        return f"<graphopt result: {self.report.verdict}, {nodes}; all of it in .report, .model>"

    def save(
        self,
        path: str | Path,
        *,
        external_data: bool | None = None,
        overwrite: bool = True,
        over_budget: bool = False,
    ) -> SavedFiles:
        """Write the model atomically; see `Model.save`. The report then names the file.

        Args:
            path: the file to write.
            external_data: as for `Model.save`.
            overwrite: as for `Model.save`.
            over_budget: write it even if it does not keep its budget.

        Raises:
            UserError: the result is known to be wrong, or the file cannot be written.
        """
        if not self.report.writable:
            raise UserError("the result failed its validation, so it is not written")
        if self.report.verdict == "over budget" and not over_budget:
            raise UserError(
                f"the result does not keep its budget: {self.report.verdict_reason}",
                fix="raise the budget, or ask for it all the same: save(..., over_budget=True)",
            )
        saved = self.model.save(path, external_data=external_data, overwrite=overwrite)
        output = summary.file_info(saved.model, saved.data)
        self.report = replace(self.report, output=output)
        return saved


def load(source: Source, *, trust_external_paths: bool = False) -> Model:
    """Load a model; see `Model.load`."""
    return Model.load(source, trust_external_paths=trust_external_paths)


@collector.relaxed()
def run(
    source: Source,
    passes: Passes = None,
    *,
    recipe: str | Path | Recipe | None = None,
    target: str | None = None,
    verify: Verify = "final",
    keep: str | Sequence[str] = (),
    data: Any = None,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    providers: str | Sequence[str] = ("cpu",),
    limits: Limits | None = None,
    budget: Budget | None = None,
    metric: lossy.Metric = None,
    ranges: str | Path | None = None,
    memory_limit: int | None = None,
    timeout: float | None = None,
    check: str | CheckCommand | None = None,
    repro_dir: str | Path | None = None,
    dump_dir: str | Path | None = None,
    trust_external_paths: bool = False,
    progress: Tell | None = None,
) -> Result:
    """Optimize a model and prove the result.

    Args:
        source: a path, a ModelProto, an onnx-graphsurgeon graph, or a Model. It is not changed.
        passes: pipeline string, or a list of such strings and passes; the target's default by default.
        recipe: instead of passes, stages of passes with gates: a TOML file, or the name of an installed one;
            what it says of target, data, metric and `keep` counts where nothing else is said.
        target: who will execute the result: "portable" (the default), "ort-cpu", "ort-cuda", "tensorrt".
        verify: compare with the original at the end ("final"), after each pass ("each"), or not ("off").
        keep: globs over node and tensor names that no pass may touch.
        data: real inputs, to compare on and to calibrate with: arrays by name, a file, a folder, ... (see
            docs/data.md).
        input_shapes: dims by input name, for synthesized inputs.
        providers: execution providers that the result must hold on; the CPU always is among them.
        limits: bounds on what passes may produce.
        budget: what a pipeline that moves the numbers must keep; presets have one of their own.
        metric: task metric, "module:function" or a function, called with (sample, outputs) pairs.
        ranges: a file of activation ranges, from `graphopt calibrate`.
        memory_limit: bytes of memory that this process may allocate during the call.
        timeout: seconds after which to give up.
        check: a command that has to call the result right, too, as for `bisect`; with `verify="off"` it
            decides alone.
        repro_dir: folder for reproducers of what was rolled back; none are written by default.
        dump_dir: folder for the model after every pass that changed it.
        trust_external_paths: follow external data out of the model's folder.
        progress: called with a stage and a detail as the run goes on.

    Returns:
        The model and its report. Wrong rewrites are rolled back and named in the report; a model that
        cannot be made right has the verdict "failed" and cannot be saved.

    Raises:
        ModelError: the model cannot be read.
        ProviderError: a provider, or onnxruntime itself, is not there.
        UserError: something asked for is not known, makes no sense, or cannot be done to this model; time or
            memory is used up.
        PassError: the engine itself is broken.
    """
    if verify not in get_args(Verify):
        raise UserError(f"verify cannot be {verify!r}", fix=f"one of: {', '.join(get_args(Verify))}")
    keep, providers = _names(keep), _names(providers)
    clock = summary.Clock()
    tell = progress or (lambda stage, detail: None)
    registry = installed()
    if recipe is not None:
        if passes is not None:
            raise UserError("passes and a recipe exclude each other", fix="put the passes into the recipe")
        recipe = recipe if isinstance(recipe, Recipe) else load_recipe(recipe)
        target, keep = target or recipe.target, keep or recipe.keep
        data, metric = recipe.own_data() if data is None else data, metric or recipe.metric
    profile = get_target(target := target or "portable")
    if isinstance(passes, Pass | Fixpoint):
        passes = [passes]
    steps: tuple[Step, ...]
    if recipe is not None:
        steps = recipe.resolve(registry, target)
    else:
        steps = registry.resolve(passes, default=registry.preset(f"default-{target}"), target=target)
        budget = lossy.budget_for(budget, passes, profile, registry)
    stages = [step for step in steps if isinstance(step, Stage)]
    wanted = staging.check_metric(stages, metric)
    tell("load", str(source) if isinstance(source, str | Path) else "the model")
    fresh = _maker(source, trust_external_paths)
    original = fresh()
    path = original.path
    before = model_stats(original)
    check_keep(keep, original)
    deadline = None if timeout is None else time.monotonic() + timeout
    moving = lossy.is_lossy(steps)
    steps = lossy.with_room(steps, original, registry)
    services = None
    if moving or stages or any(item.uses_data for item in flatten(steps)):
        services = lossy.open_services(data, original, metric=metric, tell=tell, budget=budget, wanted=wanted)
    settings = Settings(
        profile,
        limits or Limits(),
        keep,
        evaluator(),
        deadline,
        services=services,
        budget=budget,
        ranges=lossy.load_ranges(ranges),
    )
    clock.lap("load")
    with memory_limited(memory_limit):
        check_requests(steps, original, settings)
        prover = None
        if verify != "off":
            tell("reference", "running the original")
            prover = _judge(original, data, input_shapes, providers, budget, services)
            clock.lap("reference")
        if isinstance(check, str):
            check = CheckCommand(check, original=path.absolute() if path else "")
        judge = prover if check is None else CheckedJudge(check, prover)
        watchers: list[Instrument] = [Progress(tell)]
        if dump_dir is not None:
            watchers.append(DumpChanges(Path(dump_dir)))
        gates = staging.Gates(stages, original, services, tell) if stages else None
        if gates is not None:
            watchers.append(gates)
        # The first run may use up the copy at hand; the search for a culprit makes new ones.
        first = [original] if judge is None and gates is None else []
        outcome, steps = staging.run_stages(
            steps,
            lambda left: Transaction(
                lambda: first.pop() if first else fresh(),
                left,
                settings,
                judge=judge,
                each=verify == "each",
                instruments=watchers,
                tell=tell,
            ),
        )
        clock.lap("passes and proof")
        culprits = tuple(
            report_culprit(guilt, fresh, steps, settings, judge, providers, repro_dir, tell)
            for guilt in outcome.guilty
        )
        if culprits:
            clock.lap("reproducers")
        measured = lossy.Measured()
        if moving and judge is not None and outcome.judgement is not None:
            tell("measure", "latency before and after")
            feeds = services.latency_feeds() if services is not None else judge.feeds()
            measured = lossy.measure(original, outcome, budget, profile, feeds, services)
            clock.lap("latency")
        if gates is not None:
            measured = gates.applied_to(measured, outcome)
    report = RunReport(
        input=summary.file_info(path, original.data_files),
        output=None,
        target=target,
        pipeline=registry.format(steps),
        verdict=measured.verdict or outcome.verdict,  # type: ignore[arg-type]
        verdict_reason=measured.why or outcome.why,
        passes=(
            *summary.pass_reports(outcome.run.order, outcome.run.journal, outcome.run.timing, outcome),
            *summary.left_out(flatten(steps), outcome),
        ),
        before=before,
        after=model_stats(outcome.run.model),
        culprits=culprits,
        seconds=clock.laps,
        versions=summary.versions(),
        accuracy=measured.accuracy,
        latency=measured.latency,
        sparsity=sparsity(outcome.run.model) if moving else None,
        left_float=lossy.left_float(outcome.run) if moving else (),
        exploration=outcome.run.notes.get("exploration"),
        warnings=measured.warnings,
        interface=summary.port_changes(outcome.run.model.interface),
        recipe=recipe.name if isinstance(recipe, Recipe) else "",
        stages=gates.rows() if gates is not None else (),
    )
    removed_by = {name: c.key.pass_name for c in outcome.run.journal.changes for name in c.gone}
    return Result(outcome.run.model, summary.with_proof(report, outcome), removed_by)


def _names(given: str | Sequence[str]) -> tuple[str, ...]:
    """One name, or several: text is one, not a sequence of letters."""
    return (given,) if isinstance(given, str) else tuple(given)


# -- parts of `run` ------------------------------------------------------------------------------------


def _maker(source: Source, trust: bool) -> Callable[[], Model]:
    """A function that makes pristine copies of the model, which share its weights."""
    if isinstance(source, str | Path):
        # From the file again: that costs no more than copying, and holds no copy between runs.
        return lambda: Model.load(source, trust_external_paths=trust)
    pristine = Model.load(source, trust_external_paths=trust)
    return pristine.copy


def evaluator() -> Evaluator | None:
    """The runtime's evaluator; without onnxruntime nothing is folded, which the passes then say."""
    from importlib.util import find_spec

    if find_spec("onnxruntime") is None:
        return None
    from graphopt.runtime.evaluate import evaluate

    return evaluate


def _judge(
    original: Model,
    data: Any,
    input_shapes: Mapping[str, Sequence[int]] | None,
    providers: Sequence[str],
    budget: Budget | None,
    services: CalibrationService | None,
) -> ProverJudge:
    from graphopt.judging import ProverJudge
    from graphopt.validation.proof import Options

    def score(candidate: Model) -> Score:
        assert services is not None
        return services.held_back_score(candidate, original)

    if not providers:
        raise UserError("no execution provider was named", fix="as in: --providers cpu")
    return ProverJudge(
        original,
        data,
        Options(tuple(providers), input_shapes=dict(input_shapes or {})),
        budget,
        scorer=score if services is not None else None,
    )
