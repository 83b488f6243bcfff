"""ModelProto to the graph objects of `graphopt.ir`.

onnx-graphsurgeon's importer is not used: it drops what it does not know, cannot read some valid
models, and resolves external data against the current directory.
"""

from __future__ import annotations

from typing import Any

import onnx

from graphopt import collector, ir
from graphopt.errors import ModelError
from graphopt.io.attributes import decode
from graphopt.io.dtypes import NP_DTYPES
from graphopt.io.tensors import TensorReader

_A = onnx.AttributeProto


class Scope(dict[str, ir.Tensor]):
    """The names that one body defines."""

    def sees(self, name: str) -> bool:
        """The name is defined by now: an input, an initializer, or an output of a node made so far."""
        tensor = self.get(name)
        return tensor is not None and (
            isinstance(tensor, ir.Constant) or bool(tensor.inputs) or name in self.inputs
        )

    def __init__(self) -> None:
        super().__init__()
        self.inputs: frozenset[str] = frozenset()


def opset_imports(entries: Any) -> dict[str, int]:
    """Domain -> version; the two spellings of the standard domain are one, ""."""
    found: dict[str, int] = {}
    for entry in entries:
        domain = "" if entry.domain == "ai.onnx" else entry.domain
        found[domain] = max(entry.version, found.get(domain, 0))
    return found


def import_model(proto: onnx.ModelProto, reader: TensorReader) -> ir.Graph:
    """The main body of a model; its local functions are in `functions`.

    What the graph objects do not hold stays in their `origin` messages: of a body's GraphProto what
    belongs to the body as a whole, its outputs' infos, the value_info of names it does not define, and
    its inputs when they name constants (before IR 4). `proto` is taken apart: it keeps only what
    belongs to the model as a whole. Every body gets `opset_imports` (domain -> version): one dict for
    the main graph and its bodies, one for each function and its bodies.

    Raises:
        ModelError: a name is defined twice, or a tensor is malformed.
    """
    with collector.paused():
        return _Importer(proto, reader).run()


