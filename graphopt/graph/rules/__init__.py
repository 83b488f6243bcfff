"""What each operator says about its outputs' shape, dtype and value: one rule per operator.

A rule is a function of a `Call`. Rules are found by domain and operator name; what differs between
versions of an operator is decided inside its rule.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from graphopt.graph.rules import (
    contraction,
    control,
    elementwise,
    quantize,
    reduction,
    reshaping,
    selection,
    sequences,
    sources,
    spatial,
)
from graphopt.graph.rules.call import Rule

RULES: Final[Mapping[str, Mapping[str, Rule]]] = {
    "": {
        **contraction.RULES,
        **control.RULES,
        **elementwise.RULES,
        **quantize.STANDARD,
        **reduction.RULES,
        **reshaping.RULES,
        **selection.RULES,
        **sequences.RULES,
        **sources.RULES,
        **spatial.RULES,
    },
    "com.microsoft": quantize.MICROSOFT,
}
