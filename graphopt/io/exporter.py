"""The graph objects of `graphopt.ir` to a ModelProto.

An object that nobody touched is written back from its `origin` message, so nothing that the message
says is lost; what a pass changed or made is written anew.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx_graphsurgeon.ir.tensor import LazyValues

from graphopt import collector, ir
from graphopt.io import weights
from graphopt.io.attributes import Kind, encode, schema_kind
from graphopt.io.declarations import (
    drop_stale_annotations,
    read_for_shapes,
    set_imports,
    set_names,
    value_info,
)
from graphopt.io.dtypes import PACKED_BITS, STRING, onnx_dtype
from graphopt.io.placement import Data, Holder, Placement
from graphopt.io.sources import Sources
from graphopt.io.tensors import INLINE_BYTES, is_stripped
from graphopt.io.weights import FileValues, ProtoValues, SparseProtoValues


def export_model(
    graph: ir.Graph,
    origin: onnx.ModelProto,
    imports: Mapping[str, int],
    ir_version: int,
    sources: Sources,
    placement: Placement,
) -> onnx.ModelProto:
    """The ModelProto of a main body and its functions.

    Args:
        graph: the main body.
        origin: the ModelProto it came from, without graph and functions.
        imports: opset imports, domain -> version.
        ir_version: the IR version to write.
        sources: where loaded arrays are looked up, to find the file that holds their bytes.
        placement: where the data of large tensors goes.
    """
    with collector.paused():
        model = onnx.ModelProto()
        model.CopyFrom(origin)
        model.ir_version = ir_version
        set_imports(model.opset_import, imports)
        exporter = _Exporter(ir_version, sources, placement)
        exporter.graph(graph, model.graph, main=True)
        for function in graph.functions:
            exporter.function(function, model.functions.add())
        return model


class _Exporter:
    def __init__(self, ir_version: int, sources: Sources, placement: Placement) -> None:
        self.ir_version = ir_version
        self.sources = sources
        self.placement = placement

    # -- bodies

    def graph(self, graph: ir.Graph, out: onnx.GraphProto, main: bool = False) -> None:
        """Write a body into an empty GraphProto."""
        origin = graph.origin if isinstance(graph, ir.Graph) else None
        listed: list[onnx.ValueInfoProto] = []
        declared: dict[str, onnx.ValueInfoProto] = {}
        if origin is not None:
            out.CopyFrom(origin)
            listed = list(origin.input)
            declared = {info.name: info for info in origin.output}
            for field in ("input", "output", "value_info"):
                out.ClearField(field)
        if out.doc_string != graph.doc_string:
            out.doc_string = graph.doc_string
        if graph.name or origin is None:
            out.name = graph.name
        self.nodes(graph.nodes, out.node, graph)
        infos: list[onnx.ValueInfoProto] = []
        self._initializers(graph, out, infos, "main" if main else "body")
        self._inputs(graph, out, listed, main)
        # `info` of an input, or of a tensor of the body around this one, is about that, not the output.
        own = {t for node in graph.nodes for t in node.outputs} | set(graph.initializers)
        for tensor in graph.outputs:
            info = declared.get(tensor.name)
            if info is None or (
                tensor.info is not None and tensor.info.name == tensor.name and tensor in own
            ):
                info = value_info(tensor)
            out.output.append(info)
        self._value_info(graph, out, infos)
        if len(out.quantization_annotation):
            drop_stale_annotations(graph, out)

    def _initializers(
        self, graph: ir.Graph, out: onnx.GraphProto, infos: list[onnx.ValueInfoProto], holder: Holder
    ) -> None:
        dense = []
        outputs = set(graph.outputs)
        for constant in (*graph.initializers, *graph.defaults.values()):
            if isinstance(constant._values, SparseProtoValues):
                out.sparse_initializer.append(self._sparse(constant))
            else:
                dense.append(self.tensor(constant, holder))
            if constant.info is not None and constant not in outputs:
                infos.append(value_info(constant))
        out.initializer.extend(dense)

    def _inputs(
        self,
        graph: ir.Graph,
        out: onnx.GraphProto,
        listed: list[onnx.ValueInfoProto],
        main: bool,
    ) -> None:
        if not (main and self.ir_version < 4):
            out.input.extend([value_info(tensor) for tensor in graph.inputs])
            return
        # Before IR 4 every initializer is listed among the inputs; those that were keep their places.
        left: dict[str, ir.Tensor] = {t.name: t for t in graph.inputs}
        left.update((t.name, t) for t in graph.initializers)
        for info in listed:
            tensor = left.pop(info.name, None)
            if tensor is not None:
                out.input.append(value_info(tensor))
        out.input.extend([value_info(tensor) for tensor in left.values()])

    def _value_info(self, graph: ir.Graph, out: onnx.GraphProto, infos: list[onnx.ValueInfoProto]) -> None:
        outputs = set(graph.outputs)
        if self.ir_version < 4:
            listed = {info.name for info in out.input}
            infos = [info for info in infos if info.name not in listed]
        for node in graph.nodes:
            for tensor in node.outputs:
                if tensor.info is not None and tensor not in outputs:
                    infos.append(value_info(tensor))
        if graph.origin is not None and len(graph.origin.value_info):
            made = {t.name for n in graph.nodes if n.made_by for t in n.outputs}
            infos += [info for info in graph.origin.value_info if info.name not in made]
        out.value_info.extend(infos)

    def function(self, function: ir.Function, out: onnx.FunctionProto) -> None:
        """Write a local function into an empty FunctionProto."""
        origin = function.origin
        leftover: list[onnx.ValueInfoProto] = []
        if origin is not None:
            out.CopyFrom(origin)
            leftover = list(origin.value_info)
            out.ClearField("value_info")
        else:
            out.name, out.domain = function.name, function.domain or ""
            if function.overload:
                out.overload = function.overload
            for name, value in function.attrs.items():
                if value is None:
                    out.attribute.append(name)
                else:
                    out.attribute_proto.append(self._attribute(name, value, None))
        set_imports(out.opset_import, function.opset_imports)
        set_names(out.input, [t.name for t in function.inputs])
        set_names(out.output, [t.name for t in function.outputs])
        for constant in function.initializers:
            node = out.node.add(op_type="Constant", output=[constant.name])
            node.attribute.append(self._attribute("value", constant, None))
            if constant.made_by:
                self._provenance(node, constant.made_by)
        self.nodes(function.nodes, out.node, function)
        infos = [
            value_info(t)
            for t in dict.fromkeys((*function.inputs, *(t for n in function.nodes for t in n.outputs)))
            if t.info is not None
        ]
        out.value_info.extend(infos)
        out.value_info.extend(leftover)

    # -- nodes

    def nodes(self, nodes: Iterable[ir.Node], out: Any, body: ir.Body) -> None:
        """Append the nodes of a body to a repeated NodeProto field."""
        graph_class, constant_class, proto_values = ir.Graph, ir.Constant, ProtoValues
        protos = []
        for node in nodes:
            origin = node.origin
            if origin is None or node.attrs_changed or origin.op_type != node.op:
                protos.append(self._written(node, body))
                continue
            special = False
            for value in node.attrs.values():
                kind = value.__class__
                if kind is constant_class:
                    special |= value._values.__class__ is not proto_values
                elif kind is graph_class or (kind is list and value and value[0].__class__ is graph_class):
                    special = True
            if (
                special
                or list(origin.input) != [t.name for t in node.inputs]
                or list(origin.output) != [t.name for t in node.outputs]
                or origin.name != node.name
                or origin.doc_string != node.doc_string
                or node.made_by
            ):
                origin = self._patched(node, special)
            protos.append(origin)
        out.extend(protos)

    def _patched(self, node: ir.Node, special: bool) -> onnx.NodeProto:
        """The origin with what may change without the attributes changing."""
        assert node.origin is not None
        proto = onnx.NodeProto()
        proto.CopyFrom(node.origin)
        self._header(proto, node)
        if special:
            for attribute in proto.attribute:
                value = node.attrs.get(attribute.name)
                if isinstance(value, gs.Graph):
                    attribute.ClearField("g")
                    self.graph(value, attribute.g)
                elif isinstance(value, list) and value and isinstance(value[0], gs.Graph):
                    attribute.ClearField("graphs")
                    for graph in value:
                        self.graph(graph, attribute.graphs.add())
                elif isinstance(value, ir.Constant) and attribute.HasField("t") and is_stripped(attribute.t):
                    attribute.t.CopyFrom(self.tensor(value, "attribute"))
        return proto

    def _written(self, node: ir.Node, body: ir.Body) -> onnx.NodeProto:
        """A node that a pass made, or whose attributes it changed."""
        proto = onnx.NodeProto()
        before: dict[str, onnx.AttributeProto] = {}
        if node.origin is not None:
            proto.CopyFrom(node.origin)
            if proto.op_type == node.op:
                before = {a.name: a for a in node.origin.attribute}
            proto.ClearField("attribute")
        proto.op_type = node.op
        self._header(proto, node)
        imports: Mapping[str, int] = getattr(body, "opset_imports", {})
        version = imports.get(node.domain)
        for name, value in node.attrs.items():
            like = before.get(name)
            kind = schema_kind(node.op, node.domain, version, name) if like is None else None
            proto.attribute.append(self._attribute(name, value, like, kind))
        return proto

    def _header(self, proto: onnx.NodeProto, node: ir.Node) -> None:
        set_names(proto.input, [t.name for t in node.inputs])
        set_names(proto.output, [t.name for t in node.outputs])
        if proto.name != node.name:
            proto.name = node.name
        domain = node.domain or ""
        if proto.domain != domain and not (proto.domain == "ai.onnx" and not domain):
            proto.domain = domain
        if proto.overload != node.overload:
            proto.overload = node.overload
        if proto.doc_string != node.doc_string:
            proto.doc_string = node.doc_string
        if {e.key: e.value for e in proto.metadata_props} != node.metadata:
            del proto.metadata_props[:]
            for key, value in node.metadata.items():
                proto.metadata_props.add(key=key, value=value)
        if node.made_by:
            self._provenance(proto, node.made_by)

    def _provenance(self, proto: onnx.NodeProto, made_by: str) -> None:
        """Say which pass made a node."""
        if self.ir_version < 10:
            if not proto.doc_string:
                proto.doc_string = f"graphopt: {made_by}"
        elif all(entry.key != "graphopt.pass" for entry in proto.metadata_props):
            proto.metadata_props.add(key="graphopt.pass", value=made_by)

    def _attribute(
        self, name: str, value: Any, like: onnx.AttributeProto | None, kind: Kind | None = None
    ) -> onnx.AttributeProto:
        def write_tensor(constant: ir.Constant) -> onnx.TensorProto:
            return self.tensor(constant, "attribute")

        def write_graph(graph: ir.Graph) -> onnx.GraphProto:
            out = onnx.GraphProto()
            self.graph(graph, out)
            return out

        return encode(name, value, write_tensor, write_graph, like, kind)

    # -- tensors

    def tensor(self, constant: ir.Constant, holder: Holder) -> onnx.TensorProto:
        """The TensorProto of a constant. May be the constant's own origin: do not change it."""
        values = constant._values
        feeds_shapes = holder != "sparse" and read_for_shapes(constant)
        return self._tensor(constant.name, values, getattr(constant, "origin", None), holder, feeds_shapes)

    def _tensor(
        self,
        name: str,
        values: np.ndarray[Any, Any] | LazyValues,
        origin: onnx.TensorProto | onnx.SparseTensorProto | None,
        holder: Holder,
        feeds_shapes: bool,
    ) -> onnx.TensorProto:
        if isinstance(values, FileValues):
            out = onnx.TensorProto()
            if isinstance(origin, onnx.TensorProto):
                out.CopyFrom(origin)
            else:
                out.dims.extend(values.shape)
                out.data_type = values.data_type
            if out.name != name:
                out.name = name
            self._place(out, values.region, holder, feeds_shapes)
            return out
        if isinstance(values, np.ndarray):
            return self._array(name, values, origin, holder, feeds_shapes)
        held: onnx.TensorProto = values.tensor
        large = held.ByteSize() > INLINE_BYTES and held.data_type != STRING
        if large and not self.placement.keeps_typed:
            return self._array(name, weights.array_of(held), origin, holder, feeds_shapes)
        if held.name == name:
            return held
        out = onnx.TensorProto()
        out.CopyFrom(held)
        out.name = name
        return out

    def _array(
        self,
        name: str,
        array: np.ndarray[Any, Any],
        origin: Any,
        holder: Holder,
        feeds_shapes: bool,
    ) -> onnx.TensorProto:
        if array.dtype.hasobject or array.dtype.kind in "US":
            out = weights.string_tensor(array)
            if name:
                out.name = name
        else:
            data_type = onnx_dtype(array.dtype)
            out = onnx.TensorProto(dims=array.shape, data_type=data_type)
            if name:  # before the placement is asked: it may go by the name
                out.name = name
            # In memory these two are laid out differently than in a file.
            same_layout = data_type not in PACKED_BITS and array.dtype.byteorder != ">"
            region = self.sources.locate(array) if same_layout else None
            data: Data = weights.to_raw(array)[1] if region is None else region
            self._place(out, data, holder, feeds_shapes)
        if isinstance(origin, onnx.TensorProto) and tuple(origin.dims) == array.shape:
            out.metadata_props.extend(origin.metadata_props)
            if origin.doc_string:
                out.doc_string = origin.doc_string
        return out

    def _place(self, out: onnx.TensorProto, data: Data, holder: Holder, feeds_shapes: bool) -> None:
        size = data.nbytes if isinstance(data, memoryview) else data.length
        if size <= INLINE_BYTES:
            Placement.place(self.placement, out, data, holder, feeds_shapes)
        else:
            self.placement.place(out, data, holder, feeds_shapes)

    def _sparse(self, constant: ir.Constant) -> onnx.SparseTensorProto:
        held = constant._values
        out = onnx.SparseTensorProto()
        out.CopyFrom(held.tensor)
        for part, values in ((out.values, held.values), (out.indices, held.indices)):
            if isinstance(values, FileValues):
                part.CopyFrom(self._tensor(part.name, values, part, "sparse", False))
        if out.values.name != constant.name:
            out.values.name = constant.name
        return out
