"""Two models tensor by tensor: how far each intermediate value of the candidate is from the reference's."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from graphopt.budget import Budget
from graphopt.graph.text import op_text
from graphopt.ir import Tensor
from graphopt.model import Model
from graphopt.report.validated import LayerRow
from graphopt.runtime.session import CPU
from graphopt.runtime.values import Array, Value
from graphopt.validation.gaps import Gap, gap, spread_of
from graphopt.validation.matching import Matching, Pair, match
from graphopt.validation.net import Net
from graphopt.validation.oracles import JUDGE, Runtime
from graphopt.validation.reference import Options, Reference, prepacks
from graphopt.validation.sketches import match_by_value
from graphopt.validation.watching import SLICE_BYTES, Watch, slices

#: Another way to compute the same: its difference is what reordering does to a tensor.
_OTHERWISE = Runtime("CPU, otherwise", "all", True, CPU)


class Comparison:
    """Compares pairs of tensors on one set of inputs, a slice at a time, and remembers what it found.

    Args:
        matching: which tensors belong together.
        feeds: the inputs.
        runtime: what the candidate runs under; the reference always runs under the judge. What is
            observed cannot be fused away: under a runtime that optimizes, tensors are read one by one.
        budget: hold floats to this instead of to noise.
        exact: hold all to every bit.
        slice_bytes: bytes of values that are held at a time, of each model.
        tell: called with how far it is.
    """

    def __init__(
        self,
        matching: Matching,
        feeds: Mapping[str, Value],
        *,
        runtime: Runtime = JUDGE,
        budget: Budget | None = None,
        exact: bool = False,
        slice_bytes: int = SLICE_BYTES,
        tell: Callable[[str], None] = lambda detail: None,
    ) -> None:
        self.matching, self.feeds, self.budget, self.exact = matching, feeds, budget, exact
        self.runtime, self.slice_bytes, self.tell = runtime, slice_bytes, tell
        ref, cand = matching.reference, matching.candidate
        lean = not prepacks(ref.model) or not prepacks(cand.model)
        self.reference = Watch(ref, JUDGE, feeds)
        self.candidate = Watch(cand, runtime, feeds, prepack=not lean)
        # How far the reference itself moves, on the CPU or on the provider that is looked at.
        other = _OTHERWISE if runtime.provider == CPU else runtime
        self.again = Watch(ref, other, feeds, prepack=not lean, threads=2)
        self.unit = runtime.settings.eps(runtime.provider) or 0.0
        self._gaps: dict[Pair, Gap | None] = {}

    @property
    def runs(self) -> int:
        """How often a model was run."""
        return self.reference.runs + self.candidate.runs + self.again.runs

    @property
    def compared(self) -> int:
        """How many pairs were compared."""
        return sum(1 for g in self._gaps.values() if g is not None)

    def known(self, pair: Pair) -> Gap | None:
        """What is known of a pair without running anything."""
        return self._gaps.get(pair)

    def gaps(self, pairs: Sequence[Pair]) -> dict[Pair, Gap | None]:
        """The distance of each pair; None where it is not computed, or cannot be observed."""
        missing = [p for p in dict.fromkeys(pairs) if p not in self._gaps]
        for part in self.parts(missing):
            self._compare(part)
            self.tell(f"{self.compared} tensors")
        return {p: self._gaps[p] for p in pairs}

    def parts(self, pairs: Sequence[Pair]) -> list[list[Pair]]:
        """`pairs`, in parts that are read together."""
        if not pairs:
            return []
        if self.runtime is not JUDGE:
            return [[p] for p in pairs]
        theirs = self.reference.sizes([p.reference for p in pairs])
        mine = self.candidate.sizes([p.candidate for p in pairs])
        sizes = {p: max(theirs[p.reference], mine[p.candidate]) for p in pairs}
        return list(slices(pairs, sizes, self.slice_bytes))

    def _compare(self, pairs: Sequence[Pair]) -> None:
        theirs = self.reference.read([p.reference for p in pairs])
        mine = self.candidate.read([p.candidate for p in pairs])
        off = []
        for pair in pairs:
            a, b = theirs.get(pair.reference), mine.get(pair.candidate)
            found = None if a is None or b is None else gap(a, b, budget=self.budget, exact=self.exact)
            self._gaps[pair] = found
            if found is not None and not found.ok and found.pattern and found.used is not None:
                off.append(pair)
        if self.budget is None and not self.exact:
            self._allow_noise(off, theirs, mine)

    def _allow_noise(
        self, off: Sequence[Pair], theirs: Mapping[Tensor, list[Array]], mine: Mapping[Tensor, list[Array]]
    ) -> None:
        """Judge again what is off, knowing how far the reference itself moves when computed otherwise."""
        if not off:
            return
        again = self.again.read([p.reference for p in off])
        for pair in off:
            other = again.get(pair.reference)
            spread = spread_of(theirs[pair.reference], other, self.unit) if other is not None else 0.0
            if spread:
                self._gaps[pair] = gap(theirs[pair.reference], mine[pair.candidate], spread=spread)

    def distance(self, pair: Pair, values: list[Array], at: int) -> Gap | None:
        """How far `values` are from the reference's in iteration `at`, held to what the pair is held to."""
        theirs = self.reference.read([pair.reference]).get(pair.reference)
        if theirs is None or at >= len(theirs):
            return None
        spread = 0.0
        if self.budget is None and not self.exact:
            again = self.again.read([pair.reference]).get(pair.reference, [])
            spread = spread_of(theirs, again, self.unit)
        return gap([theirs[at]], values, spread=spread, budget=self.budget, exact=self.exact)

    def row(self, pair: Pair) -> LayerRow | None:
        """The report's row for a pair; None where it was not compared."""
        found = self._gaps.get(pair)
        return None if found is None else row_of(self.matching, pair, found)


