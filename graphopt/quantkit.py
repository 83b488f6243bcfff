"""Public names for passes that quantize or compress: number formats, statistics, target profiles.

`graphopt.passkit` has what every pass needs; this has what only passes need that ask about data or change
how numbers are stored.
"""

from __future__ import annotations

from graphopt.budget import Budget, Score
from graphopt.pipeline.services import Statistic

__all__ = [
    "Budget",
    "Score",
    "Statistic",
]
