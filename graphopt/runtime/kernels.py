"""Which kernels onnxruntime really runs, read from the graph that it executes.

onnxruntime rewrites a model while it loads it, and can write down the result. Here every node first gets a
name with a mark of its own. Fusions keep that name or build theirs from it, so what runs is traced back to
the nodes that it stands for. A node without a trace is looked up by what it computes: tensors keep their
names, too. What cannot be traced either way is left out; nothing is guessed.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final, Literal

import onnx

from graphopt.ir import Graph, Node
from graphopt.model import Model
from graphopt.runtime.providers import current
from graphopt.runtime.session import CPU, Optimize, create, onnxruntime, resolve_provider, session_options

_MARK: Final = re.compile(r"graphopt@(\d+)@")
_T: Final = onnx.TensorProto
_NARROW: Final = frozenset(
    getattr(_T, name, -1) for name in "INT8 UINT8 INT16 UINT16 INT4 UINT4 INT2 UINT2".split()
)
_Q: Final = "QuantizeLinear"
_DQ: Final = "DequantizeLinear"
_LAYOUT: Final = frozenset(("Reshape", "Transpose", "ReorderInput", "ReorderOutput"))

_BEHIND: Final = _LAYOUT | {_Q, _DQ}
# What a fusion may put around its kernel under the same mark: layout changes, a quantized weight or bias.
_BESIDE: Final = _LAYOUT | {_Q, _DQ, "Cast", "Div", "Mul", "Round"}

#: Operators that compute on quantized integers whatever the types of their tensors.
INTEGER_KERNELS: Final = frozenset(
    "ConvInteger DynamicQuantizeLSTM DynamicQuantizeMatMul GatherBlockQuantized MatMulBnb4 MatMulInteger "
    "MatMulInteger16 MatMulIntegerToFloat MatMulNBits NhwcMaxPool QAttention QEmbedLayerNormalization QGemm "
    "QLinearAdd QLinearAveragePool QLinearConcat QLinearConv QLinearGlobalAveragePool QLinearLeakyRelu "
    "QLinearMatMul QLinearMul QLinearReduceMean QLinearSigmoid QLinearSoftmax QLinearWhere QMoE".split()
)

# What has the type of its first input.
_MOVES: Final = frozenset(
    "Concat DepthToSpace Expand Flatten Gather GatherElements GatherND Identity MaxPool NhwcMaxPool Pad "
    "ReduceMax ReduceMin ReorderInput ReorderOutput Reshape Resize Slice SpaceToDepth Split Squeeze Tile "
    "Transpose Unsqueeze".split()
)
_QGEMM_SCALED: Final = 9  # inputs of a QGemm whose output is quantized

Place = Literal["input", "output", "weight", "inside"]


@dataclass(frozen=True)
class Ran:
    """What a node of the model runs as.

    Attributes:
        op: the operator that is executed; "constant" when it was computed while loading.
        integer: it computes on, or moves, quantized integers.
        merged: the node was absorbed by a neighbour, which `op` is.
    """

    op: str
    integer: bool
    merged: bool = False


@dataclass(frozen=True)
class Conversion:
    """A QuantizeLinear or DequantizeLinear that is executed as such.

    Attributes:
        op: which of the two.
        tensor: the float tensor that it reads or computes, by the name that it has when executed.
        node: the node of the model that it comes from; None when onnxruntime inserted it.
        place: "input" quantizes an input of the model, "output" dequantizes an output, "weight" dequantizes
            an initializer, which is done anew on every run; everything else is "inside".
    """

    op: str
    tensor: str
    node: Node | None
    place: Place


@dataclass(frozen=True)
class Executed:
    """The graph that onnxruntime executes, in terms of the model's nodes.

    Attributes:
        nodes: what each node runs as. Nodes that could not be traced are not there.
        conversions: QuantizeLinear and DequantizeLinear nodes that are left.
        ops: operator -> how many of them are executed, over all bodies.
    """

    nodes: Mapping[Node, Ran] = field(default_factory=dict)
    conversions: tuple[Conversion, ...] = ()
    ops: Mapping[str, int] = field(default_factory=dict)


def executed(model: Model, *, provider: str = CPU, optimize: Optimize = "all") -> Executed:
    """Load `model` as people run it, and read off what becomes of its nodes.

    The optimized model is written to a temporary folder, its weights beside it, and removed afterwards. Nodes
    of local functions are not looked up: onnxruntime inlines functions, once per call.

    Args:
        model: the model, which is not changed.
        provider: execution provider, or a short name ("cpu", "cuda").
        optimize: onnxruntime's graph optimization level.

    Raises:
        ProviderError: onnxruntime or the provider is not there.
        RuntimeFailure: the model does not load.
    """
    ort = onnxruntime()
    provider = resolve_provider(provider)
    source = model.session_source()
    proto = onnx.ModelProto.FromString(source.proto)
    nodes: list[Node] = []
    _mark(model.graph, proto.graph, nodes)
    options = session_options(
        optimize=optimize,
        config={"session.disable_prepacking": "1"},  # it is never run
    )
    if source.folder is not None:
        options.add_session_config_entry(
            "session.model_external_initializers_file_folder_path", str(source.folder)
        )
    with tempfile.TemporaryDirectory(prefix="graphopt-") as folder:
        path = Path(folder) / "executed.onnx"
        options.optimized_model_filepath = str(path)
        options.add_session_config_entry(
            "session.optimized_model_external_initializers_file_name", "executed.data"
        )
        options.add_session_config_entry(
            "session.optimized_model_external_initializers_min_size_in_bytes", "1024"
        )
        create(ort, proto.SerializeToString(), options, provider, current())
        graph = onnx.load(path, load_external_data=False).graph
    return _Reading(nodes, graph).result()


def _mark(body: Graph, proto: onnx.GraphProto, nodes: list[Node]) -> None:
    """Give every node of `proto`, which was written from `body`, a name that says which of `nodes` it is."""
    for node, written in zip(body.nodes, proto.node, strict=True):
        written.name = f"graphopt@{len(nodes)}@"
        nodes.append(node)
        for attribute in written.attribute:
            inner = [attribute.g] if attribute.type == onnx.AttributeProto.GRAPH else list(attribute.graphs)
            if inner:
                value = node.attrs[attribute.name]
                graphs = value if isinstance(value, list) else [value]
                for graph, graph_proto in zip(graphs, inner, strict=True):
                    _mark(graph, graph_proto, nodes)


class _Scope:
    """Names of one body of the executed graph."""

    def __init__(self, graph: onnx.GraphProto, outer: _Scope | None) -> None:
        self.graph, self.outer = graph, outer
        self.types = {
            info.name: info.type.tensor_type.elem_type
            for info in (*graph.value_info, *graph.input, *graph.output)
            if info.type.tensor_type.elem_type
        }
        self.weights = {tensor.name for tensor in graph.initializer}
        self.types.update((tensor.name, tensor.data_type) for tensor in graph.initializer)
        self.producers = {name: node for node in graph.node for name in node.output if name}
        self.inputs = {info.name for info in graph.input} - self.weights
        self.outputs = {info.name for info in graph.output}

    def is_narrow(self, name: str) -> bool:
        """Whether a tensor is of a quantized type. The written model declares no types of its tensors."""
        while name:
            if name in self.types:
                return self.types[name] in _NARROW
            node = self.producers.get(name)
            if node is None:
                return self.outer is not None and self.outer.is_narrow(name)
            if node.op_type not in _MOVES:
                return _makes_narrow(node)
            name = node.input[0]
        return False

    def is_weight(self, name: str) -> bool:
        """Whether `name` is an initializer, here or in a body around this one."""
        if name in self.weights or name in self.producers or name in self.inputs:
            return name in self.weights
        return self.outer is not None and self.outer.is_weight(name)


class _Reading:
    """The executed graph, indexed by the marks in its nodes' names."""

    def __init__(self, nodes: Sequence[Node], graph: onnx.GraphProto) -> None:
        self.nodes = nodes
        self.scopes: list[_Scope] = []
        self.marked: dict[Node, list[tuple[onnx.NodeProto, _Scope]]] = {}
        self.ops: dict[str, int] = {}
        self._scan(graph, None)

    def _scan(self, graph: onnx.GraphProto, outer: _Scope | None) -> None:
        scope = _Scope(graph, outer)
        self.scopes.append(scope)
        for node in graph.node:
            self.ops[node.op_type] = self.ops.get(node.op_type, 0) + 1
            origin = self.origin(node)
            if origin is not None:
                self.marked.setdefault(origin, []).append((node, scope))
            for attribute in node.attribute:
                for inner in (*([attribute.g] if attribute.HasField("g") else ()), *attribute.graphs):
                    self._scan(inner, scope)

    def origin(self, node: onnx.NodeProto) -> Node | None:
        """The node of the model that an executed node is named after."""
        match = _MARK.search(node.name)
        return None if match is None else self.nodes[int(match[1])]

    def result(self) -> Executed:
        """Everything that can be told."""
        ran: dict[Node, Ran] = {}
        for node in self.nodes:
            found = self._by_mark(node) or self._by_output(node)
            if found is not None:
                ran[node] = found
        conversions = tuple(
            self._conversion(node, scope)
            for scope in self.scopes
            for node in scope.graph.node
            if node.op_type in (_Q, _DQ)
        )
        return Executed(ran, conversions, dict(sorted(self.ops.items())))

    def _by_mark(self, node: Node) -> Ran | None:
        found = self.marked.get(node, [])
        kernels = [pair for pair in found if pair[0].op_type == node.op] or [
            pair for pair in found if pair[0].op_type not in _BESIDE
        ]
        if not kernels:
            return None
        return self._ran(*kernels[0])

    def _by_output(self, node: Node) -> Ran | None:
        """The kernel that computes the node's output, as it is or quantized."""
        for name in _values(node):
            for scope in self.scopes:
                if name in scope.weights:
                    return Ran("constant", integer=False, merged=True)
                producer = scope.producers.get(name)
                # What onnxruntime put behind a kernel has no mark.
                while producer is not None and producer.op_type in _BEHIND and self.origin(producer) is None:
                    producer = scope.producers.get(producer.input[0])
                if producer is not None:
                    return replace(self._ran(producer, scope), merged=True)
        return None

    def _ran(self, node: onnx.NodeProto, scope: _Scope) -> Ran:
        integer = node.op_type in INTEGER_KERNELS or (
            node.op_type in _MOVES and bool(node.input) and scope.is_narrow(node.input[0])
        )
        return Ran(node.op_type, integer)

    def _conversion(self, node: onnx.NodeProto, scope: _Scope) -> Conversion:
        data, result = node.input[0], node.output[0]
        place: Place = "inside"
        if node.op_type == _Q:
            tensor = data
            if data in scope.inputs:
                place = "input"
        else:
            tensor = result
            if scope.is_weight(data):
                place = "weight"
            elif result in scope.outputs:
                place = "output"
        return Conversion(node.op_type, tensor, self.origin(node), place)


def _makes_narrow(node: onnx.NodeProto) -> bool:
    if node.op_type == "QGemm":
        return len(node.input) >= _QGEMM_SCALED
    return node.op_type.startswith("QLinear") or node.op_type in (_Q, "DynamicQuantizeLinear", "QAttention")


def _values(node: Node) -> Iterator[str]:
    """Names under which what `node` computes may be found: its outputs, and those quantized."""
    for tensor in node.outputs:
        if tensor.name:
            yield tensor.name
    for tensor in node.outputs:
        for reader in tensor.outputs:
            if reader.op == _Q and reader.inputs[0] is tensor:
                yield reader.outputs[0].name
