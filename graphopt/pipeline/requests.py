"""Refusing what cannot be done before anything is done: data that is missing, globs that match nothing."""

from __future__ import annotations

from collections.abc import Sequence

from graphopt.errors import UserError
from graphopt.graph.journal import Journal
from graphopt.graph.shapes import infer
from graphopt.graph.state import GraphState
from graphopt.graph.view import GraphView
from graphopt.model import Model
from graphopt.pipeline.base import Pass
from graphopt.pipeline.manager import Settings, flatten
from graphopt.pipeline.registry import Step
from graphopt.pipeline.select import unmatched


def check_requests(steps: Sequence[Step], model: Model, settings: Settings) -> None:
    """Ask every pass of a pipeline, before the first one runs, whether it can do what it is asked for.

    Args:
        steps: the pipeline.
        model: the model that comes in; it is only read.
        settings: what the run depends on.

    Raises:
        UserError: a pass needs data and there is none, one of its globs matches no node and no tensor, or
            it declines for reasons of its own.
    """
    items = flatten(steps)
    for item in items:
        if item.needs_data() and settings.services is None:
            raise UserError(
                f"{item.name} needs data to measure on",
                fix="hand in typical inputs: --data calib.npz (see `graphopt run --help`)",
            )
        for glob, names in unmatched(item.globs(), model, nodes=True):
            raise UserError(
                f"{item.name}: {glob!r} matches no node of the model",
                fix=f"close to it: {', '.join(names)}" if names else "see names with `graphopt inspect`",
            )
    asking = [item for item in items if type(item).check is not Pass.check]
    if asking:
        state = GraphState(model, infer(model), Journal(), settings.keep)
        bodies = [GraphView(state, body) for body in state.live_bodies()]
        for item in asking:
            item.check(bodies, settings.context())
