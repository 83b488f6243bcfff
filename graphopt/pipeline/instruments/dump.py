"""The model after every pass that changed it, on disk."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from graphopt.pipeline.instruments.base import Instrument

if TYPE_CHECKING:
    from graphopt.graph.state import GraphState
    from graphopt.pipeline.base import Pass


class DumpChanges(Instrument):
    """Writes `003_pass-name.onnx` after each pass that changed something.

    Args:
        folder: where to; it is created.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._count = 0

    def after_pass(self, item: Pass, state: GraphState, changes: int) -> None:
        """Write the model if it changed."""
        self._count += 1
        if changes:
            self.folder.mkdir(parents=True, exist_ok=True)
            state.finish().save(self.folder / f"{self._count:03d}_{item.name}.onnx")