class _Importer:
    def __init__(self, proto: onnx.ModelProto, reader: TensorReader) -> None:
        self.proto = proto
        self.reader = reader
        self.opsets = list(proto.opset_import)
        self.imports = opset_imports(self.opsets)
        # Before IR 4 every initializer had to be listed as an input, and none could be overridden.
        self.constants_listed = proto.ir_version < 4
        self.functions: list[ir.Function] = []

    def run(self) -> ir.Graph:
        proto = self.proto
        for training in proto.training_info:
            self.reader.embed(training)
        known: set[tuple[str, str, str]] = set()
        for function in proto.functions:
            key = (function.domain, function.name, function.overload)
            if key in known:
                raise ModelError(f"the function {function.name!r} of {function.domain!r} is defined twice")
            known.add(key)
            self.functions.append(self._function(function))
        main = self._graph(proto.graph, (), self.imports, self.opsets)
        main.producer_name = proto.producer_name
        main.producer_version = proto.producer_version
        main.ir_version = proto.ir_version
        proto.ClearField("graph")
        proto.ClearField("functions")
        return main

    def _graph(
        self,
        proto: onnx.GraphProto,
        outer: tuple[Scope, ...],
        imports: dict[str, int],
        opsets: list[onnx.OperatorSetIdProto],
    ) -> ir.Graph:
        graph = ir.Graph(
            name=proto.name,
            doc_string=proto.doc_string,
            opset=imports.get("", 1),
            import_domains=opsets,
        )
        graph._functions = self.functions
        scope = Scope()
        graph.opset_imports = imports
        listed = self._inputs(graph, proto, scope, bool(outer))
        nodes = list(proto.node)
        declared = _declare(nodes, scope, outer)
        _outputs(graph, proto, scope, outer)
        extra_infos = []
        for info in proto.value_info:
            tensor = scope.get(info.name)
            if tensor is None or tensor.info is not None:
                extra_infos.append(info)
            else:
                describe(tensor, info)
        graph.nodes = self._nodes(nodes, declared, scope, outer, imports, opsets)
        graph.origin = proto
        for field in ("node", "initializer", "sparse_initializer", "value_info"):
            proto.ClearField(field)
        if not listed:
            proto.ClearField("input")
        proto.value_info.extend(extra_infos)
        return graph

    def _inputs(self, graph: ir.Graph, proto: onnx.GraphProto, scope: Scope, nested: bool) -> bool:
        """Inputs and initializers. True when the input list names constants too (before IR 4)."""
        infos = list(proto.input)
        for info in infos:
            if info.name in scope:
                raise _defined_twice(info.name, "graph input", proto)
            scope[info.name] = variable = ir.Variable(info.name)
            describe(variable, info)
        constants: list[tuple[ir.Constant, str]] = []
        values = self.reader.values
        for tensor in proto.initializer:
            constant = ir.Constant(tensor.name, values(tensor))
            constant.origin = tensor
            constants.append((constant, tensor.name))
        for sparse in proto.sparse_initializer:
            constant = ir.Constant(sparse.values.name, self.reader.sparse(sparse))
            constant.origin = sparse
            constants.append((constant, sparse.values.name))
        frozen = self.constants_listed and not nested
        listed = False
        seen: set[str] = set()
        for constant, name in constants:
            if not name:
                raise ModelError(f"graph {proto.name!r} has an initializer without a name")
            if name in seen:
                raise _defined_twice(name, "initializer", proto)
            seen.add(name)
            variable_ = scope.get(name)
            if variable_ is None:
                scope[name] = constant
            elif frozen:
                listed = True
                constant.info = variable_.info
                scope[name] = constant
            else:
                graph.defaults[variable_] = constant
                continue
            graph.initializers[constant] = None
        scope.inputs = frozenset(info.name for info in infos)
        graph.inputs = [t for info in infos if isinstance(t := scope[info.name], ir.Variable)]
        return listed

    def _nodes(
        self,
        protos: list[onnx.NodeProto],
        declared: list[list[ir.Tensor]],
        scope: Scope,
        outer: tuple[Scope, ...],
        imports: dict[str, int],
        opsets: list[onnx.OperatorSetIdProto],
    ) -> list[ir.Node]:
        node_class, variable_class, find = ir.Node, ir.Variable, scope.get
        read_tensor, embed = self._attribute_tensor, self.reader.embed

        def read_graph(graph: onnx.GraphProto) -> ir.Graph:
            return self._graph(graph, (*outer, scope), imports, opsets)

        nodes = []
        for proto, outputs in zip(protos, declared, strict=True):
            inputs: list[ir.Tensor] = []
            for name in proto.input:
                tensor = find(name)
                if tensor is None:
                    tensor = _resolve(name, scope, outer) if name else variable_class("")
                inputs.append(tensor)
            attrs: dict[str, Any] = {}
            for attribute in proto.attribute:
                # The commonest kinds inline: a call each is a third of the time of an import.
                kind = attribute.type
                if kind == 2 and not attribute.ref_attr_name:
                    attrs[attribute.name] = attribute.i
                elif kind == 7 and not attribute.ref_attr_name:
                    attrs[attribute.name] = list(attribute.ints)
                else:
                    attrs[attribute.name] = decode(attribute, read_tensor, read_graph, embed)
            domain = proto.domain
            if domain == "ai.onnx":
                domain = ""
            node = node_class(proto.op_type, proto.name, attrs, inputs, outputs, domain)
            node.origin = proto
            if proto.overload:
                node.overload = proto.overload
            if proto.doc_string:
                node.doc_string = proto.doc_string
            if proto.metadata_props:
                node.metadata = {entry.key: entry.value for entry in proto.metadata_props}
            nodes.append(node)
        return nodes

    def _attribute_tensor(self, tensor: onnx.TensorProto) -> ir.Constant:
        constant = ir.Constant(tensor.name, self.reader.values(tensor))
        constant.origin = tensor
        return constant

    def _default(self, attribute: onnx.AttributeProto) -> Any:
        """Default of a function's attribute; written back as it is, so nothing is taken out of it."""
        self.reader.embed(attribute)
        if attribute.type in (_A.GRAPH, _A.GRAPHS):
            return attribute
        return decode(attribute, self._attribute_tensor, _no_graph, self.reader.embed)

    def _function(self, proto: onnx.FunctionProto) -> ir.Function:
        opsets = list(proto.opset_import) or self.opsets
        imports = opset_imports(opsets)
        scope = Scope()
        for name in proto.input:
            if name in scope:
                raise _defined_twice(name, "input", proto)
            scope[name] = ir.Variable(name)
        inputs = list(scope.values())
        nodes = list(proto.node)
        declared = _declare(nodes, scope, ())
        outputs = [_resolve(name, scope, ()) for name in proto.output]
        extra_infos = []
        for info in proto.value_info:
            tensor = scope.get(info.name)
            if tensor is None or tensor.info is not None:
                extra_infos.append(info)
            else:
                describe(tensor, info)

        attrs: dict[str, Any] = dict.fromkeys(proto.attribute)
        for attribute in proto.attribute_proto:
            attrs[attribute.name] = self._default(attribute)
        function = ir.Function(
            name=proto.name,
            domain=proto.domain,
            inputs=inputs,
            outputs=outputs,
            doc_string=proto.doc_string,
            opset=imports.get("", self.imports.get("", 1)),
            import_domains=opsets,
            attrs=attrs,
            overload=proto.overload,
        )
        function._functions = self.functions
        function.opset_imports = imports
        function.nodes = self._nodes(nodes, declared, scope, (), imports, opsets)
        function.origin = proto
        proto.ClearField("node")
        proto.ClearField("value_info")
        proto.value_info.extend(extra_infos)
        return function


