"""Which inputs and outputs of two models belong together: by name, and as the user says.

The candidate's are renamed to the reference's, in a copy, so that everything else can go by names.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import onnx

from graphopt import ir
from graphopt.errors import UserError
from graphopt.interface import type_text
from graphopt.io.declarations import value_info
from graphopt.io.importer import describe
from graphopt.model import Model


@dataclass(frozen=True)
class Alignment:
    """How the interfaces of two models fit together.

    Attributes:
        candidate: the candidate with the reference's names; a copy if that changed any.
        mapping: names of the candidate's inputs and outputs -> the reference's, where they differ.
        problems: why they cannot be compared; empty when they can.
        reordered: what stands at other positions than in the reference, in words.
        hints: what to do about the problems, in sentences.
    """

    candidate: Model
    mapping: Mapping[str, str] = field(default_factory=dict)
    problems: tuple[str, ...] = ()
    reordered: tuple[str, ...] = ()
    hints: tuple[str, ...] = ()


def align(reference: Model, candidate: Model, mapping: Mapping[str, str]) -> Alignment:
    """Bring the candidate's names in line with the reference's.

    Args:
        reference: whose names count.
        candidate: is not changed.
        mapping: names of the candidate's inputs and outputs -> the reference's, where they differ.

    Raises:
        UserError: the mapping names what is not there, or one thing twice.
    """
    _check(reference, candidate, mapping)
    problems: list[str] = []
    hints: list[str] = []
    maps: list[str] = []
    reordered: list[str] = []
    renames: dict[ir.Tensor, str] = {}
    used: dict[str, str] = {}
    for kind, theirs, mine in (
        ("input", _inputs(reference), _inputs(candidate)),
        ("output", list(reference.graph.outputs), list(candidate.graph.outputs)),
    ):
        names = {t.name for t in theirs}
        called: dict[str, ir.Tensor] = {}
        for tensor in mine:
            name = mapping.get(tensor.name, tensor.name)
            if name not in names and tensor.name in names and tensor.name not in mapping:
                name = tensor.name
            called[name] = tensor
            if name != tensor.name and name in names:
                renames[tensor] = name
                used[tensor.name] = name
        lost = [t for t in theirs if t.name not in called]
        new = [t for n, t in called.items() if n not in names]
        for what, which, model in (("removed", lost, reference), ("added", new, candidate)):
            optional = [t.name for t in which if t in model.graph.defaults]
            needed = [t.name for t in which if t not in model.graph.defaults]
            problems += [f"{kind} {what}: {', '.join(needed)}"] if needed else []
            problems += [f"overridable initializer {what}: {', '.join(optional)}"] if optional else []
        if lost and new:
            maps += _proposals(lost, new, theirs, mine)
        order = [t.name for t in theirs if t.name in called and called[t.name].name not in mapping]
        now = [n for n in called if n in set(order)]
        if order != now:
            reordered.append(f"{kind}s reordered: {', '.join(order)} -> {', '.join(now)}")
        problems += _retyped(kind, theirs, called)
        for tensor in theirs:
            other = called.get(tensor.name)
            had = tensor in reference.graph.defaults
            if had and other is not None and other not in candidate.graph.defaults:
                problems.append(f"overridable initializer {tensor.name!r} has no default any more")
    if problems:
        if maps:
            hints.append(f"If only names changed: {' '.join(maps)}")
        if any("changed from" in p for p in problems):
            hints.append(
                "A pass that was asked to change inputs or outputs (convert-io, transpose-io, ...) is proven "
                "by the run that applied it; the file does not say how values translate."
            )
        return Alignment(candidate, used, tuple(problems), tuple(reordered), tuple(hints))
    return Alignment(renamed(candidate, renames), used, (), tuple(reordered))


def renamed(model: Model, names: Mapping[ir.Tensor, str]) -> Model:
    """A copy of `model` whose inputs and outputs have other names; tensors in their way make room."""
    if not names:
        return model
    wanted = {t.name: name for t, name in names.items()}
    twin = model.copy()
    # Some tensor of the model may have a name that a port is to get.
    taken = {
        t.name
        for body in twin.bodies()
        for t in (*body.inputs, *body.initializers, *(t for n in body.nodes for t in n.outputs))
    }
    ports: dict[ir.Tensor, str] = {}
    for tensor in dict.fromkeys((*twin.graph.inputs, *twin.graph.outputs)):
        if tensor.name in wanted:
            ports[tensor] = wanted[tensor.name]
    for body in twin.bodies():
        if isinstance(body, ir.Function):
            continue
        for tensor in (*body.inputs, *body.initializers, *(t for n in body.nodes for t in n.outputs)):
            if tensor.name in ports.values() and tensor not in ports:
                made = f"{tensor.name}/of_candidate"
                while made in taken:
                    made += "_"
                taken.add(made)
                _rename(twin, tensor, made)
    for tensor, name in ports.items():
        _rename(twin, tensor, name)
    return twin


def _rename(model: Model, tensor: ir.Tensor, name: str) -> None:
    ir.put(tensor, "name", name)
    if isinstance(tensor, ir.Variable) and tensor in model.graph.defaults:
        ir.put(model.graph.defaults[tensor], "name", name)
    if tensor.info is not None:
        describe(tensor, value_info(tensor))


def _inputs(model: Model) -> list[ir.Tensor]:
    """What a caller must or may feed."""
    return list(model.graph.inputs)


def _check(reference: Model, candidate: Model, mapping: Mapping[str, str]) -> None:
    for new, old in mapping.items():
        fits = False
        for theirs, mine in (
            (_inputs(reference), _inputs(candidate)),
            (reference.graph.outputs, candidate.graph.outputs),
        ):
            fits |= any(t.name == old for t in theirs) and any(t.name == new for t in mine)
        if fits:
            continue
        for model, name, whose in ((candidate, new, "candidate"), (reference, old, "reference")):
            ports = [t.name for t in (*_inputs(model), *model.graph.outputs)]
            if name not in ports:
                raise UserError(
                    f"--map {new}={old}: the {whose} has no input or output {name!r}",
                    fix=f"it has: {', '.join(ports)}; as in: --map NEW=OLD, the candidate's name first",
                )
        raise UserError(f"--map {new}={old} maps an input to an output")
    twice = [old for old in mapping.values() if list(mapping.values()).count(old) > 1]
    if twice:
        raise UserError(f"--map gives {twice[0]!r} to several of the candidate's")


def _retyped(kind: str, theirs: Sequence[ir.Tensor], called: Mapping[str, ir.Tensor]) -> list[str]:
    found = []
    for tensor in theirs:
        other = called.get(tensor.name)
        if other is None:
            continue
        before, after = type_text(value_info(tensor), False), type_text(value_info(other), False)
        if before != after:
            found.append(f"{kind} {tensor.name!r} changed from {before} to {after}")
        elif kind == "input" and _dims_clash(value_info(tensor), value_info(other)):
            whole = type_text(value_info(tensor)), type_text(value_info(other))
            found.append(f"{kind} {tensor.name!r} changed from {whole[0]} to {whole[1]}")
    return found


def _proposals(
    lost: Sequence[ir.Tensor],
    new: Sequence[ir.Tensor],
    theirs: Sequence[ir.Tensor],
    mine: Sequence[ir.Tensor],
) -> list[str]:
    """For each that is missing the new one that it could be: of the same type, at the same place first."""
    left, found = list(new), []
    for tensor in lost:
        info = value_info(tensor)
        fitting = [
            t
            for t in left
            if type_text(value_info(t), False) == type_text(info, False)
            and not _dims_clash(info, value_info(t))
        ]
        if not fitting:
            continue
        at = theirs.index(tensor)
        best = min(fitting, key=lambda t: abs(mine.index(t) - at))
        left.remove(best)
        found.append(f"--map {best.name}={tensor.name}")
    return found


def _dims_clash(a: onnx.ValueInfoProto, b: onnx.ValueInfoProto) -> bool:
    """Two declared shapes that no value can have at once."""
    if a.type.WhichOneof("value") != "tensor_type" or b.type.WhichOneof("value") != "tensor_type":
        return False
    if not a.type.tensor_type.HasField("shape") or not b.type.tensor_type.HasField("shape"):
        return False
    first, second = a.type.tensor_type.shape.dim, b.type.tensor_type.shape.dim
    if len(first) != len(second):
        return True
    return any(
        x.HasField("dim_value") and y.HasField("dim_value") and x.dim_value != y.dim_value
        for x, y in zip(first, second, strict=True)
    )
