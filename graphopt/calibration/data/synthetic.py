"""Synthesized data, for benchmarks: it runs, and says nothing about real ranges."""

from __future__ import annotations

from collections.abc import Iterator

import onnx

from graphopt.calibration.data.dataset import Dataset, Sample
from graphopt.runtime.inputs import Synthesizer
from graphopt.runtime.sizes import assignments


class Synthetic(Dataset):
    """Feeds that are drawn, of one size, one sample each where the model leads with a batch.

    Args:
        model: the model; initializers may be stripped of their data.
        count: how many.
    """

    def __init__(self, model: onnx.ModelProto, count: int) -> None:
        super().__init__("synthetic data (random: ranges and accuracy mean nothing)")
        self._maker, self._count = Synthesizer(model), count

    @property
    def size(self) -> int:
        """As many as were asked for."""
        return self._count

    def __iter__(self) -> Iterator[Sample]:
        maker = self._maker
        batch = {s.name: 1 for s in maker.symbols if s.kind == "batch"}
        sizes = next(assignments(maker.symbols, batch | dict(maker.pinned), 0), {})
        for i in range(self._count):
            # Odd places override defaults and leave optionals empty.
            yield maker.make(2 * i, sizes).feeds