def row_of(matching: Matching, pair: Pair, found: Gap) -> LayerRow:
    """The report's row for a pair."""
    ref, cand = matching.reference, matching.candidate
    place = ref.places.get(pair.reference)
    return LayerRow(
        tensor=ref.name(pair.reference),
        counterpart=cand.name(pair.candidate),
        matched_by=pair.by,
        node="" if place is None else place.node.name,
        op="" if place is None else op_text(place.node),
        depth=0 if place is None else place.depth,
        sqnr_db=found.sqnr_db,
        max_abs=found.max_abs,
        used=found.used,
        ok=found.ok,
        body="" if place is None else place.body,
    )


def compare_layers(
    reference: Model,
    candidate: Model,
    feeds: Mapping[str, Value] | Sequence[Mapping[str, Value]] | None = None,
    *,
    budget: Budget | None = None,
    slice_bytes: int = SLICE_BYTES,
    tell: Callable[[str], None] = lambda detail: None,
) -> tuple[LayerRow, ...]:
    """How far every intermediate tensor with a counterpart is off, in order of depth.

    Both run with onnxruntime's optimizations off. Memory: the values of one slice of tensors, of both models,
    besides what a run needs.

    Args:
        reference, candidate: models with the same names of inputs and outputs.
        feeds: inputs, or several sets of them; synthesized by default.
        budget: hold floats to this instead of to noise.
        slice_bytes: bytes of values that are held at a time.
        tell: called with how far it is.

    Raises:
        UserError: no inputs are given, and none can be found that the reference runs on.
    """
    if feeds is None:
        made = Reference(reference, None, Options(probe_sets=1, floor_runs="lean", default_run=False))
        feeds = [made.feeds(0)] if made.probes.sets else []
    elif isinstance(feeds, Mapping):
        feeds = [feeds]
    matching = match(Net(reference), Net(candidate))
    return layer_rows(matching, feeds, budget=budget, slice_bytes=slice_bytes, tell=tell)


def layer_rows(
    matching: Matching,
    feeds: Iterable[Mapping[str, Value]],
    *,
    budget: Budget | None = None,
    slice_bytes: int = SLICE_BYTES,
    tell: Callable[[str], None] = lambda detail: None,
) -> tuple[LayerRow, ...]:
    """The rows of all pairs of `matching`, over all sets of inputs: the worst, and SQNR over all."""
    total: dict[Pair, Gap] = {}
    pairs: list[Pair] = []
    for given in feeds:
        comparison = Comparison(matching, given, budget=budget, slice_bytes=slice_bytes, tell=tell)
        if not pairs:
            match_by_value(comparison)
            pairs = matching.computed()
        for pair, found in comparison.gaps(pairs).items():
            if found is not None:
                before = total.get(pair)
                total[pair] = found if before is None else before.merged(found)
    places = matching.reference.places
    ordered = sorted(total, key=lambda p: (places[p.reference].depth, places[p.reference].order))
    return tuple(row_of(matching, p, total[p]) for p in ordered)
