"""Which tensor of the candidate is which of the reference.

Evidence, the strongest first: both are computed by the same operators from the same inputs and weights; they
have one name, or their nodes have; they are computed by the same operator from tensors that belong together;
they are read in the same place by such an operator. Names count only where most of those that both models
have go with the same operators: numbers that two exporters gave out mean nothing.

What stands in a region that one model has fused has no counterpart. That is how it should be: neighbours on
both sides have.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from graphopt import ir
from graphopt.graph.text import op_text
from graphopt.ir import Node, Tensor
from graphopt.report.validated import MatchedBy
from graphopt.validation.net import Net, fingerprint, named_bodies

# Share of common names that have to go with the same operator for names to count.
_TRUSTED: Final = 0.5
_COMMUTATIVE: Final = frozenset({"Add", "Mul", "Max", "Min", "Sum", "Mean", "And", "Or", "Xor", "Equal"})
_SAMPLED: Final = 32 << 20
# Metadata that exporters give nodes, and that survives other tools.
_ORIGINS: Final = ("pkg.torch.onnx.fx_node", "namespace", "pkg.torch.onnx.name_scopes")


@dataclass(frozen=True, eq=False)
class Pair:
    """Two tensors that belong together.

    Attributes:
        reference, candidate: the two.
        by: the evidence.
        certain: both are computed in the same way, from the inputs on.
    """

    reference: Tensor
    candidate: Tensor
    by: MatchedBy
    certain: bool = False


@dataclass
class Matching:
    """The counterparts of two models' tensors, at most one for each.

    Attributes:
        reference, candidate: the models.
        pairs: by the candidate's tensor; what is fed is among them.
        names_count: names that both have mean the same.
    """

    reference: Net
    candidate: Net
    pairs: dict[Tensor, Pair] = field(default_factory=dict)
    names_count: bool = True
    _back: dict[Tensor, Pair] = field(default_factory=dict)

    def of_candidate(self, tensor: Tensor) -> Pair | None:
        """The pair that a tensor of the candidate is in."""
        return self.pairs.get(tensor)

    def of_reference(self, tensor: Tensor) -> Pair | None:
        """The pair that a tensor of the reference is in."""
        return self._back.get(tensor)

    def add(self, pair: Pair) -> bool:
        """Take a pair in, unless one of the two has a counterpart already."""
        if pair.candidate in self.pairs or pair.reference in self._back:
            return False
        self.pairs[pair.candidate] = pair
        self._back[pair.reference] = pair
        return True

    def remove(self, pair: Pair) -> None:
        """The two do not belong together after all."""
        del self.pairs[pair.candidate], self._back[pair.reference]

    def computed(self) -> list[Pair]:
        """Pairs of tensors that are computed, in the candidate's order of execution."""
        places = self.candidate.places
        found = [p for t, p in self.pairs.items() if t in places and p.reference in self.reference.places]
        return sorted(found, key=lambda p: places[p.candidate].order)


def match(reference: Net, candidate: Net) -> Matching:
    """Find counterparts; nothing is run."""
    found = Matching(reference, candidate)
    for name, tensor in reference.inputs.items():
        other = candidate.inputs.get(name)
        if other is not None:
            found.add(Pair(tensor, other, "name", True))
    for name, tensor in reference.outputs.items():
        other = candidate.outputs.get(name)
        if tensor in reference.places and other in candidate.places:
            found.add(Pair(tensor, other, "name"))
    _same_computation(found)
    _same_names(found)
    _same_origins(found)
    grow(found, [*found.pairs.values()])
    for net in (reference, candidate):
        net.model.release()
    return found


# -- the same computation ------------------------------------------------------------------------------


