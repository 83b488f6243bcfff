"""Telling somebody how far a run is."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from graphopt.pipeline.instruments.base import Instrument

if TYPE_CHECKING:
    from graphopt.graph.state import GraphState
    from graphopt.pipeline.base import Pass


class Progress(Instrument):
    """Calls `tell(stage, detail)` when a pass starts and when it has changed something."""

    def __init__(self, tell: Callable[[str, str], None]) -> None:
        self.tell = tell

    def before_pass(self, item: Pass, state: GraphState) -> None:
        """Say which pass runs."""
        self.tell("pass", item.name)

    def after_pass(self, item: Pass, state: GraphState, changes: int) -> None:
        """Say what it did, if anything."""
        if changes:
            self.tell("changed", f"{item.name}: {changes} rewrites")
