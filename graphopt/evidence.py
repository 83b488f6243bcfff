"""What a page shows of a run beyond its report: tensors layer by layer, and the values that are quantized."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from graphopt.errors import UserError

if TYPE_CHECKING:
    from graphopt.calibration.histogram import Histogram
    from graphopt.calibration.ranges import RangeBook
    from graphopt.ir import Node
    from graphopt.model import Model
    from graphopt.report.calibrated import CalibratedTensor, CalibrationReport
    from graphopt.report.validated import LayerRow

#: Models with more nodes are not compared tensor by tensor unasked: that is what `validate --layers` is for.
_MOST_NODES = 5000
_MOST_SETS = 4
_MOST_QUANTIZERS = 400
#: Bins in a report; histograms are measured with more.
_BINS = 96


def layers(
    before: Model,
    after: Model,
    *,
    data: Any = None,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    lossy: bool = False,
    tell: Callable[[str, str], None] = lambda stage, detail: None,
) -> tuple[tuple[LayerRow, ...], str]:
    """Intermediate tensors of both models, compared, with optimizations off.

    Args:
        before, after: the models.
        data: real inputs; synthesized by default. At most four sets of them are run.
        input_shapes: dims by input name, for synthesized inputs.
        lossy: hold them to the budget of presets instead of to noise.
        tell: called with a stage and a detail.

    Returns:
        The rows, and why there are none where they cannot be compared.
    """
    from graphopt.budget import Budget
    from graphopt.runtime.session import RuntimeFailure
    from graphopt.validation.layers import compare_layers
    from graphopt.validation.reference import Options, Reference

    nodes = sum(len(body.nodes) for body in before.bodies())
    if nodes > _MOST_NODES:
        return (), f"not compared, since the model has {nodes:,} nodes; graphopt validate --layers does it"
    if after.interface:
        return (), "not compared, since the passes changed inputs or outputs"
    options = Options(
        probe_sets=1, input_shapes=dict(input_shapes or {}), floor_runs="lean", default_run=False
    )
    try:
        made = Reference(before, data, options)
        if not made.probes.sets:
            return (), f"not compared: {made.reason or 'there is nothing to run the model on'}"
        feeds = [s.feeds for s in made.probes.sets[:_MOST_SETS]]
        budget = Budget() if lossy else None
        rows = compare_layers(
            before, after, feeds, budget=budget, tell=lambda detail: tell("compare", detail)
        )
    except (UserError, RuntimeFailure, MemoryError) as e:
        return (), f"not compared: {e}"
    return rows, "" if rows else "the models have no intermediate tensors in common"


def calibrated(book: RangeBook) -> CalibrationReport:
    """A file of ranges as plain data; histograms of many bins get fewer."""
    from pathlib import Path

    from graphopt.report.calibrated import CalibrationReport

    tensors = []
    for name, tensor in book.tensors.items():
        edited = (tensor.low, tensor.high) != tuple(tensor.methods[book.choice.method])
        ends = (tensor.low, tensor.high)
        tensors.append(_row(name, tensor.dtype, tensor.histogram, ends, tensor.methods, edited=edited))
    choice = book.choice
    return CalibrationReport(
        Path(book.path).name,
        book.passes,
        book.samples,
        choice.method,
        choice.type,
        choice.symmetric,
        tuple(tensors),
    )


def quantized_values(
    model: Model,
    original: Model,
    data: Any,
    *,
    tell: Callable[[str, str], None] = lambda stage, detail: None,
) -> tuple[CalibrationReport | None, str]:
    """The values that reach a model's quantizers, over the calibration samples, and what these represent.

    Args:
        model: the quantized model.
        original: the model that the data was made for.
        data: the samples.
        tell: called with a stage and a detail.

    Returns:
        A row for each tensor that is quantized with one scale, None where there is none; and why they could
        not be measured.
    """
    from graphopt.calibration.data import open_dataset, ports_of
    from graphopt.calibration.histogram import Histogram
    from graphopt.calibration.ranges import Choice
    from graphopt.calibration.service import CalibrationService
    from graphopt.pipeline.services import Request
    from graphopt.report.calibrated import CalibrationReport

    found = {name: (kind, low, high) for name, kind, low, high in _quantizers(model)}
    wanted = list(found)[:_MOST_QUANTIZERS]
    if not wanted:
        return None, ""
    skeleton = original.skeleton()
    try:
        dataset = open_dataset(data, *ports_of(skeleton), model=skeleton)
        service = CalibrationService(dataset, tell=tell, ports=ports_of(skeleton))
        histograms = service.observe(model, None, [Request(Histogram(), (name,)) for name in wanted])
    except (UserError, MemoryError) as e:  # the result is there all the same
        return None, f"not measured: {e}"
    rows = []
    for name, histogram in zip(wanted, histograms, strict=True):
        kind, low, high = found[name]
        if histogram.used():
            methods = Choice(type=kind).ranges(histogram)
            rows.append(_row(name, kind, histogram, (low, high), methods))
    kinds = ", ".join(sorted({kind for kind, _, _ in found.values()}))
    return CalibrationReport("", "", service.observed_samples, "", kinds, False, tuple(rows)), ""


def _quantizers(model: Model) -> Iterator[tuple[str, str, float, float]]:
    """Tensors that a QuantizeLinear reads: name, integer type, and the ends of what it represents."""
    from graphopt import ir

    for body in reversed(model.bodies()):  # the main graph first
        if isinstance(body, ir.Function):
            continue
        for node in body.nodes:
            if (
                node.op == "QuantizeLinear"
                and not node.domain
                and not isinstance(node.inputs[0], ir.Constant)
            ):
                grid = _grid(node)
                if grid is not None and node.inputs[0].name:
                    yield node.inputs[0].name, *grid


def _grid(node: Node) -> tuple[str, float, float] | None:
    """Integer type and range of a QuantizeLinear with one constant scale; None for any other."""
    import numpy as np
    import onnx

    from graphopt.io.dtypes import onnx_dtype
    from graphopt.ir import Constant
    from graphopt.quantization.grid import quant_type

    scale, zero = node.inputs[1], node.inputs[2] if len(node.inputs) > 2 else None
    if not isinstance(scale, Constant) or int(np.prod(scale.shape, dtype=np.int64)) != 1:
        return None
    offset, kind = 0.0, int(node.attrs.get("output_dtype", 0)) or onnx.TensorProto.UINT8
    if zero is not None and zero.name:
        if not isinstance(zero, Constant):
            return None
        kind = onnx_dtype(zero.dtype)
        offset = float(np.asarray(zero.values).astype(np.float64).reshape(-1)[0])
    type_ = quant_type(kind)
    if type_ is None:
        return None
    step = float(np.asarray(scale.values).astype(np.float64).reshape(-1)[0])
    return type_.name, (type_.qmin - offset) * step, (type_.qmax - offset) * step


def _row(
    name: str,
    dtype: str,
    histogram: Histogram,
    ends: tuple[float, float],
    methods: Mapping[str, tuple[float, float]],
    *,
    edited: bool = False,
) -> CalibratedTensor:
    from graphopt.report.calibrated import CalibratedTensor

    edges, counts = _coarse(histogram)
    return CalibratedTensor(
        name,
        dtype,
        float(ends[0]),
        float(ends[1]),
        edited,
        float(histogram.low[0]),
        float(histogram.high[0]),
        int(histogram.count[0]),
        int(histogram.zeros[0]),
        histogram.nans,
        histogram.infinities,
        {m: (float(a), float(b)) for m, (a, b) in methods.items()},
        edges,
        counts,
    )


def _coarse(histogram: Histogram) -> tuple[tuple[float, ...], tuple[int, ...]]:
    """Edges and counts of at most _BINS bins, each of whole bins of the histogram."""
    import numpy as np

    used = histogram.used()
    edges, counts = histogram.edges(), histogram.counts[0, :used]
    starts = np.arange(0, used, -(-used // _BINS))
    ends = [*edges[starts].tolist(), float(edges[-1])]
    return tuple(map(float, ends)), tuple(map(int, np.add.reduceat(counts, starts)))
