"""Cutting a part out of a model: what lies between some tensors."""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import onnx

from graphopt import ir
from graphopt.errors import UserError
from graphopt.graph.dims import Sym
from graphopt.graph.facts import Facts
from graphopt.graph.index import Index
from graphopt.graph.mentions import unreachable_functions, unused_opset_imports
from graphopt.graph.shapes import infer
from graphopt.graph.state import GraphState
from graphopt.interface import UNCHANGED
from graphopt.io.declarations import value_info
from graphopt.io.importer import describe
from graphopt.model import Model

if TYPE_CHECKING:
    from graphopt.validation.proof import Proof

# Missing tensors that are named in a message.
_SHORT = 8


@dataclass(frozen=True)
class Piece:
    """A model made of others.

    Attributes:
        model: the model.
        proof: how its outputs compare with what it was made of; None: nobody asked.
        notes: what else there is to know.
    """

    model: Model
    proof: Proof | None = None
    notes: tuple[str, ...] = ()


def extract(
    source: Any,
    outputs: str | Sequence[str] = (),
    *,
    inputs: str | Sequence[str] = (),
    nodes: str | Sequence[str] = (),
    data: Any = None,
    verify: bool = True,
    trust_external_paths: bool = False,
) -> Piece:
    """Cut a part out of a model.

    Args:
        source: as for `graphopt.run`; it is not changed.
        outputs: tensors of the main graph that the part returns, in order; by default the model's outputs.
        inputs: tensors that it is fed, in order; by default those of the model's inputs that it needs.
        nodes: in place of both: globs over node names and operator types; what enters and leaves these nodes
            becomes inputs and outputs.
        data: inputs of the whole model, to compare on; synthesized by default.
        verify: run both and compare: the part is fed what the whole model has at the cut.
        trust_external_paths: follow external data out of the model's folder.

    Returns:
        The part and its proof. Weights stay in the files of the model.

    Raises:
        UserError: a tensor is not there; the outputs need more than the inputs (it says what), or do not
            depend on one of them; the type of an input is not known.
    """
    whole = Model.load(source, trust_external_paths=trust_external_paths)
    wanted, given = _names(outputs), _names(inputs)
    globs = _names(nodes)
    if globs and (wanted or given):
        raise UserError("--nodes says where to cut by itself", fix="leave out the inputs and outputs")
    part = whole.copy()
    part.interface = UNCHANGED
    facts = infer(part)
    _Cut(part, facts, wanted, given, globs).apply()
    proof = None
    if verify:
        from graphopt.validation.pieces import prove_part

        fed = [t.name for t in part.graph.inputs if t not in part.graph.defaults]
        proof = prove_part(whole, part, fed, data)
    return Piece(part, proof)


def _names(given: str | Sequence[str]) -> tuple[str, ...]:
    return (given,) if isinstance(given, str) else tuple(given)


