"""factorize: layers of low rank as two smaller ones."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Final, Literal

import numpy as np

from graphopt.passkit import (
    Node,
    Numerics,
    Pass,
    PassContext,
    RefusedRewrite,
    Rewriter,
    UserError,
    is_selected,
)
from graphopt.quantkit import Watch
from graphopt_passes.factorization._pairs import OPS, factors_with
from graphopt_passes.factorization._ranks import choose_ranks, least_work
from graphopt_passes.factorization._spectra import Spectrum, output_spectrum, weight_spectrum
from graphopt_passes.factorization._split import can_shift, split
from graphopt_passes.linear.layer import LinearLayer, linear_layers, weight_rows
from graphopt_passes.linear.moments import LayerMoments
from graphopt_passes.linear.sweeps import plan_sweeps

# Columns of the largest second-moment matrix: 512 MiB in float64.
_COLUMNS: Final = 8192
# What a dimension that is not known counts for.
_UNKNOWN_DIM: Final = 32


@dataclass(frozen=True)
class Factorize(Pass):
    """X W^T ~ (X V^T) U^T with U (N, r), V (r, K): a layer of low rank becomes two that multiply less.

    With data U V minimizes |X (W - U V)^T|^2 among the matrices of rank r: with X^T X = S S^T, U are the
    first left singular vectors of W S (Eckart and Young), and V = U^T W, so that nothing has to be inverted.
    These are the principal directions of the layer's outputs (Zhang et al., "Accelerating very deep
    convolutional networks", arXiv:1505.06798; ASVD, arXiv:2312.05821; SVD-LLM, arXiv:2403.07378). Outputs are
    taken around their mean where a Conv or Gemm has a bias, which keeps the mean. Without data, S = 1: plain
    SVD.

    A convolution becomes one to r channels and one of size 1 behind it; grouped ones keep their groups. The
    layer's node stays, and multiplies with U. One of `rank`, `energy` and `ratio` says how far to go: the
    same rank for all; for each layer the least rank that keeps a share of its outputs' energy; or ranks such
    that all layers together do a share of the work, chosen for the least loss per unit of work. Without data
    energies are those of the weights.

    Refuses when: it would save less than the share `saving` of the layer's work; the layer is depthwise, or
    is one of two factors already; the weight has other readers or is a graph output; the user keeps the node;
    a factor does not fit the weight's dtype. Where an output has more than 8192 inputs, or inputs are not
    finite, and in local functions, the data is not used.
    """

    name: ClassVar[str] = "factorize"
    numerics: ClassVar[Numerics] = Numerics.LOSSY

    ratio: float | None = field(
        default=None, metadata={"help": "share of the work of all these layers together that is left"}
    )
    energy: float | None = field(
        default=None, metadata={"help": "share of each layer's output energy that is kept, such as 0.99"}
    )
    rank: int | None = field(default=None, metadata={"help": "the same rank for every layer"})
    budget: Literal["flops", "parameters"] = field(
        default="flops", metadata={"help": "what work is, for ratio: multiplications, or weights"}
    )
    multiple: int = field(
        default=8, metadata={"help": "ranks are multiples of it, as kernels like them; not a given rank"}
    )
    saving: float = field(
        default=0.1,
        metadata={"help": "share of a layer's work that must be saved: a node costs something, too"},
    )
    ops: tuple[str, ...] = field(default=OPS, metadata={"help": f"which operators, of {', '.join(OPS)}"})
    layers: tuple[str, ...] = field(default=(), metadata={"help": "globs; only nodes that match one"})
    exclude: tuple[str, ...] = field(default=(), metadata={"help": "globs; not nodes that match one"})
    min_elements: int = field(default=4096, metadata={"help": "leave weights with fewer elements alone"})
    damping: float = field(
        default=0.01, metadata={"help": "added to the inputs' moments, relative to their mean"}
    )

    def __post_init__(self) -> None:
        """Check the request."""
        given = [n for n in ("ratio", "energy", "rank") if getattr(self, n) is not None]
        if len(given) != 1:
            raise ValueError(
                "say how far to go by one of ratio=0.7 (of the work), energy=0.99 (of the outputs), rank=64"
                + (f", not by {' and '.join(given)}" if given else "")
            )
        for name in ("ratio", "energy"):
            value = getattr(self, name)
            if value is not None and not 0 < value < 1:
                raise ValueError(f"{name} is a share between 0 and 1, not {value:g}")
        if self.rank is not None and self.rank < 1:
            raise ValueError(f"rank is at least 1, not {self.rank}")
        if self.multiple < 1:
            raise ValueError(f"multiple is at least 1, not {self.multiple}")
        if not 0 <= self.saving < 1:
            raise ValueError(f"saving is a share from 0 to less than 1, not {self.saving:g}")
        if self.damping < 0:
            raise ValueError("damping must not be negative")
        if unknown := [op for op in self.ops if op not in OPS]:
            raise ValueError(f"{unknown[0]} cannot be factorized, only {', '.join(OPS)}")

    def globs(self) -> tuple[str, ...]:
        """Those of `layers` and `exclude`."""
        return (*self.layers, *self.exclude)

    def run(self, graph: Rewriter, ctx: PassContext) -> None:
        """Factorize layers of one body."""
        done: dict[Node, tuple[int, int]] = {}
        layers = linear_layers(graph, lambda layer: self._check(graph, layer, done))
        layers = [layer for layer in layers if self._wanted(layer)]
        if not layers:
            return
        share = None if self.ratio is None else self._share(graph, layers, done)
        spectra = self._spectra(graph, ctx, layers)
        for spectrum, rank in zip(spectra, self._ranks(graph, spectra, share), strict=True):
            if rank is not None:
                try:
                    self._split(graph, spectrum, rank)
                    self._count(graph, ctx, spectrum, rank)
                except RefusedRewrite as refused:
                    graph.refuse(spectrum.layer.node, refused.reason)

    def _wanted(self, layer: LinearLayer) -> bool:
        return layer.node.op in self.ops and is_selected(layer.node, self.layers, self.exclude)

    def _check(self, graph: Rewriter, layer: LinearLayer, done: dict[Node, tuple[int, int]]) -> None:
        """What can be said of a layer without data.

        Args:
            graph: the body.
            layer: the layer.
            done: gets, for layers that are two factors already, the work of one and what it is now.

        Raises:
            RefusedRewrite: see the class.
        """
        node = layer.node
        if not self._wanted(layer):
            return
        weight = node.inputs[layer.slot]
        if (pair := factors_with(graph, layer)) is not None:
            first, second = pair
            times = self._positions(graph, second)
            whole = times * second.outputs * first.shape[2]
            parts = math.prod(first.shape) + math.prod(second.shape)
            done[second.node] = whole, times * parts
            raise RefusedRewrite("it is one of two factors of a layer of low rank already")
        size = math.prod(layer.shape)
        if size < self.min_elements:
            raise RefusedRewrite(f"its weight {weight.name} has {size} elements, too few to bother")
        if layer.is_depthwise:
            raise RefusedRewrite("a depthwise filter is no matrix of a rank that could fall")
        if graph.is_constant(graph.input(node, layer.data_slot)):
            raise RefusedRewrite("both of its operands are constant")
        if graph.is_output(weight):
            raise RefusedRewrite(f"its weight {weight.name} is a graph output, so it has to stay")
        if graph.n_uses(weight) > 1:
            raise RefusedRewrite(f"its weight {weight.name} has other readers, so it has to stay")
        values = graph.array(weight)
        if values is None or not np.isfinite(values.astype(np.float64)).all():
            raise RefusedRewrite(f"its weight {weight.name} has values that are not finite")
        least = self.multiple if self.rank is None else self.rank
        if not Spectrum(layer, _NOTHING, _NOTHING, _NOTHING).largest(least, self.saving):
            raise RefusedRewrite(f"rank {least} would save less than {self.saving:.0%} of its work")

    def _spectra(self, graph: Rewriter, ctx: PassContext, layers: Sequence[LinearLayer]) -> list[Spectrum]:
        """Of the layers' outputs on the model as it is; of the weights where data cannot tell."""
        found = {layer.node: weight_rows(graph, layer) for layer in layers}
        spectra: dict[int, Spectrum] = {}
        if ctx.has_data and not graph.is_function:
            seen = [layer for layer in layers if layer.shape[2] <= _COLUMNS]
            for sweep in plan_sweeps(graph, seen, "no"):
                watches = [
                    Watch(LayerMoments(layer.unfolding), student=(layer.node.inputs[layer.data_slot],))
                    for layer, _ in sweep
                ]
                for (layer, _), moments in zip(sweep, ctx.observe(graph, watches), strict=True):
                    total = moments.total
                    if total.count and moments.is_finite:
                        spectra[id(layer)] = output_spectrum(
                            layer,
                            found[layer.node],
                            total,
                            self.damping,
                            centered=can_shift(graph, layer),
                        )
        return [spectra.get(id(la)) or weight_spectrum(la, found[la.node]) for la in layers]

    def _share(
        self, graph: Rewriter, layers: Sequence[LinearLayer], done: Mapping[Node, tuple[int, int]]
    ) -> float:
        """The share of these layers' work that may be left, for `ratio` of all to be left.

        Layers that are two factors already count as what they would be as one: a second run then finds that
        enough is saved.

        Raises:
            UserError: no ranks come down to it.
        """
        assert self.ratio is not None
        spectra = [Spectrum(layer, _NOTHING, _NOTHING, _NOTHING) for layer in layers]
        weights = [self._positions(graph, layer) for layer in layers]
        work = sum(s.full * w for s, w in zip(spectra, weights, strict=True))
        before, after = (sum(pair[i] for pair in done.values()) for i in (0, 1))
        share = (self.ratio * (work + before) - after) / work
        least = least_work(spectra, weights, self.multiple, self.saving)
        if share < least:
            lowest = (least * work + after) / (work + before)
            raise UserError(
                f"factorize: ratio={self.ratio:g} cannot be met, these layers come down to {lowest:.3f}",
                fix="ask for less to be saved, or for a smaller `multiple` or `saving`",
            )
        return share

    def _ranks(self, graph: Rewriter, spectra: Sequence[Spectrum], share: float | None) -> list[int | None]:
        """The rank of each layer; None for one that stays as it is."""
        if share is not None:
            weights = [self._positions(graph, s.layer) for s in spectra]
            return choose_ranks(spectra, weights, share, self.multiple, self.saving)
        ranks: list[int | None] = []
        for spectrum in spectra:
            rank = self.rank
            if rank is None:
                assert self.energy is not None
                rank = -(-spectrum.rank_for(self.energy) // self.multiple) * self.multiple
            if rank > spectrum.largest(1, self.saving):
                graph.refuse(
                    spectrum.layer.node, f"rank {rank} would save less than {self.saving:.0%} of its work"
                )
                ranks.append(None)
            else:
                ranks.append(rank)
        return ranks

    def _positions(self, graph: Rewriter, layer: LinearLayer, budget: str | None = None) -> int:
        """How many rows the layer multiplies for one sample, as far as shapes tell; 1 if weights count."""
        if (budget or self.budget) == "parameters":
            return 1
        shape = graph.shape(layer.node.outputs[0]) or ()
        known = [d if isinstance(d, int) else _UNKNOWN_DIM for d in shape[1:]]
        return max(1, int(np.prod(known)) // layer.outputs) if known else 1

    def _count(self, graph: Rewriter, ctx: PassContext, spectrum: Spectrum, rank: int) -> None:
        """Sum up what was saved, for the report."""
        positions = self._positions(graph, spectrum.layer, "flops")
        sizes = spectrum.full, spectrum.cost(rank)
        now = np.array([1, *sizes, *(positions * size for size in sizes)])
        count, old, new, before, after = (int(n) for n in ctx.notes.get((self.name, self), 0) + now)
        ctx.notes[self.name, self] = np.array([count, old, new, before, after])
        ctx.remark(
            self,
            f"{count} layer{'s' * (count != 1)}: {old:,} -> {new:,} weights, "
            f"{after / before:.0%} of their multiplications",
        )

    def _split(self, graph: Rewriter, spectrum: Spectrum, rank: int) -> None:
        layer = spectrum.layer
        lost, full = spectrum.lost(rank), min(layer.shape[1:])
        quality = f"SQNR {-10 * np.log10(max(lost, 1e-30)):.1f} dB" if lost > 0 else "nothing lost"
        why = (
            f"rank {rank} of {full}: {spectrum.cost(rank) / spectrum.full:.0%} of the work, {quality} "
            f"of the {'output' if spectrum.seen else 'weight'}"
        )
        with graph.site(layer.node, why):
            split(graph, layer, *spectrum.factors(rank), spectrum.shift(rank))


_NOTHING: Final = np.zeros((0, 0, 0))
