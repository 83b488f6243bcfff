"""Graph objects: onnx-graphsurgeon's classes, compared by identity and carrying their origin.

onnx-graphsurgeon compares nodes and tensors by value and cannot hash them, so that two unnamed nodes
which look alike are "equal" and `list.remove` detaches the wrong one. The subclasses here hash and
compare by identity, which makes every dict, set and `in` mean *this* object.

Each object also keeps the protobuf message it was read from. An object that no pass touched is written
back from that message, which is what makes a round trip lossless: onnx-graphsurgeon itself drops
metadata, doc strings, overloads, denotations, and attribute kinds that it does not know.

`Tensor.inputs` / `Tensor.outputs` (onnx-graphsurgeon's own links) are right whenever no Rewriter is at
work; while one is, ask it instead.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx_graphsurgeon.ir.function import Function as GsFunction
from onnx_graphsurgeon.ir.tensor import LazyValues
from onnx_graphsurgeon.util.misc import SynchronizedList

AttributeRef = gs.Node.AttributeRef

# Past onnx-graphsurgeon's __setattr__, which looks for links. Not through __dict__: the instance would get
# a dict of its own, and that is a quarter of the memory of a large graph.
put = object.__setattr__


class Links(SynchronizedList):  # type: ignore[misc]
    """onnx-graphsurgeon's list of links, without a dict each: a graph has four for every node.

    Args:
        parent_obj: the node or tensor whose links these are.
        field_name: what the other end calls its list of them.
    """

    __slots__ = ("field_name", "parent_obj")

    def __init__(self, parent_obj: gs.Node | gs.Tensor, field_name: str) -> None:
        self.parent_obj = parent_obj
        self.field_name = field_name


class Node(gs.Node):  # type: ignore[misc]
    """One operation. `inputs` may hold empty tensors: omitted optional inputs.

    Attributes:
        origin: the NodeProto it was read from; None for nodes that a pass made.
        attrs_changed: the attributes differ from the origin's.
        made_by: name of the pass that made this node, "" for nodes of the input model.
        overload: function overload (IR 10), "" otherwise.
        doc_string: the node's documentation.
        metadata: the node's metadata_props.
    """

    __eq__ = object.__eq__
    __hash__ = object.__hash__
    op: str
    name: str
    domain: str
    attrs: dict[str, Any]
    inputs: list[Tensor]
    outputs: list[Tensor]
    origin: onnx.NodeProto | None
    attrs_changed: bool
    made_by: str
    overload: str
    doc_string: str
    metadata: dict[str, str]

    def __init__(
        self,
        op: str,
        name: str = "",
        attrs: dict[str, Any] | None = None,
        inputs: Sequence[Tensor] = (),
        outputs: Sequence[Tensor] = (),
        domain: str = "",
    ) -> None:
        # gs.Node.__init__ pays for each link; the loops below are the same, flat.
        ins, outs = Links(self, "outputs"), Links(self, "inputs")
        list.extend(ins, inputs)
        list.extend(outs, outputs)
        put(self, "op", op)
        put(self, "name", name)
        put(self, "domain", domain)
        put(self, "attrs", {} if attrs is None else attrs)
        put(self, "inputs", ins)
        put(self, "outputs", outs)
        put(self, "origin", None)
        put(self, "attrs_changed", False)
        put(self, "made_by", "")
        put(self, "overload", "")
        put(self, "doc_string", "")
        put(self, "metadata", {})
        for t in inputs:
            list.append(t.outputs, self)
        for t in outputs:
            list.append(t.inputs, self)

    def bodies(self) -> Iterator[Graph]:
        """The graphs held directly in this node's attributes (If, Loop, Scan, ...)."""
        for value in self.attrs.values():
            if isinstance(value, Graph):
                yield value
            elif isinstance(value, list) and value and isinstance(value[0], Graph):
                yield from value

    def __repr__(self) -> str:
        return f"<{self.op} {self.name or ','.join(t.name for t in self.outputs)}>"


class Variable(gs.Variable):  # type: ignore[misc]
    """A tensor computed at run time, or a graph input.

    Attributes:
        info: the ValueInfoProto that the model declared for it, if any.
    """

    __eq__ = object.__eq__
    __hash__ = object.__hash__
    name: str
    dtype: Any
    shape: Any
    type: str
    info: onnx.ValueInfoProto | None

    def __init__(self, name: str, dtype: Any = None, shape: Any = None, type: str = "tensor_type") -> None:
        put(self, "name", name)
        put(self, "inputs", Links(self, "outputs"))
        put(self, "outputs", Links(self, "inputs"))
        put(self, "dtype", dtype)
        put(self, "shape", shape)
        put(self, "type", type)
        put(self, "info", None)

    @staticmethod
    def empty() -> Variable:
        """An omitted optional input or output."""
        return Variable("")

    def __repr__(self) -> str:
        return f"<Variable {self.name!r}>"


