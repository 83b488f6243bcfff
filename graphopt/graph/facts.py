"""What is known about the tensors of a model: shape, dtype, and the elements of small tensors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from graphopt.graph.dims import Dim, Sym, fresh_dim, fresh_int, symbol
from graphopt.graph.rules import RULES
from graphopt.graph.rules.call import (
    BOOL,
    DOUBLE,
    FLOAT,
    FLOAT16,
    INTEGERS,
    MAX_ELEMENTS,
    WIDE_INTEGERS,
    Call,
    Element,
    Rule,
    Shape,
    SymValue,
    Unknown,
)
from graphopt.graph.rules.sources import array_facts
from graphopt.graph.rules.values import count
from graphopt.graph.schema_shapes import Hint
from graphopt.io.dtypes import onnx_dtype
from graphopt.ir import Constant, Node, Tensor

__all__ = ["Element", "Facts", "FunctionKey", "Shape", "SymValue"]

# (domain, name, overload) of a model-local function.
FunctionKey = tuple[str, str, str]
# Element type and shape of each item, of a sequence of known length.
Sequence = tuple[int | None, tuple[Shape | None, ...]]
Saved = tuple[int | None, Shape | None, SymValue | None]

_READABLE = INTEGERS | {BOOL, FLOAT, DOUBLE, FLOAT16}
# Unknown elements are named only where there are few: shapes, not tokens.
_MAX_UNKNOWN = 16
_NO_VALUE: SymValue = ("",)  # type: ignore[assignment]


class Facts:
    """Facts about tensors, by identity. What is not known is None; nothing declared is believed.

    Facts hold for every run of the model that does not fail. Dims that are not known are symbols of
    their own, so two dims that compare equal *are* equal. Known limits of what is claimed: where a
    Reshape target with a symbolic dim meets a size of 0 at run time, ONNX copies an input dim instead.

    Args:
        functions: keys of the model's local functions, whose calls no operator rule applies to.
        strict: let the exceptions of rules through, which an invalid model can cause.
    """

    def __init__(self, functions: Iterable[FunctionKey] = (), *, strict: bool = False) -> None:
        self.functions = frozenset(functions)
        self.strict = strict
        self._shapes: dict[Tensor, Shape] = {}
        self._dtypes: dict[Tensor, int] = {}
        self._values: dict[Tensor, SymValue] = {}
        self._sequences: dict[Tensor, Sequence] = {}
        # What ONNX's own inference says about the body that is being inferred, by tensor name.
        self.hints: dict[str, Hint] = {}
        # Symbols of loop-carried dims that may differ from iteration to iteration, by loop.
        self.local_dims: dict[Node, frozenset[Dim]] = {}

    # -- questions ---------------------------------------------------------------------------------

    def shape(self, tensor: Tensor) -> Shape | None:
        """Dims; None where the rank is unknown or the tensor is none (an omitted one, a sequence)."""
        found = self._shapes.get(tensor)
        if found is None and isinstance(tensor, Constant):
            found = self._shapes[tensor] = tuple(int(d) for d in tensor._values.shape)
        return found

    def dtype(self, tensor: Tensor) -> int | None:
        """The element type, an `onnx.TensorProto.DataType`."""
        found = self._dtypes.get(tensor)
        if found is None and isinstance(tensor, Constant):
            found = self._dtypes[tensor] = onnx_dtype(tensor._values.dtype)
        return found

    def value(self, tensor: Tensor) -> SymValue | None:
        """The elements in row-major order (the rank is `shape`'s), of tensors of up to 64 elements.

        Elements of boolean tensors are bools; a `Sym` in a float tensor is an integer.
        """
        found = self._values.get(tensor)
        if found is None and isinstance(tensor, Constant):
            found = self._values[tensor] = self._read(tensor)
        return None if found is _NO_VALUE else found

    def elements(self, tensor: Tensor) -> SymValue | None:
        """As `value`, but unknown elements of a small integer vector or scalar become symbols, for good."""
        found = self.value(tensor)
        if found is None and self._dtypes.get(tensor) in WIDE_INTEGERS and tensor.name:
            shape = self._shapes.get(tensor)
            if shape is not None and len(shape) <= 1:
                size = count(shape)
                if size is not None and size <= _MAX_UNKNOWN and not isinstance(tensor, Constant):
                    found = self._values[tensor] = tuple(fresh_int() for _ in range(size))
        return found

    def constant_facts(self, value: Any) -> tuple[int | None, Shape | None, SymValue | None]:
        """dtype, shape and value of a tensor attribute, in any form that attributes come in."""
        if isinstance(value, onnx.TensorProto):
            value = onnx.numpy_helper.to_array(value)
        if isinstance(value, np.ndarray):
            return array_facts(value)
        if isinstance(value, gs.Constant):
            values = value._values
            shape = tuple(int(d) for d in values.shape)
            dtype = onnx_dtype(values.dtype)
            known = _read(values) if dtype in _READABLE and count(shape) is not None else None
            return dtype, shape, None if known is _NO_VALUE else known
        return None, None, None

    def _read(self, tensor: Constant) -> SymValue:
        if self.dtype(tensor) not in _READABLE or count(self.shape(tensor)) is None:
            return _NO_VALUE
        return _read(tensor._values)

    # -- statements --------------------------------------------------------------------------------

    def set(
        self,
        tensor: Tensor,
        shape: Shape | None = None,
        dtype: int | None = None,
        value: SymValue | None = None,
    ) -> None:
        """Replace what is known by the facts that are given; None leaves that kind of fact alone."""
        if shape is not None:
            self._shapes[tensor] = tuple(shape)
        if dtype is not None:
            self._dtypes[tensor] = dtype
        if value is not None:
            self._values[tensor] = tuple(value)

    def set_constant(self, tensor: Constant) -> None:
        """Forget what was known about `tensor`, whose array says it all."""
        self.forget(tensor)

    def forget(self, tensor: Tensor) -> None:
        """Drop everything known about `tensor`."""
        self._shapes.pop(tensor, None)
        self._dtypes.pop(tensor, None)
        self._values.pop(tensor, None)
        self._sequences.pop(tensor, None)

    def forget_shape(self, tensor: Tensor) -> None:
        """Drop shape and value."""
        self._shapes.pop(tensor, None)
        self._values.pop(tensor, None)

    def save(self, tensor: Tensor) -> Saved:
        """What is stored about `tensor`, for `restore`."""
        return self._dtypes.get(tensor), self._shapes.get(tensor), self._values.get(tensor)

    def restore(self, tensor: Tensor, saved: Saved) -> None:
        """Put back what `save` returned."""
        self.forget(tensor)
        dtype, shape, value = saved
        self.set(tensor, shape, dtype, value)

    def refine(self, tensor: Tensor, saved: Saved) -> bool:
        """Keep of what was just inferred about `tensor` only what is more precise than `saved`.

        Facts that are as good stay, since others were derived from them.

        Returns:
            Whether anything was more precise.
        """
        dtype, shape, value = self.save(tensor)
        old_dtype, old_shape, old_value = saved
        best: Saved = (
            dtype if old_dtype is None else old_dtype,
            shape if old_shape is None else _refined(old_shape, shape),
            value if old_value is None else _refined(old_value, value),
        )
        self._store(tensor, *best)
        return best != saved

    def merge(self, a: Tensor, b: Tensor) -> None:
        """State that `b` is the same value as `a`: both get the more precise facts of the two.

        Where they contradict each other that fact becomes unknown.
        """
        dtype_a, dtype_b = self.dtype(a), self.dtype(b)
        dtype = dtype_a if dtype_b is None else dtype_b if dtype_a is None else dtype_a
        if dtype_a is not None and dtype_b is not None and dtype_a != dtype_b:
            dtype = None
        shape = merge_shapes(self.shape(a), self.shape(b))
        value = _merge_values(self.value(a), self.value(b))
        for tensor in (a, b):
            if not isinstance(tensor, Constant) and tensor.name:
                self._store(tensor, dtype, shape, value)

    def state(self, tensor: Tensor, dtype: int | None, shape: Shape | None, value: SymValue | None) -> None:
        """Set all that is known about an output, reconciled with the hint of the same name, if any."""
        name = tensor.name
        if not name:
            return
        if self.hints:
            hint = self.hints.pop(name, None)
            if hint is not None and (hint[0] != dtype or hint[1] != shape):
                dtype, shape = _reconcile(dtype, shape, hint)
        self._store(tensor, dtype, shape, value)

    def sequence(self, tensor: Tensor) -> Sequence | None:
        """Element type and the items' shapes of a sequence of known length."""
        return self._sequences.get(tensor)

    def state_sequence(self, tensor: Tensor, dtype: int | None, items: tuple[Shape | None, ...]) -> None:
        """Set what is known about a sequence."""
        self.hints.pop(tensor.name, None)
        self._sequences[tensor] = dtype, items

    def _store(self, tensor: Tensor, dtype: int | None, shape: Shape | None, value: SymValue | None) -> None:
        if dtype is None:
            self._dtypes.pop(tensor, None)
        else:
            self._dtypes[tensor] = dtype
        if shape is None:
            self._shapes.pop(tensor, None)
        else:
            self._shapes[tensor] = shape
        if value is None or len(value) > MAX_ELEMENTS or count(shape) != len(value):
            self._values.pop(tensor, None)
        else:
            self._values[tensor] = value

    # -- inference ---------------------------------------------------------------------------------

    def rule(self, node: Node) -> Rule | None:
        """The rule of the standard operator that `node` is."""
        rules = RULES.get(node.domain)
        if rules is None:
            return None
        if self.functions and (node.domain, node.op, node.overload) in self.functions:
            return None
        return rules.get(node.op)

    def infer_node(self, node: Node, opset_imports: Mapping[str, int]) -> None:
        """Facts of the outputs of `node` from those of its inputs, and of its bodies' outputs.

        Outputs that nothing can be said about keep the facts they have.
        """
        rule = self.rule(node)
        if rule is None or (not node.domain and not opset_imports.get("")):
            return
        try:
            rule(Call(self, node, opset_imports))
        except Unknown:
            pass
        except Exception:
            # Rules trust the model to be valid; on one that is not, anything may happen in them.
            if self.strict:
                raise

    def apply_hint(self, tensor: Tensor) -> None:
        """Take what ONNX's inference says about `tensor`, which no rule has spoken of."""
        hint = self.hints.pop(tensor.name, None)
        if hint is not None:
            dtype, shape = _reconcile(None, None, hint)
            self._store(tensor, dtype, shape, None)


def _read(values: Any) -> SymValue:
    """Elements of a small array or lazy array; `_NO_VALUE` if some cannot be represented."""
    _, _, value = array_facts(values if isinstance(values, np.ndarray) else values.load())
    return _NO_VALUE if value is None else value


def _refined(old: tuple[Any, ...], new: tuple[Any, ...] | None) -> tuple[Any, ...]:
    """`old`, with the elements of `new` where those are known, or named, and the old ones are not."""
    if new is None or len(new) != len(old) or new == old:
        return old
    return tuple(b if _is_better(a, b) else a for a, b in zip(old, new, strict=True))


def _is_better(old: Any, new: Any) -> bool:
    if not isinstance(old, Sym):
        return False
    return not isinstance(new, Sym) or (old.is_anonymous and not new.is_anonymous)


# -- two opinions --------------------------------------------------------------------------------------


def _reconcile(dtype: int | None, shape: Shape | None, hint: Hint) -> tuple[int | None, Shape | None]:
    """What a rule says and what ONNX's inference says; where they contradict each other, nothing."""
    hint_dtype, hint_shape = hint
    if dtype is None:
        dtype = hint_dtype
    elif hint_dtype is not None and hint_dtype != dtype:
        dtype = None
    if hint_shape is None:
        return dtype, shape
    if shape is None:
        return dtype, tuple(
            d if isinstance(d, int) else fresh_dim() if d is None else symbol(d) for d in hint_shape
        )
    if len(shape) != len(hint_shape):
        return dtype, None
    merged: list[Dim] = []
    for ours, theirs in zip(shape, hint_shape, strict=True):
        if not isinstance(theirs, int) or ours == theirs:
            merged.append(ours)
        elif isinstance(ours, int):
            merged.append(fresh_dim())
        else:  # a formula of known dims is trusted more than an int that may come from a misread dim
            merged.append(theirs if ours.is_anonymous else ours)
    return dtype, tuple(merged)


def merge_shapes(a: Shape | None, b: Shape | None) -> Shape | None:
    """The shape that `a` and `b` both are. Dims that contradict each other become unknown, ranks None."""
    if a is None or b is None or a == b:
        return b if a is None else a
    if len(a) != len(b):
        return None
    return tuple(x if x == y else _merge_dims(x, y) for x, y in zip(a, b, strict=True))


def _merge_dims(a: Dim, b: Dim) -> Dim:
    if isinstance(a, int):
        return fresh_dim() if isinstance(b, int) else a
    if isinstance(b, int):
        return b
    return b if _anonymous(a) > _anonymous(b) else a


def _anonymous(dim: Sym) -> tuple[bool, int]:
    """Sort key: what is made of named symbols first, then what is short."""
    return dim.is_anonymous, len(str(dim))


def _merge_values(a: SymValue | None, b: SymValue | None) -> SymValue | None:
    if a is None or b is None or a == b:
        return b if a is None else a
    if len(a) != len(b):
        return None
    merged: list[Element] = []
    for x, y in zip(a, b, strict=True):
        if isinstance(x, Sym) and isinstance(y, Sym):
            merged.append(_merge_dims(x, y))
        elif isinstance(x, Sym):
            merged.append(y)
        elif isinstance(y, Sym) or x == y:
            merged.append(x)
        else:
            return None
    return tuple(merged)
