"""Set the weights to zero that matter least."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, Final, Literal

import numpy as np

from graphopt.passkit import (
    Node,
    Numerics,
    Part,
    Pass,
    PassContext,
    RefusedRewrite,
    Rewriter,
    glob_of,
    is_selected,
)
from graphopt_passes.linear.error import OutputError
from graphopt_passes.linear.judged import judged_by, watch_layer
from graphopt_passes.linear.layer import Floats, LinearLayer, weight_rows
from graphopt_passes.linear.least_squares import damped, solve_supported
from graphopt_passes.linear.moments import LayerMoments
from graphopt_passes.linear.sweeps import Sequential, depths, plan_sweeps
from graphopt_passes.pruning import _obs
from graphopt_passes.pruning._scores import Importance, has_moments, scores_of
from graphopt_passes.pruning._shares import erk_shares, global_shares
from graphopt_passes.pruning._sites import OPS, Site, find_sites
from graphopt_passes.pruning._structure import Structure, channels_last, removed

Scope = Literal["auto", "tensor", "row", "global", "erk"]

# Rows per input of an output below which the teacher's outputs are no target, see refine-weights.
_ROWS_PER_INPUT: Final = 8


@dataclass(frozen=True)
class PruneWeights(Pass):
    """w' = w if its score is above those of the share `sparsity` of all weights, else 0; or if |w| > tau.

    The score is |w| (`magnitude`); |w_k| |X_k|, with the norm of the input that the weight is multiplied with
    (`wanda`: Sun et al., arXiv:2306.11695); or w_k^2 / [(X^T X)^-1]_kk, what the outputs change by once the
    other weights of the row have made up for the loss (`obs`: the optimal brain surgeon). With `obs` they do
    make up for it: the weights that are left are those with the least squared error on the data. Layers are
    then pruned in the order of the graph, each on the inputs that the pruned model gives it, towards the
    outputs that the original has there. Small layers are pruned exactly, one weight after another (Frantar
    et al., "Optimal Brain Compression", arXiv:2208.11580), large ones as in SparseGPT (arXiv:2301.00774).

    Zeros go anywhere, or so that N of M neighbors along the inputs stay (`structure=2:4`), or in blocks
    (`structure=4x1`). The share is that of each tensor, of each output (`scope=row`), or of all tensors
    together: competing by LAMP scores (`global`), or so that large layers get sparser (`erk`).

    Refuses when: there is no data for what needs it; the inputs (in a convolution the channels of a group) do
    not come in groups of M, so that no kernel could use the zeros; a layer is depthwise (unless
    `depthwise`); the weight is an output, or has a reader that is not pruned; inputs are not finite, or an
    output has more than 8192 inputs (`obs`). Weights with several readers, and those of other operators than
    Conv, Gemm and MatMul, are pruned by magnitude.
    """

    name: ClassVar[str] = "prune-weights"
    numerics: ClassVar[Numerics] = Numerics.LOSSY

    sparsity: float | None = field(default=None, metadata={"help": "share of the weights that become zero"})
    threshold: float | None = field(default=None, metadata={"help": "instead: all with |w| at most this go"})
    structure: str = field(
        default="none", metadata={"help": "where zeros may be: none (anywhere), N:M such as 2:4, RxC blocks"}
    )
    importance: Importance = field(
        default="auto", metadata={"help": "what a weight matters; auto: obs with data, else magnitude"}
    )
    scope: Scope = field(
        default="auto",
        metadata={"help": "what the share is one of; auto: each tensor, with wanda each row of it"},
    )
    layers: tuple[str, ...] = field(default=(), metadata={"help": "only nodes that match one of these globs"})
    sparsities: tuple[str, ...] = field(
        default=(), metadata={"help": 'shares of single nodes: "GLOB=SHARE", the first that matches counts'}
    )
    ops: tuple[str, ...] = field(
        default=("Conv", "Gemm", "MatMul"),
        metadata={"help": f"whose weights: some of {', '.join(OPS)}"},
    )
    depthwise: bool = field(default=False, metadata={"help": "prune depthwise convolutions as well"})
    steps: int = field(
        default=1, metadata={"help": "get there in so many steps, the share of zeros rising as a cube"}
    )
    damping: float = field(
        default=0.01, metadata={"help": "added to the inputs' moments, relative to their mean"}
    )
    sequential: Sequential = field(
        default="auto",
        metadata={"help": "one sweep over the data per layer; auto: in large models several share one"},
    )

    def __post_init__(self) -> None:
        """Check the request."""
        structure = Structure.parse(self.structure)
        shares = [s for s in (self.sparsity, *self._by_glob().values()) if s is not None]
        for share in shares:
            if not 0 <= share < 1:
                raise ValueError(f"sparsity is the share of zeros, from 0 to less than 1, not {share:g}")
        if structure.of and (shares or self.threshold is not None):
            raise ValueError(f"structure={self.structure} says how many weights go; leave out the rest")
        if self.threshold is not None and (shares or structure != Structure() or self.importance != "auto"):
            raise ValueError("threshold is one on |w| by itself; leave out the rest")
        if self.threshold is not None and not self.threshold >= 0:
            raise ValueError(f"threshold must not be negative, not {self.threshold:g}")
        if not (structure.of or shares) and self.threshold is None:
            raise ValueError("say how much goes: sparsity=0.5, threshold=0.001, or structure=2:4")
        if self.scope in ("global", "erk") and (structure.of or self.sparsity is None):
            raise ValueError(f"scope={self.scope} needs a sparsity, and a structure that leaves a choice")
        if self.scope == "row" and structure.block[0] > 1:
            raise ValueError("blocks of several rows cannot be chosen row by row")
        if unknown := [op for op in self.ops if op not in OPS]:
            raise ValueError(f"weights of {unknown[0]} cannot be pruned, only of {', '.join(OPS)}")
        if self.steps < 1 or self.damping <= 0:
            raise ValueError("steps must be at least 1 and damping above 0")

    def needs_data(self) -> bool:
        """Whether what a weight matters is said to be measured."""
        return self.importance in ("wanda", "obs")

    def globs(self) -> tuple[str, ...]:
        """Names of layers."""
        return (*self.layers, *self._by_glob())

    def parts(self, graph: Rewriter, ctx: PassContext) -> list[Part]:
        """One weight each, to the share that is asked for: not to what it would get in competition."""
        found = []
        for site in find_sites(graph, self.ops, self.depthwise):
            if self._is_wanted(graph, site):
                asked = self.sparsity is not None or self._is_given(site)
                item = replace(
                    self,
                    layers=(glob_of(site.node),),
                    sparsities=(),
                    sparsity=self._share(site) if asked else None,
                    scope="auto" if self.scope in ("global", "erk") else self.scope,
                )
                found.append(Part(site.node, item))
        return found

    def run(self, graph: Rewriter, ctx: PassContext) -> None:
        """Prune the weights of one body."""
        sites = [s for s in find_sites(graph, self.ops, self.depthwise) if self._is_wanted(graph, s)]
        if not sites:
            return
        how = self._how(graph, ctx)
        if how in ("wanda", "obs") and not ctx.has_data:
            graph.refuse(sites[0].node, f"there is no data for importance={how}")
            return
        shares = self._shares(graph, ctx, sites, how)
        for step in range(1, self.steps + 1):
            # M. Zhu and S. Gupta, "To prune, or not to prune", arXiv:1710.01878 (2017), equation 1, from 0.
            part = 1 - (1 - step / self.steps) ** 3
            now = {site.node: part * share for site, share in zip(sites, shares, strict=True)}
            if how == "obs":
                self._in_order(graph, ctx, sites, now)
            else:
                for site, score in zip(sites, scores_of(graph, ctx, sites, how, self.damping), strict=True):
                    self._zero(graph, site, score, now[site.node], how)

    def _is_wanted(self, graph: Rewriter, site: Site) -> bool:
        """Whether the site is to be pruned and can be; what cannot be is refused."""
        if self._share(site) is None:
            return False
        of = Structure.parse(self.structure).of
        if of and (site.channels is None or site.channels % of):
            had = "it has none" if site.channels is None else f"it has {site.channels}"
            graph.refuse(site.node, f"structure={self.structure} needs inputs in groups of {of}, {had}")
            return False
        return True

    def _by_glob(self) -> dict[str, float]:
        """`sparsities` as globs and numbers."""
        found = {}
        for text in self.sparsities:
            glob, _, share = text.rpartition("=")
            try:
                found[glob] = float(share)
            except ValueError:
                raise ValueError(
                    f"sparsities are written as GLOB=SHARE, such as /l1/*=0.3, not {text!r}"
                ) from None
        return found

    def _how(self, graph: Rewriter, ctx: PassContext) -> Importance:
        if self.threshold is not None:
            return "magnitude"
        if self.importance == "auto":
            return "obs" if ctx.has_data and not graph.is_function else "magnitude"
        return self.importance

    def _share(self, site: Site) -> float | None:
        """The share of one weight that goes; None where it is not asked for."""
        names = (site.node.name, *(t.name for t in site.node.outputs))
        for glob, share in self._by_glob().items():
            if any(fnmatch.fnmatchcase(name, glob) for name in names):
                return share
        if not is_selected(site.node, self.layers):
            return None
        if self.sparsity is None and self.sparsities and not Structure.parse(self.structure).of:
            return None
        return self.sparsity or 0.0

    def _shares(
        self, graph: Rewriter, ctx: PassContext, sites: Sequence[Site], how: Importance
    ) -> list[float]:
        """The share of each weight that goes."""
        shares = [self._share(site) or 0.0 for site in sites]
        free = [i for i, s in enumerate(sites) if not self._is_given(s)]
        if self.sparsity is None or self.scope not in ("global", "erk") or not free:
            return shares
        chosen = [sites[i] for i in free]
        if self.scope == "erk":
            found = erk_shares([s.matrix for s in chosen], [s.size for s in chosen], self.sparsity)
        else:
            found = global_shares(scores_of(graph, ctx, chosen, how, self.damping), self.sparsity)
        for i, share in zip(free, found, strict=True):
            shares[i] = share
        return shares

    def _is_given(self, site: Site) -> bool:
        return any(fnmatch.fnmatchcase(site.node.name, glob) for glob in self._by_glob())

    def _zero(self, graph: Rewriter, site: Site, score: Floats, share: float, how: Importance) -> None:
        """Set the weights with the least scores to zero; the others stay."""
        now = site.rows(graph)
        structure = Structure.parse(self.structure)
        if self.threshold is not None:
            gone = np.abs(now) <= self.threshold
        else:
            per_row = self.scope == "row" or (self.scope == "auto" and how == "wanda")
            gone = removed(score, share, structure, per_row=per_row)
        if (now[gone] != 0).any():
            self._set(graph, site, np.where(gone, 0.0, now), f"pruned by {how}")

    def _in_order(
        self, graph: Rewriter, ctx: PassContext, sites: Sequence[Site], shares: Mapping[Node, float]
    ) -> None:
        """Prune with `obs`, each layer on the inputs that the layers before it give once they are pruned."""
        found = {s.node: s for s in sites if has_moments(s)}
        for site in sites:
            if site.node not in found:
                self._zero(graph, site, site.rows(graph) ** 2, shares[site.node], "magnitude")
        layers = [layer for s in found.values() if (layer := s.layer) is not None]
        depth = depths(graph, [layer.node for layer in layers])
        for sweep in plan_sweeps(graph, layers, self.sequential):
            watches = [
                watch_layer(layer, ctx, judged_by(graph, layer, depth) if first else None)
                for layer, first in sweep
            ]
            for (layer, _), moments in zip(sweep, ctx.observe(graph, watches), strict=True):
                try:
                    self._prune(graph, found[layer.node], layer, moments, shares[layer.node])
                except RefusedRewrite as refused:
                    graph.refuse(layer.node, refused.reason)

    def _prune(
        self, graph: Rewriter, site: Site, layer: LinearLayer, moments: LayerMoments, share: float
    ) -> None:
        total, structure = moments.total, Structure.parse(self.structure)
        if not total.count:
            raise RefusedRewrite("the data has no finite inputs for it")
        if not moments.is_finite:
            raise RefusedRewrite("its inputs or outputs are too large to be squared in float32")
        now, order = weight_rows(graph, layer), channels_last(layer)
        zeros = round(share * now.size) if not structure.of else None
        if zeros is not None and np.count_nonzero(now == 0) >= zeros:
            return
        error = OutputError(total, now, now, centered=False)
        outputs = error.sees_outputs and total.count >= _ROWS_PER_INPUT * now.shape[2]
        # What is zero stays zero: it costs nothing to remove.
        target = np.where(now == 0, 0.0, error.ideal(self.damping)) if outputs else now
        hessian = damped(total.xx, self.damping)
        gone = np.empty(now.shape, bool)
        gone[..., order] = _obs.choose(hessian[:, order][:, :, order], target[..., order], share, structure)
        support = ~gone & (now != 0)
        if (support == (now != 0)).all():
            return
        if outputs:
            fresh = error.ideal(self.damping, support)
        else:
            fresh = solve_supported(hessian, target @ hessian, support, np.where(support, target, 0.0))
        why = f"pruned by obs: SQNR of the output {error.sqnr(error.of(fresh)):.1f} dB"
        self._set(graph, site, fresh[..., order], why)

    def _set(self, graph: Rewriter, site: Site, rows: Floats, why: str) -> None:
        share = np.count_nonzero(rows == 0) / rows.size
        site.set_rows(graph, rows, f"{why}, {share:.1%} of {rows.size:,} weights are zero")
