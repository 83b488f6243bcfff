"""Finding the rewrite that makes a result wrong, by the user's own check or by ours."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from graphopt import api, summary
from graphopt.checking import CheckCommand
from graphopt.errors import UserError
from graphopt.model import Model
from graphopt.report.searched import BisectReport


def bisect(
    source: api.Source,
    passes: api.Passes = None,
    *,
    check: str | None = None,
    check_timeout: float | None = None,
    target: str | None = None,
    keep: str | Sequence[str] = (),
    data: Any = None,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    providers: str | Sequence[str] = ("cpu",),
    ranges: str | Path | None = None,
    timeout: float | None = None,
    repro_dir: str | Path | None = None,
    trust_external_paths: bool = False,
    progress: Callable[[str, str], None] | None = None,
) -> BisectReport:
    """Find the rewrites of a pipeline that make the result wrong.

    The pipeline is replayed with ever other numbers of rewrites, until one is found without which the result
    is right and with which it is wrong. It is left out and the rest is checked again, so that several are
    found, and what is left is known to be right.

    Args:
        source, passes, target, keep, data, input_shapes, providers, ranges: as for `graphopt.run`.
        check: a shell command with `{model}` in it: exit code 0 says that a model is right, 125 that it
            cannot be judged, any other that it is wrong. By default the result is compared with the original.
        check_timeout: seconds after which a check is stopped; that counts as wrong.
        timeout: seconds after which to give up.
        repro_dir: folder for the models right before and right after each guilty rewrite.
        trust_external_paths: follow external data out of the model's folder.
        progress: called with a stage and a detail as the search goes on.

    Raises:
        UserError: the check fails on the model itself, or cannot be run; or as for `graphopt.run`.
    """
    start = time.perf_counter()
    tell = progress or (lambda stage, detail: None)
    original = Model.load(source, trust_external_paths=trust_external_paths)
    command = None
    if check is not None:
        path = original.path
        command = CheckCommand(check, original=path.absolute() if path else "", timeout=check_timeout)
        tell("check", "the model itself")
        answer = command.on_model(original)
        if not answer.right:
            raise UserError(
                f"the check does not pass on the model itself: {answer.words()}",
                where=str(path or "the model"),
                fix="no pass has made it fail; to find the smallest model that does: graphopt reduce",
            )
    result = api.run(
        source if not isinstance(source, Model) else original,
        passes,
        target=target,
        verify="final" if command is None else "off",
        check=command,
        keep=keep,
        data=data,
        input_shapes=input_shapes,
        providers=providers,
        ranges=ranges,
        timeout=timeout,
        repro_dir=repro_dir,
        trust_external_paths=trust_external_paths,
        progress=tell,
    )
    report = result.report
    rewrites = sum(p.rewrites for p in report.passes)
    culprits = report.culprits
    if report.verdict == "failed":
        verdict, reason = "not separable", f"no rewrite could be blamed alone: {report.verdict_reason}"
    elif culprits:
        verdict, reason = "found", ""
    elif report.verdict == "unproven":
        verdict, reason = "undecided", report.verdict_reason
    else:
        judge = "the check passes on the result" if check else "the result computes the same as the input"
        verdict, reason = "right", f"{judge}: there is nothing to find"
    rest = ""
    if culprits and verdict == "found":
        rest = (
            f"undecided: {report.verdict_reason}"
            if report.verdict == "unproven"
            else "the check passes"
            if check
            else "it computes the same as the input"
        )
    return BisectReport(
        model=report.input,
        pipeline=report.pipeline,
        check=check or "",
        verdict=verdict,  # type: ignore[arg-type]
        reason=reason,
        culprits=culprits,
        rewrites=rewrites,
        rest=rest,
        checks=command.runs if command is not None else 0,
        seconds=time.perf_counter() - start,
        versions=summary.versions(),
    )
