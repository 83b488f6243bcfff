"""Finding inputs that the original model really runs on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import onnx

from graphopt.runtime.draw import Style
from graphopt.runtime.inputs import ProbeSet, Synthesizer, check_feeds
from graphopt.runtime.session import RuntimeFailure, Session
from graphopt.runtime.sizes import assignments, axis_symbol
from graphopt.runtime.structure import Structure, attribute
from graphopt.runtime.values import Value

_RANDOM = {
    "RandomNormal",
    "RandomUniform",
    "RandomNormalLike",
    "RandomUniformLike",
    "Multinomial",
    "Bernoulli",
    "BiasDropout",
    "BitmaskDropout",
    "BitmaskBiasDropout",
    "TrainableDropout",
}

# Outputs with NaN prove little: so many other inputs are tried before one with NaN is accepted.
_NAN_RETRIES = 4


@dataclass(frozen=True)
class Probes:
    """Inputs that run, with what the model made of them.

    Attributes:
        sets: the inputs.
        outputs: the model's outputs, one dict per set.
        notes: what people should know: sets that nothing was found for, NaN in the outputs.
        reason: why there are no sets at all; "" when there are.
    """

    sets: tuple[ProbeSet, ...] = ()
    outputs: tuple[dict[str, Value], ...] = ()
    notes: tuple[str, ...] = field(default=())
    reason: str = ""


def randomness(structure: Structure) -> str:
    """Why the model's outputs are random, naming the node; "" when nothing random reaches them."""
    live = _live(structure)
    for node in structure.nodes():
        if id(node) in live and _is_random(node, structure):
            return f"its outputs are random: {node.op_type} at {node.name or node.output[0]!r}"
    return ""


def _is_random(node: onnx.NodeProto, structure: Structure) -> bool:
    if node.op_type in _RANDOM and node.domain in ("", "ai.onnx", "com.microsoft"):
        return True
    if node.op_type != "Dropout" or node.domain not in ("", "ai.onnx"):
        return False
    if structure.opset < 7:
        return not attribute(node, "is_test", 0)
    if len(node.input) < 3 or not node.input[2]:
        return False
    mode = structure.constant(node.input[2])
    ratio = structure.constant(node.input[1]) if node.input[1] else None
    if ratio is not None and ratio.size and not ratio.any():
        return False
    # A mode that is computed, or is an input, is judged by the values that the probes give it: False.
    return bool(mode is not None and mode.any())


def _live(structure: Structure) -> set[int]:
    """Nodes (by id) that outputs depend on; everything in a body counts if the body's node does."""
    live: set[int] = set()
    pending = [v.name for v in structure.outputs]
    seen = set(pending)
    while pending:
        node = structure.producers.get(pending.pop())
        if node is None or id(node) in live:
            continue
        stack = [node]
        while stack:
            current = stack.pop()
            live.add(id(current))
            for name in current.input:
                if name and name not in seen:
                    seen.add(name)
                    pending.append(name)
            for a in current.attribute:
                for body in (*([a.g] if a.type == onnx.AttributeProto.GRAPH else ()), *a.graphs):
                    stack.extend(body.node)
    return live


def find_probes(
    session: Session, maker: Synthesizer, *, count: int = 2, data: Sequence[ProbeSet] = ()
) -> Probes:
    """Inputs that `session` runs on: the user's, or synthesized ones, searching sizes that fit together.

    Args:
        session: the original model.
        maker: makes candidates for it.
        count: how many synthesized sets.
        data: the user's; inputs that it lacks are synthesized. With it nothing else is tried.

    Raises:
        UserError: the data does not fit the inputs' names, dtypes or ranks.
        RuntimeFailure: the model does not run on the user's data.
    """
    if data:
        sets = [complete(maker, given) for given in data]
        return Probes(tuple(sets), tuple(session.run(s.feeds) for s in sets))
    found: list[tuple[ProbeSet, dict[str, Value]]] = []
    notes: list[str] = []
    failure = ""
    for probe in range(count):
        result, failure_here = _search(session, maker, probe)
        if result is None:
            failure = failure or failure_here
            notes.append(f"no inputs found for probe set {probe + 1}: {failure_here}")
            continue
        if has_nan(result[1]):
            notes.append(
                f"probe set {probe + 1} ({result[0].describe()}) makes NaN in the original's outputs"
            )
        found.append(result)
    if not found:
        return Probes(reason=f"no inputs were found that the model runs on: {failure}")
    return Probes(tuple(s for s, _ in found), tuple(o for _, o in found), tuple(notes))