def _same_computation(found: Matching) -> None:
    """Pairs that are computed from the same inputs and weights by the same operators."""
    numbers: dict[object, int] = {}
    classes: list[dict[int, list[Tensor]]] = []
    for net in (found.reference, found.candidate):
        of: dict[Tensor, int] = {}
        members: dict[int, list[Tensor]] = {}
        for tensor in net.values:
            number = _number(net, tensor, of, numbers)
            if number is not None:
                of[tensor] = number
                members.setdefault(number, []).append(tensor)
        classes.append(members)
    mine, theirs = classes[1], classes[0]
    for number, tensors in mine.items():
        others = theirs.get(number, [])
        if not others:
            continue
        # Copies of one computation: those of one name first, the rest in order.
        by_name = {found.reference.name(t): t for t in others}
        rest = []
        for tensor in tensors:
            other = by_name.get(found.candidate.name(tensor))
            if other is None or not found.add(Pair(other, tensor, _how(found, other, tensor), True)):
                rest.append(tensor)
        left = [t for t in others if found.of_reference(t) is None]
        for other, tensor in zip(left, rest, strict=False):
            found.add(Pair(other, tensor, "structure", True))


def _how(found: Matching, a: Tensor, b: Tensor) -> MatchedBy:
    return "name" if found.reference.name(a) == found.candidate.name(b) else "structure"


def _number(net: Net, tensor: Tensor, of: dict[Tensor, int], numbers: dict[object, int]) -> int | None:
    """A number that two tensors share exactly if they are computed alike; None for unknown ones."""
    place = net.places[tensor]
    if place.entry:
        key: object = ("entry", place.slot, op_text(place.node), _read_key(net, place.node, of, numbers))
    else:
        inputs = _read_key(net, place.node, of, numbers)
        bodies = tuple(
            (name, tuple(_key_of(net, t, of, numbers) for t in body.outputs))
            for name, body in named_bodies(place.node)
        )
        key = (net.attributes(place.node), place.slot, inputs, bodies)
    return numbers.setdefault(key, len(numbers))


def _read_key(net: Net, node: Node, of: dict[Tensor, int], numbers: dict[object, int]) -> object:
    keys = tuple(_key_of(net, t, of, numbers) for t in node.inputs)
    if node.op in _COMMUTATIVE and len(keys) == 2:
        return tuple(sorted(keys, key=repr))
    return keys


def _key_of(net: Net, tensor: Tensor, of: dict[Tensor, int], numbers: dict[object, int]) -> object:
    if not tensor.name:
        return None
    if tensor in of:
        return of[tensor]
    constant = net.constant(tensor) if net.is_constant(tensor) else None
    if constant is not None:
        return ("constant", fingerprint_of(net, constant))
    if tensor.name in net.inputs:
        return ("input", tensor.name)
    return ("unknown", id(tensor))


def fingerprint_of(net: Net, constant: ir.Constant) -> str:
    """The fingerprint of a constant, computed once."""
    cache: dict[ir.Constant, str] = net.__dict__.setdefault("_fingerprints", {})
    if constant not in cache:
        # A sample may make a large page of the file resident.
        net.model.lend(min(constant.nbytes, _SAMPLED))
        cache[constant] = fingerprint(constant)
    return cache[constant]


# -- names ---------------------------------------------------------------------------------------------


def _same_names(found: Matching) -> None:
    ref, cand = found.reference, found.candidate
    theirs = {(ref.places[t].body, ref.name(t)): t for t in ref.values}
    common: list[tuple[Tensor, Tensor]] = []
    alike = 0
    for tensor in cand.values:
        other = theirs.get((cand.places[tensor].body, cand.name(tensor)))
        if other is None:
            continue
        common.append((other, tensor))
        a, b = ref.places[other], cand.places[tensor]
        alike += op_text(a.node) == op_text(b.node) or bool(cand.made_by(b.node))
    found.names_count = not common or alike >= _TRUSTED * len(common)
    if not found.names_count:
        return
    for other, tensor in common:
        found.add(Pair(other, tensor, "name"))


def _same_origins(found: Matching) -> None:
    """Nodes of one name, or that exporters' metadata say come from one place."""
    for key in (_node_name, _origin):
        theirs = _once(found.reference, key)
        mine = _once(found.candidate, key)
        for word, node in mine.items():
            other = theirs.get(word)
            if other is None or len(other.outputs) != len(node.outputs):
                continue
            if op_text(other) != op_text(node) and not found.candidate.made_by(node):
                continue
            for a, b in zip(other.outputs, node.outputs, strict=True):
                if a in found.reference.places and b in found.candidate.places:
                    found.add(Pair(a, b, "provenance"))


