"""Public names for passes that quantize or compress: number formats, statistics, target profiles.

`graphopt.passkit` has what every pass needs; this has what only passes need that ask about data or change
how numbers are stored.
"""

from __future__ import annotations

from graphopt.budget import Budget, Score
from graphopt.pipeline.search import Point, Search, spare_least
from graphopt.pipeline.services import Statistic
from graphopt.quantization.grid import (
    QUANT_TYPES,
    Grid,
    QuantType,
    WeightMethod,
    grid_for_range,
    quant_type,
    reduced,
    weight_grid,
)

__all__ = [
    "QUANT_TYPES",
    "Budget",
    "Grid",
    "Point",
    "QuantType",
    "Score",
    "Search",
    "Statistic",
    "WeightMethod",
    "grid_for_range",
    "quant_type",
    "reduced",
    "spare_least",
    "weight_grid",
]
