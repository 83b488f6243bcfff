"""Which role the ops' inputs have.

A rule looks at one use (node and slot) and says what values make sense there. Rules never fail: without
enough knowledge of the shapes they return None or something harmless.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np

from graphopt.runtime.roles import Place, Role, exact, index, uniform

Rule: TypeAlias = Callable[[Place], Role | None]


def _gather(p: Place) -> Role | None:
    return index(p.dim(0, p.attr("axis", 0)))


def _elements(p: Place) -> Role | None:
    axis = p.attr("axis", 0)
    return index(p.dim(0, axis), axis if p.node.op_type.startswith("Scatter") else None)


def _nd(p: Place) -> Role | None:
    dims, indices = p.whole(p.ins(0)), p.ins(1)
    if dims is None or not indices or indices[-1] is None:
        return None
    batch = p.attr("batch_dims", 0)
    high = dims[batch : batch + indices[-1]]
    return Role("index", 0, high, -1 if p.node.op_type == "ScatterND" else None)


def _reshape(p: Place) -> Role:
    out = p.whole(p.out())
    if out is not None and len(out) == p.length():
        return exact(out)
    return exact([1] * (p.length() - 1) + [-1])


def _expand(p: Place) -> Role:
    for dims in (p.whole(p.out()), p.whole(p.ins(0))):
        if dims is not None and len(dims) == p.length():
            return exact(dims)
    return exact([1] * p.length())


def _out_shape(p: Place) -> Role:
    out = p.whole(p.out())
    return exact(out if out is not None and len(out) == p.length() else [2] * p.length())


def _affine_size(p: Place) -> Role:
    out, n = p.whole(p.out()), p.length()
    if out is None or len(out) != n:
        return exact([1, 1, 4, 5, 6][:n])
    return exact([out[0], 1, *out[1:-1]])


def _tile(p: Place) -> Role:
    a, b = p.whole(p.ins(0)), p.whole(p.out())
    if a is not None and b is not None and len(a) == len(b) == p.length() and all(a):
        return exact([y // x for x, y in zip(a, b, strict=True)])
    return exact([1] * (p.length() - 1) + [2])


def _slice(p: Place) -> Role:
    a, b, n = p.whole(p.ins(0)), p.whole(p.out()), p.length()
    axes_const = p.const(3)
    if axes_const is not None:
        axes = [int(i) for i in axes_const.reshape(-1)]
    elif a is not None and b is not None and p.has(3):
        changed = [i for i in range(len(a)) if a[i] != b[i]]
        axes = sorted((changed + [i for i in range(len(a)) if i not in changed])[:n])
    else:
        axes = list(range(n))
    if p.slot == 1:
        return exact([0] * n)
    if p.slot == 2:
        if b is not None:
            return exact([b[i] for i in axes])
        return exact([a[i] if a is not None else 1 << 30 for i in axes])
    return exact(axes if p.slot == 3 else [1] * n)


def _pad(p: Place) -> Role:
    if p.slot != 1:
        axes_const = [0]
        return exact(axes_const) if p.slot == 3 else Role("uniform", 0, 1)
    a, b, n = p.whole(p.ins(0)), p.whole(p.out()), p.length() // 2
    if a is None or b is None:
        return exact([0] * n + [1] * n)
    axes = range(len(a)) if n == len(a) else [i for i in range(len(a)) if a[i] != b[i]][:n]
    return exact([0] * n + [b[i] - a[i] for i in axes])


def _crop(p: Place) -> Role:
    out = p.whole(p.out())
    if out is None:
        return exact([2] * p.length())
    axes = p.attr("axes", list(range(len(out))))
    return exact([out[i] for i in axes])


def _resize(p: Place) -> Role:
    a, b, n = p.whole(p.ins(0)), p.whole(p.out()), p.length()
    if p.slot == 1 and p.node.op_type == "Resize" and len(p.node.input) > 2:
        return exact([0.0] * (n // 2) + [1.0] * (n // 2))
    axes = [int(i) for i in p.attr("axes", [])] or list(range(n))
    if p.slot == 3:
        return exact([b[i] for i in axes] if b is not None else [4] * n)
    if a is None or b is None or not all(a):
        return exact([1.0] * max(0, n - 2) + [2.0] * min(2, n))
    return exact([b[i] / a[i] for i in axes])


def _unsqueeze(p: Place) -> Role:
    a, b, n = p.whole(p.ins(0)), p.whole(p.out()), p.length()
    if a is not None and b is not None and len(b) == len(a) + n:
        axes: list[int] = []
        i = 0
        for axis, d in enumerate(b):
            if d == 1 and len(axes) < n and not (i < len(a) and a[i] == 1 and len(b) - axis > n - len(axes)):
                axes.append(axis)
            else:
                i += 1
        if len(axes) == n:
            return exact(axes)
    return exact(list(range(n)))


def _squeeze(p: Place) -> Role:
    a, n = p.whole(p.ins(0)), p.length()
    ones = [i for i, d in enumerate(a or ()) if d == 1]
    return exact((ones or list(range(n)))[:n])


def _split(p: Place) -> Role | None:
    axis = p.attr("axis", 0)
    sizes = [(o or (None,))[axis] if (o := p.out(i)) else None for i in range(len(p.node.output))]
    if all(s is not None for s in sizes) and len(sizes) == p.length():
        return exact(sizes)
    total, n = p.dim(0, axis), p.length()
    return None if total is None or n == 0 else exact([total // n] * (n - 1) + [total - total // n * (n - 1)])


def _split_sequence(p: Place) -> Role | None:
    total, n = p.dim(0, p.attr("axis", 0)), p.length()
    if total is None:
        return exact(1)
    if len(p.ins(1) or ()) == 0:
        return exact(max(1, total // 2))
    return exact([total // n] * (n - 1) + [total - total // n * (n - 1)])


def _top_k(p: Place) -> Role:
    axis = p.attr("axis", -1)
    out = p.out()
    k = out[axis] if out else None
    return exact([k if k is not None else min(2, p.dim(0, axis) or 1)])


def _one_hot(p: Place) -> Role | None:
    depth = p.const(1)
    n = int(depth.reshape(-1)[0]) if depth is not None else None
    out = p.out()
    if n is None:
        n = (out[p.attr("axis", -1)] if out else None) or 5
    return index(n) if p.slot == 0 else exact([n] * p.length())


def _range(p: Place) -> Role:
    out = p.whole(p.out())
    return exact([1, 1 + (out[0] if out else 5), 1][p.slot])


def _reduce_axes(p: Place) -> Role:
    a, b, n = p.whole(p.ins(0)), p.whole(p.out()), p.length()
    if a is not None and b is not None:
        if len(a) == len(b):
            changed = [i for i in range(len(a)) if a[i] != b[i]]
            changed += [i for i in range(len(a)) if a[i] == 1 and i not in changed]
            if len(changed) >= n:
                return exact(sorted(changed[:n]))
        else:
            kept, axes = 0, []
            for i, d in enumerate(a):
                if kept < len(b) and d == b[kept]:
                    kept += 1
                else:
                    axes.append(i)
            if len(axes) == n:
                return exact(axes)
    rank = len(a) if a is not None else n
    return exact(list(range(rank - n, rank)))


def _unpool(p: Place) -> Role | None:
    out = p.whole(p.out()) if not p.has(2) else None
    if p.slot == 2:
        return _out_shape(p)
    if out is None:
        dims = p.whole(p.ins(0))
        kernel = p.attr("kernel_shape", [2, 2])
        strides = p.attr("strides", [1] * len(kernel))
        if dims is None:
            return None
        out = tuple((d - 1) * s + k for d, s, k in zip(dims[2:], strides, kernel, strict=True))
        return index(math.prod(out), -1)
    return index(math.prod(out[2:]), -1)


def _col2im(p: Place) -> Role | None:
    """The image shape that the output has; any block shape whose size divides the input's channels."""
    n, out = p.length(), p.whole(p.out())
    if out is None or len(out) != n + 2:
        return None
    if p.slot == 1:
        return exact(out[2:])
    block = (p.dim(0, 1) or 1) // max(1, out[1])
    dilations, pads = p.attr("dilations", [1] * n), p.attr("pads", [0] * (2 * n))
    strides, windows = p.attr("strides", [1] * n), p.dim(0, 2)
    for shape in itertools.product(range(1, block + 1), repeat=n):
        if math.prod(shape) == block:
            counts = (
                (out[i + 2] + pads[i] + pads[i + n] - dilations[i] * (k - 1) - 1) // strides[i] + 1
                for i, k in enumerate(shape)
            )
            if math.prod(counts) == windows:
                return exact(shape)
    return None


