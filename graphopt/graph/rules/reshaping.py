"""Operators that give a tensor another shape: the same elements, or repeated and padded ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np

from graphopt.graph.dims import (
    Dim,
    Sym,
    as_dim,
    at_least,
    exact_quotient,
    fresh_dim,
    product,
)
from graphopt.graph.rules.call import (
    Call,
    Rule,
    Shape,
    SymValue,
    Unknown,
    axis_of,
    dims_of,
)
from graphopt.graph.rules.elementwise import broadcast_shapes
from graphopt.graph.rules.values import as_array, broadcast_elements, count, from_array


def moved(call: Call, shape: Shape | None) -> np.ndarray[Any, Any] | None:
    """Input 0 as an object array, if its elements are known and it is small."""
    if count(shape) is None or shape is None:
        return None
    value = call.elements(0)
    return None if value is None else as_array(value, shape)


def _same_elements(call: Call, shape: Shape | None) -> None:
    """An output that holds the elements of input 0 in the same order."""
    call.out(0, call.dtype(0), shape, call.elements(0))


def reshape(call: Call) -> None:
    """Reshape: 0 copies an input dim (unless allowzero), -1 takes what is left."""
    if call.opset < 5:
        attribute = call.attr("shape")
        target: SymValue | None = None if attribute is None else tuple(attribute)
    else:
        target = call.elements(1)
    source = call.shape(0)
    if target is None:
        of_target = call.shape(1)
        if of_target is None or not isinstance(of_target[0], int):
            _same_elements(call, None)
            return
        _same_elements(call, tuple(fresh_dim() for _ in range(of_target[0])))
        return
    allowzero = call.opset >= 14 and bool(call.attr("allowzero", 0))
    _same_elements(call, reshaped(source, dims_of(target), allowzero))


def reshaped(source: Shape | None, target: Sequence[Dim], allowzero: bool = False) -> Shape:
    """The shape that Reshape gives a tensor of shape `source`."""
    shape: list[Dim] = []
    open_at: list[int] = []  # what the sizes of the others decide
    for i, dim in enumerate(target):
        if dim == 0 and not allowzero:
            if source is None:
                dim = fresh_dim()
            elif i < len(source):
                dim = source[i]
            else:
                raise Unknown
        elif not at_least(dim, 0):
            open_at.append(i)
        shape.append(dim)
    for i in open_at:
        # A symbol that may be negative is -1 or a size: with a single one both come out the same.
        shape[i] = fresh_dim()
    if len(open_at) == 1 and source is not None:
        rest = [dim for i, dim in enumerate(shape) if i != open_at[0]]
        left = exact_quotient(product(source), product(rest))
        if left is not None:
            shape[open_at[0]] = as_dim(left)
    return tuple(shape)


def flatten(call: Call) -> None:
    """Flatten to a matrix around `axis`."""
    shape = call.shape(0)
    if shape is None:
        call.out(0, call.dtype(0), (fresh_dim(), fresh_dim()))
        return
    axis = call.attr("axis", 1)
    if axis < 0:
        axis += len(shape)
    _same_elements(call, (product(shape[:axis]), product(shape[axis:])))


def _axes(call: Call, since: int) -> list[int] | None:
    """The `axes` attribute, or from opset `since` input 1; None if not given.

    Raises:
        Unknown: given by an input whose elements are not known.
    """
    if call.opset < since:
        axes = call.attr("axes")
        return None if axes is None else list(axes)
    if call.tensor(1) is None:
        return None
    axes = call.ints(1)
    if axes is None:
        raise Unknown
    return axes


def squeeze(call: Call) -> None:
    """Squeeze: drop the given axes, or all that are 1."""
    shape = call.shape(0)
    axes = _axes(call, 13)
    if axes == []:
        # Runtimes read an empty list as "all", ONNX's inference as none.
        call.facts.hints.pop(call.node.outputs[0].name, None)
    if shape is None:
        _same_elements(call, None)
    elif axes:
        drop = {axis_of(a, len(shape)) for a in axes}
        _same_elements(call, tuple(d for i, d in enumerate(shape) if i not in drop))
    elif any(isinstance(d, Sym) and not at_least(d, 2) for d in shape):
        _same_elements(call, None)
    else:
        _same_elements(call, tuple(d for d in shape if d != 1))


def unsqueeze(call: Call) -> None:
    """Unsqueeze: insert axes of length 1, counted in the output."""
    shape = call.shape(0)
    axes = _axes(call, 13)
    if shape is None or axes is None:
        _same_elements(call, None)
        return
    rank = len(shape) + len(axes)
    inserted = {axis_of(a, rank) for a in axes}
    dims = iter(shape)
    _same_elements(call, tuple(1 if i in inserted else next(dims) for i in range(rank)))


def transpose(call: Call) -> None:
    """Permute axes."""
    shape = call.need_shape(0)
    perm = call.attr("perm")
    order = list(perm) if perm is not None else list(range(len(shape)))[::-1]
    if len(order) != len(shape):
        raise Unknown
    array = moved(call, shape) if len(shape) <= 3 else None
    value = None if array is None else from_array(array.transpose(order))
    call.out(0, call.dtype(0), tuple(shape[a] for a in order), value)


def expand(call: Call) -> None:
    """Broadcast input 0 with a shape."""
    shape, target = call.shape(0), call.elements(1)
    dtype = call.dtype(0)
    if target is None:
        of_target = call.shape(1)
        if shape is None or of_target is None or not isinstance(of_target[0], int):
            call.out(0, dtype, None)
        else:  # the rank is known; a dim above 1 stays only if the target cannot exceed it
            rank = max(len(shape), of_target[0])
            padded = (1,) * (rank - len(shape)) + shape
            call.out(0, dtype, tuple(d if isinstance(d, int) and d > 1 else fresh_dim() for d in padded))
        return
    result = broadcast_shapes(shape, tuple(as_dim(d) for d in dims_of(target)))
    total = count(result)
    value = call.elements(0) if total is not None else None
    if value is not None and shape is not None and result is not None and total is not None:
        value = broadcast_elements(value, shape, result, total)
    call.out(0, dtype, result, value)


def tile(call: Call) -> None:
    """Repeat along each axis."""
    shape = call.need_shape(0)
    repeats = call.elements(1) if call.opset >= 6 else None
    if repeats is None:
        call.out(0, call.dtype(0), tuple(fresh_dim() for _ in shape))
        return
    if len(repeats) != len(shape):
        raise Unknown
    result = tuple(as_dim(d * r) for d, r in zip(shape, dims_of(repeats), strict=True))
    value = None
    if count(result) is not None and len(shape) <= 2 and all(isinstance(r, int) for r in repeats):
        array = moved(call, shape)
        value = None if array is None else from_array(np.tile(array, repeats))  # type: ignore[arg-type]
    call.out(0, call.dtype(0), result, value)


def pad(call: Call) -> None:
    """Pad (or, with negative pads, crop) the given axes."""
    shape = call.need_shape(0)
    rank = len(shape)
    if call.opset < 11:
        given = call.attr("pads", call.attr("paddings"))
        pads: SymValue | None = None if given is None else tuple(given)
    else:
        pads = call.elements(1)
    axes = list(range(rank))
    if call.opset >= 18 and call.tensor(3) is not None:
        chosen = call.ints(3)
        if chosen is None:
            pads = None
        else:
            axes = [axis_of(a, rank) for a in chosen]
    if pads is None:
        call.out(0, call.dtype(0), tuple(fresh_dim() for _ in shape))
        return
    if len(pads) != 2 * len(axes):
        raise Unknown
    sizes = dims_of(pads)
    result = list(shape)
    for i, axis in enumerate(axes):
        result[axis] = as_dim(shape[axis] + sizes[i] + sizes[i + len(axes)])
    call.out(0, call.dtype(0), result)


def depth_to_space(call: Call) -> None:
    """Channels become blocks of pixels."""
    n, c, h, w = call.need_shape(0)
    block = call.attr("blocksize")
    channels = exact_quotient(c, block * block)
    call.out(0, call.dtype(0), (n, fresh_dim() if channels is None else channels, h * block, w * block))


def space_to_depth(call: Call) -> None:
    """Blocks of pixels become channels."""
    n, c, h, w = call.need_shape(0)
    block = call.attr("blocksize")
    rows, columns = exact_quotient(h, block), exact_quotient(w, block)
    result = (n, c * block * block, *(fresh_dim() if d is None else d for d in (rows, columns)))
    call.out(0, call.dtype(0), result)


def center_crop_pad(call: Call) -> None:
    """The given axes get the given sizes."""
    shape = call.need_shape(0)
    given = call.attr("axes")
    axes = [axis_of(a, len(shape)) for a in (range(len(shape)) if given is None else given)]
    sizes = call.elements(1)
    result = list(shape)
    for i, axis in enumerate(axes):
        result[axis] = fresh_dim() if sizes is None else as_dim(dims_of(sizes)[i])
    call.out(0, call.dtype(0), result)


RULES: Final[Mapping[str, Rule]] = {
    "CenterCropPad": center_crop_pad,
    "DepthToSpace": depth_to_space,
    "Expand": expand,
    "Flatten": flatten,
    "Pad": pad,
    "Reshape": reshape,
    "SpaceToDepth": space_to_depth,
    "Squeeze": squeeze,
    "Tile": tile,
    "Transpose": transpose,
    "Unsqueeze": unsqueeze,
}