class Constant(gs.Constant):  # type: ignore[misc]
    """An initializer. `values` loads lazily; `dtype`, `shape` and `nbytes` do not load.

    Attributes:
        info: the ValueInfoProto that the model declared for it, if any.
        origin: the (stripped) TensorProto or SparseTensorProto it was read from.
        made_by: name of the pass that made it, "" for initializers of the input model.
    """

    __eq__ = object.__eq__
    __hash__ = object.__hash__
    name: str
    info: onnx.ValueInfoProto | None
    origin: onnx.TensorProto | onnx.SparseTensorProto | None
    made_by: str

    def __init__(self, name: str, values: np.ndarray[Any, Any] | LazyValues, made_by: str = "") -> None:
        put(self, "name", name)
        put(self, "inputs", Links(self, "outputs"))
        put(self, "outputs", Links(self, "inputs"))
        put(self, "_values", values)
        put(self, "data_location", None)
        put(self, "_export_dtype", None)
        put(self, "info", None)
        put(self, "origin", None)
        put(self, "made_by", made_by)

    @property
    def nbytes(self) -> int:
        """Bytes of the values, without loading them."""
        return int(self._values.nbytes)

    @property
    def is_loaded(self) -> bool:
        """The values are an array in memory rather than a reference into a file."""
        return isinstance(self._values, np.ndarray)

    def __repr__(self) -> str:
        return f"<Constant {self.name!r}>"


Tensor: TypeAlias = Variable | Constant


class Graph(gs.Graph):  # type: ignore[misc]
    """A body: the main graph, or one held by an attribute of a control-flow node.

    Attributes:
        initializers: the body's initializers, in order, also those that nobody reads.
        defaults: graph inputs that are also initializers (IR >= 4): input -> its default value. Such
            an input is overridable, so it is *not* constant.
        opset_imports: operator set versions in force, by domain ("" for ai.onnx).
        origin: the GraphProto without nodes, initializers, inputs, outputs and value_info.
    """

    __eq__ = object.__eq__
    __hash__ = object.__hash__
    nodes: list[Node]
    inputs: list[Variable]
    outputs: list[Tensor]
    initializers: dict[Constant, None]
    defaults: dict[Variable, Constant]
    opset_imports: dict[str, int]
    origin: onnx.GraphProto | None

    def __init__(self, **kwargs: Any) -> None:
        self.initializers = {}
        self.defaults = {}
        self.opset_imports = {}
        self.origin = None
        super().__init__(**kwargs)


class Function(GsFunction):  # type: ignore[misc]
    """A model-local function. Its body has no initializers: constants in it are written as nodes.

    Attributes:
        opset_imports: operator set versions in force, by domain ("" for ai.onnx).
        overload: which of several functions of one name it is (IR 10), "" otherwise.
        origin: the FunctionProto without its nodes.
    """

    __eq__ = object.__eq__
    __hash__ = object.__hash__
    nodes: list[Node]
    inputs: list[Variable]
    outputs: list[Tensor]
    initializers: dict[Constant, None]
    defaults: dict[Variable, Constant]
    opset_imports: dict[str, int]
    origin: onnx.FunctionProto | None
    overload: str

    def __init__(self, **kwargs: Any) -> None:
        self.initializers = {}
        self.defaults = {}
        self.opset_imports = {}
        self.origin = None
        self.overload = kwargs.pop("overload", "")
        super().__init__(**kwargs)


Body: TypeAlias = Graph | Function


def bodies(main: Graph) -> list[Body]:
    """Every body of a model, each before the body that holds it; functions first, `main` last."""
    order: list[Body] = []
    stack: list[tuple[Body, bool]] = [(main, False), *((f, False) for f in main.functions)]
    while stack:
        body, expanded = stack.pop()
        if expanded:
            order.append(body)
            continue
        stack.append((body, True))
        for node in body.nodes:
            for value in node.attrs.values():
                if isinstance(value, Graph | list):
                    stack.extend((inner, False) for inner in node.bodies())
                    break
    return order
