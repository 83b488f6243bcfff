"""What a source of data is, and what it knows about the model that it feeds."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import onnx

from graphopt.interface import InterfaceEdits
from graphopt.runtime import session
from graphopt.runtime.structure import Structure

#: Value per input, and whatever else the data holds (labels). Arrays, but for inputs that are no tensors.
Sample: TypeAlias = Mapping[str, Any]
Dims: TypeAlias = "tuple[int | str | None, ...]"

# Names of leading dims that count something else than samples. What is called a batch is one nevertheless.
_NO_BATCH = re.compile(r"seq|len|tok|time|frame|step|past|total|node|edge|point|height|width|^[tslhw]$", re.I)
_BATCH = re.compile(r"batch|^(n|b|bs|bsz)$", re.I)


class PortLike(Protocol):
    """An input of a model: `Port` here, or `graphopt.runtime.session.Port`."""

    @property
    def name(self) -> str:
        """Its name."""
        ...

    @property
    def elem_type(self) -> int | None:
        """The ONNX element type of a tensor; None for sequences, maps and optionals."""
        ...

    @property
    def dims(self) -> tuple[int | str | None, ...] | None:
        """An int, a dim name or None per axis; None when the rank is unknown."""
        ...


@dataclass(frozen=True)
class Port:
    """An input of a model.

    Attributes:
        name: its name.
        elem_type: the ONNX element type of a tensor; None for sequences, maps and optionals.
        dims: an int, a dim name or None per axis; None when the rank is unknown.
    """

    name: str
    elem_type: int | None
    dims: Dims | None

    @property
    def leads_with_batch(self) -> bool:
        """The first axis counts samples, as far as its name says: any number of them may be stacked."""
        if not self.dims or isinstance(self.dims[0], int):
            return False
        first, *others = self.dims
        if isinstance(first, str) and _BATCH.search(first):
            return True
        if any(isinstance(d, str) and _BATCH.search(d) for d in others):
            return False
        return not (isinstance(first, str) and _NO_BATCH.search(first))

    @property
    def has_symbols(self) -> bool:
        """Some dim is not fixed."""
        return self.dims is None or not all(isinstance(d, int) for d in self.dims)

    def shape_text(self) -> str:
        """`[N,3,224,224]`."""
        return "of any rank" if self.dims is None else dims_text(self.dims)


def dims_text(dims: Iterable[int | str | None]) -> str:
    """`[N,3,224,224]`, with `?` for dims without a name."""
    return f"[{','.join('?' if d is None else str(d) for d in dims)}]"


def as_port(port: PortLike) -> Port:
    """A `Port` of any description of an input. Dims that are not positive are unknown."""
    dims = port.dims
    if isinstance(port, session.Port) and not dims:
        dims = None  # there, an unknown rank and a scalar look the same
    if dims is not None:
        dims = tuple(None if d == "" or (isinstance(d, int) and d <= 0) else d for d in dims)
    return Port(port.name, port.elem_type, dims)


def ports_of(model: onnx.ModelProto | Structure) -> tuple[list[Port], list[Port]]:
    """The inputs of a model (its initializers may be stripped of data), and its overridable initializers."""
    structure = model if isinstance(model, Structure) else Structure(model)
    required = [_port(v) for v in structure.inputs]
    return required, [_port(v) for v, _ in structure.overridable.values()]


def _port(value: onnx.ValueInfoProto) -> Port:
    if value.type.WhichOneof("value") != "tensor_type":
        return Port(value.name, None, None)
    tensor = value.type.tensor_type
    dims: Dims | None = None
    if tensor.HasField("shape"):
        dims = tuple(
            (d.dim_value if d.dim_value > 0 else None) or d.dim_param or None for d in tensor.shape.dim
        )
    return Port(value.name, int(tensor.elem_type), dims)


class Dataset(ABC):
    """Samples that fit a model's inputs.

    A sample holds an array per input with its batch axis kept, of length 1, so that samples can be
    concatenated; or one whole feed where the data has no batch axis. Overridable initializers may be among
    its names, and further ones: labels, for example. Iterating twice gives the same samples.

    Attributes:
        name: for messages: where the data comes from.
        notes: what people should know about it, filled while it is read.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.notes: list[str] = []

    @property
    def size(self) -> int | None:
        """How many samples there are; None when that is not known before they are read."""
        return None

    @abstractmethod
    def __iter__(self) -> Iterator[Sample]: ...

    def note(self, text: str) -> None:
        """Add to `notes`, once."""
        if text not in self.notes:
            self.notes.append(text)


def narrowed(ports: Sequence[Port], edits: InterfaceEdits) -> list[Port]:
    """`ports` of the model as it was loaded, with the dims that `edits` have fixed."""
    fixed = edits.fixed() if edits else {}
    found = []
    for port in ports:
        sizes = fixed.get(port.name)
        if sizes is not None:
            dims = port.dims or (None,) * len(sizes)
            known = tuple(d if size < 0 else size for d, size in zip(dims, sizes, strict=True))
            port = Port(port.name, port.elem_type, known)
        found.append(port)
    return found
