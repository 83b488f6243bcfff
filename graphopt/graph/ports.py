"""Changing the main graph's inputs and outputs: what is declared about them, and what computes them.

Every change is an edit of the open site, undone with it, and is noted in `Model.interface`, so that the
result can still be compared with the original.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import onnx

from graphopt import ir
from graphopt.errors import RefusedRewrite
from graphopt.graph.dims import fresh_dim, symbol
from graphopt.graph.shapes import infer
from graphopt.graph.state import GraphState
from graphopt.interface import Adapter, InterfaceEdit, Kind
from graphopt.io.declarations import value_info
from graphopt.io.dtypes import onnx_dtype
from graphopt.io.importer import describe
from graphopt.ir import Graph, Tensor, Variable

Dim = onnx.TensorShapeProto.Dimension


def declared(graph: Graph, kind: Kind, tensor: Tensor) -> onnx.ValueInfoProto:
    """What the model declares about an input or output, as it would be written now."""
    if kind == "output" and tensor.info is None and graph.origin is not None:
        for info in graph.origin.output:
            if info.name == tensor.name:
                found = onnx.ValueInfoProto()
                found.CopyFrom(info)
                return found
    found = onnx.ValueInfoProto()
    found.CopyFrom(value_info(tensor))
    return found


def with_type(
    info: onnx.ValueInfoProto, elem_type: int | None = None, dims: Sequence[Dim] | None = None
) -> onnx.ValueInfoProto:
    """`info` with another element type or other dims; doc string and metadata stay."""
    made = onnx.ValueInfoProto()
    made.CopyFrom(info)
    tensor = made.type.tensor_type
    if elem_type is not None:
        tensor.elem_type = elem_type
    if dims is not None:
        tensor.ClearField("shape")
        tensor.shape.SetInParent()
        tensor.shape.dim.extend(dims)
    return made


def note(
    state: GraphState,
    kind: Kind,
    before: onnx.ValueInfoProto,
    after: onnx.ValueInfoProto,
    why: str,
    adapter: Adapter | None = None,
) -> None:
    """Put one change into the model's list of them."""
    model = state.model
    edit = InterfaceEdit(kind, after.name, before, after, why, state.pass_name, adapter)
    state._log(setattr, model, "interface", model.interface)
    model.interface = model.interface.plus(edit)


def declare(state: GraphState, tensor: Tensor, info: onnx.ValueInfoProto) -> None:
    """Declare `info` about `tensor`."""
    old = {
        name: getattr(tensor, name) for name in ("info", "dtype", "shape", "type") if _is_own(tensor, name)
    }
    state._log(_restore, tensor, old)
    describe(tensor, info)


def _is_own(tensor: Tensor, name: str) -> bool:
    return name == "info" or isinstance(tensor, Variable)


def _restore(tensor: Tensor, fields: Mapping[str, Any]) -> None:
    for name, value in fields.items():
        ir.put(tensor, name, value)


# -- values ------------------------------------------------------------------------------------------


def replace_input(
    state: GraphState,
    old: Variable,
    info: onnx.ValueInfoProto,
    adapter: Adapter,
    why: str,
    compute: Callable[[Variable, str], ir.Node],
) -> Variable:
    """A new graph input takes the name of `old`, which is computed from it from now on.

    Args:
        state: the model.
        old: an input of the main graph; its readers stay.
        info: what is declared about the new one.
        adapter: between the values of the two.
        why: the change in words.
        compute: makes nodes that compute `old` from the new input, and returns the last of them.
    """
    graph = state.model.graph
    if old in graph.defaults:
        raise RefusedRewrite(f"{old.name} has a default value")
    if old in state.index.output_slots:
        raise RefusedRewrite(f"the input {old.name} is an output as well")
    before = declared(graph, "input", old)
    name = old.name
    new = Variable(name)
    describe(new, info)
    state.rename(old, _fresh(state, f"{name}_original"))
    ir.put(old, "info", _renamed(old))
    place = next(i for i, t in enumerate(graph.inputs) if t is old)
    graph.inputs[place] = new
    state._log(graph.inputs.__setitem__, place, old)
    _set_facts(state, new)
    last = compute(new, name)
    state._log(state.touched.append, last)
    placeholder = last.outputs[0]
    state.index.names.discard(placeholder.name)
    state.set_output(last, 0, old)
    note(state, "input", before, info, why, adapter)
    return new


def replace_output(
    state: GraphState,
    old: Tensor,
    info: onnx.ValueInfoProto,
    adapter: Adapter,
    why: str,
    compute: Callable[[Tensor, str], ir.Node],
) -> Tensor:
    """A new graph output, computed from `old`, takes its name.

    Args:
        state: the model.
        old: an output of the main graph; whatever else reads it still does.
        info: what is declared about the new one.
        adapter: between the values of the two.
        why: the change in words.
        compute: makes nodes that compute the new output from `old`, and returns the last of them.
    """
    graph = state.model.graph
    if old not in state.index.producer:
        raise RefusedRewrite(f"the output {old.name} is not computed by a node")
    before = declared(graph, "output", old)
    name = old.name
    state.rename(old, _fresh(state, f"{name}_original"))
    state._log(ir.put, old, "info", old.info)
    ir.put(old, "info", _renamed(old))
    last = compute(old, name)
    new = last.outputs[0]
    state.index.names.discard(new.name)
    state.rename(new, name)
    state.index.names.add(name)
    describe(new, info)
    for place, tensor in enumerate(graph.outputs):
        if tensor is old:
            state.set_body_output(graph, place, new)
    note(state, "output", before, info, why, adapter)
    return new


