"""Reporting what was rolled back, with a folder that shows it by itself."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from graphopt import summary
from graphopt.checking import CheckedJudge
from graphopt.model import Model
from graphopt.pipeline.manager import Settings, flatten, without
from graphopt.pipeline.registry import Step, installed
from graphopt.pipeline.reproducer import folder_name, write_reproducer
from graphopt.pipeline.transaction import Guilt
from graphopt.report.document import Culprit

if TYPE_CHECKING:
    from graphopt.judging import ProverJudge


def report_culprit(
    guilt: Guilt,
    fresh: Callable[[], Model],
    steps: Sequence[Step],
    settings: Settings,
    judge: ProverJudge | CheckedJudge | None,
    providers: Sequence[str],
    folder: str | Path | None,
    tell: Callable[[str, str], None],
) -> Culprit:
    """The report's row for what was rolled back; its reproducer is written, if there is a folder for it.

    Args:
        guilt: what was rolled back.
        fresh: makes a new copy of the original model.
        steps: the pipeline.
        settings: target, limits, what to keep.
        judge: who found it.
        providers: the execution providers that were compared on.
        folder: where reproducers go, each into a folder of its own; None: nowhere.
        tell: told what is going on.
    """
    if folder is None:
        return summary.culprit(guilt)
    from graphopt.judging import IntermediateTap, judge_on_feeds

    tell("reproduce", guilt.pass_name)
    names = {guilt.pass_name, *guilt.partners}
    needed = without(steps, {p.name for p in flatten(steps)} - names)
    own = Path(folder) / folder_name(guilt)
    pipeline = installed().format(needed)
    if isinstance(judge, CheckedJudge) and guilt.around is not None and guilt.proof is None:
        return summary.culprit(guilt, str(own), _show_check(own, guilt, pipeline, judge.check.command))
    feeds = judge.failing_feeds(guilt.proof) if judge is not None else {}
    command = write_reproducer(
        own,
        fresh(),
        guilt,
        needed,
        settings,
        pipeline=pipeline,
        feeds=feeds,
        tap=IntermediateTap(feeds),
        make_judge=lambda model, inputs: judge_on_feeds(model, inputs, providers),
        providers=providers,
        versions=summary.versions(),
    )
    return summary.culprit(guilt, str(own), command)


def _show_check(folder: Path, guilt: Guilt, pipeline: str, check: str) -> str:
    """Write the models around a rewrite that the user's check minds; returns the command that shows it.

    A check may look at anything, so the model is not cut down: `graphopt reduce` does that.
    """
    assert guilt.around is not None
    folder.mkdir(parents=True, exist_ok=True)
    for name, model in zip(("before.onnx", "after.onnx"), guilt.around(), strict=True):
        model.save(folder / name)
    (folder / "pipeline.txt").write_text(pipeline + "\n")
    (folder / "versions.json").write_text(json.dumps(summary.versions(), indent=2) + "\n")
    quoted = shlex.quote(check)
    (folder / "README.md").write_text(
        f"# {guilt.site}\n\nThe check `{check}` passes on before.onnx and fails on after.onnx, which differ"
        f" by this one rewrite. {guilt.why[:1].upper()}{guilt.why[1:]}\n\nTo make after.onnx smaller:\n\n"
        f"    graphopt reduce after.onnx --check {quoted} -o small.onnx\n"
    )
    return check.replace("{model}", "after.onnx")