class _Cut:
    """One cut through the main graph of `model`, which it changes."""

    def __init__(
        self,
        model: Model,
        facts: Facts,
        outputs: Sequence[str],
        inputs: Sequence[str],
        globs: Sequence[str],
    ) -> None:
        self.model, self.facts, self.graph = model, facts, model.graph
        self.index = Index(self.graph)
        self.tensors: dict[str, ir.Tensor] = {t.name: t for t in self.graph.initializers}
        self.tensors |= {t.name: t for t in self.graph.inputs}
        self.tensors |= {t.name: t for n in self.graph.nodes for t in n.outputs if t.name}
        self.by_nodes = bool(globs)
        if globs:
            self._borders(globs)
        else:
            self.outputs = [self._find(n, "output") for n in outputs] or list(self.graph.outputs)
            self.inputs = [self._find(n, "input") for n in inputs]
        self.given = bool(inputs) or self.by_nodes
        for tensor in self.inputs:
            if isinstance(tensor, ir.Constant):
                raise UserError(f"{tensor.name!r} is an initializer: it cannot be fed", fix="cut behind it")
        for kind, tensors in (("input", self.inputs), ("output", self.outputs)):
            twice = next((t.name for t in tensors if sum(o is t for o in tensors) > 1), None)
            if twice is not None:
                raise UserError(f"the {kind} {twice!r} is named twice")

    def _find(self, name: str, kind: str) -> ir.Tensor:
        found = self.tensors.get(name)
        if found is None:
            close = difflib.get_close_matches(name, self.tensors, n=3)
            known = self.graph.inputs if kind == "input" else self.graph.outputs
            fix = f"did you mean {' or '.join(map(repr, close))}?" if close else None
            fix = fix or f"the model's {kind}s: {', '.join(t.name for t in known)}"
            raise UserError(f"the main graph has no tensor {name!r}", fix=fix)
        return found

    def _borders(self, globs: Sequence[str]) -> None:
        """Inputs and outputs of the nodes that `globs` match."""
        chosen: dict[ir.Node, None] = {}
        for glob in globs:
            hits = [n for n in self.graph.nodes if any(fnmatch.fnmatchcase(w, glob) for w in (n.name, n.op))]
            if not hits:
                raise UserError(f"--nodes {glob!r} matches no node of the main graph")
            chosen.update(dict.fromkeys(hits))
        made = {t for n in chosen for t in n.outputs if t.name}
        read = dict.fromkeys(t for n in self.graph.nodes if n in chosen for t in self._reads(n))
        self.inputs = [t for t in read if t not in made and not self._is_free(t)]
        self.outputs = [
            t
            for n in self.graph.nodes
            if n in chosen
            for t in n.outputs
            if t.name
            and (
                t in self.index.output_slots
                or not self.index.readers.get(t)
                or any(self._outermost(r) not in chosen for r in self.index.readers[t])
            )
        ]

    def _outermost(self, node: ir.Node) -> ir.Node:
        """The node of the main graph that `node` is, or stands in."""
        while (holder := self.index.holder.get(self.index.home[node])) is not None:
            node = holder
        return node

    def _is_free(self, tensor: ir.Tensor) -> bool:
        """It needs no input: an initializer, the value of a Constant, an input with a default."""
        producer = self.index.producer.get(tensor)
        if producer is not None:
            return producer.op == "Constant" and not producer.domain
        return isinstance(tensor, ir.Constant) or tensor in self.graph.defaults

    def _reads(self, node: ir.Node) -> list[ir.Tensor]:
        """What `node` reads, its bodies included."""
        found = [t for t in node.inputs if t.name]
        return [*found, *self.index.captured(node)] if any(True for _ in node.bodies()) else found

    # -- the cut -----------------------------------------------------------------------------------

    def apply(self) -> None:
        """Make the model the part."""
        needed, reached = self._walk()
        self._check(reached)
        if not self.given:
            self.inputs = [t for t in self.graph.inputs if t in reached and t not in self.graph.defaults]
        cut = set(self.inputs)
        ports = {*self.graph.inputs, *self.graph.outputs}
        types, results = (
            {t: declared(t, self.facts, as_port=t in ports, kind=kind) for t in tensors}
            for kind, tensors in (("input", self.inputs), ("output", self.outputs))
        )
        graph = self.graph
        for node in needed:
            for slot, tensor in enumerate(node.outputs):
                if tensor in cut:  # its other outputs are needed; this one is fed
                    spare = ir.Variable(fresh_name(f"{tensor.name}_unused", self.tensors))
                    list.__setitem__(node.outputs, slot, spare)
        graph.nodes = [n for n in graph.nodes if n in needed]
        read = {t for n in needed for t in self._reads(n)} | set(self.outputs)
        defaults = {v: c for v, c in graph.defaults.items() if v in read}
        graph.inputs = [t for t in self.inputs if isinstance(t, ir.Variable)]
        graph.inputs += [v for v in defaults if v not in cut]
        graph.defaults = {v: c for v, c in defaults.items() if v not in cut}
        graph.initializers = {c: None for c in graph.initializers if c in read}
        graph.outputs = list(self.outputs)
        for tensor, info in (*types.items(), *results.items()):
            describe(tensor, info)
        drop_unused(self.model, self.facts)

    def _walk(self) -> tuple[dict[ir.Node, None], set[ir.Tensor]]:
        """The nodes that the outputs depend on up to the inputs, and all tensors on the way."""
        stop, needed = set(self.inputs), dict[ir.Node, None]()
        reached: set[ir.Tensor] = set()
        stack = list(self.outputs)
        while stack:
            tensor = stack.pop()
            if tensor in reached:
                continue
            reached.add(tensor)
            producer = self.index.producer.get(tensor)
            if tensor in stop or producer is None or producer in needed:
                continue
            needed[producer] = None
            stack.extend(self._reads(producer))
        return needed, reached

    def _check(self, reached: set[ir.Tensor]) -> None:
        if self.given:
            have = set(self.inputs) | set(self.graph.defaults)
            missing = [t.name for t in self.graph.inputs if t in reached and t not in have]
            if missing:
                names = ", ".join(map(repr, missing[:_SHORT])) + (", ..." if len(missing) > _SHORT else "")
                raise UserError(
                    f"the outputs cannot be computed from {', '.join(t.name for t in self.inputs)} alone: "
                    f"they need {names} too",
                    fix="add these, or tensors behind them, to the inputs",
                )
            idle = [t.name for t in self.inputs if t not in reached]
            if idle:
                raise UserError(
                    f"the outputs do not depend on {idle[0]!r}", fix="leave it out, or name other outputs"
                )
        for tensor in self.outputs:
            if tensor not in self.index.producer or any(tensor is t for t in self.inputs):
                raise UserError(f"{tensor.name!r} is not computed in the part: it cannot be an output")


