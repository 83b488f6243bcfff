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
from graphopt.pipeline.registry import Stage, Step
from graphopt.pipeline.select import unmatched

_NEEDS_DATA = "needs data to measure on"
_DATA = "hand in typical inputs: --data calib.npz (see `graphopt run --help`)"


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
    asking: list[tuple[Pass, str | None]] = []
    for step in steps:
        stage = step if isinstance(step, Stage) else None
        where = stage.where if stage else None
        for item in flatten([step]):
            _check_needs(item, model, settings, where)
            if type(item).check is not Pass.check:
                asking.append((item, where))
        if stage and stage.gate and stage.gate.needs_data and settings.services is None:
            what = f"the gate of stage {stage.name!r} {_NEEDS_DATA}"
            raise UserError(what, where=stage.gate_where, fix=_DATA)
    if asking:
        state = GraphState(model, infer(model), Journal(), settings.keep)
        bodies = [GraphView(state, body) for body in state.live_bodies()]
        for item, where in asking:
            try:
                item.check(bodies, settings.context())
            except UserError as refused:
                raise UserError(refused.what, where=refused.where or where, fix=refused.fix) from refused
            if item.changes_interface:
                return  # what is behind it may be asked of inputs and outputs that there are not yet


def _check_needs(item: Pass, model: Model, settings: Settings, where: str | None) -> None:
    """What every pass is asked: data, and names."""
    if item.needs_data() and settings.services is None:
        raise UserError(f"{item.name} {_NEEDS_DATA}", where=where, fix=_DATA)
    for glob, names in unmatched(item.globs(), model, nodes=True):
        raise UserError(
            f"{item.name}: {glob!r} matches no node of the model",
            where=where,
            fix=f"close to it: {', '.join(names)}" if names else "see names with `graphopt inspect`",
        )


def check_keep(globs: Sequence[str], model: Model) -> None:
    """Refuse a glob that matches nothing: it is a typing mistake, and would protect nothing.

    Raises:
        UserError: there is one.
    """
    for glob, names in unmatched(globs, model):
        raise UserError(
            f"--keep {glob!r} matches no node and no tensor",
            fix=f"names close to it: {', '.join(names)}" if names else None,
        )
