"""The noise floor: how far float reordering alone moves this model's outputs.

The original runs with onnxruntime's optimizations disabled and enabled, on one thread and on two. The
spread of its outputs is what nobody can hold against a rewrite that only reorders arithmetic.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import numpy as np
import onnx

from graphopt.runtime.probe import Probes
from graphopt.runtime.providers import ProviderSettings, current
from graphopt.runtime.session import CPU, Optimize, RuntimeFailure, Source, open_session
from graphopt.runtime.structure import Structure
from graphopt.runtime.values import Array, Value
from graphopt.validation.compare import EPS_FACTOR, Tolerance
from graphopt.validation.metrics import Scale, eps, is_float, leaves, measure, scale_of

FloorRuns: TypeAlias = Literal["full", "lean"]

# Beyond this share of the RMS (or that many epsilons of the dtype) a difference between onnxruntime's own
# optimization levels is no reordering of sums: its optimizer, or the model's own discontinuity, is at work.
_GROSS = 0.01
_GROSS_QUANTIZED = 0.25
_GROSS_EPS = 64.0

_RUNS: dict[FloorRuns, tuple[tuple[Optimize, int], ...]] = {
    "full": (("none", 2), ("all", 1), ("all", 2)),
    "lean": (("all", 2),),
}


@dataclass(frozen=True)
class Floors:
    """What CLOSE means for one model.

    Attributes:
        tolerances: per probe, per output leaf.
        own: output leaves that the original itself moves beyond noise when onnxruntime optimizes it,
            with the reason. Their floor leaves that spread out.
        default_fails: why the original does not run under onnxruntime's default optimizations; "" if it does.
    """

    tolerances: tuple[Mapping[str, Tolerance], ...]
    own: Mapping[str, str] = field(default_factory=dict)
    default_fails: str = ""


def noise_floors(
    source: Source,
    probes: Probes,
    structure: Structure,
    *,
    runs: FloorRuns = "full",
    provider: str = CPU,
    prepack: bool = True,
    settings: ProviderSettings | None = None,
) -> Floors:
    """Measure the noise floors of a model; opens one session at a time.

    Args:
        source: the original.
        probes: inputs, and the original's outputs with optimizations disabled on one thread.
        structure: of the original.
        runs: "full" is three more sessions, "lean" one that differs in optimizations and threads at once.
        provider: where the spread is measured. On another than the CPU, only with optimizations enabled.
        prepack: let kernels repack weights, which copies them.
        settings: the provider's options. Where they let it round to TF32, a large spread of the reference is
            no fault of the optimizer.
    """
    settings = settings or current()
    reference = [_leaves(outputs) for outputs in probes.outputs]
    scales = [{k: scale_of(a) for k, a in r.items() if is_float(a.dtype)} for r in reference]
    coarse = _coarse_dtypes(structure)
    gross = _GROSS_QUANTIZED if _is_quantized(structure) else _GROSS
    # Relative to each probe's RMS, so that the probes' spreads can be combined.
    spread: dict[str, float] = {}
    integers: dict[str, float] = {}
    own: dict[str, str] = {}
    default_fails = ""
    for optimize, threads in _RUNS[runs] if provider == CPU else (("all", 1),):
        try:
            with open_session(
                source,
                optimize=optimize,
                threads=threads,
                provider=provider,
                prepack=prepack,
                arena=False,
                settings=settings,
            ) as session:
                results = [session.run(s.feeds) for s in probes.sets]
        except RuntimeFailure as e:
            if optimize != "none":
                default_fails = e.message
            continue
        for expected, scale, result in zip(reference, scales, results, strict=True):
            got = _leaves(result)
            for path, array in expected.items():
                other = got.get(path)
                moved = optimize != "none"
                if other is None or other.shape != array.shape or other.dtype != array.dtype:
                    own.setdefault(path, "its shape or structure changes")
                    continue
                metrics = measure(array, other)
                if metrics.bit_equal:
                    continue
                if path not in scale:
                    if moved:
                        own.setdefault(path, f"{metrics.differing} of {metrics.count} values change")
                    else:
                        integers[path] = max(integers.get(path, 0.0), metrics.max_abs)
                    continue
                if not metrics.same_pattern:
                    own.setdefault(path, "NaN or infinity appear at other places")
                    continue
                share = _spread(array, other, scale[path])
                unit = max(_eps(path, array.dtype, coarse), settings.eps(provider) or 0.0)
                limit = max(gross, _GROSS_EPS * unit)
                if moved and share > limit:
                    own.setdefault(path, f"it moves by {share:.3g} of its RMS")
                    continue
                spread[path] = max(spread.get(path, 0.0), share)
    tolerances = tuple(
        {
            path: _tolerance(
                path, array.dtype, scale.get(path), spread.get(path, 0.0), integers.get(path, 0.0), coarse
            )
            for path, array in expected.items()
        }
        for expected, scale in zip(reference, scales, strict=True)
    )
    return Floors(tolerances, own, default_fails)


def _tolerance(
    path: str,
    dtype: np.dtype[np.generic],
    scale: Scale | None,
    spread: float,
    integers: float,
    coarse: Mapping[str, float],
) -> Tolerance:
    if scale is None:
        return Tolerance(integers=integers)
    unit = _eps(path, dtype, coarse)
    return Tolerance(floor=max(EPS_FACTOR * unit, spread) * scale.rms, cut=scale.cut, eps=unit)


def _spread(reference: Array, value: Array, scale: Scale) -> float:
    """The largest difference of values that are no fills, over the RMS."""
    if not scale.rms:
        return 0.0
    if scale.cut == math.inf:
        return measure(reference, value).max_abs / scale.rms
    regular = np.isfinite(reference) & (np.abs(reference.astype(np.float64)) < scale.cut)
    difference = np.abs(reference[regular].astype(np.float64) - value[regular].astype(np.float64))
    return float(difference.max(initial=0.0)) / scale.rms


def _eps(path: str, dtype: np.dtype[np.generic], coarse: Mapping[str, float]) -> float:
    return max(eps(dtype), coarse.get(path.partition("[")[0], 0.0))


def _leaves(outputs: Mapping[str, Value]) -> dict[str, Array]:
    return {k: a for name, v in outputs.items() for k, a in leaves(name, v).items() if a is not None}


def _is_quantized(structure: Structure) -> bool:
    """Rounding to integers within the model turns a last-bit difference into a whole step."""
    ops = ("QuantizeLinear", "DynamicQuantizeLinear", "Round", "Floor", "Ceil")
    return any(node.op_type in ops for node in structure.nodes())


_HANDS_ON = ("Cast", "Identity", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Slice")


def _coarse_dtypes(structure: Structure) -> dict[str, float]:
    """Machine epsilon of what an output was computed in, for outputs that are a Cast of coarser floats."""
    floats = {onnx.TensorProto.FLOAT: 2.0**-23, onnx.TensorProto.FLOAT16: 2.0**-10}
    floats[onnx.TensorProto.BFLOAT16] = 2.0**-7
    graph = structure.model.graph
    types = [v.type.tensor_type.elem_type for v in graph.input] + [t.data_type for t in graph.initializer]
    present = [floats[t] for t in types if t in floats]
    if not present:
        return {}
    found: dict[str, float] = {}
    for output in structure.outputs:
        node = structure.producers.get(output.name)
        for _ in range(16):
            if node is None or node.op_type not in _HANDS_ON:
                break
            if node.op_type == "Cast":
                found[output.name] = max(present)
                break
            node = structure.producers.get(node.input[0])
    return found
