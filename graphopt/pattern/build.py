"""Patterns: what a rewrite looks for, as a small expression over operators, tensors and constants.

A pattern is written from its root (the last operator of the region) backwards:

    p.op("Mul", p.var("x"), p.op("Sigmoid", p.var("x")))

binds `x` twice, which means *the same tensor*. The operands of a commutative operator match in either
order within one match, without cloning the rule.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from graphopt.graph.schema import COMMUTATIVE_OPS


@dataclass(frozen=True, eq=False)
class VarPattern:
    """Any tensor (or, if `optional`, an omitted input, which binds None)."""

    name: str | None = None
    optional: bool = False


@dataclass(frozen=True, eq=False)
class ConstPattern:
    """A tensor with a known value that cannot be overridden.

    Attributes:
        name: what to bind it to.
        optional: an omitted input matches too and binds None.
        scalar: the constant has one element, within `rtol` of this.
        rtol: relative tolerance of `scalar`.
        check: predicate on the loaded array, asked last.
        one_element: the constant has exactly one element (of any value).
    """

    name: str | None = None
    optional: bool = False
    scalar: float | None = None
    rtol: float = 1e-6
    check: Callable[[Any], bool] | None = None
    one_element: bool = False


@dataclass(frozen=True, eq=False)
class AttrPattern:
    """A constraint on an attribute: equal to `value`, or accepted by `check`; bound to `name` if given."""

    value: Any = None
    check: Callable[[Any], bool] | None = None
    name: str | None = None


@dataclass(frozen=True, eq=False)
class OpPattern:
    """A node.

    Attributes:
        ops: accepted operator types.
        inputs: patterns of the inputs, in order.
        domain: operator domain.
        name: what to bind the node to.
        attrs: constraints by attribute name; the schema default stands for a missing attribute.
        output: which output of the node the reader uses.
        outputs: exact number of outputs that the node must have in use, None for any.
        exact: the node must not have further inputs beyond `inputs`.
        commutative: the two operands may come in either order.
        shared: readers outside the match are allowed (the node then survives the rewrite).
    """

    ops: tuple[str, ...]
    inputs: tuple[Pattern, ...]
    domain: str = ""
    name: str | None = None
    attrs: Mapping[str, AttrPattern] = field(default_factory=dict)
    output: int = 0
    outputs: int | None = None
    exact: bool = True
    commutative: bool = False
    shared: bool = False


@dataclass(frozen=True, eq=False)
class EitherPattern:
    """The first of several patterns that matches; `name` binds its index."""

    options: tuple[Pattern, ...]
    name: str | None = None


Pattern: TypeAlias = VarPattern | ConstPattern | OpPattern | EitherPattern


class PatternBuilder:
    """Makes patterns; handed to `PatternPass.pattern`."""

    def var(self, name: str | None = None, *, optional: bool = False) -> VarPattern:
        """Any tensor. Two variables of one name are the same tensor object."""
        return VarPattern(name, optional)

    def const(
        self,
        name: str | None = None,
        *,
        optional: bool = False,
        check: Callable[[Any], bool] | None = None,
        one_element: bool = False,
    ) -> ConstPattern:
        """A constant tensor: initializer or Constant node, never an overridable initializer."""
        return ConstPattern(name, optional, check=check, one_element=one_element)

    def scalar(self, value: float, name: str | None = None, *, rtol: float = 1e-6) -> ConstPattern:
        """A one-element constant close to `value`."""
        return ConstPattern(name, scalar=value, rtol=rtol)

    def attr(
        self,
        value: Any = None,
        *,
        check: Callable[[Any], bool] | None = None,
        name: str | None = None,
    ) -> AttrPattern:
        """A constraint on an attribute; without `value` and `check` it only binds."""
        return AttrPattern(value, check, name)

    def op(
        self,
        op: str | tuple[str, ...],
        *inputs: Pattern,
        name: str | None = None,
        domain: str = "",
        output: int = 0,
        outputs: int | None = None,
        exact: bool = True,
        commutative: bool | None = None,
        shared: bool = False,
        **attrs: Any,
    ) -> OpPattern:
        """A node of type `op` (or one of several).

        Keyword arguments that are not listed constrain attributes: a plain value must be equal.
        """
        ops = (op,) if isinstance(op, str) else op
        if commutative is None:
            commutative = len(inputs) == 2 and not domain and all(o in COMMUTATIVE_OPS for o in ops)
        constraints = {k: v if isinstance(v, AttrPattern) else AttrPattern(v) for k, v in attrs.items()}
        return OpPattern(ops, inputs, domain, name, constraints, output, outputs, exact, commutative, shared)

    def either(self, *options: Pattern, name: str | None = None) -> EitherPattern:
        """The first of `options` that matches."""
        return EitherPattern(options, name)


def depth(pattern: Pattern) -> int:
    """Number of operators on the longest path from the root to a leaf."""
    if isinstance(pattern, OpPattern):
        return 1 + max((depth(p) for p in pattern.inputs), default=0)
    if isinstance(pattern, EitherPattern):
        return max(depth(p) for p in pattern.options)
    return 0
