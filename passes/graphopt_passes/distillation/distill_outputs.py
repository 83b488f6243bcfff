"""Fit scales and biases all over a changed model to the original's outputs, all at once."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, Final

import numpy as np

from graphopt.passkit import Array, Numerics, Pass, PassContext, RefusedRewrite, Rewriter, Watch, is_selected
from graphopt_passes.distillation._jacobian import Knob, Rig, Samples, flat
from graphopt_passes.distillation._plan import Fit, find_fits
from graphopt_passes.distillation._targets import set_line
from graphopt_passes.linear.layer import Floats, set_weight_rows, weight_rows

_DAMPINGS: Final = (10.0, 1.0, 0.1, 0.01, 1e-3)
# Relative decrease of the error below which nothing is changed.
_WORTH: Final = 1e-2


@dataclass(frozen=True)
class DistillOutputs(Pass):
    """s, t = argmin |Y_T - Y(s, t)|^2: each channel c of each layer becomes (1 + s_c) y_c + t_c.

    Where `distill-layers` fits one layer at a time to what the teacher has there, this moves the scales and
    biases of all layers together, for the sake of the model's outputs alone: put it behind. It is one step
    of Gauss and Newton with the damping of Levenberg and Marquardt. By how much each output moves with each
    scale and bias is found by running the model with every one of them changed a little, many in a batch. The
    damping is found by cross-validation on real runs: what one half of the samples says must suit the
    other half. Scales go into the weights, so zeros stay; nothing is added to the graph but biases of layers
    that had none.

    K. Levenberg, "A method for the solution of certain non-linear problems in least squares" (1944); matching
    logits: J. Ba and R. Caruana, "Do deep nets really need to be deep?", arXiv:1312.6184 (2014).

    Refuses when: there is no data; inputs and outputs do not have one row per sample, or samples differ in
    shape; the model does not run on larger batches; all runs would cost more than `runs` allows, then layers
    far from the outputs stay as they are; the outputs do not come closer to the teacher's on samples that
    were not learned from. Nested bodies, quantized layers, and layers whose weight others read as well.
    """

    name: ClassVar[str] = "distill-outputs"
    numerics: ClassVar[Numerics] = Numerics.LOSSY

    samples: int = field(default=256, metadata={"help": "how many samples to learn from"})
    runs: int = field(
        default=200_000, metadata={"help": "how many samples may be run in all, for the derivatives"}
    )
    layers: tuple[str, ...] = field(default=(), metadata={"help": "only nodes that match one of these globs"})

    def __post_init__(self) -> None:
        """Check ranges."""
        if self.samples < 4 or self.runs < self.samples:
            raise ValueError("samples must be at least 4, and runs at least as many")

    def needs_data(self) -> bool:
        """It learns from nothing else."""
        return True

    def globs(self) -> tuple[str, ...]:
        """Names of layers."""
        return self.layers

    def run(self, graph: Rewriter, ctx: PassContext) -> None:
        """Fit the main graph."""
        if not graph.is_main or not graph.nodes():
            return
        root = graph.nodes()[-1]
        if not ctx.has_data:
            graph.refuse(root, "there is no data to learn from")
            return
        try:
            self._fit(graph, ctx)
        except RefusedRewrite as refused:
            graph.refuse(root, refused.reason)

    def _fit(self, graph: Rewriter, ctx: PassContext) -> None:
        fits = self._chosen(graph, ctx)
        if not fits:
            return
        inputs = [t for t in graph.inputs if t not in graph.body.defaults]
        wanted = [ctx.teacher.tensor(t) for t in graph.outputs]
        if any(t is None for t in wanted):
            raise RefusedRewrite("the teacher does not have its outputs")
        tensors = [_tensor(fit) for fit in fits]
        watch = Watch(
            Samples(self.samples),
            student=(*inputs, *tensors),
            teacher=tuple(t for t in wanted if t is not None),
        )
        (kept,) = ctx.observe(graph, [watch])
        if kept.count < 4:
            raise RefusedRewrite("there are too few samples")
        columns = kept.columns()
        knobs = [
            Knob(t, _axis(fit) % v.ndim, fit.shape[0] * fit.shape[1], _rms(v, _axis(fit) % v.ndim))
            for t, fit, v in zip(tensors, fits, columns[len(inputs) :], strict=False)
        ]
        target = flat(columns[len(inputs) + len(tensors) :], kept.count).astype(np.float64)
        feeds = dict(zip(inputs, columns, strict=False))
        with graph.trial(graph.nodes()[-1]):
            rig = Rig(graph, ctx, knobs, feeds)
            change, before, after = solve(rig, target)
        power = float(((target - target.mean(axis=0)) ** 2).sum())
        why = f"SQNR of the outputs {_db(power, before):.1f} -> {_db(power, after):.1f} dB"
        start = 0
        for knob, fit in zip(knobs, fits, strict=True):
            n = knob.channels
            scale, shift = change[start : start + n], change[start + n : start + 2 * n] * knob.size
            start += 2 * n
            _write(graph, fit, scale, shift, f"scale and bias fitted to the teacher's outputs: {why}")

    def _chosen(self, graph: Rewriter, ctx: PassContext) -> list[Fit]:
        """What gets knobs: as much as `runs` allows, from the outputs backwards."""

        def wanted(node: Any) -> bool:
            return is_selected(node, self.layers)

        order = {node: i for i, node in enumerate(graph.nodes())}
        found = []
        for fit in sorted(
            find_fits(graph, ctx, wanted, biases=True, norms=True), key=lambda f: -order[f.node]
        ):
            layer = fit.layer if fit.bias is not None else None
            own = layer is not None and len(graph.uses(fit.node.inputs[layer.slot])) == 1
            if own or (fit.norm is not None and fit.norm.shifted):
                found.append(fit)
        chosen, cost = [], 0
        for fit in found:
            cost += 2 * fit.shape[0] * fit.shape[1] * self.samples
            if cost > self.runs:
                graph.refuse(fit.node, f"derivatives would take more than {self.runs:,} runs")
                continue
            chosen.append(fit)
        return chosen


def solve(rig: Rig, target: Floats) -> tuple[Floats, float, float]:
    """The change of all knobs, and the squared error of the outputs before and after.

    Raises:
        RefusedRewrite: nothing that was tried comes closer on samples that it was not learned from.
    """
    count = len(target)
    everything, halves = slice(None), (slice(0, None, 2), slice(1, None, 2))
    nothing = np.zeros(rig.size)
    jacobian = rig.jacobian(everything).reshape(count, -1, rig.size)
    base = rig.outputs(nothing, everything).astype(np.float64)
    left = target - base

    def step(at: slice, damping: float) -> Floats:
        j = jacobian[at].reshape(-1, rig.size)
        normal = j.T @ j
        normal[np.diag_indices(rig.size)] += damping * max(float(np.trace(normal)) / rig.size, 1e-30)
        found: Floats = np.linalg.solve(normal, j.T @ left[at].reshape(-1)).astype(np.float64)
        return found

    def error(change: Floats, at: slice) -> float:
        out = rig.outputs(change, at).astype(np.float64)
        found = float(((target[at] - out) ** 2).sum())
        return found if np.isfinite(found) else np.inf

    present = float((left**2).sum())
    crossed = [
        sum(error(step(learn, d), judge) for learn, judge in (halves, halves[::-1])) for d in _DAMPINGS
    ]
    best = int(np.argmin(crossed))
    if not crossed[best] < present * (1 - _WORTH):
        raise RefusedRewrite(
            "nothing comes closer to the teacher's outputs on samples that it was not learned from"
        )
    change = step(everything, _DAMPINGS[best])
    after = error(change, everything)
    if not after < present * (1 - _WORTH):
        raise RefusedRewrite("the outputs do not come closer to the teacher's")
    return change, present, after


def _write(graph: Rewriter, fit: Fit, scale: Floats, shift: Floats, why: str) -> None:
    """Put a scale and a shift per channel into a layer or a normalization."""
    if fit.norm is not None:
        set_line(graph, fit.norm, 1 + scale, shift, why)
        return
    assert fit.layer is not None
    assert fit.bias is not None
    layer, bias = fit.layer, fit.bias
    old = 0.0 if bias.values is None else bias.values.astype(np.float64).reshape(-1) * bias.beta
    with graph.site(fit.node, why):
        rows = weight_rows(graph, layer) * (1 + scale).reshape(*layer.shape[:2], 1)
        set_weight_rows(graph, layer, rows, why)
        tensor = graph.input(bias.node, bias.slot)
        name = f"{layer.node.inputs[layer.slot].name}_bias" if tensor is None else tensor.name
        graph.set_input(bias.node, bias.slot, graph.new_constant(name, bias.shifted(scale * old + shift)))


def _tensor(fit: Fit) -> Any:
    """What a fit computes, behind its bias."""
    return (fit.node if fit.bias is None else fit.bias.node).outputs[0]


def _axis(fit: Fit) -> int:
    if fit.norm is not None:
        return fit.norm.axis
    assert fit.layer is not None
    return fit.layer.channel_axis


def _rms(values: Array, axis: int) -> Floats:
    others = tuple(i for i in range(values.ndim) if i != axis)
    found: Floats = np.sqrt(np.mean(values.astype(np.float64) ** 2, axis=others))
    return np.maximum(found, 1e-6)


def _db(power: float, error: float) -> float:
    return float(10 * np.log10(max(power, 1e-300) / max(error, power * 1e-14, 1e-300)))
