"""Ranks for several layers under one budget. Pure numpy."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from graphopt_passes.factorization._spectra import Spectrum


def choose_ranks(
    spectra: Sequence[Spectrum], weights: Sequence[int], share: float, multiple: int, saving: float
) -> list[int | None]:
    """Ranks with the least sum of lost shares of energy for which at most `share` of the work is left.

    Each layer may stay as it is, or have any rank that saves enough. Of these choices only those on the lower
    convex hull of what is lost over what it costs can be part of a solution for some price per unit of work;
    they are taken in the order of what is lost per unit of work saved, until enough is saved.

    Args:
        spectra: the layers.
        weights: by what the work of each for one row is multiplied.
        share: of the work of all layers together.
        multiple: ranks are multiples of it.
        saving: share of its work that factorizing a layer must save.

    Returns:
        Ranks; None for a layer that stays as it is.
    """
    moves: list[tuple[float, int, int, int]] = []
    for at, (spectrum, weight) in enumerate(zip(spectra, weights, strict=True)):
        top = spectrum.largest(multiple, saving)
        choices = [(spectrum.full * weight, 0.0, 0)]
        choices += [(spectrum.cost(r) * weight, spectrum.lost(r), r) for r in range(top, 0, -multiple)]
        hull = _lower_hull(choices)
        for (cost, lost, _), (less, more, rank) in pairwise(hull):
            moves.append(((more - lost) / (cost - less), at, cost - less, rank))
    total = sum(s.full * w for s, w in zip(spectra, weights, strict=True))
    excess = total - share * total
    ranks: list[int | None] = [None] * len(spectra)
    for _, at, saved, rank in sorted(moves):
        if excess <= 0:
            break
        ranks[at] = rank
        excess -= saved
    return ranks


def least_work(spectra: Sequence[Spectrum], weights: Sequence[int], multiple: int, saving: float) -> float:
    """The smallest share of the work that ranks can leave."""
    total = sum(s.full * w for s, w in zip(spectra, weights, strict=True))
    least = sum(
        (s.cost(multiple) if s.largest(multiple, saving) else s.full) * w
        for s, w in zip(spectra, weights, strict=True)
    )
    return least / total if total else 1.0


def _lower_hull(points: list[tuple[int, float, int]]) -> list[tuple[int, float, int]]:
    """Of points with falling cost and rising loss, those on the lower convex hull."""
    hull: list[tuple[int, float, int]] = []
    for point in points:
        while len(hull) > 1 and _slope(hull[-2], hull[-1]) >= _slope(hull[-2], point):
            hull.pop()
        hull.append(point)
    return hull


def _slope(a: tuple[int, float, int], b: tuple[int, float, int]) -> float:
    return (b[1] - a[1]) / (a[0] - b[0])
