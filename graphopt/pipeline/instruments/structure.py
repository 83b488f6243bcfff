"""Structural verification after every pass: of what it touched, and of everything at the end."""

from __future__ import annotations

from typing import TYPE_CHECKING

from graphopt.graph.verify import verify_model, verify_touched
from graphopt.pipeline.instruments.base import Instrument

if TYPE_CHECKING:
    from graphopt.graph.state import GraphState
    from graphopt.pipeline.base import Pass


class CheckStructure(Instrument):
    """Raises PassError, naming the pass, as soon as a graph is malformed.

    After a pass only the nodes that it touched are checked, which keeps the cost proportional to the
    work done; at the end every node is.
    """

    def __init__(self) -> None:
        self._since = 0

    def before_pass(self, item: Pass, state: GraphState) -> None:
        """Remember where this pass starts."""
        self._since = len(state.touched)

    def after_pass(self, item: Pass, state: GraphState, changes: int) -> None:
        """Check what it touched."""
        if len(state.touched) > self._since:
            verify_touched(state, self._since)

    def at_end(self, state: GraphState) -> None:
        """Check everything."""
        verify_model(state)