def declared(tensor: ir.Tensor, facts: Facts, *, as_port: bool, kind: str) -> onnx.ValueInfoProto:
    """What is known about a tensor of the main graph, as an input or output of it says it.

    Args:
        tensor: the tensor.
        facts: what is inferred about it.
        as_port: it is an input or output already, so that what it declares stands.
        kind: "input" or "output", for the message.

    Raises:
        UserError: its element type is not known.
    """
    if tensor.info is not None and tensor.info.type.WhichOneof("value") not in (None, "tensor_type"):
        return value_info(tensor)
    dtype, shape = facts.dtype(tensor), facts.shape(tensor)
    if tensor.info is not None and as_port:
        return value_info(tensor)
    if dtype is None and tensor.info is not None:
        dtype = tensor.info.type.tensor_type.elem_type or None
    if dtype is None:
        raise UserError(
            f"the element type of {tensor.name!r} is not known, so it cannot be an {kind}",
            fix="cut at another tensor, or declare its type in the model (value_info)",
        )
    info = onnx.ValueInfoProto(name=tensor.name)
    info.type.tensor_type.elem_type = dtype
    if shape is not None:
        info.type.tensor_type.shape.SetInParent()
        for dim in shape:
            made = info.type.tensor_type.shape.dim.add()
            if not isinstance(dim, Sym):
                made.dim_value = dim
            elif not dim.is_anonymous and str(dim).isidentifier():
                made.dim_param = str(dim)
    return info


def drop_unused(model: Model, facts: Facts) -> None:
    """Drop the functions, opset imports and declarations of a model that its nodes do not need (any more)."""
    graph = model.graph
    Index(graph).relink()
    if graph.origin is not None:
        names: set[str] = {t.name for t in graph.inputs}
        names.update(t.name for t in graph.initializers)
        names.update(t.name for n in graph.nodes for t in n.outputs)
        origin = onnx.GraphProto()
        origin.CopyFrom(graph.origin)
        origin.ClearField("output")
        kept = [v for v in origin.value_info if v.name in names]
        del origin.value_info[:]
        origin.value_info.extend(kept)
        graph.origin = origin
    if model.origin.training_info:
        proto = onnx.ModelProto()
        proto.CopyFrom(model.origin)
        proto.ClearField("training_info")
        model.origin = proto
    state = GraphState(model, facts)
    gone = unreachable_functions(state)
    graph.functions[:] = [f for f in graph.functions if not any(f is g for g in gone)]
    state = GraphState(model, facts)
    for domain in unused_opset_imports(state, graph):
        model.opset_imports.pop(domain, None)


def fresh_name(hint: str, taken: Iterable[str]) -> str:
    """`hint`, with a number behind it if that is taken."""
    names, name, count = set(taken), hint, 0
    while name in names:
        count += 1
        name = f"{hint}_{count}"
    return name
