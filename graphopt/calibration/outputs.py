"""Outputs of models on batches, which are kept while they are few."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np

from graphopt.calibration.collect import DoesNotRun
from graphopt.calibration.data import Batch
from graphopt.calibration.score import Outputs
from graphopt.runtime.session import RuntimeFailure, Session

_CACHED_OUTPUTS: Final = 32 << 20


class Lazily:
    """A session that is opened when it is first needed."""

    def __init__(self, opener: Callable[[], Session]) -> None:
        self._open = opener
        self._session: Session | None = None

    def __call__(self) -> Session:
        """The session."""
        if self._session is None:
            self._session = self._open()
        return self._session

    def __enter__(self) -> Lazily:
        return self

    def __exit__(self, *exc: object) -> None:
        if self._session is not None:
            self._session.close()


class TeacherOutputs:
    """What is known about a teacher on one part of the data: its metrics, and outputs while they are few."""

    def __init__(self) -> None:
        self.metrics: dict[str, float] | None = None
        self._outputs: dict[int, Outputs] = {}
        self._room = _CACHED_OUTPUTS

    def outputs(self, number: int, batch: Batch, session: Callable[[], Session]) -> Outputs:
        """Outputs for batch `number`."""
        if number in self._outputs:
            return self._outputs[number]
        found = run_batch(session(), batch)
        size = sum(getattr(v, "nbytes", _CACHED_OUTPUTS) for v in found.values())
        if size <= self._room:
            self._room -= size
            self._outputs[number] = found
        return found


def run_batch(session: Session, batch: Batch) -> Outputs:
    """Outputs by name.

    Raises:
        DoesNotRun: the model does not run on this batch.
    """
    names = [p.name for p in session.inputs] + [p.name for p in session.overridable if p.name in batch.feeds]
    try:
        return session.run({name: batch.feeds[name] for name in names})
    except RuntimeFailure as e:
        raise DoesNotRun(f"the model does not run on the data: {e.message}") from e


def copied(outputs: Outputs) -> Outputs:
    """Arrays that may be written to."""
    return {name: v.copy() if isinstance(v, np.ndarray) else v for name, v in outputs.items()}
