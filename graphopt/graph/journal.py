"""The record of every change: what reports, `modified`, bisection and provenance are read from."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple


class SiteKey(NamedTuple):
    """Where a rewrite happened, the same in every replay of a pipeline on the same model."""

    pass_name: str
    body: str
    anchor: str

    def __str__(self) -> str:
        place = self.anchor if self.body == "main" else f"{self.body}/{self.anchor}"
        return f"{self.pass_name} at {place}"


@dataclass(slots=True)
class Change:
    """One applied rewrite.

    Attributes:
        serial: number of the rewrite in this run, from 0; the unit of bisection.
        key: where it happened.
        op: operator type of the root node.
        why: the rewrite in words.
        added, removed: operator types of the nodes that came and went.
        gone: what those that went computed first, by name.
    """

    serial: int
    key: SiteKey
    op: str
    why: str
    added: list[str] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    gone: list[str] = field(default_factory=list)


class Refusal(NamedTuple):
    """A rewrite that did not happen, and why."""

    pass_name: str
    node: str
    op: str
    reason: str


@dataclass
class Journal:
    """Everything that happened to one model in one run.

    Attributes:
        changes: applied rewrites, in order.
        refusals: distinct refusals, in order of first appearance -> how often.
        limit: apply no rewrite with a serial at or beyond this (bisection); None: no limit.
        skip: sites that must not be rewritten (rolled-back culprits).
        only: the only sites that may be rewritten (to see what they do by themselves); None: all.
        withheld: rewrites that `limit`, `skip` or `only` stopped.
    """

    changes: list[Change] = field(default_factory=list)
    refusals: dict[Refusal, int] = field(default_factory=dict)
    limit: int | None = None
    skip: frozenset[SiteKey] = frozenset()
    only: frozenset[SiteKey] | None = None
    withheld: int = 0

    @property
    def exhausted(self) -> bool:
        """The limit is reached: nothing more will be applied."""
        return self.limit is not None and len(self.changes) >= self.limit

    def allows(self, key: SiteKey) -> bool:
        """Whether a rewrite at `key` may be applied now."""
        if self.only is not None and key not in self.only:
            return False
        return not self.exhausted and key not in self.skip

    def refuse(self, refusal: Refusal) -> None:
        """Count one refusal."""
        self.refusals[refusal] = self.refusals.get(refusal, 0) + 1

    def of_pass(self, name: str, since: int = 0) -> list[Change]:
        """Changes that the pass `name` made, from serial `since` on."""
        return [c for c in self.changes[since:] if c.key.pass_name == name]