def _fresh(state: GraphState, hint: str) -> str:
    name, count = hint, 0
    while name in state.index.names:
        count += 1
        name = f"{hint}_{count}"
    state.index.names.add(name)
    return name


def _renamed(tensor: Tensor) -> onnx.ValueInfoProto | None:
    """The value info of a tensor that is an input or output no more, and has another name."""
    if tensor.info is None:
        return None
    info = onnx.ValueInfoProto()
    info.CopyFrom(tensor.info)
    info.name = tensor.name
    return info


def _set_facts(state: GraphState, tensor: Variable) -> None:
    """The declared type of a new input is a fact."""
    if tensor.type != "tensor_type":
        return
    shape = None
    if tensor.shape is not None:
        shape = tuple(
            symbol(d) if isinstance(d, str) and d else d if isinstance(d, int) else fresh_dim()
            for d in tensor.shape
        )
    state.facts.set(tensor, shape, None if tensor.dtype is None else onnx_dtype(tensor.dtype))


# -- dims --------------------------------------------------------------------------------------------

#: Called with a tensor's name, an axis, and what is declared about it; returns what is to be declared.
Change = Callable[[str, int, Dim], Dim]


def rewrite_dims(state: GraphState, change: Change, inputs: Change | None = None) -> None:
    """Rewrite declared dims of the main graph and of the bodies in it, and infer the model again.

    Args:
        state: the model.
        change: for everything.
        inputs: for the main graph's inputs, in place of `change`.
    """
    for body in state.live_bodies():
        if not isinstance(body, Graph):
            continue  # names of dims in a local function are its own
        main = body is state.model.graph
        for tensor in body.inputs:
            _rewrite(state, tensor, inputs if main and inputs is not None else change)
        for tensor in _computed(state, body):
            _rewrite(state, tensor, change)
        if body.origin is not None:
            origin = onnx.GraphProto()
            origin.CopyFrom(body.origin)
            for infos in (origin.input, origin.output, origin.value_info):
                for info in infos:
                    info.CopyFrom(_with_dims(info, change) or info)
            state._log(setattr, body, "origin", body.origin)
            body.origin = origin
    state._log(setattr, state, "facts", state.facts)
    state.facts = infer(state.finish())
    for body in state.live_bodies():
        state.touched.extend(state.index.nodes[body])


def settle_dims(state: GraphState) -> None:
    """Where a declared dim is open and inference knows its size, declare that."""
    for body in state.live_bodies():
        if not isinstance(body, Graph):
            continue
        for tensor in _computed(state, body):
            shape = state.facts.shape(tensor)
            if shape is not None and tensor.info is not None:
                dims = tensor.info.type.tensor_type.shape.dim
                if len(dims) == len(shape):
                    _rewrite(state, tensor, _settling(shape))


def _settling(shape: Sequence[Any]) -> Change:
    def change(name: str, axis: int, dim: Dim) -> Dim:
        known = shape[axis]
        if not isinstance(known, int) or dim.HasField("dim_value"):
            return dim
        return Dim(dim_value=known, denotation=dim.denotation)

    return change


def _computed(state: GraphState, body: Graph) -> list[Tensor]:
    return [t for node in state.index.nodes[body] for t in node.outputs if t.name]


def _rewrite(state: GraphState, tensor: Tensor, change: Change) -> None:
    if tensor.info is None:
        return
    made = _with_dims(value_info(tensor), change)
    if made is not None:
        declare(state, tensor, made)


def _with_dims(info: onnx.ValueInfoProto, change: Change) -> onnx.ValueInfoProto | None:
    """`info` with its dims rewritten; None if that changes nothing."""
    if info.type.WhichOneof("value") != "tensor_type" or not info.type.tensor_type.HasField("shape"):
        return None
    old = list(info.type.tensor_type.shape.dim)
    new = [change(info.name, axis, dim) for axis, dim in enumerate(old)]
    return None if new == old else with_type(info, dims=new)


def note_dims(
    state: GraphState,
    before: Mapping[tuple[Kind, str], onnx.ValueInfoProto],
    adapters: Mapping[str, Adapter],
    why: str,
) -> None:
    """Note every input and output about which something else is declared than `before`."""
    for (kind, name), old in before.items():
        now = declarations(state)[kind, name]
        if now != old:
            note(state, kind, old, now, why, adapters.get(name) if kind == "input" else None)


def declarations(state: GraphState) -> dict[tuple[Kind, str], onnx.ValueInfoProto]:
    """What is declared about the inputs and outputs of the main graph."""
    graph = state.model.graph
    found: dict[tuple[Kind, str], onnx.ValueInfoProto] = {}
    for tensor in graph.inputs:
        found["input", tensor.name] = declared(graph, "input", tensor)
    for tensor in graph.outputs:
        found["output", tensor.name] = declared(graph, "output", tensor)
    return found
