"""Tensors that shrink: facts and declarations follow, and what cannot be confirmed is refused."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import onnx

from graphopt.errors import RefusedRewrite
from graphopt.graph.facts import Shape
from graphopt.graph.state import GraphState
from graphopt.ir import Body, Node, Tensor, Variable, put

#: Inputs that say how large something is, and that a changed size may therefore reach.
_SIZES = {
    "ConstantOfShape": (0,),
    "Reshape": (1,),
    "Expand": (1,),
    "Tile": (1,),
    "Split": (1,),
    "Slice": (1, 2),
    "Resize": (3,),
    "Range": (0, 1, 2),
    "CenterCropPad": (1,),
}


def resize(state: GraphState, body: Body, shapes: Mapping[Tensor, Shape]) -> None:
    """State that tensors of `body` have other sizes since this site's edits, and infer what follows.

    Every node that computes one of them, or reads one, is inferred again from its inputs as they are now.
    Undone with the site.

    Args:
        state: the model, within a site.
        body: the body.
        shapes: the new shape of each tensor whose size changed.

    Raises:
        RefusedRewrite: inference does not confirm a new size; or the size of something else would change,
            or would be computed with.
    """
    facts, index = state.facts, state.index
    resized: dict[Tensor, None] = {}  # whose shape or value is another now
    revalued: dict[Tensor, None] = {}  # whose value is
    producers = {index.producer[t] for t in shapes if t in index.producer}
    for node in state.ordered(body):
        if any(True for _ in node.bodies()):
            if any(t in resized for t in (*node.inputs, *index.captured(node))):
                raise RefusedRewrite(f"{node.op} {node.name} depends on a size that changes")
            continue
        if node not in producers and not any(t in resized for t in node.inputs):
            continue
        before = {t: facts.save(t) for t in node.outputs if t.name}
        if state.site is not None:  # before anything is forgotten: what follows may refuse
            state.site.learned.extend(before.items())
        for t in before:
            facts.forget(t)
        facts.infer_node(node, state.opsets(body))
        for t, saved in before.items():
            dtype, shape, value = saved
            _, inferred, now = facts.save(t)
            wanted = shapes.get(t, shape)
            _confirm(t, shape, wanted, inferred)
            facts.restore(t, (dtype, wanted, now))
            if wanted != shape:
                _redeclare(state, t, shape, wanted)
            if value != now:
                revalued[t] = None
            if wanted != shape or value != now:
                resized[t] = None
        _no_escape(state, node, revalued)


def _confirm(tensor: Tensor, shape: Shape | None, wanted: Shape | None, inferred: Shape | None) -> None:
    """Decline unless inference says what is wanted: of what changed exactly, of the rest where it can."""
    if wanted is None:
        return
    if inferred is None:
        if wanted != shape:
            raise RefusedRewrite(f"the new size of {tensor.name} cannot be inferred")
        return
    if len(inferred) != len(wanted):
        raise RefusedRewrite(f"the rank of {tensor.name} would change")
    old = shape if shape is not None and len(shape) == len(wanted) else (None,) * len(wanted)
    for was, want, got in zip(old, wanted, inferred, strict=True):
        if isinstance(want, int) and want != got and (isinstance(got, int) or was != want):
            raise RefusedRewrite(f"{tensor.name} would have a size of {got} where it should have {want}")


def _no_escape(state: GraphState, node: Node, revalued: Mapping[Tensor, None]) -> None:
    """Decline when a number that tells a changed size is used for anything but sizes."""
    for slot, t in enumerate(node.inputs):
        if t not in revalued or node.op in ("Shape", "Size"):
            continue
        if slot in _SIZES.get(node.op, ()) and state.facts.rule(node) is not None:
            continue
        if all(state.facts.value(o) is not None for o in node.outputs if o.name):
            continue  # its outputs are watched in turn
        raise RefusedRewrite(f"{node.op} {node.name} computes with the size of a tensor that changes")


def _redeclare(state: GraphState, tensor: Tensor, shape: Shape | None, wanted: Shape | None) -> None:
    """Have what the model declares about `tensor` say the new size."""
    if not isinstance(tensor, Variable) or shape is None or wanted is None:
        return
    pairs = enumerate(zip(shape, wanted, strict=True))
    changed = {axis: d for axis, (was, d) in pairs if was != d and isinstance(d, int)}
    old = (tensor.info, tensor.shape)
    info, declared = old
    if info is not None and info.type.tensor_type.HasField("shape"):
        info = onnx.ValueInfoProto()
        info.CopyFrom(tensor.info)
        for axis, dim in changed.items():
            if axis < len(info.type.tensor_type.shape.dim):
                info.type.tensor_type.shape.dim[axis].dim_value = dim
    if declared is not None and len(declared) == len(wanted):
        declared = [changed.get(axis, dim) for axis, dim in enumerate(declared)]
    _declare(tensor, info, declared)
    state._log(_declare, tensor, *old)


def _declare(tensor: Variable, info: onnx.ValueInfoProto | None, shape: Any) -> None:
    put(tensor, "info", info)
    put(tensor, "shape", shape)
