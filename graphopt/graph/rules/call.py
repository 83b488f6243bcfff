"""What a rule sees: one node with the facts about its inputs, and where to put those about its outputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from graphopt.graph.dims import Dim, Sym
from graphopt.ir import AttributeRef, Node, Tensor

if TYPE_CHECKING:
    from graphopt.graph.facts import Facts

Element: TypeAlias = int | float | Sym
Shape: TypeAlias = tuple[Dim, ...]
SymValue: TypeAlias = tuple[Element, ...]

# onnx.TensorProto.DataType, as plain ints.
FLOAT, UINT8, INT8, UINT16, INT16, INT32, INT64, STRING, BOOL, FLOAT16, DOUBLE, UINT32, UINT64 = range(1, 14)
COMPLEX64, COMPLEX128, BFLOAT16 = 14, 15, 16
INTEGERS = frozenset({UINT8, INT8, UINT16, INT16, INT32, INT64, UINT32, UINT64})
WIDE_INTEGERS = frozenset({INT32, INT64})

# Values are followed through tensors of up to this many elements.
MAX_ELEMENTS = 64


class Unknown(Exception):
    """Raised by a rule (or on its behalf) when nothing can be said about the node's outputs."""


class Call:
    """One node, its inputs' facts and its opset.

    Attributes:
        facts: where facts are read and written.
        node: the node.
        opset: version of the node's domain that is in force; 0 when the body does not import it.
        opsets: all opset imports of the body.
    """

    __slots__ = ("facts", "node", "opset", "opsets")

    def __init__(self, facts: Facts, node: Node, opsets: Mapping[str, int]) -> None:
        self.facts, self.node, self.opsets = facts, node, opsets
        self.opset = opsets.get(node.domain, 0)

    def tensor(self, slot: int) -> Tensor | None:
        """Input `slot`; None where it is absent or empty."""
        inputs = self.node.inputs
        if slot >= len(inputs):
            return None
        tensor = inputs[slot]
        return tensor if tensor.name else None

    def shape(self, slot: int) -> Shape | None:
        """Shape of input `slot`; None where its rank is unknown or it is absent."""
        inputs = self.node.inputs
        return self.facts.shape(inputs[slot]) if slot < len(inputs) else None

    def need_shape(self, slot: int) -> Shape:
        """Shape of input `slot`.

        Raises:
            Unknown: the rank is unknown.
        """
        shape = self.shape(slot)
        if shape is None:
            raise Unknown
        return shape

    def dtype(self, slot: int) -> int | None:
        """Data type of input `slot`."""
        inputs = self.node.inputs
        return self.facts.dtype(inputs[slot]) if slot < len(inputs) else None

    def value(self, slot: int) -> SymValue | None:
        """Elements of input `slot` in row-major order, if they are known."""
        inputs = self.node.inputs
        return self.facts.value(inputs[slot]) if slot < len(inputs) else None

    def elements(self, slot: int) -> SymValue | None:
        """As `value`, with anonymous symbols for unknown elements of a small integer tensor."""
        inputs = self.node.inputs
        return self.facts.elements(inputs[slot]) if slot < len(inputs) else None

    def ints(self, slot: int) -> list[int] | None:
        """Elements of input `slot` if all are known ints."""
        value = self.value(slot)
        return None if value is None else known_ints(value)

    def attr(self, name: str, default: Any = None) -> Any:
        """Attribute `name`.

        Raises:
            Unknown: it refers to an attribute of the enclosing function.
        """
        value = self.node.attrs.get(name, default)
        if isinstance(value, AttributeRef):
            raise Unknown
        return value

    def out(
        self, slot: int, dtype: int | None, shape: Sequence[Dim] | None, value: SymValue | None = None
    ) -> None:
        """State the facts of output `slot`, if the node has it."""
        outputs = self.node.outputs
        if slot < len(outputs):
            self.facts.state(outputs[slot], dtype, None if shape is None else tuple(shape), value)


Rule: TypeAlias = Callable[[Call], None]


def known_ints(value: Sequence[Element]) -> list[int] | None:
    """`value` if all its elements are ints."""
    return list(value) if all(isinstance(e, int) for e in value) else None  # type: ignore[arg-type]


def dims_of(value: SymValue) -> tuple[Dim, ...]:
    """`value` as dims.

    Raises:
        Unknown: it holds floats.
    """
    if any(isinstance(e, float) for e in value):
        raise Unknown
    return value  # type: ignore[return-value]


def axis_of(axis: int, rank: int) -> int:
    """`axis` counted from the front.

    Raises:
        Unknown: there is no such axis: the model is invalid.
    """
    if not -rank <= axis < rank:
        raise Unknown
    return axis + rank if axis < 0 else axis
