"""Sizes for symbolic dims: which to try, in which order.

A symbol is a dim_param, which has one size wherever it occurs, or an unnamed dim, which stands for
itself. Some symbols are tied to others (the length of an attention mask is past + present tokens), which
ONNX cannot say: names give a first guess, and the caller tries the next assignment when the model
refuses one.
"""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import onnx

Kind: TypeAlias = Literal["batch", "past", "total", "sequence", "spatial", "other"]
Sizes: TypeAlias = dict[str, int]

_BATCH = re.compile(r"batch", re.I)
_LETTER = re.compile(r"^(n|b|bs|bsz)$", re.I)  # a batch only where batches stand
_PAST = re.compile(r"past|cache", re.I)
_TOTAL = re.compile(r"total|mask|kv_len|context", re.I)
_SEQUENCE = re.compile(r"seq|len|tok|time|frames|^[tsl]$", re.I)
_SPATIAL = re.compile(r"height|width|^[hw]$|^im", re.I)

# Sizes of the first two probe sets; further ones count on from there.
_BASE: dict[Kind, tuple[int, int]] = {
    "batch": (1, 2),
    "past": (4, 3),
    "total": (12, 8),
    "sequence": (8, 5),
    "spatial": (64, 96),
    "other": (8, 5),
}

# All other dims get one of these when nothing cleverer runs.
_COMMON = (8, 16, 32, 64, 224, 128, 256, 28, 1, 4, 10, 3, 512)

MAX_ATTEMPTS = 32


@dataclass(frozen=True)
class Symbol:
    """A symbolic dim of the model's inputs.

    Attributes:
        name: the dim_param, or "input:axis" for an unnamed dim.
        kind: what its name and place suggest it is.
        places: (input, axis) pairs where it occurs.
    """

    name: str
    kind: Kind
    places: tuple[tuple[str, int], ...] = field(default=())


def axis_symbol(value: onnx.ValueInfoProto, axis: int) -> str | int:
    """The size of a declared axis: an int, or the name of its symbol."""
    dim = value.type.tensor_type.shape.dim[axis]
    if dim.HasField("dim_value") and dim.dim_value >= 0:
        return int(dim.dim_value)
    return dim.dim_param or f"{value.name}:{axis}"


def symbols_of(inputs: Sequence[onnx.ValueInfoProto]) -> list[Symbol]:
    """The symbols in the inputs' declared shapes, in order of appearance."""
    places: dict[str, list[tuple[str, int, int]]] = {}
    for value in inputs:
        rank = len(value.type.tensor_type.shape.dim)
        for axis in range(rank):
            symbol = axis_symbol(value, axis)
            if isinstance(symbol, str):
                places.setdefault(symbol, []).append((value.name, axis, rank))
    has_past = any(_PAST.search(name) or _PAST.search(p[0]) for name, at in places.items() for p in at)
    return [
        Symbol(name, _kind(name, at, has_past), tuple((n, axis) for n, axis, _ in at))
        for name, at in places.items()
    ]


def _kind(name: str, places: list[tuple[str, int, int]], has_past: bool) -> Kind:
    anonymous = ":" in name
    if not anonymous and _BATCH.search(name):
        return "batch"
    if _LETTER.search(name) and all(axis == 0 for _, axis, _ in places):
        return "batch"
    first = all(axis == 0 and rank > 1 for _, axis, rank in places)
    if first and (anonymous or not (_SEQUENCE.search(name) or _TOTAL.search(name))):
        return "batch"
    if not anonymous and _TOTAL.search(name):
        return "total"
    if not anonymous and _PAST.search(name):
        return "past"
    if has_past and all("mask" in n for n, _, _ in places):
        return "total"
    if has_past and all(_PAST.search(n) for n, _, _ in places):
        return "past"
    if not anonymous and _SEQUENCE.search(name):
        return "sequence"
    if _SPATIAL.search(name) or all(rank in (4, 5) and axis >= 2 for _, axis, rank in places):
        return "spatial"
    return "other"


_OPERATORS = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
    ast.Div: operator.floordiv,
}


