"""AdaRound: whether each weight goes up or down is learned by gradient descent on the layer's output.

M. Nagel, R. A. Amjad, M. van Baalen, C. Louizos, T. Blankevoort: "Up or Down? Adaptive Rounding for
Post-Training Quantization", arXiv:2004.10568, 2020. Instead of minibatches of inputs the gradient uses their
second moments: the squared error of a linear layer is a quadratic of its weights, so this is the gradient
over all the data.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from graphopt_passes.quantization._rounding.problem import Floats, Problem

# The rectified sigmoid reaches 0 and 1: it is stretched to this range and clipped (equation 23).
_ZETA, _GAMMA = 1.1, -0.1


@dataclass(frozen=True)
class AdaRoundSettings:
    """How AdaRound is trained.

    Attributes:
        steps: gradient steps.
        rate: Adam's step size.
        weight: of the regularizer, relative to the error that rounding to nearest is expected to make.
        warm_up: part of the steps without the regularizer.
        first_beta, last_beta: exponent of the regularizer, annealed from the one to the other.
    """

    steps: int = 1000
    rate: float = 3e-2
    weight: float = 2.0
    warm_up: float = 0.2
    first_beta: float = 20.0
    last_beta: float = 2.0


def adaround(problem: Problem, settings: AdaRoundSettings | None = None) -> Floats:
    """Codes, (G, N, K), each one of the two neighbors of the target. Never worse than nearest in any row."""
    settings = settings or AdaRoundSettings()
    lattice, target = problem.lattice, problem.target
    base = lattice.floor(target)
    base = np.minimum(base, max(lattice.high - 1, lattice.low))
    fraction = np.clip(target / lattice.scale + lattice.zero - base, 0.0, 1.0)
    low = lattice.values(base)
    hidden = _inverse_sigmoid(fraction)
    # In units of the error that independent rounding makes on average, so that one weight of the
    # regularizer suits all layers and rows.
    noise = (problem.diagonal[:, None, :] * lattice.scale**2).sum(axis=2, keepdims=True) / 12
    unit = 1.0 / np.maximum(noise, np.finfo(np.float64).tiny)
    penalty = settings.weight / target.shape[2]
    first, second = np.zeros_like(hidden), np.zeros_like(hidden)
    start = int(settings.warm_up * settings.steps)
    for step in range(settings.steps):
        soft, slope = _rectified(hidden)
        gradient = 2.0 * unit * ((low + soft * lattice.scale - target) @ problem.hessian) * lattice.scale
        if step >= start:
            progress = (step - start) / max(1, settings.steps - start)
            beta = settings.last_beta + 0.5 * (settings.first_beta - settings.last_beta) * (
                1 + np.cos(progress * np.pi)
            )
            distance = 2.0 * soft - 1.0
            gradient -= penalty * 2.0 * beta * np.sign(distance) * np.abs(distance) ** (beta - 1)
        gradient *= slope
        first += 0.1 * (gradient - first)
        second += 0.001 * (gradient**2 - second)
        mean = first / (1 - 0.9 ** (step + 1))
        spread = np.sqrt(second / (1 - 0.999 ** (step + 1)))
        hidden -= settings.rate * mean / (spread + 1e-12)
    codes = lattice.pin(np.clip(base + (_rectified(hidden)[0] >= 0.5), lattice.low, lattice.high))
    return problem.better(lattice.nearest(target), codes)


def _rectified(hidden: Floats) -> tuple[Floats, Floats]:
    """The rectified sigmoid and its derivative."""
    sigmoid = 1.0 / (1.0 + np.exp(-hidden))
    stretched = sigmoid * (_ZETA - _GAMMA) + _GAMMA
    inside = (stretched > 0) & (stretched < 1)
    return np.clip(stretched, 0.0, 1.0), sigmoid * (1 - sigmoid) * (_ZETA - _GAMMA) * inside


def _inverse_sigmoid(value: Floats) -> Floats:
    """The argument at which the rectified sigmoid is `value`."""
    sigmoid = (value - _GAMMA) / (_ZETA - _GAMMA)
    result: Floats = np.log(sigmoid / (1 - sigmoid))
    return result
