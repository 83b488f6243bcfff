"""raise-opset: the same model, written with a newer version of the standard operators."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Final

import onnx

from graphopt.passkit import Node, Numerics, Pass, PassContext, RefusedRewrite, Rewriter, UserError
from graphopt_passes.conversion import _opset_adapters, _opset_legacy, _opset_resize
from graphopt_passes.conversion._opset_adapters import Step
from graphopt_passes.conversion._opset_schemas import (
    REVIEWED,
    difference,
    misfit,
    schema_at,
    versions_between,
)

TYPE_NAMES: Final = {v: k.lower() for k, v in onnx.TensorProto.DataType.items()}
ADAPTERS: Final = {**_opset_adapters.ADAPTERS, **_opset_resize.ADAPTERS, **_opset_legacy.ADAPTERS}


@dataclass(frozen=True)
class RaiseOpset(Pass):
    """A model of opset k < `least` becomes one of opset `least` that computes the same.

    Every node of the main graph, of its bodies and of the local functions is compared with its schema at
    `least`. Where only more became possible, it stays as it is; where its meaning changed, it is rewritten:
    attributes become inputs (Squeeze, Reduce*, Clip, Pad, Slice, TopK, Split, ...), Softmax over several
    dims is flattened, Upsample becomes Resize. All of it happens, or nothing does.

    Refuses when: an operator is gone, or changed in a way that this node cannot be adapted to (the node is
    named; there are adapters for nearly all that changed since opset 6); training information has
    operators of its own; a node to adapt is kept. Models that are new enough are left alone.
    """

    name: ClassVar[str] = "raise-opset"
    numerics: ClassVar[Numerics] = Numerics.CLOSE

    least: int = field(default=21, metadata={"help": "the opset to raise older models to"})

    def run(self, graph: Rewriter, ctx: PassContext) -> None:
        """Raise the whole model, from its main graph."""
        newest = min(REVIEWED, onnx.defs.onnx_opset_version())
        if self.least > newest:
            raise UserError(f"opset {self.least} is not known", fix=f"the newest is {newest}")
        if not graph.is_main:
            return
        nodes = graph.nodes()
        where = (graph, nodes[-1]) if nodes else None
        try:
            with graph.raise_opset(self.least, f"opset {self.least}") as bodies:
                for body, old in bodies:
                    for node in body.nodes():
                        where = (body, node)
                        adapt(body, node, old, self.least)
        except RefusedRewrite as refused:
            if where is not None:
                where[0].refuse(where[1], f"no opset {self.least}: {refused.reason}")


def adapt(graph: Rewriter, node: Node, old: int, new: int) -> None:
    """Write `node`, which was written for opset `old`, for opset `new`, which is in force already.

    Raises:
        RefusedRewrite: that cannot be done.
    """
    if not graph.is_op(node, node.op):
        return  # of another domain, or a call
    if schema_at(node.op, old) is None:
        raise RefusedRewrite(f"opset {old} has no {node.op}")
    current: Node | None = node
    at = old
    while current is not None and (later := versions_between(current.op, at, new)):
        adapter = ADAPTERS.get((current.op, later[0]))
        if adapter is not None:
            current = adapter(Step(graph, current, at, new))
        else:
            _check_difference(graph, current, later[0])
        at = later[0]
    if current is not None:
        schema = schema_at(current.op, new)
        assert schema is not None
        reason = misfit(schema, current.attrs, len(current.inputs), len(current.outputs))
        if reason:
            raise RefusedRewrite(f"{current.op} does not fit: {reason}")


def _check_difference(graph: Rewriter, node: Node, version: int) -> None:
    found = difference(node.op, version)
    if found.reason:
        raise RefusedRewrite(found.reason)
    for slot, types in found.lost.items():
        dtype = graph.dtype(graph.input(node, slot))
        if dtype is None or f"tensor({TYPE_NAMES[dtype]})" in types:
            raise RefusedRewrite(f"opset {version} of {node.op} may not take the type of input {slot}")
