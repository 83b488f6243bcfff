"""Data for calibration and validation: any source as a stream of samples that fit a model's inputs.

    ports, overridable = ports_of(model)
    dataset = open_dataset("calib.npz", ports, overridable)
    for batch in batches(dataset, ports, max_batch=32, part="calibration"):
        session.run(batch.feeds)

Nothing is loaded whole: memory depends on the size of a batch, not on how many samples there are.
"""

from graphopt.calibration.data.batching import Batch, Part, batches
from graphopt.calibration.data.dataset import Dataset, Port, PortLike, Sample, narrowed, ports_of
from graphopt.calibration.data.function import load_callable
from graphopt.calibration.data.opening import DataSpec, open_dataset
from graphopt.calibration.data.probes import probe_sets

__all__ = [
    "Batch",
    "DataSpec",
    "Dataset",
    "Part",
    "Port",
    "PortLike",
    "Sample",
    "batches",
    "load_callable",
    "narrowed",
    "open_dataset",
    "ports_of",
    "probe_sets",
]