def _no_graph(graph: onnx.GraphProto) -> ir.Graph:
    raise ModelError(f"graph {graph.name!r} is an attribute without a type")


def _declare(protos: list[onnx.NodeProto], scope: Scope, outer: tuple[Scope, ...]) -> list[list[ir.Tensor]]:
    """A variable for every node output, before any node reads one: order is not checked here."""
    variable_class = ir.Variable
    declared = []
    for proto in protos:
        outputs: list[ir.Tensor] = []
        for name in proto.output:
            if name:
                if name in scope or any(around.sees(name) for around in outer):
                    raise ModelError(
                        f"the name {name!r}, an output of node {proto.name or proto.op_type!r}, is defined "
                        "more than once",
                        fix="every value of a model needs a name of its own; export it again",
                    )
                variable = scope[name] = variable_class(name)
            else:
                variable = variable_class("")
            outputs.append(variable)
        declared.append(outputs)
    return declared


def _resolve(name: str, scope: Scope, outer: tuple[Scope, ...]) -> ir.Tensor:
    """The tensor of a name; one that is not defined anywhere is left to the verifier."""
    tensor = scope.get(name)
    if tensor is None:
        for around in reversed(outer):
            tensor = around.get(name)
            if tensor is not None:
                return tensor
        tensor = scope[name] = ir.Variable(name)
    return tensor


def _outputs(graph: ir.Graph, proto: onnx.GraphProto, scope: Scope, outer: tuple[Scope, ...]) -> None:
    outputs = []
    for info in proto.output:
        tensor = _resolve(info.name, scope, outer)
        outputs.append(tensor)
        if tensor.info is None and info.name in scope:
            describe(tensor, info)
    graph.outputs = outputs


def describe(tensor: ir.Tensor, info: onnx.ValueInfoProto) -> None:
    """Take over what a ValueInfoProto declares: `info`, and for a variable type, dtype and shape.

    For sequences and optionals the dtype is that of the innermost tensor, the shape is unknown.
    """
    tensor.info = info
    if isinstance(tensor, ir.Constant):
        return
    kind = info.type.WhichOneof("value")
    if kind is None:
        return
    declared = getattr(info.type, kind)
    if kind in ("tensor_type", "sparse_tensor_type"):
        tensor.dtype = NP_DTYPES.get(declared.elem_type)
        if declared.HasField("shape"):
            tensor.shape = [
                dim.dim_value
                if (which := dim.WhichOneof("value")) == "dim_value"
                else (dim.dim_param if which else None)
                for dim in declared.shape.dim
            ]
    else:
        inner = info.type
        while kind in ("sequence_type", "optional_type"):
            inner = getattr(inner, kind).elem_type
            kind = inner.WhichOneof("value")
        if kind == "tensor_type":
            tensor.dtype = NP_DTYPES.get(inner.tensor_type.elem_type)
    tensor.type = info.type.WhichOneof("value")


def _defined_twice(name: str, what: str, proto: Any) -> ModelError:
    return ModelError(
        f"the {what} {name!r} of {proto.name!r} is defined more than once",
        fix="every value of a model needs a name of its own; export it again",
    )