def evaluate(expression: str, sizes: Mapping[str, int]) -> int | None:
    """The value of a dim_param like "past_sequence_length + 1"; None when it is no such expression."""
    if not re.search(r"[+\-*/]", expression):
        return None
    # Names may hold characters that Python's do not.
    names = sorted((n for n in sizes if n and n != expression), key=len, reverse=True)
    for name in names:
        expression = re.sub(rf"(?<![\w.]){re.escape(name)}(?![\w.])", str(sizes[name]), expression)
    try:
        return _value(ast.parse(expression.replace(" ", ""), mode="eval").body)
    except (SyntaxError, ValueError, ZeroDivisionError, RecursionError, MemoryError):
        return None


def _value(node: ast.expr) -> int:
    if isinstance(node, ast.Constant) and isinstance(node.value, int):
        return int(node.value)
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        result: int = _OPERATORS[type(node.op)](_value(node.left), _value(node.right))
        return result
    raise ValueError("not arithmetic")


def assignments(
    symbols: Sequence[Symbol], pinned: Mapping[str, int], probe: int, hints: Sequence[int] = ()
) -> Iterator[Sizes]:
    """Sizes for all symbols, likeliest first, without repetition; at most `MAX_ATTEMPTS`.

    Args:
        symbols: the symbols to size.
        pinned: sizes that are known (from the user, or from the weights that an input meets).
        probe: number of the probe set: different ones get different sizes.
        hints: sizes that stand in the model, for exports that are less dynamic than they say.
    """
    seen: set[tuple[int, ...]] = set()
    for attempt in _attempts(symbols, probe, hints):
        sizes = attempt | {s.name: pinned[s.name] for s in symbols if s.name in pinned}
        for symbol in symbols:
            value = evaluate(symbol.name, sizes)
            if value is not None and value > 0 and symbol.name not in pinned:
                sizes[symbol.name] = value
        key = tuple(sizes[s.name] for s in symbols)
        if key not in seen:
            seen.add(key)
            yield sizes
        if len(seen) >= MAX_ATTEMPTS:
            return


def _attempts(symbols: Sequence[Symbol], probe: int, hints: Sequence[int]) -> Iterator[Sizes]:
    base = {
        kind: (first, second)[probe] if probe < 2 else second + probe
        for kind, (first, second) in _BASE.items()
    }
    yield _related(symbols, base, distinct=True)
    yield _related(symbols, base, distinct=False)
    # Decoders that take one new token; exports whose batch is in truth fixed.
    yield _related(symbols, base | {"sequence": 1}, distinct=False)
    yield _related(symbols, base | {"batch": 1}, distinct=False)
    for total in ("sequence", "past"):
        yield {s.name: base[total] if s.kind == "total" else base[s.kind] for s in symbols}
    yield {s.name: base["past"] + 1 if s.kind == "total" else base[s.kind] for s in symbols}
    yield {s.name: base["sequence"] for s in symbols}
    for size in hints:
        yield {s.name: base["batch"] if s.kind == "batch" else size for s in symbols}
    for batch in (base["batch"], 1):
        same = base["sequence"]
        yield {s.name: batch if s.kind == "batch" else same for s in symbols}
        yield {
            s.name: batch if s.kind == "batch" else base["spatial"] if s.kind == "spatial" else same
            for s in symbols
        }
        for size in _COMMON[probe % 2 :] + _COMMON[: probe % 2]:
            yield {s.name: batch if s.kind == "batch" else size for s in symbols}


def _related(symbols: Sequence[Symbol], base: Mapping[Kind, int], distinct: bool) -> Sizes:
    """Sizes by kind, with total = past + sequence; different symbols of a kind differ if `distinct`."""
    counts: dict[str, int] = {}
    sizes: Sizes = {}
    for symbol in symbols:
        # Lengths of two sequences are told apart too, whatever they are called.
        family = "length" if symbol.kind in ("sequence", "other") else symbol.kind
        nth = counts[family] = counts.get(family, -1) + 1
        step = {"batch": 0, "spatial": 32}.get(family, 1) if distinct else 0
        sizes[symbol.name] = base[symbol.kind] + nth * step
    past = next((sizes[s.name] for s in symbols if s.kind == "past"), 0)
    # Where there is no symbol of kind "sequence", the new tokens are what an input_ids-like input calls them.
    new = next((sizes[s.name] for s in symbols if s.kind == "sequence"), None)
    if new is None:
        others = [s for s in symbols if s.kind == "other" and any("id" in n for n, _ in s.places)]
        new = sizes[others[0].name] if others else 1
    for symbol in symbols:
        if symbol.kind == "total":
            sizes[symbol.name] = past + new
    return sizes
