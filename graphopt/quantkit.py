"""Public names for passes that quantize or compress: number formats, statistics, target profiles.

`graphopt.passkit` has what every pass needs; this has what only passes need that ask about data or change
how numbers are stored.
"""

from __future__ import annotations

from graphopt.budget import Budget, Exploration, Score, Sensitivity, Tradeoff
from graphopt.calibration.gram import CrossGram, Gram
from graphopt.calibration.histogram import Histogram
from graphopt.calibration.observers import RangeMethod, range_of
from graphopt.calibration.statistics import AbsMax, MeanDifference, MinMax, Moments, MovingMinMax
from graphopt.pipeline.base import Watch
from graphopt.pipeline.search import Point, Search, noise, spare_least
from graphopt.pipeline.services import Statistic
from graphopt.quantization.cost import Expectation, LayerShape, expected_gain, layer_shape
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
from graphopt.quantization.kernels import Prediction, predict
from graphopt.quantization.plan import Group, Implies, Plan, Planned, Selection, make_plan
from graphopt.quantization.profiles import Profile, get_profile, saturates

__all__ = [
    "QUANT_TYPES",
    "AbsMax",
    "Budget",
    "CrossGram",
    "Expectation",
    "Exploration",
    "Gram",
    "Grid",
    "Group",
    "Histogram",
    "Implies",
    "LayerShape",
    "MeanDifference",
    "MinMax",
    "Moments",
    "MovingMinMax",
    "Plan",
    "Planned",
    "Point",
    "Prediction",
    "Profile",
    "QuantType",
    "RangeMethod",
    "Score",
    "Search",
    "Selection",
    "Sensitivity",
    "Statistic",
    "Tradeoff",
    "Watch",
    "WeightMethod",
    "expected_gain",
    "get_profile",
    "grid_for_range",
    "layer_shape",
    "make_plan",
    "noise",
    "predict",
    "quant_type",
    "range_of",
    "reduced",
    "saturates",
    "spare_least",
    "weight_grid",
]
