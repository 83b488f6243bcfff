"""Measuring what lies between changing every node of a model and changing none."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from graphopt import api, lossy
from graphopt.budget import Exploration
from graphopt.errors import UserError
from graphopt.pipeline.base import Pass
from graphopt.pipeline.registry import Fixpoint, installed
from graphopt.pipeline.targets import get_target


def explore(
    source: api.Source,
    passes: api.Passes = "int8",
    *,
    target: str = "portable",
    data: Any,
    metric: lossy.Metric = None,
    trust_external_paths: bool = False,
    progress: api.Tell | None = None,
) -> Exploration:
    """Measure what changing each node costs, and what mixtures of changed and unchanged nodes give.

    Args:
        source: as for `run`.
        passes: a pipeline with a pass that searches (one with an `explore` option); what follows it is left
            out.
        target, data, metric, trust_external_paths, progress: as for `run`.

    Raises:
        UserError: no pass of the pipeline searches, or nothing in the model can be changed.
    """
    registry = installed()
    if isinstance(passes, Pass | Fixpoint):
        passes = [passes]
    steps = list(registry.resolve(passes, default=registry.preset(f"default-{target}"), target=target))
    last = next((i for i, s in enumerate(steps) if hasattr(s, "explore")), None)
    if last is None:
        raise UserError(
            "no pass of this pipeline searches", fix="as in: --passes int8, which ends in restore-float"
        )
    searching: Any = steps[last]
    steps = [*steps[:last], replace(searching, explore=True)]
    result = api.run(
        source,
        steps,
        target=target,
        data=data,
        metric=metric,
        verify="off",
        trust_external_paths=trust_external_paths,
        progress=progress,
    )
    if result.report.exploration is None:
        reasons = [r.reason for p in result.report.passes for r in p.refusals if p.numerics == "LOSSY"]
        raise UserError("nothing in this model was changed", fix="; ".join(dict.fromkeys(reasons)) or None)
    return result.report.exploration


def searches(passes: api.Passes, *, target: str = "portable") -> bool:
    """Whether a pass of the pipeline searches, so that `explore` can be used."""
    registry = installed()
    steps = registry.resolve(
        [passes] if isinstance(passes, Pass | Fixpoint) else passes,
        default=registry.preset(f"default-{get_target(target).name}"),
        target=target,
    )
    return any(hasattr(step, "explore") for step in steps)