def _search(
    session: Session, maker: Synthesizer, probe: int
) -> tuple[tuple[ProbeSet, dict[str, Value]] | None, str]:
    failure, with_nan, tries = "", None, 0
    for candidate in maker.candidates(probe):
        try:
            outputs = session.run(candidate.feeds)
        except RuntimeFailure as e:
            # The likeliest candidate's message is the one that helps.
            failure = failure or e.message
            if e.kind in ("no-kernel", "unsupported"):
                return None, failure
            if candidate.overridden and (result := _without_overrides(session, candidate)) is not None:
                return result, ""
            continue
        if not has_nan(outputs):
            return (candidate, outputs), ""
        with_nan = with_nan or (candidate, outputs)
        tries += 1
        if tries == 1 and (result := _other_values(session, maker, probe, candidate)) is not None:
            return result, ""
        if tries >= _NAN_RETRIES:
            break
    return with_nan, failure


def _other_values(
    session: Session, maker: Synthesizer, probe: int, candidate: ProbeSet
) -> tuple[ProbeSet, dict[str, Value]] | None:
    """The same sizes with meeker values, if those make no NaN."""
    styles: tuple[Style, ...] = ("meek", "ones")
    for style in styles:
        other = maker.make(probe, dict(candidate.sizes), style)
        try:
            outputs = session.run(other.feeds)
        except RuntimeFailure:
            continue
        if not has_nan(outputs):
            return other, outputs
    return None


def _without_overrides(session: Session, candidate: ProbeSet) -> tuple[ProbeSet, dict[str, Value]] | None:
    """The candidate with the defaults of overridable initializers, if that runs."""
    feeds = {k: v for k, v in candidate.feeds.items() if k not in candidate.overridden}
    plain = replace(candidate, feeds=feeds, overridden=())
    try:
        return plain, session.run(feeds)
    except RuntimeFailure:
        return None


def complete(maker: Synthesizer, given: ProbeSet) -> ProbeSet:
    """The user's feeds, with synthesized values of matching sizes for the inputs that they lack.

    Raises:
        UserError: a name, dtype or rank does not fit.
    """
    check_feeds(given.feeds, maker.values, given.source)
    pinned: dict[str, int] = dict(maker.pinned)
    for name, value in given.feeds.items():
        info = maker.values[name]
        if isinstance(value, np.ndarray) and info.type.tensor_type.HasField("shape"):
            for axis, size in enumerate(value.shape):
                symbol = axis_symbol(info, axis)
                if isinstance(symbol, str):
                    pinned[symbol] = size
    sizes = next(assignments(maker.symbols, pinned, 0), {})
    missing = [v.name for v in maker.structure.inputs if v.name not in given.feeds]
    made = maker.make(0, sizes).feeds if missing else {}
    feeds = dict(given.feeds) | {name: made[name] for name in missing}
    return replace(given, feeds=feeds, sizes={s: sizes[s] for s in sizes})


def has_nan(outputs: Mapping[str, Value]) -> bool:
    """Any NaN in the float tensors among the outputs, sequences included."""
    pending = list(outputs.values())
    while pending:
        value = pending.pop()
        if isinstance(value, np.ndarray):
            if value.dtype.kind in "fcV" and np.isnan(value).any():
                return True
        elif isinstance(value, list):
            pending.extend(value)
    return False
