"""The user's data as probes: few feeds, taken from what no calibration sees."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

from graphopt.calibration.data.batching import Batch, batches
from graphopt.calibration.data.dataset import Dataset, Port, ports_of
from graphopt.calibration.data.opening import DataSpec, open_dataset
from graphopt.runtime.inputs import ProbeSet
from graphopt.runtime.structure import Structure

# So many samples are few enough to run on all of them at once, as a reproducer's inputs have to be.
_FEW = 16
_MAX_BATCH = 8
_MAX_SETS = 16
_MAX_SAMPLES = 64


def probe_sets(data: DataSpec, structure: Structure, *, singly: bool = False) -> list[ProbeSet]:
    """At most 16 feeds from the user's data.

    Few samples are taken as they are. Of more, the held-back part is used, up to 8 at a time and 64 in all;
    what comes after those is never read. Inputs may be missing (the caller synthesizes them), and values may
    be infinite, as in additive masks.

    Args:
        data: anything that `open_dataset` takes.
        structure: the model's graph.
        singly: one sample at a time.

    Raises:
        UserError: see `open_dataset` and `batches`.
    """
    ports, overridable = ports_of(structure)
    dataset = open_dataset(data, ports, overridable, model=structure.model, strict=False)
    found = list(_few(dataset, ports, overridable, singly))
    if len(found) == 1:
        return [ProbeSet(found[0].feeds, source=dataset.name)]
    return [ProbeSet(b.feeds, source=f"{dataset.name} #{i}") for i, b in enumerate(found)]


def _few(dataset: Dataset, ports: list[Port], overridable: list[Port], singly: bool) -> Iterator[Batch]:
    if dataset.size is not None and dataset.size <= _FEW:
        yield from batches(dataset, ports, 1 if singly else _FEW, "all", overridable)
        return
    samples, most = 0, 1 if singly else _MAX_BATCH
    for batch in islice(batches(dataset, ports, most, "held-back", overridable), _MAX_SETS):
        yield batch
        samples += batch.size
        if samples >= _MAX_SAMPLES:
            return
