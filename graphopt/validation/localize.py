"""Where a candidate starts to differ from its reference.

The tensor that is looked for differs although everything that it is computed from, as far as it has a
counterpart, agrees. Slices of tensors are bisected along the depth to come near it, and from there the search
climbs towards the inputs, from one tensor that differs to those that it is computed from. What is found holds
by itself: it does not depend on the order in which tensors were looked at.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from graphopt.budget import Budget
from graphopt.graph.text import op_text
from graphopt.ir import Node, Tensor
from graphopt.report.validated import LayerRow, Localization
from graphopt.runtime.values import Value
from graphopt.validation.gaps import Gap
from graphopt.validation.isolation import first_not_finite, isolated, region
from graphopt.validation.layers import Comparison
from graphopt.validation.matching import Matching, Pair
from graphopt.validation.neighbourhood import neighbourhood
from graphopt.validation.oracles import JUDGE, Runtime
from graphopt.validation.rematching import rematch, resemble
from graphopt.validation.sketches import match_by_value
from graphopt.validation.watching import SLICE_BYTES

# So few slices are looked at one after the other.
_FEW: Final = 6
# So many tensors are tried one by one where a bisection finds nothing.
_SINGLY: Final = 256
_ROUNDS: Final = 512
# So many nodes are tried by themselves when differences only add up.
_TRIED: Final = 12


@dataclass
class Search:
    """A search for the first tensor that differs.

    Args:
        matching: which tensors belong together; wrong pairs are put right on the way.
        feeds: inputs that show the difference.
        targets: names of the outputs that differ; all outputs by default.
        runtime: what the candidate runs under.
        budget: for candidates that move the numbers on purpose.
        exact: look for the first bit that differs.
        probe: the inputs in words.
        slice_bytes: bytes of values that are held at a time, of each model.
        tell: called with how far it is.
    """

    matching: Matching
    feeds: Mapping[str, Value]
    targets: Sequence[str] = ()
    runtime: Runtime = JUDGE
    budget: Budget | None = None
    exact: bool = False
    probe: str = ""
    slice_bytes: int = SLICE_BYTES
    tell: Callable[[str], None] = lambda detail: None
    _relevant: set[Tensor] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.comparison = Comparison(
            self.matching,
            self.feeds,
            runtime=self.runtime,
            budget=self.budget,
            exact=self.exact,
            slice_bytes=self.slice_bytes,
            tell=self.tell,
        )
        cand = self.matching.candidate
        names = self.targets or list(cand.outputs)
        targets = [cand.outputs[n] for n in names if n in cand.outputs]
        self._relevant = cand.ancestors(targets)

    def run(self) -> Localization:
        """Search."""
        if self.runtime is JUDGE:
            match_by_value(self.comparison)
        for _ in range(_ROUNDS):
            suspect = self._first()
            if suspect is None:
                return self._nothing()
            suspect, agreed = self._climb(suspect)
            if not self._is_port(suspect) and rematch(self.comparison, suspect):
                continue
            if self.runtime is JUDGE and resemble(self.comparison, suspect, agreed):
                continue
            return self._blamed(suspect, agreed)
        return self._result(False, "the tensors of the two models cannot be told apart")

    # -- the search --------------------------------------------------------------------------------

    def _pairs(self) -> list[Pair]:
        """Pairs that the outputs depend on, in order of depth."""
        places = self.matching.candidate.places
        found = [p for p in self.matching.computed() if p.candidate in self._relevant]
        return sorted(found, key=lambda p: (places[p.candidate].depth, places[p.candidate].order))

    def _first(self) -> Pair | None:
        """Some pair that is off, as far from the outputs as a bisection comes."""
        parts = self.comparison.parts(self._pairs())
        if len(parts) > _FEW:
            low, high = 0, len(parts) - 1
            while low < high:
                middle = (low + high) // 2
                if self._off(parts[middle]):
                    high = middle
                else:
                    low = middle + 1
            found = self._off(parts[low])
            if found or (self.runtime is not JUDGE and len(parts) > _SINGLY):
                return found[0] if found else None
        for part in parts:
            found = self._off(part)
            if found:
                return found[0]
        return None

    def _off(self, pairs: Iterable[Pair]) -> list[Pair]:
        """Those that are off, the likeliest start first."""
        found = [p for p, g in self.comparison.gaps(list(pairs)).items() if g is not None and not g.ok]
        return sorted(found, key=self._rank)

    def _rank(self, pair: Pair) -> tuple[int, bool, int]:
        place = self.matching.candidate.places[pair.candidate]
        return (place.depth, place.entry, place.order)

    def _climb(self, suspect: Pair) -> tuple[Pair, list[Pair]]:
        """From a pair that is off to the first on the way from the inputs; and what that is computed from."""
        seen = {suspect}
        while True:
            near = self._nearest(suspect)
            off = [p for p in near if p not in seen and self._is_off_before(p, suspect)]
            if not off:
                return suspect, near
            suspect = min(off, key=self._rank)
            seen.add(suspect)

    def _nearest(self, pair: Pair) -> list[Pair]:
        """The nearest pairs that can be compared among what a tensor is computed from."""
        cand = self.matching.candidate
        found: dict[Pair, None] = {}
        seen: set[Tensor] = {pair.candidate}
        frontier = [t for t in cand.sources(pair.candidate) if t not in seen]
        while frontier:
            seen.update(frontier)
            with_pair = [(t, self.matching.of_candidate(t)) for t in frontier]
            known = [p for t, p in with_pair if p is not None and t in cand.places]
            gaps = self.comparison.gaps(known)
            nxt: list[Tensor] = []
            for tensor, other in with_pair:
                if tensor not in cand.places:
                    if other is not None:
                        found[other] = None
                elif other is not None and gaps.get(other) is not None:
                    found[other] = None
                else:
                    nxt += cand.sources(tensor)
            frontier = [t for t in dict.fromkeys(nxt) if t not in seen]
        return list(found)

    def _is_off_before(self, pair: Pair, suspect: Pair) -> bool:
        """A pair is off early enough to be why `suspect` is: in a loop, in the same iteration or before."""
        cand = self.matching.candidate
        if pair.candidate not in cand.places:
            return False
        mine, theirs = self.comparison.known(pair), self.comparison.known(suspect)
        if mine is None or mine.ok:
            return False
        a, b = cand.places[pair.candidate], cand.places[suspect.candidate]
        if not b.body or a.body != b.body or theirs is None:
            return True
        if b.entry:
            # What a body hands to its next iteration was there one iteration earlier. Where iterations cannot
            # be told apart (their shapes differ), all counts as the first one.
            return mine.first < theirs.first or theirs.first == 0
        return mine.first <= theirs.first and not (a.entry and mine.first == 0 and self._came_in_right(pair))

    def _came_in_right(self, pair: Pair) -> bool:
        """What the first iteration of a loop is fed agrees, at an input of its body."""
        cand = self.matching.candidate
        body = cand.places[pair.candidate].body
        outside = [
            p
            for t in cand.sources(pair.candidate)
            if (p := self.matching.of_candidate(t)) is not None
            and t in cand.places
            and cand.places[t].body != body
        ]
        return all(g is None or g.ok for g in self.comparison.gaps(outside).values())

    def _is_port(self, pair: Pair) -> bool:
        """The two are outputs of one name, which are compared whatever they hold."""
        return pair.candidate in self.matching.candidate.outputs.values()

    # -- what is made of it ------------------------------------------------------------------------

    def _blamed(self, suspect: Pair, agreed: list[Pair]) -> Localization:
        """The suspect, or who is behind it if it only carries on what came in."""
        alone = self._alone(suspect, agreed)
        if alone is not None and alone.ok and self.runtime is JUDGE and not self.exact:
            worst = self._worst_alone(suspect)
            if worst is not None:
                pair, near, own = worst
                words = (
                    f"it is the one that adds most by itself ({_words(own)}), which has grown to "
                    f"{_words(self.comparison.known(suspect))} at {self._name(suspect)!r}"
                )
                return self._found(pair, near, words)
        gap = self.comparison.known(suspect)
        assert gap is not None
        return self._found(suspect, agreed, "")

    def _alone(self, pair: Pair, near: list[Pair]) -> Gap | None:
        """How far the pair is off when its part of the candidate is fed what the reference has there."""
        if self.runtime is not JUDGE or self.exact:
            return None
        return isolated(self.comparison, pair, near)

    def _worst_alone(self, suspect: Pair) -> tuple[Pair, list[Pair], Gap] | None:
        """Among what `suspect` depends on, the pair that is most off by itself."""
        cand = self.matching.candidate
        before = cand.ancestors([suspect.candidate])
        pairs = [p for p in self._pairs() if p.candidate in before]
        gaps = self.comparison.gaps(pairs)
        jumps: list[tuple[float, Pair, list[Pair]]] = []
        for pair in pairs:
            gap = gaps[pair]
            if gap is None or not gap.max_abs:
                continue
            near = self._nearest(pair)
            known = [self.comparison.known(p) for p in near]
            inherited = max((g.used or 0.0 for g in known if g is not None), default=0.0)
            jumps.append(((gap.used or 0.0) / max(inherited, 1e-3), pair, near))
        best: tuple[Pair, list[Pair], Gap] | None = None
        for _, pair, near in sorted(jumps, key=lambda j: -j[0])[:_TRIED]:
            own = self._alone(pair, near)
            if own is None or own.used is None:
                continue
            if best is None or own.used > (best[2].used or 0.0):
                best = (pair, near, own)
        return best if best is not None and best[2].used else None

    def _found(self, pair: Pair, agreed: list[Pair], more: str) -> Localization:
        cand, ref = self.matching.candidate, self.matching.reference
        row = self.comparison.row(pair)
        gap = self.comparison.known(pair)
        assert row is not None
        assert gap is not None
        place = cand.places[pair.candidate]
        node, why = place.node, gap.why
        if not gap.pattern and not more:
            source = first_not_finite(self.comparison, pair, agreed)
            if source is not None:
                node, value = source
                why += f", first in {self.matching.candidate.name(value)!r}"
        by = cand.made_by(node)
        name = self._name(pair)
        called = (
            "" if ref.name(pair.reference) == name else f" ({ref.name(pair.reference)!r} of the reference)"
        )
        words = (
            f"{name!r}{called} is the first tensor that differs: {why}"
            if not more
            else (f"differences add up: {name!r}{called}, {more}")
        )
        if node is place.node:
            words += f". {op_text(node)}{f' {node.name!r}' if node.name else ''} computes it"
        else:
            words += f", which {op_text(node)}{f' {node.name!r}' if node.name else ''} computes"
        agreed = [p for p in agreed if p.candidate in cand.places or p.candidate.name in cand.inputs]
        if not more:
            names = [repr(self._name(p)) for p in agreed]
            shown = ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
            words += f" from what agrees: {shown}" if names else ""
            words += self._also(pair, node, agreed)
            if self.runtime.optimize != "none":
                words += ". onnxruntime may have fused that node with others before it"
        return self._result(
            True,
            words,
            first=row,
            node=node,
            made_by=by,
            body=place.body,
            agreed=tuple(self._name(p) for p in agreed),
            pair=pair,
            guilty=node,
        )

    def _also(self, pair: Pair, node: Node, agreed: list[Pair]) -> str:
        """Nodes without counterpart that lead to the pair: any of them may be at fault instead."""
        cand = self.matching.candidate
        between = region(cand, pair.candidate, {p.candidate for p in agreed}) or []
        # What has no input but constants computes no values, only weights.
        others = [n for n in between if n is not node and cand.dynamic(n)]
        if not others or node is not cand.places[pair.candidate].node:
            return ""
        names = [f"{op_text(n)} {n.name or cand.name(n.outputs[0])!r}" for n in others]
        shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        return f". What lies between has no counterpart, and may be at fault instead: {shown}"

    def _nothing(self) -> Localization:
        pairs = [p for p in self._pairs() if self.comparison.known(p) is not None]
        if not pairs:
            return self._result(False, "no tensor of the candidate has a counterpart that can be compared")
        worst = max(pairs, key=lambda p: _used(self.comparison.known(p)))
        used = _used(self.comparison.known(worst))
        if not used:
            return self._result(False, "all tensors that can be compared are equal")
        return self._result(
            False,
            f"no tensor differs by more than its noise; the largest share of it, {used:.2g}, is used at "
            f"{self._name(worst)!r}",
        )

    def _name(self, pair: Pair) -> str:
        return self.matching.candidate.name(pair.candidate)

    def _result(
        self,
        found: bool,
        reason: str,
        *,
        first: LayerRow | None = None,
        node: Node | None = None,
        made_by: str = "",
        body: str = "",
        agreed: tuple[str, ...] = (),
        pair: Pair | None = None,
        guilty: Node | None = None,
    ) -> Localization:
        around = neighbourhood(self.comparison, pair, guilty) if pair is not None else ()
        return Localization(
            found=found,
            reason=reason,
            first=first,
            node="" if node is None else node.name,
            op="" if node is None else op_text(node),
            made_by=made_by,
            body=body,
            agreed=agreed,
            runtime=self.runtime.name,
            probe=self.probe,
            matched=len(self._pairs()),
            compared=self.comparison.compared,
            runs=self.comparison.runs,
            neighbourhood=around,
        )


def _used(gap: Gap | None) -> float:
    return 0.0 if gap is None or gap.used is None else gap.used


def _words(gap: Gap | None) -> str:
    if gap is None:
        return "?"
    sqnr = gap.sqnr_db
    parts = [f"{gap.used:.2g} of its allowance"] if gap.used is not None else []
    if sqnr is not None and sqnr < 100:
        parts.append(f"SQNR {sqnr:.0f} dB")
    return ", ".join(parts) or "nothing"
