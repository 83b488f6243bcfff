"""How a model's outputs move when channels inside it are scaled or shifted, by running it.

Behind each tensor in question stand a Mul and an Add whose operands are inputs of the run, so that one run
tries as many changes as the batch has room for: sample after sample, change after change. No operator needs a
derivative of its own.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from graphopt.passkit import Array, Constant, PassContext, RefusedRewrite, Rewriter, Tensor
from graphopt_passes.linear.layer import Floats

# Samples that run at a time, all changes of a batch together.
_BATCH = 1024
# Outputs of a sample that are looked at: of more, evenly spaced ones.
_OUTPUTS = 256
# Size of a change, relative to the channel's own size.
_STEP = 1e-2


class Samples:
    """The first values of several tensors, one row per sample.

    Args:
        limit: samples to keep.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.parts: list[tuple[Array, ...]] = []
        self.count = 0

    @property
    def key(self) -> Hashable:
        """Kind and settings."""
        return ("Samples", self.limit)

    @property
    def nbytes(self) -> int:
        """Memory that this takes."""
        return sum(v.nbytes for part in self.parts for v in part)

    def fresh(self) -> Samples:
        """An empty one with the same settings."""
        return Samples(self.limit)

    def update(self, *values: Array) -> None:
        """Take in one batch."""
        if self.count >= self.limit:
            return
        taken = tuple(v[: self.limit - self.count].copy() for v in values)
        self.count += len(taken[0])
        self.parts.append(taken)

    def merge(self, other: Samples) -> None:
        """Take in what another one has kept, as far as there is room."""
        for part in other.parts:
            self.update(*part)

    def columns(self) -> list[Array]:
        """Each tensor's values.

        Raises:
            RefusedRewrite: samples are not rows of all of them, or differ in shape.
        """
        for part in self.parts:
            if len({len(v) for v in part}) != 1:
                raise RefusedRewrite("inputs and outputs do not have one row per sample")
        if len({tuple(v.shape[1:] for v in part) for part in self.parts}) != 1:
            raise RefusedRewrite("samples differ in shape")
        return [np.concatenate([part[i] for part in self.parts]) for i in range(len(self.parts[0]))]


@dataclass(frozen=True, eq=False)
class Knob:
    """The channels of one tensor, to be scaled and shifted.

    Attributes:
        tensor: computed by a node of the body.
        axis: along which its channels lie.
        channels: how many.
        size: RMS of each channel, (channels,).
    """

    tensor: Tensor
    axis: int
    channels: int
    size: Floats


@dataclass(eq=False)
class Rig:
    """The body of a model with its knobs, ready to run; lives inside a trial.

    Args:
        graph: the main graph; nodes are put behind the tensors of the knobs.
        ctx: runs it.
        knobs: the knobs.
        inputs: values of the graph's inputs, samples along the first axis.
    """

    graph: Rewriter
    ctx: PassContext
    knobs: Sequence[Knob]
    inputs: Mapping[Tensor, Array]
    _handles: list[tuple[Constant, Constant]] = field(default_factory=list)
    _fixed: dict[Tensor, Array] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Put the handles in."""
        for knob in self.knobs:
            shape = self._shape(knob, 1)
            scale = self.graph.new_constant("scale", np.ones(shape, np.float32))
            shift = self.graph.new_constant("shift", np.zeros(shape, np.float32))
            self.graph.insert_behind(knob.tensor, [("Mul", [scale], {}), ("Add", [shift], {})])
            self._handles.append((scale, shift))
        self._nodes = self.graph.nodes()
        computed = {t for n in self._nodes for t in n.outputs}
        for tensor in {t for n in self._nodes for t in n.inputs if t.name and t not in computed}:
            if tensor not in self.inputs:
                values = self.graph.array(tensor)
                if values is None:
                    raise RefusedRewrite(f"{tensor.name} is not known")
                self._fixed[tensor] = values

    @property
    def size(self) -> int:
        """How many changes there are: a scale and a shift per channel."""
        return 2 * sum(k.channels for k in self.knobs)

    def _shape(self, knob: Knob, rows: int) -> tuple[int, ...]:
        rank = self.graph.rank(knob.tensor)
        if rank is None:
            raise RefusedRewrite(f"the rank of {knob.tensor.name} is not known")
        shape = [1] * rank
        shape[0], shape[knob.axis] = rows, knob.channels
        return tuple(shape)

    def outputs(self, change: Floats, samples: slice) -> Array:
        """The outputs of some samples with one change of all knobs, (samples, outputs)."""
        return self._run(change[None], samples)

    def jacobian(self, samples: slice) -> Floats:
        """How far each output of each sample moves per unit of a change, (samples * outputs, changes)."""
        count = len(range(*samples.indices(len(next(iter(self.inputs.values()))))))
        base = self.outputs(np.zeros(self.size), samples).astype(np.float64).reshape(-1)
        result = np.empty((base.size, self.size))
        most = max(1, _BATCH // count)
        for start in range(0, self.size, most):
            stop = min(start + most, self.size)
            changes = np.zeros((stop - start, self.size))
            changes[np.arange(stop - start), np.arange(start, stop)] = _STEP
            moved = self._run(changes, samples).astype(np.float64).reshape(stop - start, -1)
            result[:, start:stop] = (moved - base).T / _STEP
        return result

    def _run(self, changes: Floats, samples: slice) -> Array:
        """The outputs with each of several changes, (changes * samples, outputs)."""
        feeds = dict(self._fixed)
        rows = len(changes)
        count = 0
        for tensor, values in self.inputs.items():
            part = values[samples]
            count = len(part)
            feeds[tensor] = np.tile(part, (rows, *(1,) * (part.ndim - 1)))
        start = 0
        for knob, (scale, shift) in zip(self.knobs, self._handles, strict=True):
            parts = changes[:, start : start + knob.channels], changes[:, start + knob.channels :]
            start += 2 * knob.channels
            shape = self._shape(knob, rows * count)
            for handle, values, unit in (
                (scale, 1 + parts[0], 1.0),
                (shift, parts[1][:, : knob.channels], knob.size),
            ):
                wide = np.repeat(values * unit, count, axis=0).astype(np.float32)
                feeds[handle] = wide.reshape(shape)
        wanted = self.graph.outputs
        found, reasons = self.ctx.evaluate(self._nodes, feeds, {"": self.graph.opset}, wanted=wanted)
        if reasons or any(t not in found for t in wanted):
            raise RefusedRewrite(f"it does not run in batches: {next(iter(reasons.values()), 'no output')}")
        return flat([found[t] for t in wanted], rows * count)


def flat(outputs: Sequence[Array], rows: int) -> Array:
    """Float outputs side by side, (rows, outputs); of many, evenly spaced ones.

    Raises:
        RefusedRewrite: an output does not have one row per sample, or none is of floats.
    """
    parts = [v for v in outputs if v.dtype.kind == "f"]
    if not parts or any(v.ndim < 1 or len(v) != rows for v in parts):
        raise RefusedRewrite("its outputs do not have one row per sample")
    side = np.concatenate([v.reshape(rows, -1) for v in parts], axis=1)
    if side.shape[1] > _OUTPUTS:
        side = side[:, np.linspace(0, side.shape[1] - 1, _OUTPUTS).astype(np.int64)]
    return side
