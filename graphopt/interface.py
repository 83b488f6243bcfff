"""What a run was asked to change in a model's inputs and outputs, so that both can still be compared.

A pass that changes the interface says how values translate: `forward` takes a value as the model before
had it to the one that the model after it has, `backward` the other way. Composed over all edits they let
the original be run on what the result is fed, and its outputs be compared with the result's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import onnx
from numpy.typing import NDArray

Array: TypeAlias = NDArray[Any]
Kind: TypeAlias = Literal["input", "output"]


@dataclass(frozen=True)
class Adapter:
    """How the values at one input or output translate.

    Attributes:
        words: what `forward` does, completely: two adapters of the same words do the same.
        forward: a value as it was -> as it is now.
        backward: a value as it is now -> as it was. An input's must exist: for every value that `forward`
            makes it has to give what the nodes of the new model compute from it. None: an output's value
            cannot be had back.
        draw: makes a typical value of an input as it is now, where what `forward` makes of synthesized ones
            would say little.
        points: (axis, keepdims) of an output that holds, since, indices of the largest values.
    """

    words: str
    forward: Callable[[Array], Array]
    backward: Callable[[Array], Array] | None = None
    points: tuple[int, bool] | None = None
    draw: Callable[[np.random.Generator, tuple[int, ...]], Array] | None = None


@dataclass(frozen=True)
class InterfaceEdit:
    """One change of one input or output of the main graph.

    Attributes:
        kind: which of the two.
        name: its name, which stays.
        before: what was declared.
        after: what is declared now.
        why: the change in words.
        pass_name: the pass that made it.
        adapter: how values translate; None: they are the same.
    """

    kind: Kind
    name: str
    before: onnx.ValueInfoProto
    after: onnx.ValueInfoProto
    why: str
    pass_name: str
    adapter: Adapter | None = None

    @property
    def key(self) -> tuple[str, ...]:
        """Equal for edits that do the same."""
        words = self.adapter.words if self.adapter is not None else ""
        return self.kind, self.name, type_text(self.before), type_text(self.after), words


@dataclass(frozen=True)
class InterfaceEdits:
    """All changes of a model's interface, in order."""

    edits: tuple[InterfaceEdit, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.edits)

    def __iter__(self) -> Iterator[InterfaceEdit]:
        return iter(self.edits)

    @property
    def key(self) -> tuple[tuple[str, ...], ...]:
        """Equal for edits that do the same."""
        return tuple(edit.key for edit in self.edits)

    def plus(self, *edits: InterfaceEdit) -> InterfaceEdits:
        """These, and then `edits`."""
        return InterfaceEdits((*self.edits, *edits))

    def since(self, earlier: InterfaceEdits) -> InterfaceEdits:
        """What came after `earlier`; nothing where these did not begin with those."""
        n = len(earlier.edits)
        return InterfaceEdits(self.edits[n:]) if self.key[:n] == earlier.key else InterfaceEdits()

    def declared(self, kind: Kind, info: onnx.ValueInfoProto) -> onnx.ValueInfoProto:
        """What is declared now where `info` was declared before."""
        for edit in self.edits:
            if edit.kind == kind and edit.name == info.name:
                info = edit.after
        return info

    def feeds(self, feeds: Mapping[str, Any], *, synthesized: bool = False) -> dict[str, Any]:
        """Inputs of the model before as inputs of the model now; `synthesized` ones may be drawn anew."""
        return self._forward("input", feeds, synthesized)

    def outputs(self, outputs: Mapping[str, Any]) -> dict[str, Any]:
        """Outputs of the model before as outputs of the model now."""
        return self._forward("output", outputs)

    def _forward(self, kind: Kind, values: Mapping[str, Any], draw: bool = False) -> dict[str, Any]:
        found = dict(values)
        rng = np.random.default_rng(len(self.edits))
        for edit in self.edits:
            value = found.get(edit.name)
            if edit.kind == kind and edit.adapter is not None and isinstance(value, np.ndarray):
                made = edit.adapter.forward(value)
                if draw and edit.adapter.draw is not None:
                    made = edit.adapter.draw(rng, made.shape)
                found[edit.name] = made
        return found

    def original_feeds(self, feeds: Mapping[str, Any]) -> dict[str, Any]:
        """Inputs of the model now as inputs of the model before."""
        found = self._backward("input", feeds)
        assert found is not None, "an input's adapter has no way back"
        return found

    def original_outputs(self, outputs: Mapping[str, Any]) -> dict[str, Any] | None:
        """Outputs of the model now as outputs of the model before; None where that cannot be had."""
        return self._backward("output", outputs)

    def _backward(self, kind: Kind, values: Mapping[str, Any]) -> dict[str, Any] | None:
        found = dict(values)
        for edit in reversed(self.edits):
            value = found.get(edit.name)
            if edit.kind == kind and edit.adapter is not None and isinstance(value, np.ndarray):
                if edit.adapter.backward is None:
                    return None
                found[edit.name] = edit.adapter.backward(value)
        return found

    def fixed(self) -> dict[str, tuple[int, ...]]:
        """For each input that was changed the dims that the model before must be fed; -1 for open ones.

        Found by taking two values of the new shape, which differ in the open dims, back.
        """
        latest = {e.name: e.after for e in self.edits if e.kind == "input"}
        found: dict[str, tuple[int, ...]] = {}
        for name, info in latest.items():
            tensor = info.type.tensor_type
            if info.type.WhichOneof("value") != "tensor_type" or not tensor.HasField("shape"):
                continue
            dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)
            shapes = []
            for size in (1, 2):
                dims = [d.dim_value if d.HasField("dim_value") else size for d in tensor.shape.dim]
                shapes.append(self.original_feeds({name: np.zeros(dims, dtype)})[name].shape)
            found[name] = tuple(a if a == b else -1 for a, b in zip(*shapes, strict=True))
        return found


#: No edits.
UNCHANGED = InterfaceEdits()


def edits_of(subject: object) -> InterfaceEdits:
    """The edits of a model in any form; only a `Model` has some."""
    found = getattr(subject, "interface", None)
    return found if isinstance(found, InterfaceEdits) else UNCHANGED


def type_text(value: onnx.ValueInfoProto, dims: bool = True) -> str:
    """What is declared about an input or output: `float[N,3,224,224]`."""
    kind = value.type.WhichOneof("value")
    if kind != "tensor_type":
        return " ".join(str(value.type).split()) if kind else "?"
    tensor = value.type.tensor_type
    dtype: str = onnx.TensorProto.DataType.Name(tensor.elem_type).lower()
    if not dims or not tensor.HasField("shape"):
        return dtype
    sizes = (str(d.dim_value) if d.HasField("dim_value") else d.dim_param or "?" for d in tensor.shape.dim)
    return f"{dtype}[{','.join(sizes)}]"
