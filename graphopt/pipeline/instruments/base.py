"""The interface of an instrument."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from graphopt.graph.state import GraphState
    from graphopt.pipeline.base import Pass
    from graphopt.pipeline.registry import Stage


class Instrument:
    """Watches passes run. Every method may be left out; none may change the graph."""

    def before_pass(self, item: Pass, state: GraphState) -> None:
        """`item` is about to run over all bodies."""

    def after_pass(self, item: Pass, state: GraphState, changes: int) -> None:
        """`item` has run and applied `changes` rewrites."""

    def after_stage(self, stage: Stage, state: GraphState, changes: int) -> None:
        """All passes of `stage`, a part of a recipe, have run and applied `changes` rewrites."""

    def at_end(self, state: GraphState) -> None:
        """All passes have run; `state.finish` has not been called yet."""