def _nonpad(p: Place) -> Role | None:
    """Attention's count of keys that are no padding: at least the queries, all of which are real."""
    total, queries = p.dim(1, -2), p.dim(0, -2)
    return index(total + 1, low=min(total, queries or 1)) if total else None


def _lengths(p: Place) -> Role | None:
    axis = p.attr("layout", 0) if p.node.op_type in ("RNN", "GRU", "LSTM") else p.attr("time_axis", 0)
    n = p.dim(0, axis)
    return None if n is None else index(n + 1, low=max(1, n // 2))


def _classes(p: Place) -> Role | None:
    return index(p.dim(0, 1))


def _bits(p: Place) -> Role:
    return Role("index", 0, 4)


def _pow(p: Place) -> Role | None:
    if p.slot == 1:
        return Role("index", 0, 4)
    exponent = p.const(1)
    if exponent is not None and exponent.dtype.kind == "f" and np.any(exponent != np.round(exponent)):
        return uniform(0.1, 3)
    return uniform(0.1, 3) if exponent is None else None


def _mask_by_sub(p: Place) -> Role | None:
    """1 - mask, the usual start of an attention mask."""
    one = p.const(0)
    return Role("mask") if one is not None and one.size == 1 and one.reshape(-1)[0] == 1 else None


def _clip(p: Place) -> Role:
    return exact(-0.5 if p.slot == 1 else 0.75)


def _boxes(p: Place) -> Role:
    return Role("boxes", 0, 1)


def _constant(value: Any) -> Rule:
    return lambda p: exact(np.broadcast_to(np.asarray(value), (p.length(),)))


def _always(role: Role) -> Rule:
    return lambda p: role


def _rows(slot: int, axis: int = 0) -> Rule:
    return lambda p: index(p.dim(slot, axis))


def _keys(*names: str) -> Rule:
    def rule(p: Place) -> Role | None:
        for name in names:
            keys = p.attr(name)
            if keys:
                return Role("choice", value=[k.decode() if isinstance(k, bytes) else k for k in keys])
        return None

    return rule


def _vocabulary(p: Place) -> Role | None:
    pool = p.attr("pool_int64s")
    return Role("choice", value=list(pool)) if pool else _keys("pool_strings")(p)


_POSITIVE = _always(uniform(0.1, 3))
_UNIT = _always(uniform(-0.95, 0.95))
_ONE = _constant(1)
_ZERO = _constant(0)
_PROBABILITY = _always(uniform(0.05, 0.95))

RULES: dict[tuple[str, int], Rule] = {
    ("Gather", 1): _gather,
    **{(op, 1): _elements for op in ("GatherElements", "ScatterElements", "Scatter")},
    **{(op, 1): _nd for op in ("GatherND", "ScatterND")},
    ("ArrayFeatureExtractor", 1): _rows(0, -1),
    ("EmbedLayerNormalization", 0): _rows(2),
    ("EmbedLayerNormalization", 1): _rows(4),
    ("RotaryEmbedding", 3): _rows(1),
    ("TensorScatter", 2): _ZERO,
    ("Attention", 6): _nonpad,
    ("Reshape", 1): _reshape,
    ("Expand", 1): _expand,
    ("ConstantOfShape", 0): _out_shape,
    **{(op, 1): _out_shape for op in ("RandomNormal", "RandomUniform")},
    ("AffineGrid", 1): _affine_size,
    ("GridSample", 1): _always(uniform(-1.1, 1.1)),
    ("Tile", 1): _tile,
    **{("Slice", i): _slice for i in (1, 2, 3, 4)},
    **{("Pad", i): _pad for i in (1, 3)},
    ("CenterCropPad", 1): _crop,
    **{("Resize", i): _resize for i in (1, 2, 3)},
    ("Upsample", 1): _resize,
    ("Unsqueeze", 1): _unsqueeze,
    ("Squeeze", 1): _squeeze,
    ("Split", 1): _split,
    ("SplitToSequence", 1): _split_sequence,
    ("TopK", 1): _top_k,
    **{("OneHot", i): _one_hot for i in (0, 1)},
    **{("Range", i): _range for i in (0, 1, 2)},
    **{
        (f"Reduce{kind}", 1): _reduce_axes
        for kind in ("Sum", "Mean", "Max", "Min", "Prod", "L1", "L2", "LogSum", "LogSumExp", "SumSquare")
    },
    **{(op, 1): _ZERO for op in ("CumSum", "CumProd", "SequenceAt", "SequenceErase")},
    ("SequenceInsert", 2): _ZERO,
    ("Trilu", 1): _ZERO,
    ("Loop", 0): _constant(3),
    ("Loop", 1): _constant(True),
    ("MaxUnpool", 1): _unpool,
    ("MaxUnpool", 2): _unpool,
    **{(op, 4): _lengths for op in ("RNN", "GRU", "LSTM")},
    ("ReverseSequence", 1): _lengths,
    ("RoiAlign", 1): _boxes,
    ("RoiAlign", 2): _rows(0),
    ("NonMaxSuppression", 0): _boxes,
    ("NonMaxSuppression", 1): _PROBABILITY,
    ("NonMaxSuppression", 2): _constant(3),
    ("NonMaxSuppression", 3): _constant(0.5),
    ("NonMaxSuppression", 4): _constant(0.1),
    ("DFT", 1): lambda p: exact(p.dim(0, p.attr("axis", 1)) or 4),
    ("DFT", 2): _ONE,
    ("STFT", 1): _constant(4),
    ("STFT", 3): _constant(8),
    **{(op, 0): _constant(10) for op in ("HannWindow", "HammingWindow", "BlackmanWindow")},
    **{("MelWeightMatrix", i): _constant(v) for i, v in enumerate((8, 16, 8192, 0, 4096))},
    **{("Col2Im", i): _col2im for i in (1, 2)},
    **{("ConvInteger", i): _ZERO for i in (2, 3)},
    **{(op, 1): _POSITIVE for op in ("QuantizeLinear", "DequantizeLinear")},
    **{("QLinearConv", i): _POSITIVE for i in (1, 4, 6)},
    **{("QLinearMatMul", i): _POSITIVE for i in (1, 4, 6)},
    ("BitShift", 1): _bits,
    ("Mod", 1): _always(Role("nonzero", 1, 5)),
    ("Div", 1): _always(Role("nonzero", 1, 5)),
    ("Reciprocal", 0): _always(Role("nonzero", 1, 3)),
    **{(op, 0): _POSITIVE for op in ("Log", "Sqrt", "ReduceLogSum")},
    ("Acosh", 0): _always(uniform(1.1, 3)),
    **{(op, 0): _UNIT for op in ("Asin", "Acos", "Atanh")},
    **{("Pow", i): _pow for i in (0, 1)},
    ("BatchNormalization", 4): _POSITIVE,
    **{("Clip", i): _clip for i in (1, 2)},
    ("Dropout", 1): _constant(0.5),
    ("Dropout", 2): _constant(False),
    ("Bernoulli", 0): _PROBABILITY,
    **{(op, 1): _classes for op in ("NegativeLogLikelihoodLoss", "SoftmaxCrossEntropyLoss")},
    ("Sub", 1): _mask_by_sub,
    ("TfIdfVectorizer", 0): _vocabulary,
    ("LabelEncoder", 0): _keys("keys_strings", "keys_int64s", "keys_floats", "classes_strings"),
    ("CategoryMapper", 0): _keys("cats_strings"),
    ("OneHotEncoder", 0): _keys("cats_strings", "cats_int64s"),
    ("StringNormalizer", 0): _keys("stopwords"),
}
