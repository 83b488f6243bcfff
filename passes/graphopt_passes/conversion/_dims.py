"""Dims of inputs as users name them: by their symbol, or as `input:axis`."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass

from graphopt.passkit import UserError, Variable


@dataclass(frozen=True)
class Place:
    """A dim of an input.

    Attributes:
        symbol: its name, "" for a number or a dim without a name.
        tensor, axis: where it stands.
        declared: a number, a name, or None.
    """

    symbol: str
    tensor: str
    axis: int
    declared: int | str | None


def pairs(items: Sequence[str], example: str) -> list[tuple[str, str]]:
    """`["batch=1"]` as `[("batch", "1")]`.

    Raises:
        ValueError: one is not of that form.
    """
    found = []
    for item in items:
        left, equals, right = item.rpartition("=")
        if not equals or not left.strip() or not right.strip():
            raise ValueError(f"{item!r} is not name=value; as in: {example}")
        found.append((left.strip(), right.strip()))
    return found


def symbols(inputs: Sequence[Variable]) -> dict[str, Place]:
    """The symbolic dims of inputs, each at its first place."""
    found: dict[str, Place] = {}
    for tensor in inputs:
        for axis, dim in enumerate(tensor.shape or ()):
            if isinstance(dim, str) and dim:
                found.setdefault(dim, Place(dim, tensor.name, axis, dim))
    return found


def resolve(text: str, inputs: Sequence[Variable]) -> Place:
    """The dim that `text` names.

    Raises:
        UserError: there is none; it lists those that there are.
    """
    known = symbols(inputs)
    if text in known:
        return known[text]
    name, colon, axis_text = text.rpartition(":")
    tensor = next((t for t in inputs if colon and t.name == name), None)
    if tensor is not None:
        return _at(tensor, axis_text, text)
    close = difflib.get_close_matches(text, known, n=1)
    listed = [f"{s} ({p.tensor}:{p.axis})" for s, p in known.items()]
    listed += [
        f"{t.name}:{axis}" for t in inputs for axis, d in enumerate(t.shape or ()) if d is None or d == ""
    ]
    hint = f"did you mean {close[0]!r}? " if close else ""
    raise UserError(
        f"no input has a dim {text!r}", fix=f"{hint}open dims of inputs: {', '.join(listed) or 'none'}"
    )


def _at(tensor: Variable, axis_text: str, text: str) -> Place:
    if tensor.shape is None:
        raise UserError(f"{text!r}: the rank of {tensor.name!r} is not declared")
    rank = len(tensor.shape)
    try:
        axis = int(axis_text)
    except ValueError:
        raise UserError(f"{text!r} names no axis", fix=f"as in {tensor.name}:0") from None
    if not -rank <= axis < rank:
        raise UserError(f"{text!r}: {tensor.name!r} has {rank} dims", fix=f"axes are 0 to {rank - 1}")
    axis %= rank
    dim = tensor.shape[axis]
    symbol = dim if isinstance(dim, str) else ""
    return Place(symbol, tensor.name, axis, dim or None if not isinstance(dim, int) else dim)
