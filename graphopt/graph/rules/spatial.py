"""Convolutions, pooling and resampling: operators on (batch, channels, *spatial)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

from graphopt.graph.dims import Dim, Sym, as_dim, ceildiv, floordiv, fresh_dim
from graphopt.graph.rules.call import INT32, INT64, Call, Rule, Shape, Unknown, axis_of, dims_of


def _window(call: Call, spatial: Shape, kernel: Sequence[Dim], *, ceil: bool = False) -> Shape:
    """Dims of what a window that slides over `spatial` computes."""
    n = len(spatial)
    strides = call.attr("strides") or [1] * n
    dilations = call.attr("dilations") or [1] * n
    pads = call.attr("pads") or [0] * (2 * n)
    auto_pad = call.attr("auto_pad", "NOTSET")
    if not n == len(kernel) == len(strides) == len(dilations) or len(pads) != 2 * n:
        raise Unknown
    result: list[Dim] = []
    for i, dim in enumerate(spatial):
        if auto_pad in ("SAME_UPPER", "SAME_LOWER"):
            result.append(ceildiv(dim, strides[i]))
            continue
        before, after = (0, 0) if auto_pad == "VALID" else (pads[i], pads[i + n])
        span = dim + (before + after) - ((kernel[i] - 1) * dilations[i] + 1)
        if not ceil:
            result.append(as_dim(floordiv(span, strides[i]) + 1))
        elif isinstance(dim, int) and isinstance(span, int):
            size = -(-span // strides[i]) + 1
            # The last window must start inside the input or the padding before it.
            result.append(size - 1 if (size - 1) * strides[i] >= dim + before else size)
        else:
            result.append(as_dim(span + 1) if strides[i] == 1 else fresh_dim())
    return tuple(result)


def _conv_shape(call: Call, x: Shape | None, weight: Shape | None) -> Shape | None:
    if x is None:
        if weight is None:
            return None
        return (fresh_dim(), weight[0], *(fresh_dim() for _ in weight[2:]))
    if weight is None:
        kernel: Any = call.attr("kernel_shape")
        if kernel is None:
            return tuple(x[:1]) + tuple(fresh_dim() for _ in x[1:])
        return (x[0], fresh_dim(), *_window(call, x[2:], kernel))
    return (x[0], weight[0], *_window(call, x[2:], weight[2:]))


def conv(call: Call) -> None:
    """Conv."""
    call.out(0, call.dtype(0), _conv_shape(call, call.shape(0), call.shape(1)))


def conv_integer(call: Call) -> None:
    """ConvInteger: int32 out."""
    call.out(0, INT32, _conv_shape(call, call.shape(0), call.shape(1)))


def qlinear_conv(call: Call) -> None:
    """QLinearConv: the result has the type of its zero point."""
    call.out(0, call.dtype(7), _conv_shape(call, call.shape(0), call.shape(3)))


def conv_transpose(call: Call) -> None:
    """ConvTranspose; `output_shape` overrides the formula."""
    x, weight = call.need_shape(0), call.need_shape(1)
    n = len(x) - 2
    strides = call.attr("strides") or [1] * n
    dilations = call.attr("dilations") or [1] * n
    pads = call.attr("pads") or [0] * (2 * n)
    extra = call.attr("output_padding") or [0] * n
    auto_pad = call.attr("auto_pad", "NOTSET")
    wanted = call.attr("output_shape")
    channels = weight[1] * call.attr("group", 1)
    result: list[Dim] = [x[0], channels]
    for i, dim in enumerate(x[2:]):
        if wanted is not None:
            result.append(wanted[-n:][i])
        elif auto_pad in ("SAME_UPPER", "SAME_LOWER"):
            result.append(dim * strides[i])
        else:
            around = 0 if auto_pad == "VALID" else pads[i] + pads[i + n]
            kernel = (weight[2 + i] - 1) * dilations[i] + 1
            result.append(as_dim((dim - 1) * strides[i] + extra[i] + kernel - around))
    call.out(0, call.dtype(0), result)


def pool(call: Call) -> None:
    """AveragePool, MaxPool, LpPool; MaxPool may also give indices."""
    x = call.need_shape(0)
    kernel = call.attr("kernel_shape")
    shape = x[:2] + _window(call, x[2:], kernel, ceil=bool(call.attr("ceil_mode", 0)))
    call.out(0, call.dtype(0), shape)
    call.out(1, INT64, shape)


def global_pool(call: Call) -> None:
    """One value per channel."""
    x = call.need_shape(0)
    call.out(0, call.dtype(0), x[:2] + (1,) * (len(x) - 2))


def _scaled(dim: Dim, scale: float) -> Dim:
    if isinstance(dim, int):
        return math.floor(dim * scale)
    return dim * int(scale) if float(scale).is_integer() else fresh_dim()


def resize(call: Call) -> None:
    """Resize by sizes (optionally keeping the aspect ratio) or by scales, on some or all axes."""
    shape = call.need_shape(0)
    dtype = call.dtype(0)
    unknown = tuple(fresh_dim() for _ in shape)
    old = call.opset < 11
    given = call.attr("axes")
    axes = list(range(len(shape))) if given is None else [axis_of(a, len(shape)) for a in given]
    result = list(shape)
    if not old and call.tensor(3) is not None:
        sizes = call.elements(3)
        if sizes is None or call.attr("keep_aspect_ratio_policy", "stretch") != "stretch":
            for axis in axes:
                result[axis] = fresh_dim()
            call.out(0, dtype, result)
            return
        for axis, size in zip(axes, dims_of(sizes), strict=True):
            result[axis] = as_dim(size)
        call.out(0, dtype, result)
        return
    scales = call.value(1 if old else 2)
    if scales is None or not scales:
        call.out(0, dtype, unknown)
        return
    for axis, scale in zip(axes, scales, strict=True):
        if isinstance(scale, Sym):
            result[axis] = fresh_dim()
        else:
            result[axis] = _scaled(shape[axis], scale)
    call.out(0, dtype, result)


def upsample(call: Call) -> None:
    """Upsample, which Resize replaced in opset 10."""
    shape = call.need_shape(0)
    scales = call.value(1) if call.opset >= 9 else call.attr("scales")
    if scales is None or len(scales) != len(shape):
        raise Unknown
    call.out(0, call.dtype(0), tuple(_scaled(d, s) for d, s in zip(shape, scales, strict=True)))


def grid_sample(call: Call) -> None:
    """One sample per grid point."""
    x, grid = call.need_shape(0), call.need_shape(1)
    call.out(0, call.dtype(0), x[:2] + grid[1:-1])


def roi_align(call: Call) -> None:
    """One patch per region."""
    x, rois = call.need_shape(0), call.need_shape(1)
    size = (call.attr("output_height", 1), call.attr("output_width", 1))
    call.out(0, call.dtype(0), (rois[0], x[1], *size))


def max_roi_pool(call: Call) -> None:
    """One patch per region."""
    x, rois = call.need_shape(0), call.need_shape(1)
    call.out(0, call.dtype(0), (rois[0], x[1], *call.attr("pooled_shape")))


def non_max_suppression(call: Call) -> None:
    """Triples of batch, class, box: how many is unknown."""
    call.out(0, INT64, (fresh_dim(), 3))


def affine_grid(call: Call) -> None:
    """A grid of coordinates for images of the given size."""
    size = call.elements(1)
    if size is None:
        raise Unknown
    n, _, *spatial = (as_dim(d) for d in dims_of(size))
    call.out(0, call.dtype(0), (n, *spatial, len(spatial)))


def stft(call: Call) -> None:
    """Short-time Fourier transform: frames that lie wholly inside the signal."""
    signal, window = call.need_shape(0), call.shape(2)
    step, length = call.elements(1), call.elements(3)
    if length is not None:
        size: Dim = dims_of(length)[0]
    elif call.tensor(3) is None and window is not None:
        size = window[0]
    else:
        size = fresh_dim()
    frames: Dim = fresh_dim()
    if step is not None and isinstance(step[0], int) and step[0] > 0:
        frames = as_dim(floordiv(signal[1] - size, step[0]) + 1)
    bins = size // 2 + 1 if call.attr("onesided", 1) else size
    call.out(0, call.dtype(0), (signal[0], frames, as_dim(bins), 2))


RULES: Final[Mapping[str, Rule]] = {
    "AffineGrid": affine_grid,
    "AveragePool": pool,
    "Conv": conv,
    "ConvInteger": conv_integer,
    "ConvTranspose": conv_transpose,
    "DeformConv": conv,
    "GlobalAveragePool": global_pool,
    "GlobalLpPool": global_pool,
    "GlobalMaxPool": global_pool,
    "GridSample": grid_sample,
    "LpPool": pool,
    "MaxPool": pool,
    "MaxRoiPool": max_roi_pool,
    "NonMaxSuppression": non_max_suppression,
    "QLinearConv": qlinear_conv,
    "Resize": resize,
    "RoiAlign": roi_align,
    "STFT": stft,
    "Upsample": upsample,
}
