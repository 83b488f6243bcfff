"""freeze-dims: symbolic dims of the inputs become numbers."""

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
class FreezeDims(Pass):
    """A model for any N becomes the same model for one N: `freeze-dims{dims=[batch=1,T=128]}`.

    `name=size` binds a symbolic dim of the inputs wherever its name stands: in inputs, outputs and value info
    of the main graph and of the bodies of If, Loop and Scan. `input:axis=size` binds one dim of one input,
    which need not have a name; if it has one, that is bound. Shapes are then inferred anew, and open dims of
    outputs and intermediate tensors that inference knows by now are declared. What is computed from shapes is
    left to the passes behind it, which can fold most of it: `--passes 'freeze-dims{dims=[N=1]},default'`.

    The result is compared with the original on inputs of these sizes; user data of other sizes is cut, or
    repeated, to fit.

    Refuses (before any work) when: no input has such a dim; a dim is another number already; a size is not a
    positive integer; a dim is bound twice to different sizes. A size that the model does not run with fails
    the proof, and is rolled back.
    """

    name: ClassVar[str] = "freeze-dims"
    numerics: ClassVar[Numerics] = Numerics.EXACT
    changes_interface: ClassVar[bool] = True

    dims: tuple[str, ...] = field(
        metadata={"help": "which dims become which sizes: name=size, or input:axis=size"}
    )

    def __post_init__(self) -> None:
        for left, size in self._pairs():
            if size < 1:
                raise ValueError(f"the size of {left} is {size}; it must be at least 1")
        if not self.dims:
            raise ValueError("no dim is named; as in dims=[batch=1,T=128]")

    def _pairs(self) -> list[tuple[str, int]]:
        pairs = []
        for left, right in _dims.pairs(self.dims, "batch=1"):
            try:
                pairs.append((left, int(right)))
            except ValueError:
                raise ValueError(f"{left} cannot become {right!r}: a size is an integer") from None
        return pairs

    def check(self, bodies: Sequence[GraphView], ctx: PassContext) -> None:
        """Refuse names that the model does not have."""
        self._resolve(inputs_of(main_of(bodies)))

    def _resolve(self, inputs: Sequence[Variable]) -> dict[tuple[str, tuple[str, int] | None], int]:
        """Dim (its name, or the input and axis where it has none) -> size, of those that are open."""
        found: dict[tuple[str, tuple[str, int] | None], int] = {}
        for left, size in self._pairs():
            place = _dims.resolve(left, inputs)
            if isinstance(place.declared, int):
                if place.declared != size:
                    raise UserError(
                        f"{left} is {place.declared} already, and cannot become {size}",
                        fix="only open dims can be frozen",
                    )
                continue
            key = (place.symbol, None if place.symbol else (place.tensor, place.axis))
            if found.setdefault(key, size) != size:
                raise UserError(f"{left} is the dim {place.symbol or left!r}, which was given two sizes")
        return found

    def run(self, graph: Rewriter, ctx: PassContext) -> None:
        """Bind the dims, one site for each."""
        if not graph.is_main:
            return
        for (symbol, place), size in self._resolve(PortRewriter(graph).inputs).items():
            words = symbol or f"{place[0]}:{place[1]}" if place is not None else symbol
            PortRewriter(graph).bind_dim(
                symbol, [place] if place is not None else [], size, f"{words} = {size}"
            )
