"""Things that watch a pipeline run without changing what it does."""

from graphopt.pipeline.instruments.base import Instrument
from graphopt.pipeline.instruments.dump import DumpChanges
from graphopt.pipeline.instruments.progress import Progress
from graphopt.pipeline.instruments.structure import CheckStructure
from graphopt.pipeline.instruments.timing import Timing

__all__ = ["CheckStructure", "DumpChanges", "Instrument", "Progress", "Timing"]
