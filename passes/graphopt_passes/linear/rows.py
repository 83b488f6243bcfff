"""Values of tensors as the rows that a convolution or a matrix product multiplies with its weights."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from graphopt.passkit import Array

# Elements of X that are unfolded at a time (16 MiB of float32).
_CHUNK = 1 << 22
# Positions of a sample's output that are used, at most, and per input of an output (K): sums over more tell
# hardly more. Beyond them every 3rd, 5th, ... is used, along every axis.
_POSITIONS = 4096
_LEAST_POSITIONS = 1024
_POSITIONS_PER_INPUT = 16


@dataclass(frozen=True)
class MatrixRows:
    """Rows of a MatMul or Gemm.

    Attributes:
        flip_x: what is summed over lies along the last axis but one.
        flip_y: the weight is the left operand: its outputs lie along the last axis but one.
        alpha: what the product is multiplied by.
    """

    flip_x: bool = False
    flip_y: bool = False
    alpha: float = 1.0

    def blocks(self, x: Array, *outputs: Array) -> Iterator[list[Array]]:
        """Rows of the input, (1, rows, K), and the matching ones of output-shaped values, (1, rows, N)."""
        rows = _matrix(x, self.flip_x)
        outs = [_matrix(y, self.flip_y) for y in outputs]
        if self.alpha != 1.0:
            rows = rows * np.float32(self.alpha)
        size = max(1, _CHUNK // max(1, rows.shape[1]))
        for start in range(0, len(rows), size):
            at = slice(start, start + size)
            yield [rows[None, at], *(y[None, at] for y in outs)]


def _matrix(value: Array, flip: bool) -> Array:
    value = np.swapaxes(value, -1, -2) if flip else value
    rows: Array = value.reshape(-1, value.shape[-1])
    return rows


@dataclass(frozen=True)
class ConvRows:
    """Rows of a convolution with any number of spatial axes: one per position of its output.

    Attributes:
        groups: groups of channels.
        kernel, strides, dilations: one number per spatial axis.
        pads: before and after each axis, as ONNX orders them; None for `auto_pad`.
        auto_pad: SAME_UPPER, SAME_LOWER or VALID.
    """

    groups: int
    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads: tuple[int, ...] | None
    auto_pad: str = "NOTSET"

    def blocks(self, x: Array, *outputs: Array) -> Iterator[list[Array]]:
        """Rows of the input, (G, rows, K), and the matching ones of output-shaped values, (G, rows, N).

        One block per few samples; large outputs are thinned out evenly.
        """
        before, after = self._padding(x.shape[2:])
        padded = np.pad(x, [(0, 0), (0, 0), *zip(before, after, strict=True)])
        spans = tuple((k - 1) * d + 1 for k, d in zip(self.kernel, self.dilations, strict=True))
        axes = tuple(range(2, x.ndim))
        windows = sliding_window_view(padded, spans, axis=axes)
        positions = tuple(
            (n - span) // s + 1 for n, span, s in zip(padded.shape[2:], spans, self.strides, strict=True)
        )
        every = thinning(positions, x.shape[1] // self.groups * math.prod(self.kernel))
        steps = tuple(slice(None, None, s * every) for s in self.strides)
        taps = tuple(slice(None, None, d) for d in self.dilations)
        windows = windows[(slice(None), slice(None), *steps, *taps)]
        outs = [y[(slice(None), slice(None), *(slice(None, None, every) for _ in axes))] for y in outputs]
        per_sample = max(1, math.prod(windows.shape[1:]))
        size = max(1, _CHUNK // per_sample)
        for start in range(0, len(x), size):
            at = slice(start, start + size)
            yield [self._rows(windows[at]), *(self._outputs(y[at]) for y in outs)]

    def _rows(self, windows: Array) -> Array:
        """(B, C, positions..., taps...) -> (G, rows, K)."""
        count = len(self.kernel)
        batch, channels = windows.shape[:2]
        split = windows.reshape(batch, self.groups, channels // self.groups, *windows.shape[2:])
        order = (1, 0, *range(3, 3 + count), 2, *range(3 + count, 3 + 2 * count))
        columns = channels // self.groups * math.prod(self.kernel)
        rows: Array = split.transpose(order).reshape(self.groups, -1, columns)
        return rows

    def _outputs(self, y: Array) -> Array:
        """(B, M, positions...) -> (G, rows, N)."""
        split = y.reshape(len(y), self.groups, y.shape[1] // self.groups, -1)
        outs: Array = split.transpose(1, 0, 3, 2).reshape(self.groups, -1, split.shape[2])
        return outs

    def _padding(self, shape: Sequence[int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
        count = len(self.kernel)
        if self.pads is not None:
            return self.pads[:count], self.pads[count:]
        if self.auto_pad == "VALID":
            return (0,) * count, (0,) * count
        before, after = [], []
        for n, k, s, d in zip(shape, self.kernel, self.strides, self.dilations, strict=True):
            total = max(0, (-(-n // s) - 1) * s + (k - 1) * d + 1 - n)
            small, large = total // 2, total - total // 2
            before.append(small if self.auto_pad == "SAME_UPPER" else large)
            after.append(large if self.auto_pad == "SAME_UPPER" else small)
        return tuple(before), tuple(after)


def thinning(positions: Sequence[int], inputs: int) -> int:
    """Along each axis every how many-th position of a sample is used, for outputs of so many `inputs`.

    Odd, so that it keeps no step with the even strides of the layers before and after.
    """
    every = 1
    most = min(max(_LEAST_POSITIONS, _POSITIONS_PER_INPUT * inputs), _POSITIONS)
    while math.prod(-(-n // every) for n in positions) > most:
        every += 2
    return every
