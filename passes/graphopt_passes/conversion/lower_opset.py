"""lower-opset: the same model, written with an older version of the standard operators."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, Final

import onnx

from graphopt.passkit import AttributeRef, Node, Numerics, Pass, PassContext, RefusedRewrite, Rewriter
from graphopt_passes.conversion._opset_adapters import Step
from graphopt_passes.conversion._opset_down import ADAPTERS, NEW_VALUES, REDEFINED
from graphopt_passes.conversion._opset_schemas import (
    REVIEWED,
    default,
    difference,
    misfit,
    schema_at,
    versions_between,
)

TYPE_NAMES: Final = {v: k.lower() for k, v in onnx.TensorProto.DataType.items()}
# Below it negative axes are not known, and much else means something else.
_OLDEST: Final = 11
# Below it onnxruntime 1.32 infers no shapes of arithmetic in the body of a Scan, and does not run it.
_SCAN_INFERRED: Final = 14


@dataclass(frozen=True)
class LowerOpset(Pass):
    """A model of opset k > `to` becomes one of opset `to` that computes the same.

    Every node of the main graph, of its bodies and of the local functions is compared with the schemas of
    its operator from its own opset down to `to`. A node stays as it is where it uses nothing that came
    later: its types, inputs and outputs are known there, attributes that are not have their defaults. Else
    an adapter rewrites it: constant inputs become attributes (axes of Squeeze, Unsqueeze and Reduce*, sizes
    of Split, ratio of Dropout), Shape of a part is sliced, LayerNormalization, Gelu, HardSwish and Mish are
    written out, CastLike is a Cast. All of it happens, or nothing does. The IR version stays.

    Refuses when: an operator is not there yet, or a node uses what came later in a way that nothing older
    says (the node and the reason are named); which type a node works on is not known, and older versions do
    not take all; a Scan does not declare the shapes of its outputs (below 14); training information has
    operators of its own; a node to adapt is kept. Models that are old enough are left alone.
    """

    name: ClassVar[str] = "lower-opset"
    numerics: ClassVar[Numerics] = Numerics.CLOSE

    to: int = field(metadata={"help": "the opset to lower newer models to, 11 or later"})

    def __post_init__(self) -> None:
        newest = min(REVIEWED, onnx.defs.onnx_opset_version())
        if not _OLDEST <= self.to <= newest:
            raise ValueError(f"to is {self.to}; it lies between {_OLDEST} and {newest}")

    def run(self, graph: Rewriter, ctx: PassContext) -> None:
        """Lower the whole model, from its main graph."""
        if not graph.is_main or graph.opset > REVIEWED:
            return
        nodes = graph.nodes()
        where = (graph, nodes[-1]) if nodes else None
        try:
            with graph.raise_opset(self.to, f"opset {self.to}", lower=True) as bodies:
                for body, old in bodies:
                    for node in body.nodes():
                        where = (body, node)
                        _check_scan(body, node, self.to)
                        adapt(body, node, old, self.to)
        except RefusedRewrite as refused:
            if where is not None:
                where[0].refuse(where[1], f"no opset {self.to}: {refused.reason}")


def _check_scan(graph: Rewriter, node: Node, new: int) -> None:
    """Refuse a Scan whose body does not say the shapes of its outputs, which ONNX Runtime then misses."""
    if new >= _SCAN_INFERRED or not graph.is_op(node, "Scan"):
        return
    for tensor in (t for body in node.bodies() for t in body.outputs):
        info = tensor.info
        if info is None or not info.type.tensor_type.HasField("shape"):
            raise RefusedRewrite(f"the body of Scan does not declare the shape of {tensor.name}")


def adapt(graph: Rewriter, node: Node, old: int, new: int) -> None:
    """Write `node`, which was written for opset `old`, for opset `new`, which is in force already.

    Raises:
        RefusedRewrite: that cannot be done.
    """
    if not graph.is_op(node, node.op):
        return  # of another domain, or a call
    current: Node | None = node
    at = old
    while current is not None:
        later = versions_between(current.op, new, at)
        if not later:
            break
        version = later[-1]
        adapter = ADAPTERS.get((current.op, version))
        if adapter is not None:
            current = adapter(Step(graph, current, version, new))
        elif schema_at(current.op, version - 1) is None:
            raise RefusedRewrite(f"{current.op} came with opset {version}")
        else:
            _unchanged(graph, current, version)
        if current is not None and schema_at(current.op, version - 1) is not None:
            _check_types(graph, current, version - 1)
        at = version - 1
    if current is not None:
        schema = schema_at(current.op, new)
        if schema is None:
            raise RefusedRewrite(f"opset {new} has no {current.op}")
        n_inputs = max((i + 1 for i, t in enumerate(current.inputs) if t.name), default=0)
        reason = misfit(schema, current.attrs, n_inputs, len(current.outputs))
        if reason:
            raise RefusedRewrite(f"{current.op} does not fit: {reason}")


def _unchanged(graph: Rewriter, node: Node, version: int) -> None:
    """Check that `node` says the same in the version before `version`; drop attributes at their default."""
    reason = REDEFINED.get((node.op, version), difference(node.op, version).reason)
    if reason:
        raise RefusedRewrite(f"{node.op} of opset {version} is another: {reason}")
    name, values = NEW_VALUES.get((node.op, version), ("", ()))
    if name and node.attrs.get(name) in values:
        raise RefusedRewrite(f"{name}={node.attrs[name]} came with opset {version}")
    newer, older = schema_at(node.op, version), schema_at(node.op, version - 1)
    assert newer is not None
    assert older is not None
    for attribute in list(node.attrs):
        if attribute in older.attributes:
            continue
        value: Any = node.attrs[attribute]
        if isinstance(value, AttributeRef) or value != default(newer, attribute):
            raise RefusedRewrite(f"the attribute {attribute} came with opset {version}")
        graph.set_attr(node, attribute, None)


def _check_types(graph: Rewriter, node: Node, opset: int) -> None:
    """Check that the version at `opset` takes the types of `node`, and ties them together no further."""
    schema, now = schema_at(node.op, opset), schema_at(node.op, graph.opset)
    assert schema is not None
    allowed = {c.type_param_str: set(c.allowed_type_strs) for c in schema.type_constraints}
    bound: dict[str, str] = {}
    for formals, tensors, kind in (
        (schema.inputs, node.inputs, "input"),
        (schema.outputs, node.outputs, "output"),
    ):
        if not formals:
            continue
        for slot, tensor in enumerate(tensors):
            if not tensor.name:
                continue
            formal = formals[min(slot, len(formals) - 1)]
            types = allowed.get(formal.type_str, {formal.type_str})
            dtype = graph.dtype(tensor)
            if dtype is None:
                if now is schema or (len(types) < 2 and formal.type_str in types):
                    continue
                raise RefusedRewrite(f"the type of {kind} {tensor.name} is not known")
            text = f"tensor({TYPE_NAMES[dtype]})"
            if text not in types:
                raise RefusedRewrite(f"{node.op} of opset {opset} does not take {text} at {kind} {slot}")
            tied = formal.type_str in allowed and formal.is_homogeneous
            if tied and bound.setdefault(formal.type_str, text) != text:
                raise RefusedRewrite(f"{node.op} of opset {opset} wants one type for all, not {text} as well")
