"""Wall time per pass."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from graphopt.pipeline.instruments.base import Instrument

if TYPE_CHECKING:
    from graphopt.graph.state import GraphState
    from graphopt.pipeline.base import Pass


class Timing(Instrument):
    """Adds up the seconds that each pass takes, and how often it ran."""

    def __init__(self) -> None:
        self.seconds: dict[Pass, float] = {}
        self.runs: dict[Pass, int] = {}
        self._start = 0.0

    def before_pass(self, item: Pass, state: GraphState) -> None:
        """Start the clock."""
        self._start = time.perf_counter()

    def after_pass(self, item: Pass, state: GraphState, changes: int) -> None:
        """Stop the clock."""
        self.seconds[item] = self.seconds.get(item, 0.0) + time.perf_counter() - self._start
        self.runs[item] = self.runs.get(item, 0) + 1
