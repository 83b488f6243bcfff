"""What callers of a model rely on: names, order, types and dims of its inputs and outputs."""

from __future__ import annotations

from dataclasses import dataclass

import onnx

from graphopt.interface import InterfaceEdits, type_text
from graphopt.runtime.session import Source, Translated


@dataclass(frozen=True)
class Interface:
    """A model's inputs and outputs, in order.

    Attributes:
        inputs: what a caller must feed.
        outputs: what it gets.
        overridable: what it may feed: inputs that are initializers too (IR >= 4).
    """

    inputs: tuple[onnx.ValueInfoProto, ...]
    outputs: tuple[onnx.ValueInfoProto, ...]
    overridable: tuple[onnx.ValueInfoProto, ...]

    def after(self, edits: InterfaceEdits) -> Interface:
        """What it becomes by these edits."""
        return Interface(
            tuple(edits.declared("input", v) for v in self.inputs),
            tuple(edits.declared("output", v) for v in self.outputs),
            tuple(edits.declared("input", v) for v in self.overridable),
        )

    @classmethod
    def of(cls, source: Source) -> Interface:
        """The interface of a model in any form that a session is opened from."""
        if isinstance(source, Translated):
            return cls.of(source.source).after(source.edits)
        if isinstance(source, onnx.ModelProto):
            model = source
        else:
            model = onnx.ModelProto.FromString(source if isinstance(source, bytes) else source.proto)
        graph = model.graph
        stored = {t.name for t in graph.initializer} | {t.values.name for t in graph.sparse_initializer}
        overridable = (v for v in graph.input if v.name in stored and model.ir_version >= 4)
        inputs = (v for v in graph.input if v.name not in stored)
        return cls(tuple(inputs), tuple(graph.output), tuple(overridable))


def interface_changes(reference: Interface, candidate: Interface, *, dims: bool = True) -> list[str]:
    """How the candidate's inputs and outputs differ; empty when they do not.

    Args:
        reference: of the original.
        candidate: of the result.
        dims: also compare dims and the names of symbolic dims.
    """
    changes: list[str] = []
    kinds = (
        ("input", reference.inputs, candidate.inputs),
        ("output", reference.outputs, candidate.outputs),
        ("overridable initializer", reference.overridable, candidate.overridable),
    )
    for kind, before, after in kinds:
        names, now = [v.name for v in before], [v.name for v in after]
        if names != now:
            lost = [n for n in names if n not in now]
            new = [n for n in now if n not in names]
            if lost:
                changes.append(f"{kind} removed: {', '.join(lost)}")
            if new:
                changes.append(f"{kind} added: {', '.join(new)}")
            if not lost and not new:
                changes.append(f"{kind}s reordered: {', '.join(names)} -> {', '.join(now)}")
            continue
        for a, b in zip(before, after, strict=True):
            was, becomes = type_text(a, dims), type_text(b, dims)
            if was != becomes:
                changes.append(f"{kind} {a.name!r} changed from {was} to {becomes}")
    return changes
