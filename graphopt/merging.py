"""Putting one model behind another."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import onnx

from graphopt import ir
from graphopt.errors import UserError
from graphopt.extracting import Piece
from graphopt.graph.index import Index
from graphopt.graph.ports import Dim, with_type
from graphopt.interface import UNCHANGED, type_text
from graphopt.io.declarations import value_info
from graphopt.io.importer import describe
from graphopt.lossy import RAISE
from graphopt.model import Model
from graphopt.pipeline.manager import Settings, execute
from graphopt.pipeline.registry import installed
from graphopt.pipeline.targets import get_target

if TYPE_CHECKING:
    from graphopt.validation.proof import Proof


def merge(
    first: Any,
    second: Any,
    mapping: Mapping[str, str],
    *,
    prefix: str = "b_",
    keep_mapped: bool = False,
    data: Any = None,
    verify: bool = True,
    trust_external_paths: bool = False,
) -> Piece:
    """Make one model of two, the second behind the first.

    Args:
        first, second: as for `graphopt.run`; they are not changed.
        mapping: outputs of the first -> inputs of the second that they are fed to. All other inputs and
            outputs of both stay.
        prefix: put before names of the second that the first has as well.
        keep_mapped: the outputs of the first that the second is fed stay outputs.
        data: inputs of the result, to compare on; synthesized by default.
        verify: run the two one after the other, and the result, and compare.
        trust_external_paths: follow external data out of the models' folders.

    Returns:
        The model, its proof, and notes about what was renamed. Weights stay in the files of the two.

    Raises:
        UserError: a name is not there; types or dims do not fit; the older of two operator sets cannot be
            raised; two local functions of one name differ.
    """
    a, b = (Model.load(m, trust_external_paths=trust_external_paths).copy() for m in (first, second))
    if not mapping:
        raise UserError("nothing is mapped", fix="say which output feeds which input: --map a_out=b_in")
    versions = [m.opset_imports.get("", 0) for m in (a, b)]
    notes = [*_raised(a, versions, "A"), *_raised(b, versions, "B")]
    wires = _wires(a, b, mapping)
    alone = (a.copy(), b.copy())
    joined = _Join(a, b, wires, prefix, keep_mapped)
    joined.apply()
    notes += joined.notes
    proof = _prove(a, alone, joined, mapping, data) if verify else None
    return Piece(a, proof, tuple(notes))


def _raised(model: Model, versions: Sequence[int], which: str) -> list[str]:
    """Raise an older model to the newer of the two operator sets."""
    old, newest = model.opset_imports.get("", 0), max(versions)
    if not old or old == newest:
        return []
    steps = installed().resolve(f"{RAISE}{{least={newest}}}")
    done = execute(model, steps, Settings(get_target("portable")))
    if not done.journal.changes:
        reasons = "; ".join(f"{r.node} ({r.op}): {r.reason}" for r in done.journal.refusals)
        raise UserError(
            f"{which} is of opset {old} and cannot be raised to {newest}: {reasons or 'no reason is known'}",
            fix="export both models for one opset",
        )
    return [f"{which} was raised from opset {old} to {newest}"]


def _wires(a: Model, b: Model, mapping: Mapping[str, str]) -> dict[ir.Tensor, ir.Tensor]:
    """Inputs of B -> the outputs of A that feed them."""
    outputs = {t.name: t for t in a.graph.outputs}
    inputs = {t.name: t for t in b.graph.inputs}
    found: dict[ir.Tensor, ir.Tensor] = {}
    for left, right in mapping.items():
        source = _named(outputs, left, "A has no output")
        target = _named(inputs, right, "B has no input")
        if target in found:
            raise UserError(f"the input {right!r} of B is fed twice")
        _check_fits(value_info(source), value_info(target))
        found[target] = source
    return found


def _named(known: Mapping[str, ir.Tensor], name: str, what: str) -> ir.Tensor:
    if name not in known:
        close = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise UserError(f"{what} {name!r}", fix=f"{hint}it has: {', '.join(known)}")
    return known[name]


def _check_fits(source: onnx.ValueInfoProto, target: onnx.ValueInfoProto) -> None:
    """Refuse what cannot be fed."""
    kinds = [info.type.WhichOneof("value") for info in (source, target)]
    fits = kinds[0] == kinds[1] or None in kinds
    if fits and kinds == ["tensor_type", "tensor_type"]:
        a, b = source.type.tensor_type, target.type.tensor_type
        fits = not a.elem_type or not b.elem_type or a.elem_type == b.elem_type
        if fits and a.HasField("shape") and b.HasField("shape"):
            fits = len(a.shape.dim) == len(b.shape.dim) and all(
                not (p.HasField("dim_value") and q.HasField("dim_value")) or p.dim_value == q.dim_value
                for p, q in zip(a.shape.dim, b.shape.dim, strict=True)
            )
    if not fits:
        raise UserError(
            f"the output {source.name!r} of A is {type_text(source)}, "
            f"the input {target.name!r} of B is {type_text(target)}",
            fix="types and dims must agree; transpose-io and convert-io change them",
        )


class _Join:
    """B's graph on its way into A's; both are changed.

    Attributes:
        notes: what was renamed.
        names: inputs and outputs of B -> their names in the result.
    """

    def __init__(
        self, a: Model, b: Model, wires: Mapping[ir.Tensor, ir.Tensor], prefix: str, keep_mapped: bool
    ) -> None:
        self.a, self.b, self.wires, self.prefix, self.keep_mapped = a, b, dict(wires), prefix, keep_mapped
        self.notes: list[str] = []
        self.names: dict[str, str] = {}

    def apply(self) -> None:
        """Make A the whole."""
        self._imports()
        self._functions()
        self._dims()
        self._rename()
        a, b = self.a.graph, self.b.graph
        for body in ir.bodies(b):
            if isinstance(body, ir.Function):
                continue
            for node in body.nodes:
                for slot, tensor in enumerate(node.inputs):
                    if tensor in self.wires:
                        list.__setitem__(node.inputs, slot, self.wires[tensor])
            body.outputs = [self.wires.get(t, t) for t in body.outputs]
            body.opset_imports = a.opset_imports
        fed = set(self.wires.values())
        a.nodes = [*a.nodes, *b.nodes]
        a.inputs = [*a.inputs, *(t for t in b.inputs if t not in self.wires)]
        a.initializers |= b.initializers
        a.defaults |= {v: c for v, c in b.defaults.items() if v not in self.wires}
        kept = [t for t in a.outputs if self.keep_mapped or t not in fed]
        a.outputs = [*kept, *(t for t in b.outputs if not any(t is k for k in kept))]
        if not a.outputs:
            raise UserError("the result would have no outputs")
        self._origins()
        self.a._sources.all.extend(s for s in self.b._sources.all if s not in self.a._sources.all)
        self.a._loaded_ir = max(self.a.ir_version, self.b.ir_version)
        self.a.had_external_data |= self.b.had_external_data
        self.a.interface = UNCHANGED
        Index(a).relink()

    def _imports(self) -> None:
        for domain, version in self.b.opset_imports.items():
            if self.a.opset_imports.setdefault(domain, version) != version:
                raise UserError(
                    f"A imports {domain or 'ai.onnx'} {self.a.opset_imports[domain]}, B {version}",
                    fix="export both for one version",
                )

    def _functions(self) -> None:
        texts = [
            {(f.domain, f.name, f.overload): f for f in m.skeleton().functions} for m in (self.a, self.b)
        ]
        named = [{(f.domain or "", f.name) for f in m.graph.functions} for m in (self.a, self.b)]
        for place, (model, which) in enumerate(((self.a, "A"), (self.b, "B"))):
            others = named[1 - place] - named[place]
            for node in (n for body in model.bodies() for n in body.nodes):
                if (node.domain or "", node.op) in others:
                    raise UserError(f"{node.op} of {which} would become a call of the other's function")
        for function in self.b.graph.functions:
            key = (function.domain or "", function.name, function.overload)
            if key not in texts[0]:
                self.a.graph.functions.append(function)
            elif texts[0][key] != texts[1].get(key):
                raise UserError(f"both have a local function {function.name!r}, and they differ")

    # -- names -------------------------------------------------------------------------------------

    def _rename(self) -> None:
        """Give what the two have in common another name in B."""
        mine, theirs = Index(self.a.graph), Index(self.b.graph)
        taken = mine.names | theirs.names
        hidden = {t.name for t in self.a.graph.outputs} | mine.names
        renamed: dict[ir.Tensor, str] = {}

        def fresh(name: str) -> str:
            made = f"{self.prefix}{name}"
            while made in taken:
                made = f"{self.prefix}{made}"
            taken.add(made)
            return made

        for body in ir.bodies(self.b.graph):
            if isinstance(body, ir.Function):
                continue
            own = [*body.inputs, *body.initializers, *(t for n in body.nodes for t in n.outputs)]
            for tensor in own:
                if (
                    tensor.name
                    and tensor.name in hidden
                    and tensor not in self.wires
                    and tensor not in renamed
                ):
                    renamed[tensor] = fresh(tensor.name)
            for node in body.nodes:
                if node.name and node.name in mine.names:
                    node.name = fresh(node.name)
        ports = (*self.b.graph.inputs, *self.b.graph.outputs)
        self.names = {t.name: renamed.get(t, t.name) for t in ports}
        for old, new in self.names.items():
            if old != new:
                self.notes.append(f"{old!r} of B is called {new!r}: A has one of that name")
        defaults = self.b.graph.defaults
        for tensor, name in renamed.items():
            ir.put(tensor, "name", name)
            if isinstance(tensor, ir.Variable) and tensor in defaults:
                ir.put(defaults[tensor], "name", name)
            if tensor.info is not None:
                describe(tensor, value_info(tensor))

    def _dims(self) -> None:
        """Symbolic dims of B that are A's get A's names; others of a name that A has get another."""
        known = {d for t in self.a.graph.inputs for d in t.shape or () if isinstance(d, str) and d}
        known |= {d.dim_param for i in _infos(self.a.graph) for d in _dims_of(i) if d.dim_param}
        becomes: dict[str, Dim] = {}
        for target, source in self.wires.items():
            pairs = zip(_dims_of(value_info(target)), _dims_of(value_info(source)), strict=False)
            for theirs, mine in pairs:
                if theirs.dim_param and mine.WhichOneof("value"):
                    becomes.setdefault(theirs.dim_param, mine)

        def change(dim: Dim) -> Dim:
            if not dim.dim_param:
                return dim
            if dim.dim_param not in becomes and dim.dim_param in known:
                becomes[dim.dim_param] = Dim(dim_param=f"{self.prefix}{dim.dim_param}")
            made = Dim()
            made.CopyFrom(becomes.get(dim.dim_param, dim))
            made.denotation = dim.denotation
            return made

        for body in ir.bodies(self.b.graph):
            if isinstance(body, ir.Function):
                continue
            tensors = dict.fromkeys(
                (*body.inputs, *body.outputs, *(t for n in body.nodes for t in n.outputs))
            )
            for tensor in tensors:
                dims = [] if tensor.info is None else _dims_of(tensor.info)
                if any(d.dim_param for d in dims):
                    describe(tensor, with_type(value_info(tensor), dims=[change(d) for d in dims]))

    def _origins(self) -> None:
        """What belongs to graph and model as a whole: A's, and what B has besides."""
        a, b = self.a, self.b
        if a.graph.origin is not None and b.graph.origin is not None:
            origin = onnx.GraphProto()
            origin.CopyFrom(a.graph.origin)
            origin.ClearField("output")  # declared by the tensors themselves
            _add_props(origin.metadata_props, b.graph.origin.metadata_props)
            a.graph.origin = origin
        proto = onnx.ModelProto()
        proto.CopyFrom(a.origin)
        _add_props(proto.metadata_props, b.origin.metadata_props)
        dropped = [which for which, m in (("A", a), ("B", b)) if m.origin.training_info]
        if dropped:
            self.notes.append(f"the training information of {' and '.join(dropped)} is left out")
            proto.ClearField("training_info")
        a.origin = proto


