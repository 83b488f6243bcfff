"""One layer, from its problem to codes and scales."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Final, Literal, get_args

from numpy.typing import NDArray

from graphopt_passes.quantization._rounding.adaround import adaround
from graphopt_passes.quantization._rounding.descent import descend, fit_scales
from graphopt_passes.quantization._rounding.gptq import gptq
from graphopt_passes.quantization._rounding.obq import LIMIT, obq, obq_cost
from graphopt_passes.quantization._rounding.problem import Floats, Lattice, Problem
from graphopt_passes.quantization._rounding.scales import search_scales

Method = Literal["gptq", "obq", "adaround", "nearest"]
METHODS: Final[tuple[Method, ...]] = get_args(Method)
# How often codes and scales take turns at most, and the relative decrease below which they stop.
_ROUNDS = 4
_SETTLED = 5e-3


@dataclass(frozen=True, eq=False)
class Solution:
    """What a layer's weights become.

    Attributes:
        codes: (G, N, K), integers as float64.
        lattice: what they stand for; the problem's own unless scales were fitted.
        loss: the objective.
        method: how the codes were found; differs from the one asked for where a layer is too large for it.
    """

    codes: Floats
    lattice: Lattice
    loss: float
    method: str


def solve(
    problem: Problem,
    method: Method = "gptq",
    *,
    sweeps: int = 20,
    groups: NDArray[Any] | None = None,
) -> Solution:
    """Codes for a layer, and scales if they may change.

    Args:
        problem: what to minimize.
        method: how to round; a layer too large for "obq" is done by "gptq".
        sweeps: of coordinate descent afterwards; 0 for none.
        groups: (K,): which columns of a row share a scale, as ranks from 0; None: scales stay what they are.
    """
    done: str = method
    if method == "obq" and obq_cost(*problem.target.shape) > LIMIT:
        done = "gptq"
    if groups is None:
        return _rounded(problem, done, sweeps)
    searched = replace(problem, lattice=search_scales(problem, groups))
    current = best = _rounded(searched, done, sweeps)
    for _ in range(_ROUNDS):
        now = replace(problem, lattice=current.lattice)
        fitted = replace(problem, lattice=fit_scales(now, current.codes, groups))
        codes = descend(fitted, current.codes, sweeps)
        current = Solution(codes, fitted.lattice, fitted.loss(codes), done)
        if current.loss >= best.loss * (1 - _SETTLED):
            break
        best = current
    return min(best, current, key=lambda s: s.loss)


def _rounded(problem: Problem, method: str, sweeps: int) -> Solution:
    if method == "gptq":
        codes = gptq(problem)
    elif method == "obq":
        codes = obq(problem)
    elif method == "adaround":
        codes = adaround(problem)
    else:
        codes = problem.lattice.nearest(problem.target)
    if sweeps:
        codes = descend(problem, codes, sweeps)
    return Solution(codes, problem.lattice, problem.loss(codes), method)
