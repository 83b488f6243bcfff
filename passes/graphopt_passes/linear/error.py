"""The squared error of a layer on data as a function of its weights."""

from __future__ import annotations

import math

import numpy as np

from graphopt_passes.linear.layer import Floats
from graphopt_passes.linear.least_squares import Mask, ideal_weights
from graphopt_passes.linear.moments import Sums


class OutputError:
    """|Y - Y' - X (W - W_now)^T|^2: how far the layer's outputs are from the wanted ones with weights W.

    Y' are the outputs that were observed with the weights W_now on the inputs X, and Y the teacher's. Where
    no outputs were observed, Y are those of the weights `wanted` on the same inputs.

    Args:
        sums: of the data.
        now: W_now, (G, N, K).
        wanted: the weights towards which the layer is drawn, and whose outputs Y are if none were observed.
        centered: the mean error does not count: the bias takes it.

    Attributes:
        xx: X^T X, centered or not.
        sees_outputs: whether the teacher's outputs were observed.
    """

    def __init__(self, sums: Sums, now: Floats, wanted: Floats, centered: bool) -> None:
        self.now, self.wanted, self.xx = now, wanted, sums.xx
        self._mean: Floats | None = None
        self._mean_error: Floats | None = None
        self.sees_outputs = bool(sums.xd.size)
        if self.sees_outputs:
            self._xd, self._dd = sums.xd, float(sums.dd.sum())
            power = sums.yy - sums.y**2 / sums.count
        else:
            # Relative to the wanted weights' own outputs, everything follows from the inputs.
            step = wanted - now
            self._xd = np.swapaxes(step @ self.xx, 1, 2)
            self._dd = float(np.einsum("gkn,gnk->", self._xd, step))
            power = np.einsum("gnk,gnk->gn", wanted @ self.xx, wanted)
        self.power = float(power.sum())
        if centered and self.sees_outputs:
            self._mean, self._mean_error = sums.x / sums.count, sums.d / sums.count
            self.xx = self.xx - sums.x[:, :, None] * self._mean[:, None, :]
            self._xd = self._xd - sums.x[:, :, None] * self._mean_error[:, None, :]
            self._dd -= float((sums.d * self._mean_error).sum())

    def ideal(self, damping: float, support: Mask | None = None) -> Floats:
        """The weights with the least error, drawn towards `wanted`; zero outside of the support."""
        if support is None:
            return self.now + ideal_weights(self.xx, self._xd, self.wanted - self.now, damping)
        # X^T Y - X^T Y' + X^T X W_now^T: what the weights themselves have to come to, not their change.
        cross = self._xd + self.xx @ np.swapaxes(self.now, 1, 2)
        return ideal_weights(self.xx, cross, np.where(support, self.wanted, 0.0), damping, support)

    def of(self, weights: Floats) -> float:
        """The squared error with other weights."""
        step = weights - self.now
        linear = float(np.einsum("gkn,gnk->", self._xd, step))
        return max(0.0, self._dd - 2 * linear + float(np.einsum("gnk,gnk->", step @ self.xx, step)))

    def shift(self, weights: Floats) -> Floats:
        """What the bias has to move by with other weights, (G, N)."""
        assert self._mean is not None
        assert self._mean_error is not None
        moved: Floats = self._mean_error - np.einsum("gk,gnk->gn", self._mean, weights - self.now)
        return moved

    def sqnr(self, error: float) -> float:
        """Power of the output over `error`, in dB."""
        tiny = np.finfo(np.float64).tiny
        return 10 * math.log10(max(self.power, tiny) / max(error, tiny * 1e30))
