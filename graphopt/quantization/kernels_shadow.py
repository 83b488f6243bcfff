"""A body as onnxruntime's optimizer sees it: a small graph of its own that may be rewritten freely.

Tensors are the model's own tensor objects, or fresh objects for those that a rewrite makes. Operators
remember the nodes of the model that they stand for.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Final

import numpy as np
import onnx
import onnx.defs

from graphopt.graph.view import Array, GraphView
from graphopt.ir import Constant, Node

Key = Hashable
Q: Final = "QuantizeLinear"
DQ: Final = "DequantizeLinear"
_MICROSOFT: Final = "com.microsoft"
# Values matter of scales and zero points only, which are vectors; not of weights.
_SMALL: Final = 1 << 16
# Constants that onnxruntime compares by value: of these types, and with no more elements than this.
_MERGED: Final = frozenset(
    getattr(onnx.TensorProto, t) for t in "FLOAT FLOAT16 DOUBLE BFLOAT16 INT32 INT64".split()
)
_MERGED_SIZE: Final = 8


@lru_cache(maxsize=1024)
def since_version(op: str, opset: int) -> int:
    """The opset in which the definition of `op` that `opset` uses came in; 0 for an unknown operator."""
    try:
        return int(onnx.defs.get_schema(op, opset).since_version)
    except onnx.defs.SchemaError:
        return 0


class Made:
    """A tensor that a rewrite made.

    Args:
        like: the tensor whose name people know it by, and whose shape it has.
        shaped: it does have that shape.
    """

    __slots__ = ("like", "shaped")

    def __init__(self, like: Key | None, *, shaped: bool = True) -> None:
        made = like if isinstance(like, Made) else None
        self.like: Key | None = like if made is None else made.like
        self.shaped: bool = shaped and (made is None or made.shaped)


@dataclass(eq=False)
class Op:
    """An operator.

    Attributes:
        op, domain: its type.
        inputs, outputs: tensors; None where one is left out.
        attrs: attributes.
        nodes: nodes of the model that it stands for; the first gave it its name.
        captures: tensors that bodies inside of it read.
    """

    op: str
    inputs: list[Key | None]
    outputs: list[Key | None]
    attrs: dict[str, Any] = field(default_factory=dict)
    nodes: tuple[Node, ...] = ()
    domain: str = ""
    captures: tuple[Key, ...] = ()

    def input(self, slot: int) -> Key | None:
        """The tensor at `slot`, None when it is left out."""
        return self.inputs[slot] if slot < len(self.inputs) else None

    @property
    def result(self) -> Key | None:
        """The first output."""
        return self.outputs[0] if self.outputs else None

    @property
    def label(self) -> str:
        """What a person finds it by."""
        node = self.nodes[0] if self.nodes else None
        return f"{self.op} {node.name or node.outputs[0].name}" if node is not None else self.op


@dataclass(frozen=True)
class Literal:
    """What is known of a constant: its element type and shape, and its values if they are few."""

    dtype: int
    shape: tuple[int, ...]
    values: Array | None = None

    @property
    def is_scalar(self) -> bool:
        """One element, in the eyes of onnxruntime: rank 0, or rank 1 of length 1."""
        return self.shape in ((), (1,))

    @property
    def number(self) -> float | None:
        """The element of a one-element constant."""
        if self.values is None or self.values.size != 1:
            return None
        return float(self.values.reshape(-1)[0])


class Shadow:
    """The operators of one body, and who reads and computes what."""

    def __init__(self, view: GraphView) -> None:
        self.view = view
        self.opset = view.opset
        self.ops: dict[Op, None] = {}
        self.producer: dict[Key, Op] = {}
        self.readers: dict[Key, list[tuple[Op, int]]] = {}
        self.returned: set[Key] = {t for t in view.outputs if t.name}
        self._literals: dict[Key, Literal | None] = {}
        self._types: dict[Key, int] = {}
        self._shared: Counter[Hashable] | None = None
        for node in view.nodes():
            if view.is_op(node, "Constant"):
                continue
            self.add(
                Op(
                    node.op,
                    [t if t.name else None for t in node.inputs],
                    [t if t.name else None for t in node.outputs],
                    node.attrs,
                    (node,),
                    node.domain or "",
                    tuple(self._captures(node)),
                )
            )

    def _captures(self, node: Node) -> Iterator[Key]:
        stack = list(node.bodies())
        while stack:
            body = stack.pop()
            own = {*body.inputs, *body.initializers, *(t for n in body.nodes for t in n.outputs)}
            read = [*body.outputs, *(t for n in body.nodes for t in n.inputs)]
            yield from (t for t in dict.fromkeys(read) if t.name and t not in own)
            stack.extend(inner for n in body.nodes for inner in n.bodies())

    # -- reading -----------------------------------------------------------------------------------

    def is_op(self, op: Op | None, *names: str) -> bool:
        """Whether `op` is one of these standard operators (Q and DQ also of com.microsoft)."""
        if op is None or op.op not in names:
            return False
        if op.domain:
            return op.domain == _MICROSOFT and op.op in (Q, DQ)
        return not op.nodes or self.view.is_op(op.nodes[0], op.nodes[0].op)

    def version(self, op: Op) -> int:
        """The opset in which the definition of a standard operator came in."""
        return since_version(op.op, self.opset)

    def source(self, key: Key | None, *names: str) -> Op | None:
        """What computes `key`, if it is one of `names`."""
        op = None if key is None else self.producer.get(key)
        return op if self.is_op(op, *names) else None

    def edges(self, key: Key | None) -> list[tuple[Op, int]]:
        """Every reading of a tensor by an operator; bodies inside of it count, with slot -1."""
        return [] if key is None else self.readers.get(key, [])

    def sole_reader(self, key: Key | None) -> Op | None:
        """The operator that reads `key` in its only reading, when the body does not return it."""
        edges = self.edges(key)
        if len(edges) != 1 or edges[0][1] < 0 or key in self.returned:
            return None
        return edges[0][0]

    def literal(self, key: Key | None) -> Literal | None:
        """What is known of a constant; None for what is not constant."""
        if key is None:
            return None
        if key not in self._literals:
            self._literals[key] = self._look_up(key)
        return self._literals[key]

    def _look_up(self, key: Key) -> Literal | None:
        constant = self.view.constant(key) if not isinstance(key, Made) else None  # type: ignore[arg-type]
        dtype = self.view.dtype(key) if constant is not None else None  # type: ignore[arg-type]
        if not isinstance(constant, Constant) or dtype is None:
            return None
        shape = tuple(int(d) for d in constant.shape)
        small = len(shape) <= 1 and int(np.prod(shape)) <= _SMALL
        return Literal(dtype, shape, np.asarray(constant.values) if small else None)

    def is_shared(self, key: Key | None) -> bool:
        """Whether several operators read a constant, or one that onnxruntime makes the same as it."""
        if key is None:
            return False
        if self._shared is None:
            self._shared = Counter(self.identity(k) for op in self.ops for k in op.inputs if self.literal(k))
        return self._shared[self.identity(key)] > 1

    def identity(self, key: Key | None) -> Hashable:
        """A tensor, or the value of a small constant: equal ones become one, but those of 8 bits do not."""
        found = self.literal(key)
        if found is None or found.values is None or found.values.size > _MERGED_SIZE:
            return key
        if found.dtype not in _MERGED:
            return key
        return (found.dtype, found.shape, found.values.tobytes())

    def dtype(self, key: Key | None) -> int | None:
        """Element type of a tensor."""
        if key is None:
            return None
        if key in self._types:
            return self._types[key]
        found = self.literal(key)
        if found is not None:
            return found.dtype
        return None if isinstance(key, Made) else self.view.dtype(key)  # type: ignore[arg-type]

    def shape(self, key: Key | None) -> tuple[Any, ...] | None:
        """Symbolic shape of a tensor."""
        found = self.literal(key)
        if found is not None:
            return found.shape
        if isinstance(key, Made):
            return self.shape(key.like) if key.shaped else None
        return None if key is None else self.view.shape(key)  # type: ignore[arg-type]

    def quantized_type(self, op: Op) -> int | None:
        """Integer type of a Q's output or a DQ's input."""
        if op.op == DQ:
            found = self.dtype(op.input(0))
            return found if found is not None else self.dtype(op.input(2))
        if op.result in self._types:
            return self._types[op.result]
        zero = self.dtype(op.input(2))
        return zero if zero is not None else int(op.attrs.get("output_dtype") or onnx.TensorProto.UINT8)

    @staticmethod
    def name(key: Key | None) -> str:
        """A tensor's name, for messages."""
        return str(getattr(key.like if isinstance(key, Made) else key, "name", ""))

    # -- changing ----------------------------------------------------------------------------------

    def add(self, op: Op) -> Op:
        """Link `op` in, behind all others."""
        self.ops[op] = None
        for slot, key in enumerate(op.inputs):
            if key is not None:
                self.readers.setdefault(key, []).append((op, slot))
        for key in op.captures:
            self.readers.setdefault(key, []).append((op, -1))
        for key in op.outputs:
            if key is not None:
                self.producer[key] = op
        return op

    def remove(self, op: Op) -> None:
        """Unlink `op`."""
        del self.ops[op]
        for key in {*op.inputs, *op.captures} - {None}:
            self.readers[key] = [(reader, slot) for reader, slot in self.readers[key] if reader is not op]
        for key in op.outputs:
            if key is not None and self.producer.get(key) is op:
                del self.producer[key]

    def set_input(self, op: Op, slot: int, key: Key) -> None:
        """Let `op` read `key` at `slot`."""
        old = op.inputs[slot]
        if old is not None:
            self.readers[old] = [edge for edge in self.readers[old] if edge != (op, slot)]
        op.inputs[slot] = key
        self.readers.setdefault(key, []).append((op, slot))

    def redirect(self, old: Key, new: Key) -> None:
        """Let everybody who reads `old` read `new`."""
        for op, slot in list(self.edges(old)):
            if slot >= 0:
                self.set_input(op, slot, new)

    def set_output(self, op: Op, key: Key) -> None:
        """Let `op` compute `key` as its first output."""
        old = op.outputs[0]
        if old is not None and self.producer.get(old) is op:
            del self.producer[old]
        op.outputs[0] = key
        self.producer[key] = op

    def set_type(self, key: Key, dtype: int) -> None:
        """Say which element type a made tensor has."""
        self._types[key] = dtype

    def set_literal(self, key: Key, literal: Literal) -> None:
        """Say that a tensor is constant."""
        self._literals[key] = literal

    def resort(self) -> None:
        """Put the operators back into topological order, keeping their order where it is free."""
        order: dict[Op, None] = {}
        for root in self.ops:
            stack = [(root, False)]
            while stack:
                op, expanded = stack.pop()
                if op in order:
                    continue
                if expanded:
                    order[op] = None
                    continue
                stack.append((op, True))
                for key in (*op.inputs, *op.captures):
                    source = self.producer.get(key) if key is not None else None
                    if source is not None and source not in order:
                        stack.append((source, False))
        self.ops = order
