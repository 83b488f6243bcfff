"""An independent copy of a model's graph objects that shares weights and origin messages."""

from __future__ import annotations

from typing import Any

from graphopt import collector, ir

_Map = dict[ir.Tensor, ir.Tensor]


def copy_graph(main: ir.Graph) -> ir.Graph:
    """Copy a main body with its nested bodies and functions.

    Nodes, tensors and bodies are new; values (arrays or lazy ones) and `origin` messages, which nobody
    changes, are shared.
    """
    with collector.paused():
        functions: list[ir.Function] = []
        functions.extend(_function(function, functions) for function in main.functions)
        return _graph(main, {}, functions, dict(main.opset_imports))


def _graph(old: ir.Graph, outer: _Map, functions: list[ir.Function], imports: dict[str, int]) -> ir.Graph:
    new = ir.Graph(
        name=old.name,
        doc_string=old.doc_string,
        opset=old.opset,
        import_domains=old.import_domains,
        producer_name=old.producer_name,
        producer_version=old.producer_version,
        ir_version=old.ir_version,
    )
    _body(old, new, outer, functions, imports)
    return new


def _function(old: ir.Function, functions: list[ir.Function]) -> ir.Function:
    imports = dict(old.opset_imports)
    new = ir.Function(
        name=old.name,
        domain=old.domain,
        doc_string=old.doc_string,
        opset=old.opset,
        import_domains=old.import_domains,
        attrs={k: _value(v, {}, functions, imports) for k, v in old.attrs.items()},
        ir_version=old.ir_version,
        overload=old.overload,
    )
    _body(old, new, {}, functions, imports)
    return new


def _body(
    old: ir.Body,
    new: ir.Body,
    outer: _Map,
    functions: list[ir.Function],
    imports: dict[str, int],
) -> None:
    # A nested body sees the tensors around it. The map of the outer bodies is extended in place and
    # trimmed afterwards rather than copied: a big graph may hold many small bodies.
    mapping = outer
    mine: list[ir.Tensor] = []
    new._functions = functions
    new.origin = old.origin
    new.opset_imports = imports

    def take(tensor: ir.Tensor) -> ir.Tensor:
        copy = mapping.get(tensor)
        if copy is None:
            copy = mapping[tensor] = _tensor(tensor)
            mine.append(tensor)
        return copy

    new.inputs = [take(t) for t in old.inputs]
    new.initializers = {take(c): None for c in old.initializers}
    new.defaults = {take(v): _tensor(c) for v, c in old.defaults.items()}
    for node in old.nodes:
        for t in node.outputs:
            take(t)
    known = mapping.get
    # What the constructors do, flat: a big graph has hundreds of thousands of these lists.
    node_class, new_node, new_list = ir.Node, ir.Node.__new__, ir.Links.__new__
    extend, append = list.extend, list.append
    nodes = []
    for node in old.nodes:
        attrs = node.attrs
        if attrs:
            attrs = {
                k: v if v.__class__ in _PLAIN else _value(v, mapping, functions, imports)
                for k, v in attrs.items()
            }
        else:
            attrs = {}
        inputs = [known(t) or take(t) for t in node.inputs]
        outputs = [known(t) or take(t) for t in node.outputs]
        copy = new_node(node_class)
        ins, outs = new_list(ir.Links), new_list(ir.Links)
        ins.parent_obj = outs.parent_obj = copy
        ins.field_name, outs.field_name = "outputs", "inputs"
        extend(ins, inputs)
        extend(outs, outputs)
        for t in inputs:
            append(t.outputs, copy)
        for t in outputs:
            append(t.inputs, copy)
        fields = copy.__dict__
        fields.update(node.__dict__)
        fields["attrs"], fields["inputs"], fields["outputs"] = attrs, ins, outs
        fields["metadata"] = dict(node.metadata) if node.metadata else {}
        nodes.append(copy)
    new.nodes = nodes
    new.outputs = [take(t) for t in old.outputs]
    for tensor in mine:
        del mapping[tensor]


_PLAIN = frozenset({int, float, str, bytes})


def _value(value: Any, mapping: _Map, functions: list[ir.Function], imports: dict[str, int]) -> Any:
    if isinstance(value, ir.Graph):
        return _graph(value, mapping, functions, imports)
    if isinstance(value, ir.Constant):
        return _tensor(value)
    if isinstance(value, list):
        if value and isinstance(value[0], ir.Graph):
            return [_graph(v, mapping, functions, imports) for v in value]
        return list(value)
    return value


def _tensor(tensor: ir.Tensor) -> ir.Tensor:
    """The tensor without its links."""
    kind = tensor.__class__
    copy: ir.Tensor = kind.__new__(kind)
    producers, readers = ir.Links.__new__(ir.Links), ir.Links.__new__(ir.Links)
    producers.parent_obj = readers.parent_obj = copy
    producers.field_name, readers.field_name = "outputs", "inputs"
    fields = copy.__dict__
    fields.update(tensor.__dict__)
    fields["inputs"], fields["outputs"] = producers, readers
    shape = fields.get("shape")
    if shape is not None:
        fields["shape"] = list(shape)
    return copy
