"""rename-dims: other names for symbolic dims."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from graphopt.passkit import (
    GraphView,
    Numerics,
    Pass,
    PassContext,
    PortRewriter,
    Rewriter,
    UserError,
    Variable,
)
from graphopt_passes.conversion import _dims
from graphopt_passes.conversion._ports import inputs_of, main_of


@dataclass(frozen=True)
class RenameDims(Pass):
    """Symbolic dim N -> batch, everywhere: `rename-dims{names=[N=batch]}`.

    `old=new` renames a symbolic dim of the inputs wherever its name stands. `input:axis=new` names one dim of
    one input; if it has a name already, that is renamed everywhere. A name says that dims are equal: giving
    two dims one name asserts that they always are, and onnxruntime holds callers to it.

    Refuses (before any work) when: no input has such a dim; a dim is a number; the new name is another dim's
    name already, or not an identifier; a dim is named twice.
    """

    name: ClassVar[str] = "rename-dims"
    numerics: ClassVar[Numerics] = Numerics.EXACT
    changes_interface: ClassVar[bool] = True

    names: tuple[str, ...] = field(metadata={"help": "old=new, or input:axis=new"})

    def __post_init__(self) -> None:
        if not self.names:
            raise ValueError("no dim is named; as in names=[N=batch]")
        for left, right in _dims.pairs(self.names, "N=batch"):
            if not right.isidentifier():
                raise ValueError(f"{left} cannot be called {right!r}: a name has letters, digits and _ only")

    def check(self, bodies: Sequence[GraphView], ctx: PassContext) -> None:
        """Refuse names that the model does not have."""
        self._resolve(inputs_of(main_of(bodies)))

    def _resolve(self, inputs: Sequence[Variable]) -> tuple[dict[str, str], dict[tuple[str, int], str]]:
        taken = set(_dims.symbols(inputs))
        names: dict[str, str] = {}
        axes: dict[tuple[str, int], str] = {}
        for left, new in _dims.pairs(self.names, "N=batch"):
            place = _dims.resolve(left, inputs)
            if isinstance(place.declared, int):
                raise UserError(f"{left} is the number {place.declared}: it has no name")
            if place.symbol and names.setdefault(place.symbol, new) != new:
                raise UserError(f"the dim {place.symbol!r} was given two names")
            if not place.symbol and axes.setdefault((place.tensor, place.axis), new) != new:
                raise UserError(f"{left} was given two names")
        for old, new in names.items():
            if new in taken - set(names):
                raise UserError(
                    f"{old!r} cannot be called {new!r}: that is another dim of the inputs",
                    fix="one name for both would say that they are always equal",
                )
        if len(set(names.values())) < len(names):
            raise UserError("two dims were given one name", fix="it would say that they are always equal")
        return {old: new for old, new in names.items() if old != new}, axes

    def run(self, graph: Rewriter, ctx: PassContext) -> None:
        """Rename all of them, as one site."""
        if not graph.is_main:
            return
        names, axes = self._resolve(PortRewriter(graph).inputs)
        if names or axes:
            words = [f"{old} -> {new}" for old, new in names.items()]
            words += [f"{tensor}:{axis} -> {new}" for (tensor, axis), new in axes.items()]
            PortRewriter(graph).rename_dims(names, axes, ", ".join(words))
