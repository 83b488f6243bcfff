"""Where records come from, one at a time."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from dataclasses import dataclass
from typing import Any

from graphopt.errors import UserError


@dataclass(frozen=True)
class Record:
    """What a source gives at a time: a file, a line, an item of an iterable.

    Attributes:
        label: for messages: which it is.
        values: a Column, an array, or (nested) lists, per name.
    """

    label: str
    values: Mapping[str, Any]


class Source(ABC):
    """A source of records.

    Attributes:
        name: for messages: what it is.
        quick: the records' shapes are known without reading their values.
    """

    name: str
    quick = False

    @property
    def count(self) -> int | None:
        """How many samples there are, where every record is one; None when that is not known."""
        return None

    @abstractmethod
    def records(self) -> Iterator[Record]:
        """All records, the same ones every time.

        Raises:
            UserError: something cannot be read.
        """


class Items(Source):
    """Mappings that the caller has, or makes."""

    def __init__(self, name: str, items: Iterable[Any]) -> None:
        self.name, self._items = name, items
        self.quick = isinstance(items, Sized)

    def records(self) -> Iterator[Record]:
        """The items, in order."""
        for i, item in enumerate(self._items):
            yield record_of(f"{self.name} #{i}", item)


class Table(Source):
    """One record whose values are at hand, or in files that are known to be there."""

    quick = True

    def __init__(self, name: str, read: Callable[[], Mapping[str, Any]]) -> None:
        self.name, self._read = name, read

    def records(self) -> Iterator[Record]:
        """The one record."""
        yield Record(self.name, self._read())


def record_of(label: str, item: Any) -> Record:
    """A record of what a function, or an iterable, gave.

    Raises:
        UserError: it is no mapping.
    """
    if not isinstance(item, Mapping):
        raise UserError(
            f"{type(item).__name__} is no mapping from input names to arrays",
            where=label,
            fix='as in: {"image": array}',
        )
    return Record(label, item)
