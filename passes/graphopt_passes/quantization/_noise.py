"""How much noise 8-bit scales are expected to make in a product, from ranges and mean squares alone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from graphopt.passkit import Array, GraphView, RefusedRewrite
from graphopt_passes.fusion._conv import read_conv
from graphopt_passes.fusion._gemm import read_gemm
from graphopt_passes.quantization._channels import Port
from graphopt_passes.quantization._observed import ChannelRanges


@dataclass(frozen=True)
class Reader:
    """A linear operator and what it reads. C input channels lie in g groups, each with O output channels.

    Weights are in units of the root mean square that their output is expected to have. So nothing here
    changes when an output channel is scaled, and scaling an input channel changes everything as if its
    weights were multiplied alone: what is best for one layer does not depend on what is done to the next.

    Attributes:
        data: ranges of the input, `(C,)` each.
        channels: int64 `(C,)`: the channel of the region at each position.
        largest: `(g, C/g, O)`: largest weight magnitude over the taps.
        energy: `(C,)`: sum of the squared weights.
        taps: weights per pair of channels.
    """

    data: ChannelRanges
    channels: Array
    largest: Array
    energy: Array
    taps: int

    @property
    def magnitude(self) -> Array:
        """The largest weight of each input channel, `(C,)`."""
        largest: Array = self.largest.max(axis=2, initial=0.0).reshape(-1)
        return largest

    def relative_noise(self, logs: Array, bits: int) -> tuple[float, float]:
        """Expected noise over signal, in power, mean over the output channels: by rounding data, and weights.

        Rounding to steps of size d adds d^2 / 12 per element, independently. The activation has one
        asymmetric scale, the weights one symmetric scale per output channel.

        Args:
            logs: float64, per channel of the region: channels are divided by `2 ** logs`.
            bits: of weights and activations.
        """
        scale = np.exp2(logs[self.channels])
        low, high = (self.data.low / scale).min(initial=0.0), (self.data.high / scale).max(initial=0.0)
        step = (high - low) / (2**bits - 1)
        of_data = step**2 * (scale**2 @ self.energy)
        groups, per_group, outputs = self.largest.shape
        steps = (self.largest * scale.reshape(groups, per_group, 1)).max(axis=1) / (2 ** (bits - 1) - 1)
        squares = (self.data.square / scale**2).reshape(groups, per_group).sum(axis=1)
        of_weights = self.taps * ((steps**2).sum(axis=1) @ squares)
        parts = 12 * max(groups * outputs, 1)
        return float(of_data / parts), float(of_weights / parts)


def read_reader(graph: GraphView, port: Port, data: ChannelRanges) -> Reader:
    """The reader at a linear port.

    Raises:
        RefusedRewrite: it is none.
    """
    weight = None if not port.operands else graph.array(port.node.inputs[port.operands[0].slot])
    if weight is None or port.channels is None:
        raise RefusedRewrite(f"the weight of {port.node.op} is not constant")
    taps = _by_taps(graph, port, weight).astype(np.float64)
    groups, per_group = taps.shape[:2]
    squares = np.einsum("gcot,gcot->gco", taps, taps)
    signal = np.einsum("gc,gco->go", data.square.reshape(groups, per_group), squares)[:, None, :]
    live = signal > 0
    energy = np.divide(squares, signal, out=np.zeros_like(squares), where=live).sum(axis=2).reshape(-1)
    largest = np.abs(taps).max(axis=3, initial=0.0)
    largest = np.divide(largest, np.sqrt(signal), out=np.zeros_like(largest), where=live)
    return Reader(data, port.channels, largest, energy, taps.shape[3])


def _by_taps(graph: GraphView, port: Port, weight: Array) -> Array:
    """The weight as `(g, C/g, O, taps)`."""
    node = port.node
    if node.op in ("Conv", "ConvTranspose"):
        groups = read_conv(graph, node).groups
        by_group = weight.reshape(groups, weight.shape[0] // groups, weight.shape[1], -1)
        return by_group if node.op == "ConvTranspose" else by_group.swapaxes(1, 2)
    slot = port.operands[0].slot
    axis = read_gemm(graph, node).depth_axis(slot, weight.ndim)
    matrix = weight if axis == weight.ndim - 2 else weight.swapaxes(-1, -2)
    return np.moveaxis(matrix.reshape(1, -1, *matrix.shape[-2:]), 1, 3)
