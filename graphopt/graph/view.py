"""What a pass may ask about one body of the model."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from graphopt.graph.cost import CostModel
from graphopt.graph.dims import Dim
from graphopt.graph.facts import SymValue
from graphopt.graph.index import Use, is_function_call
from graphopt.graph.mentions import unreachable_functions, unused_opset_imports
from graphopt.graph.schema import defaults, has_op
from graphopt.graph.state import GraphState
from graphopt.io.weights import FileValues, SparseProtoValues
from graphopt.ir import Body, Constant, Function, Node, Tensor
from graphopt.model import Model

Array = NDArray[Any]
# From this size on it matters whether a weight that was read stays in memory.
_MAPPED_BYTES = 1 << 16


class GraphView:
    """One body, read only. Tensors of outer bodies can be asked about as well."""

    def __init__(self, state: GraphState, body: Body) -> None:
        self._state = state
        self._index = state.index
        self.body = body
        self._opsets = state.opsets(body)

    # -- the body --------------------------------------------------------------------------------

    @property
    def inputs(self) -> list[Any]:
        """The body's inputs, overridable initializers included."""
        return self.body.inputs

    @property
    def outputs(self) -> list[Tensor]:
        """The body's outputs."""
        return self.body.outputs

    @property
    def opset(self) -> int:
        """Version of the standard operator set; 0 when the body does not import it."""
        return self._opsets.get("", 0)

    def opset_of(self, domain: str) -> int | None:
        """Version of the operator set `domain`, None when the body does not import it."""
        return self._opsets.get(domain)

    @property
    def ir_version(self) -> int:
        """The file format's version."""
        return int(self._state.model.ir_version)

    def is_sparse(self, constant: Constant) -> bool:
        """Whether a constant is stored as a sparse tensor."""
        return isinstance(constant._values, SparseProtoValues)

    @property
    def is_function(self) -> bool:
        """The body is a model-local function."""
        return isinstance(self.body, Function)

    @property
    def is_main(self) -> bool:
        """The body is the model's main graph."""
        return self.body is self._state.model.graph

    @property
    def label(self) -> str:
        """The body's name, for messages."""
        return self._state.label(self.body)

    @property
    def node_count(self) -> int:
        """Number of nodes of the body, without those in nested bodies."""
        return len(self._index.nodes[self.body])

    def has_op(self, op: str, domain: str = "") -> bool:
        """Whether a node of type `op` may stand in this body as far as its opset goes."""
        version = self._opsets.get(domain)
        return version is not None and has_op(op, domain, version)

    def unreachable_functions(self) -> list[Function]:
        """Local functions of the model that nothing calls, even indirectly."""
        return unreachable_functions(self._state)

    def unused_opset_imports(self) -> list[str]:
        """Domains other than the standard one that this body, main or a function, imports for nothing."""
        return unused_opset_imports(self._state, self.body)

    # -- nodes -----------------------------------------------------------------------------------

    def nodes(self) -> list[Node]:
        """The nodes in topological order."""
        return self._state.ordered(self.body)

    def by_op(self, *ops: str, domain: str = "") -> list[Node]:
        """Nodes of the types `ops` of `domain`, roughly in topological order.

        Calls of a model-local function that has the name of an operator are not among them.
        """
        table = self._index.by_op[self.body]
        found: list[Node] = []
        for op in ops:
            if (domain, op) not in self._index.function_ops:
                found.extend(table.get((domain, op), ()))
        return found

    def is_op(self, node: Node | None, *ops: str, domain: str = "") -> bool:
        """Whether `node` is one of the operators `ops` of `domain` (and not a local function)."""
        return (
            node is not None
            and node.op in ops
            and (node.domain or "") == domain
            and not is_function_call(self._index, node)
        )

    def is_live(self, node: Node) -> bool:
        """Whether `node` still stands in this body."""
        return self._index.home.get(node) is self.body

    def attr(self, node: Node, name: str) -> Any:
        """The attribute's value, or the schema's default for this opset, or None.

        A value that refers to an attribute of the enclosing function is returned as an AttributeRef.
        """
        if name in node.attrs:
            return node.attrs[name]
        domain = node.domain or ""
        return defaults(node.op, domain, self._opsets.get(domain, 1)).get(name)

    def input(self, node: Node, slot: int) -> Tensor | None:
        """The tensor at input `slot`, None when it is omitted."""
        if slot < len(node.inputs) and node.inputs[slot].name:
            return node.inputs[slot]
        return None

    def output(self, node: Node, slot: int) -> Tensor | None:
        """The tensor at output `slot`, None when it is omitted."""
        if slot < len(node.outputs) and node.outputs[slot].name:
            return node.outputs[slot]
        return None

    def flops(self) -> int:
        """Arithmetic operations of the body's nodes, as far as shapes tell; a symbolic dim counts as 1."""
        model = CostModel(self._state.facts, {})
        return sum(model.flops(node) or 0 for node in self.nodes())

    # -- tensors ---------------------------------------------------------------------------------

    def producer(self, tensor: Tensor | None) -> Node | None:
        """The node that computes `tensor`; None for inputs, initializers and omitted tensors."""
        return None if tensor is None else self._index.producer.get(tensor)

    def producer_op(self, tensor: Tensor | None, *ops: str) -> Node | None:
        """The node that computes `tensor` if it is one of the standard operators `ops`."""
        node = self.producer(tensor)
        return node if node is not None and self.is_op(node, *ops) else None

    def is_local(self, tensor: Tensor) -> bool:
        """Whether `tensor` is computed by a node of this very body."""
        node = self._index.producer.get(tensor)
        return node is not None and self._index.home[node] is self.body

    def uses(self, tensor: Tensor) -> list[Use]:
        """Every slot that reads `tensor`, including those of nodes in nested bodies."""
        return self._index.uses(tensor)

    def consumers(self, tensor: Tensor) -> list[Node]:
        """The nodes that read `tensor`, each once, including nodes in nested bodies."""
        return list(self._index.readers.get(tensor, ()))

    def n_uses(self, tensor: Tensor) -> int:
        """Number of slots that read `tensor`; returning it from a body does not count."""
        return sum(self._index.readers.get(tensor, {}).values())

    def is_output(self, tensor: Tensor) -> bool:
        """Whether any body returns `tensor`."""
        return tensor in self._index.output_slots

    def is_input(self, tensor: Tensor) -> bool:
        """Whether `tensor` is an input of this body."""
        return any(tensor is t for t in self.body.inputs)

    def is_read(self, tensor: Tensor) -> bool:
        """Whether a node reads `tensor` or a body returns it."""
        return self._index.is_read(tensor)

    def only_read_by(self, tensor: Tensor, nodes: Collection[Node]) -> bool:
        """Whether all readers are among `nodes` and no body returns `tensor`."""
        if tensor in self._index.output_slots:
            return False
        return all(reader in nodes for reader in self._index.readers.get(tensor, ()))

    def sole_consumer(self, tensor: Tensor) -> Node | None:
        """The one node that reads `tensor`, in one slot, when no body returns it."""
        if tensor in self._index.output_slots:
            return None
        readers = self._index.readers.get(tensor, {})
        if len(readers) != 1:
            return None
        ((node, slots),) = readers.items()
        return node if slots == 1 else None

    def keeps(self, thing: Node | Tensor) -> bool:
        """Whether the user asked that this node or tensor be left alone."""
        return self._state.keeps(thing)

    # -- constants -------------------------------------------------------------------------------

    def constant(self, tensor: Tensor | None) -> Constant | None:
        """The constant behind `tensor`: an initializer, or the value of a Constant node.

        Overridable initializers (inputs with a default) are not constant, and initializers that the user
        asked to keep do not count as such: nothing may be made of their values.
        """
        if isinstance(tensor, Constant):
            return None if self.keeps(tensor) else tensor
        node = self.producer_op(tensor, "Constant")
        if node is not None:
            value = node.attrs.get("value")
            if isinstance(value, Constant):
                return value
        return None

    def is_constant(self, tensor: Tensor | None) -> bool:
        """Whether the value of `tensor` is known and cannot be overridden."""
        return self.constant(tensor) is not None

    def snapshot(self, *, swept: bool = False) -> Model:
        """The whole model as it now stands, to be run: read it before the next change, do not change it.

        Args:
            swept: erase first what a trial left without readers. Runtimes execute such nodes: they change
                no output, but take time.
        """
        return self._state.finish(swept=swept)

    def array(self, tensor: Tensor | None) -> Array | None:
        """The values of a constant, None when `tensor` is not one. Loads weights; do not write to it."""
        found = self.constant(tensor)
        if found is None:
            return None
        self._lend(found)
        values: Array = found.values
        return values

    def scalar(self, tensor: Tensor | None) -> Any:
        """The element of a one-element constant as a Python number (or bytes), else None."""
        found = self.constant(tensor)
        if found is None or int(np.prod(found.shape)) != 1:
            return None
        return found.values.reshape(-1)[0].item()

    def ints(self, tensor: Tensor | None) -> list[int] | None:
        """The elements of a constant integer tensor of rank 0 or 1, else None."""
        found = self.constant(tensor)
        if found is None or len(found.shape) > 1 or int(np.prod(found.shape)) > 1024:
            return None
        values = found.values
        if values.dtype.kind not in "iu":
            return None
        return [int(v) for v in values.reshape(-1)]

    def content(self, constant: Constant) -> Hashable:
        """The bytes of a constant as they are stored, which stay on disk, or its strings.

        Two dense constants of one dtype and shape are the same bit for bit if and, where both come from
        files or both are in memory, only if their contents are equal.
        """
        self._lend(constant)
        values = constant._values
        if isinstance(values, FileValues):
            return values.region.view()
        array = values if isinstance(values, np.ndarray) else values.load()
        if array.dtype.hasobject:
            return tuple(array.reshape(-1).tolist())
        flat: Any = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        return memoryview(flat).toreadonly()

    def _lend(self, constant: Constant) -> None:
        nbytes = constant.nbytes
        if nbytes >= _MAPPED_BYTES:
            self._state.model.lend(nbytes)

    def enclosing(self) -> list[Body]:
        """The bodies around this one, innermost first."""
        return [self._index.home[holder] for holder in self._index.holders(self.body)]

    def readable(self, constants: Iterable[Constant]) -> list[Constant]:
        """Of initializers of enclosing bodies, those that every node in here can read under their name."""
        index = self._index
        left: dict[Body, list[Constant]] = {}
        for constant in constants:
            home = index.constant_home.get(constant)
            if home is not None:
                left.setdefault(home, []).append(constant)
        found: list[Constant] = []
        hidden: set[str] | None = None
        for body in self.enclosing():
            if not left:
                break
            if hidden is None:
                hidden = set(self._names_inside())
            found.extend(c for c in left.pop(body, ()) if c.name not in hidden)
            if left:
                hidden.update(self._names_of(body))
        return found

    def _names_inside(self) -> Iterator[str]:
        stack = [self.body]
        while stack:
            body = stack.pop()
            yield from self._names_of(body)
            stack.extend(inner for node in self._index.nodes[body] for inner in node.bodies())

    def _names_of(self, body: Body) -> Iterator[str]:
        yield from (t.name for t in body.inputs)
        yield from (t.name for t in body.initializers)
        yield from (t.name for node in self._index.nodes[body] for t in node.outputs)

    # -- facts -----------------------------------------------------------------------------------

    def shape(self, tensor: Tensor | None) -> tuple[Dim, ...] | None:
        """The symbolic shape, None when not even the rank is known."""
        return None if tensor is None else self._state.facts.shape(tensor)

    def static_shape(self, tensor: Tensor | None) -> tuple[int, ...] | None:
        """The shape if every dimension is a known number."""
        shape = self.shape(tensor)
        if shape is None or not all(isinstance(d, int) for d in shape):
            return None
        return tuple(d for d in shape if isinstance(d, int))

    def rank(self, tensor: Tensor | None) -> int | None:
        """Number of dimensions."""
        shape = self.shape(tensor)
        return None if shape is None else len(shape)

    def dtype(self, tensor: Tensor | None) -> int | None:
        """Element type as onnx.TensorProto.DataType, None when unknown."""
        return None if tensor is None else self._state.facts.dtype(tensor)

    def sym_value(self, tensor: Tensor | None) -> SymValue | None:
        """The symbolic elements of a small integer tensor, where they are known."""
        return None if tensor is None else self._state.facts.value(tensor)