def _once(net: Net, key: Callable[[Node], str]) -> dict[object, Node]:
    nodes: dict[object, list[Node]] = {}
    for node in net.nodes:
        word = key(node)
        if word:
            nodes.setdefault((net.body_of[node], word), []).append(node)
    return {word: members[0] for word, members in nodes.items() if len(members) == 1}


def _node_name(node: Node) -> str:
    return node.name


def _origin(node: Node) -> str:
    words = [f"{k}={node.metadata[k]}" for k in _ORIGINS if k in node.metadata]
    return "\0".join([node.op, *words]) if words else ""


# -- structure -----------------------------------------------------------------------------------------


def grow(found: Matching, pairs: Sequence[Pair]) -> None:
    """Match what lies around pairs: forward, what is computed from them; then backward, what they read.

    Args:
        found: is added to.
        pairs: where to start.
    """
    fresh = list(pairs)
    known = list(fresh)
    # What has the same weights first; then what is read in the same place; what only looks alike comes last.
    for strict in (True, False):
        fresh = list(known)
        while fresh:
            forward, seen = deque(fresh), list(fresh)
            while forward:
                new = list(_forward(found, forward.popleft(), strict))
                forward.extend(new)
                seen.extend(new)
            known += seen[len(fresh) :]
            fresh = [new for pair in seen for new in _backward(found, pair)]
            known += fresh


def _forward(found: Matching, pair: Pair, strict: bool) -> Iterator[Pair]:
    """Outputs of nodes that read the pair, and everything else alike."""
    theirs = [n for n in found.reference.readers.get(pair.reference, ()) if _is_open(found, n, True)]
    mine = [n for n in found.candidate.readers.get(pair.candidate, ()) if _is_open(found, n, False)]
    if not theirs or not mine:
        return
    groups: dict[object, tuple[list[Node], list[Node]]] = {}
    for side, nodes in ((0, theirs), (1, mine)):
        for node in dict.fromkeys(nodes):
            key = _reads_alike(found, node, side == 0)
            if key is not None:
                groups.setdefault(key, ([], []))[side].append(node)
    for a, b in groups.values():
        for one, other in _best(found, a, b, strict):
            yield from _match_nodes(found, one, other)


def _is_open(found: Matching, node: Node, of_reference: bool) -> bool:
    known = found.of_reference if of_reference else found.of_candidate
    return any(t.name and known(t) is None for t in node.outputs)


def _reads_alike(found: Matching, node: Node, of_reference: bool) -> object | None:
    """Equal for nodes of both models that do the same to tensors that belong together; None: not known."""
    net = found.reference if of_reference else found.candidate
    known = found.of_reference if of_reference else found.of_candidate
    keys: list[tuple[int, int]] = []
    for slot, tensor in enumerate(node.inputs):
        if tensor.name and not net.is_constant(tensor):  # a fusion may add a bias, say
            pair = known(tensor)
            if pair is None:
                return None
            keys.append((0 if node.op in _COMMUTATIVE else slot, id(pair)))
    keys.sort()
    return (op_text(node), len(node.outputs), net.body_of[node].count("/"), tuple(keys))


def _best(found: Matching, theirs: list[Node], mine: list[Node], strict: bool) -> Iterator[tuple[Node, Node]]:
    """Nodes that read alike, one to one: equal weights and attributes first, then names, then in order."""
    left, rest = list(theirs), list(mine)

    def exact(node: Node, net: Net) -> object:
        return (net.attributes(node), _weights(net, node))

    def named(node: Node, net: Net) -> object:
        return [net.name(t) for t in node.outputs] if found.names_count else [id(node)]

    def shaped(node: Node, net: Net) -> object:
        return (net.attributes(node), _weight_shapes(net, node))

    rules = (exact, named, shaped, lambda node, net: _weight_shapes(net, node), lambda node, net: 0)
    for rule in rules[:1] if strict else rules:
        for node in list(rest):
            for other in left:
                if rule(other, found.reference) == rule(node, found.candidate):
                    yield other, node
                    left.remove(other)
                    rest.remove(node)
                    break


