"""Samples in batches: as many at a time as the model takes, and which part of the data they come from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import numpy as np

from graphopt.calibration.data.dataset import Dataset, Port, PortLike, Sample, as_port
from graphopt.errors import UserError

#: "calibration" and "held-back" share nothing, unless there are too few samples to divide.
Part: TypeAlias = Literal["all", "calibration", "held-back"]

#: One unit of samples in so many is held back.
HOLD_BACK = 8


@dataclass(frozen=True)
class Batch:
    """Input for one run.

    Attributes:
        feeds: value per input of the model (and per overridable initializer that was asked for).
        extra: everything else that the samples hold: concatenated where it has a row per sample, as it is
            where all samples share it, or a list.
        size: how many samples these are.
    """

    feeds: dict[str, Any]
    extra: dict[str, Any]
    size: int


@dataclass
class _Form:
    """How the inputs of some samples go together.

    Attributes:
        rows: inputs of which samples are concatenated.
        at_once: how many samples a feed takes; `exact` if no fewer.
        key: samples of another key cannot be in the same feed.
    """

    rows: tuple[str, ...]
    shared: tuple[str, ...]
    at_once: int
    exact: bool
    key: tuple[Any, ...] = field(default=())


def batches(
    dataset: Dataset,
    ports: Sequence[PortLike],
    max_batch: int = 32,
    part: Part = "all",
    overridable: Sequence[PortLike] = (),
) -> Iterator[Batch]:
    """The data as feeds, in order.

    An input whose leading dim is open takes up to `max_batch` samples; samples of another shape start a
    new batch. One whose leading dim is fixed at B takes exactly B; a last incomplete batch is left out,
    which is noted on the dataset. Inputs of a fixed shape without samples in it are handed on as they are.

    Of the data, every 8th sample is held back (every 8th group of B, for a leading dim fixed at B): those
    with `i % 8 == 7`. With fewer than 8, each part is all of them.

    Args:
        dataset: from `open_dataset`, with the same ports.
        ports: the model's inputs.
        max_batch: how many samples to take at once, where the model takes any number.
        part: which part of the data.
        overridable: initializers that may be fed as well; others go to `extra`.

    Raises:
        UserError: there is no sample, or the model takes more samples at a time than there are.
    """
    known = {p.name: as_port(p) for p in (*ports, *overridable)}
    taken, dropped, need = 0, 0, 1
    for group, form in _groups(_part(iter(dataset), known, part), known, max(1, max_batch)):
        if form.exact and len(group) < form.at_once:
            dropped, need = dropped + len(group), form.at_once
            continue
        taken += 1
        yield _joined(group, form, known)
    if dropped and taken:
        dataset.note(f"{dropped} samples are left out: the model takes {need} at a time")
    elif dropped:
        raise UserError(
            f"the model takes {need} samples at a time, the data has {dropped} of one shape",
            where=dataset.name,
        )
    elif not taken:
        raise UserError("the data holds no samples", where=dataset.name)


def _part(samples: Iterator[Sample], ports: dict[str, Port], part: Part) -> Iterator[Sample]:
    if part == "all":
        yield from samples
        return
    first: list[list[Sample]] = []
    for i, (unit, complete) in enumerate(_units(samples, ports)):
        if not complete and i:
            i -= 1  # it will be left out: a part must not consist of it
        held_back = i % HOLD_BACK == HOLD_BACK - 1
        if held_back:
            first = []
        elif part == "held-back" and i < HOLD_BACK - 1:
            first.append(unit)  # there may be too few to hold any back
        if held_back == (part == "held-back"):
            yield from unit
    for unit in first:
        yield from unit


def _units(samples: Iterator[Sample], ports: dict[str, Port]) -> Iterator[tuple[list[Sample], bool]]:
    """What is held back or not: single samples, or as many as the model always takes, if there are."""
    unit: list[Sample] = []
    size = 1
    for sample in samples:
        if not unit:
            form = _form(sample, ports, 1)
            size = form.at_once if form.exact else 1
        unit.append(sample)
        if len(unit) >= size:
            yield unit, True
            unit = []
    if unit:
        yield unit, False


def _groups(
    samples: Iterator[Sample], ports: dict[str, Port], max_batch: int
) -> Iterator[tuple[list[Sample], _Form]]:
    group: list[Sample] = []
    form: _Form | None = None
    for sample in samples:
        other = _form(sample, ports, max_batch)
        if form is not None and (len(group) >= form.at_once or not _together(group[0], sample, form, other)):
            yield group, form
            group, form = [], None
        group.append(sample)
        form = form or other
    if form is not None:
        yield group, form


def _form(sample: Sample, ports: dict[str, Port], max_batch: int) -> _Form:
    rows, shared, fixed, alone = [], [], set(), False
    for name, port in ports.items():
        if name not in sample:
            continue
        value = sample[name]
        if not isinstance(value, np.ndarray):
            shared.append(name)
            alone = True
        elif value.ndim and value.shape[0] == 1 and (port.leads_with_batch or port.dims is None):
            rows.append(name)
        elif (
            value.ndim
            and value.shape[0] == 1
            and port.dims
            and isinstance(port.dims[0], int)
            and port.dims[0] > 1
        ):
            rows.append(name)
            fixed.add(port.dims[0])
        else:
            shared.append(name)
            # What depends on a symbol may depend on how many samples there are.
            alone = alone or port.has_symbols
    if len(fixed) > 1:
        raise UserError(
            f"the model's inputs take different numbers of samples: {', '.join(map(str, sorted(fixed)))}",
            fix="hand in whole feeds, with one more axis in front",
        )
    at_once = next(iter(fixed)) if fixed else max_batch if rows and not alone else 1
    key = tuple((n, sample[n].shape[1:], sample[n].dtype) for n in rows)
    return _Form(tuple(rows), tuple(shared), at_once, bool(fixed), key)


def _together(first: Sample, sample: Sample, form: _Form, other: _Form) -> bool:
    return (
        form.key == other.key
        and form.shared == other.shared
        and form.at_once == other.at_once
        and all(np.array_equal(first[n], sample[n]) for n in form.shared)
    )


def _joined(group: list[Sample], form: _Form, ports: dict[str, Port]) -> Batch:
    feeds: dict[str, Any] = {}
    extra: dict[str, Any] = {}
    for name in group[0]:
        values = [s[name] for s in group if name in s]
        if name in ports:
            feeds[name] = _concatenated(values) if name in form.rows else values[0]
        elif len(values) == len(group):
            extra[name] = _extra(values)
    return Batch(feeds, extra, len(group))


def _extra(values: list[Any]) -> Any:
    if all(v is values[0] for v in values):
        return values[0]  # it belongs to the data, not to a sample
    return _concatenated(values) if _stackable(values) else values


def _stackable(values: list[Any]) -> bool:
    arrays = [v for v in values if isinstance(v, np.ndarray)]
    if len(arrays) < len(values) or not arrays[0].ndim:
        return False
    return all(a.shape[1:] == arrays[0].shape[1:] and a.dtype == arrays[0].dtype for a in arrays)


def _concatenated(values: list[Any]) -> Any:
    return values[0] if len(values) == 1 else np.concatenate(values)
