"""Arithmetic on the elements of small tensors whose values are known or symbolic.

An element is an `int` (`bool` in boolean tensors), a `float`, or a `Sym`. In a float tensor a `Sym` is an
integer that the float type holds exactly: that is taken for granted of single dims (below 2**24), and of
nothing that was multiplied. Functions return None for a result that they cannot state.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np

from graphopt.graph import dims
from graphopt.graph.dims import Sym
from graphopt.graph.rules.call import (
    BFLOAT16,
    BOOL,
    DOUBLE,
    FLOAT,
    FLOAT16,
    INT8,
    INT16,
    INT32,
    INT64,
    MAX_ELEMENTS,
    UINT8,
    UINT16,
    UINT32,
    UINT64,
    Element,
    Shape,
    SymValue,
)

_RANGES: Final = {
    INT8: (-(2**7), 2**7 - 1),
    INT16: (-(2**15), 2**15 - 1),
    INT32: (-(2**31), 2**31 - 1),
    INT64: (-(2**63), 2**63 - 1),
    UINT8: (0, 2**8 - 1),
    UINT16: (0, 2**16 - 1),
    UINT32: (0, 2**32 - 1),
    UINT64: (0, 2**64 - 1),
}
_FLOATS: Final[dict[int, Any]] = {FLOAT: np.float32, DOUBLE: np.float64, FLOAT16: np.float16}
VALUE_DTYPES: Final = frozenset({INT32, INT64, BOOL, FLOAT, DOUBLE})
FLOATS: Final = frozenset({FLOAT, DOUBLE, FLOAT16, BFLOAT16})

Result = Element | None


def count(shape: Shape | None) -> int | None:
    """Number of elements of a tensor of this shape if that is at most `MAX_ELEMENTS`, else None."""
    if shape is None or len(shape) > 8:
        return None
    total = 1
    for dim in shape:
        if isinstance(dim, Sym):
            return None
        total *= dim
    return total if 0 <= total <= MAX_ELEMENTS else None


def as_array(value: SymValue, shape: Shape) -> np.ndarray[Any, np.dtype[np.object_]]:
    """`value` as an object array of `shape`, which holds ints only."""
    flat = np.empty(len(value), dtype=object)
    for i, element in enumerate(value):
        flat[i] = element
    return flat.reshape(shape)


def from_array(array: np.ndarray[Any, Any]) -> SymValue:
    """Elements of `array` in row-major order."""
    return tuple(array.ravel().tolist())


def complete(elements: Sequence[Result], dtype: int) -> SymValue | None:
    """`elements` with symbols for unknown ints and bools; None where nothing or some float is unknown."""
    if None not in elements:
        return tuple(elements)  # type: ignore[arg-type]
    if dtype in FLOATS or all(e is None for e in elements):
        return None
    low, high = (0, 1) if dtype == BOOL else (None, None)
    return tuple(dims.fresh_int(low, high) if e is None else e for e in elements)


def broadcast_elements(value: SymValue, shape: Shape, target: Shape, total: int) -> SymValue:
    """`value` of `shape` broadcast to `target`, which has `total` elements."""
    if len(value) == total and len(shape) == len(target):
        return value
    if len(value) == 1:
        return value * total
    index = np.arange(len(value)).reshape(shape)  # type: ignore[arg-type]
    return tuple(value[i] for i in np.broadcast_to(index, target).ravel())  # type: ignore[arg-type]


def is_dim_arithmetic(element: Element) -> bool:
    """Whether `element` is built of dims alone, so that it is small and no operation on it wraps around."""
    if not isinstance(element, Sym):
        return True
    return all(atom.lower is not None for mono, _ in element.terms for atom in mono)


def in_range(element: Result, dtype: int) -> Result:
    """`element` if a tensor of integer type `dtype` can hold it: no wrapping around."""
    if isinstance(element, int) and dtype in _RANGES:
        low, high = _RANGES[dtype]
        return element if low <= element <= high else None
    return element


# -- operations on two elements -------------------------------------------------------------------------


def _divide(a: Any, b: Any) -> Result:
    return dims.truncdiv(a, b)


def _mod(a: Any, b: Any) -> Result:
    return dims.mod(a, b) if dims.at_least(b, 1) or dims.at_most(b, -1) else None


def _fmod(a: Any, b: Any) -> Result:
    return dims.mod(a, b) if dims.at_least(a, 0) and dims.at_least(b, 1) else None


def _power(a: Any, b: Any) -> Result:
    if isinstance(b, Sym) or not 0 <= b <= 63:
        return None
    if not isinstance(a, Sym):
        return int(a**b)
    return dims.product([a] * b) if b <= 4 else None


def _equal(a: Any, b: Any) -> Result:
    return dims.equal(a, b)


def _less(a: Any, b: Any) -> Result:
    return dims.less(a, b) if is_dim_arithmetic(a) and is_dim_arithmetic(b) else None


def _greater(a: Any, b: Any) -> Result:
    return _less(b, a)


def _less_equal(a: Any, b: Any) -> Result:
    return _negate(_less(b, a))


def _greater_equal(a: Any, b: Any) -> Result:
    return _negate(_less(a, b))


def _negate(a: Result) -> Result:
    if isinstance(a, Sym):
        return 1 - a
    return None if a is None else not a


def _and(a: Any, b: Any) -> Result:
    if isinstance(a, Sym) and isinstance(b, Sym):
        return a if a == b else None
    if isinstance(a, Sym):
        a, b = b, a
    return b if a else False


def _or(a: Any, b: Any) -> Result:
    if isinstance(a, Sym) and isinstance(b, Sym):
        return a if a == b else None
    if isinstance(a, Sym):
        a, b = b, a
    return True if a else b


def _xor(a: Any, b: Any) -> Result:
    if isinstance(a, Sym) or isinstance(b, Sym):
        return False if a == b else None
    return bool(a) != bool(b)


def _max(a: Any, b: Any) -> Result:
    return dims.maximum(a, b) if is_dim_arithmetic(a) and is_dim_arithmetic(b) else None


def _min(a: Any, b: Any) -> Result:
    return dims.minimum(a, b) if is_dim_arithmetic(a) and is_dim_arithmetic(b) else None


BINARY: Final[dict[str, Callable[[Any, Any], Result]]] = {
    "Add": lambda a, b: a + b,
    "Sub": lambda a, b: a - b,
    "Mul": lambda a, b: a * b,
    "Div": _divide,
    "Mod": _mod,
    "fmod": _fmod,
    "Pow": _power,
    "Max": _max,
    "Min": _min,
    "Sum": lambda a, b: a + b,
    "Equal": _equal,
    "Less": _less,
    "Greater": _greater,
    "LessOrEqual": _less_equal,
    "GreaterOrEqual": _greater_equal,
    "And": _and,
    "Or": _or,
    "Xor": _xor,
}
_FLOAT_BINARY: Final[dict[str, Callable[[Any, Any], Any]]] = {
    "Add": lambda a, b: a + b,
    "Sub": lambda a, b: a - b,
    "Mul": lambda a, b: a * b,
    "Div": lambda a, b: a / b,
    "Max": max,
    "Min": min,
    "Sum": lambda a, b: a + b,
    "Equal": lambda a, b: bool(a == b),
    "Less": lambda a, b: bool(a < b),
    "Greater": lambda a, b: bool(a > b),
    "LessOrEqual": lambda a, b: bool(a <= b),
    "GreaterOrEqual": lambda a, b: bool(a >= b),
}
_SYM_IN_FLOAT: Final = frozenset({"Add", "Sub", "Mul", "Equal", "Less", "Greater", "Max", "Min"})


def binary(op: str, a: Element, b: Element, dtype: int, out_dtype: int) -> Result:
    """`op` on elements of tensors of type `dtype`."""
    if dtype in FLOATS:
        return _float_binary(op, a, b, dtype)
    result = BINARY[op](a, b)
    return in_range(result, out_dtype)


def _float_binary(op: str, a: Element, b: Element, dtype: int) -> Result:
    if isinstance(a, Sym) or isinstance(b, Sym):
        if op == "Div" and isinstance(b, float) and b.is_integer() and b != 0:
            quotient = dims.truncdiv(a, int(b)) if isinstance(a, Sym) else None
            return quotient if quotient is not None and quotient * int(b) == a else None
        if op not in _SYM_IN_FLOAT:
            return None
        sides: list[Any] = []
        for side in (a, b):
            if isinstance(side, float):
                if not side.is_integer():
                    return None
                side = int(side)
            sides.append(side)
        result = BINARY[op](*sides)
        return result if isinstance(result, bool) else exact_in_float(result)
    kind = _FLOATS.get(dtype)
    if kind is None or op not in _FLOAT_BINARY:
        return None
    with np.errstate(all="ignore"):
        outcome = _FLOAT_BINARY[op](kind(a), kind(b))
    if isinstance(outcome, bool):
        return outcome
    return float(outcome) if math.isfinite(outcome) else None


def exact_in_float(element: Any) -> Result:
    """An integer as the element of a float tensor, if that holds it exactly (see the module)."""
    if not isinstance(element, Sym):
        return None if element is None else float(element)
    small = all(len(mono) <= 1 and abs(coef) <= 2**12 for mono, coef in element.terms)
    return element if small and is_dim_arithmetic(element) else None


# -- operations on one element --------------------------------------------------------------------------


def cast(element: Element, source: int, target: int) -> Result:
    """`element` of a tensor of type `source`, cast to `target`."""
    if source == target:
        return element
    if isinstance(element, Sym):
        if target == BOOL:
            zero = dims.equal(element, 0)
            return None if zero is None else not zero
        if target in FLOATS:
            # A half holds integers up to 2**11 only: smaller than dims are.
            return exact_in_float(element) if target in (FLOAT, DOUBLE) else None
        return element if target in _RANGES and is_dim_arithmetic(element) else None
    if target == BOOL:
        return bool(element)
    if target in _RANGES:
        return in_range(int(element), target) if math.isfinite(element) else None
    kind = _FLOATS.get(target)
    if kind is None:
        return None
    with np.errstate(all="ignore"):
        converted = float(kind(element))
    return converted if math.isfinite(converted) else None


def unary(op: str, a: Any, dtype: int) -> Result:
    """`op` on one element of a tensor of type `dtype`."""
    if op == "Not":
        return _negate(a)
    if op == "Neg":
        return in_range(-a, dtype)
    if op == "Abs":
        if dims.at_least(a, 0) if isinstance(a, Sym) else a >= 0:
            return a  # type: ignore[no-any-return]
        return None if isinstance(a, Sym) else in_range(-a, dtype)
    if op in ("Floor", "Ceil", "Round"):
        if isinstance(a, Sym):
            return a
        if op == "Round":
            return float(round(a))  # both round halves to even
        return float(math.floor(a) if op == "Floor" else math.ceil(a))
    return None


VALUE_UNARY: Final = frozenset({"Not", "Neg", "Abs", "Floor", "Ceil", "Round"})