def _weights(net: Net, node: Node) -> list[str]:
    constants = [net.constant(t) for t in node.inputs if t.name and net.is_constant(t)]
    return [fingerprint_of(net, c) if c is not None else "?" for c in constants]


def _weight_shapes(net: Net, node: Node) -> list[object]:
    constants = [net.constant(t) for t in node.inputs if t.name and net.is_constant(t)]
    return [tuple(c._values.shape) if c is not None else None for c in constants]


def _match_nodes(found: Matching, other: Node, node: Node) -> Iterator[Pair]:
    """Outputs, inputs of bodies and outputs of bodies of two nodes that belong together."""
    ref, cand = found.reference, found.candidate
    ends = list(zip(other.outputs, node.outputs, strict=False))
    bodies = dict(named_bodies(other))
    for name, body in named_bodies(node):
        twin = bodies.get(name)
        if twin is not None:
            ends += zip(twin.inputs, body.inputs, strict=False)
            ends += zip(twin.outputs, body.outputs, strict=False)
    for a, b in ends:
        if a in ref.places and b in cand.places and _may_be_equal(ref, a, cand, b):
            pair = Pair(a, b, "structure")
            if found.add(pair):
                yield pair


def _backward(found: Matching, pair: Pair) -> Iterator[Pair]:
    """What the producers of a pair read in the same slots."""
    ref, cand = found.reference, found.candidate
    place, other = cand.places.get(pair.candidate), ref.places.get(pair.reference)
    if place is None or other is None or place.entry or other.entry:
        return
    a, b = other.node, place.node
    if op_text(a) != op_text(b) or len(a.inputs) != len(b.inputs) or place.slot != other.slot:
        return
    yield from _match_nodes(found, a, b)
    theirs = [t for t in a.inputs if t in ref.places]
    mine = [t for t in b.inputs if t in cand.places]
    if a.op in _COMMUTATIVE:
        theirs = [t for t in theirs if found.of_reference(t) is None]
        mine = [t for t in mine if found.of_candidate(t) is None]
        if len(theirs) != len(mine):
            return
        if len(theirs) == 2 and not _in_order(found, theirs, mine):
            mine.reverse()
    elif [t in ref.places for t in a.inputs] != [t in cand.places for t in b.inputs]:
        return
    same_node = ref.attributes(a) == cand.attributes(b) and _weights(ref, a) == _weights(cand, b)
    for one, two in zip(theirs, mine, strict=True):
        # Where the readers are the same, so is what they read, whatever computes it.
        alike = op_text(ref.places[one].node) == op_text(cand.places[two].node)
        if not (alike or same_node) or not _may_be_equal(ref, one, cand, two):
            continue
        new = Pair(one, two, "structure")
        if found.add(new):
            yield new


def _may_be_equal(ref: Net, a: Tensor, cand: Net, b: Tensor) -> bool:
    """Nothing that is known of types and shapes says that the two differ."""
    if ref.facts.dtype(a) != cand.facts.dtype(b):
        return False
    one, two = ref.facts.shape(a), cand.facts.shape(b)
    if one is None or two is None:
        return True
    return len(one) == len(two) and all(
        x == y or not isinstance(x, int) or not isinstance(y, int) for x, y in zip(one, two, strict=True)
    )


def _in_order(found: Matching, theirs: Sequence[Tensor], mine: Sequence[Tensor]) -> bool:
    """Of two operands in either order: as they stand, rather than crossed."""

    def ops(net: Net, tensors: Sequence[Tensor]) -> list[str]:
        return [op_text(net.places[t].node) for t in tensors]

    return ops(found.reference, theirs) == ops(found.candidate, mine) or ops(found.reference, theirs) != list(
        reversed(ops(found.candidate, mine))
    )