def _add_props(into: Any, more: Any) -> None:
    known = {entry.key for entry in into}
    into.extend(entry for entry in more if entry.key not in known)


def _infos(graph: ir.Graph) -> list[onnx.ValueInfoProto]:
    tensors = (*graph.inputs, *graph.outputs, *(t for n in graph.nodes for t in n.outputs))
    return [t.info for t in tensors if t.info is not None]


def _dims_of(info: onnx.ValueInfoProto) -> list[Dim]:
    return list(info.type.tensor_type.shape.dim) if info.type.WhichOneof("value") == "tensor_type" else []


def _prove(
    whole: Model, alone: tuple[Model, Model], joined: _Join, mapping: Mapping[str, str], data: Any
) -> Proof:
    """Compare with running the two one after the other."""
    from graphopt.validation.pieces import Values, prove_whole, run_once

    a, b = alone
    results = {t.name for t in whole.graph.outputs}

    def expected(feeds: Values) -> Values:
        mine = run_once(a, feeds, [t.name for t in a.graph.outputs])
        given = {right: mine[left] for left, right in mapping.items()}
        fed = {t.name for t in b.graph.inputs}
        given |= {n: feeds[joined.names[n]] for n in fed - set(given) if joined.names.get(n) in feeds}
        theirs = run_once(b, given, [t.name for t in b.graph.outputs])
        found = {joined.names.get(n, n): v for n, v in theirs.items()}
        return {n: v for n, v in (mine | found).items() if n in results}

    return prove_whole(whole, expected, data)
