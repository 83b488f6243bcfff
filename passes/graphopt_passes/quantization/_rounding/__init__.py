"""Rounding weights to integers so that a layer's output changes least; pure numpy.

`Problem` is what is minimized. `gptq`, `obq` and `adaround` find codes; `descend` improves any;
`search_scales` and `fit_scales` choose scales before and after; `solve` does what a layer needs.
"""

from graphopt_passes.quantization._rounding.adaround import AdaRoundSettings, adaround
from graphopt_passes.quantization._rounding.descent import descend, fit_scales
from graphopt_passes.quantization._rounding.gptq import gptq
from graphopt_passes.quantization._rounding.obq import obq, obq_cost
from graphopt_passes.quantization._rounding.problem import Floats, Lattice, Problem
from graphopt_passes.quantization._rounding.scales import search_scales
from graphopt_passes.quantization._rounding.solve import METHODS, Method, Solution, solve

__all__ = [
    "METHODS",
    "AdaRoundSettings",
    "Floats",
    "Lattice",
    "Method",
    "Problem",
    "Solution",
    "adaround",
    "descend",
    "fit_scales",
    "gptq",
    "obq",
    "obq_cost",
    "search_scales",
    "solve",
]
