"""Records of a source as samples: what is a row per sample, what is one feed, and whether it fits."""

from __future__ import annotations

import contextlib
import difflib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, TypeAlias

import numpy as np
import onnx

from graphopt.calibration.data.columns import Column, Held
from graphopt.calibration.data.dataset import Port, Sample, dims_text
from graphopt.calibration.data.source import Record
from graphopt.errors import UserError
from graphopt.runtime.values import Array, numpy_dtype

#: What a value of a record is to its samples: "rows": axis 0 counts samples and stays, of length 1; "stack":
#: a further axis in front counts whole feeds; "lift": one sample, whose batch axis is missing; "shared":
#: the same for every sample.
Mode: TypeAlias = Literal["rows", "stack", "lift", "shared"]

# What is larger than so many bytes and has no row per sample is somebody else's: the training data, say.
_LARGE = 1 << 20

_T = onnx.TensorProto
_FLOATS = {_T.FLOAT, _T.DOUBLE, _T.FLOAT16, _T.BFLOAT16}


class Fitter:
    """Makes samples of records.

    Args:
        ports: the model's inputs.
        overridable: initializers that may be fed as well.
        strict: every input must be there, and every float finite. Otherwise inputs may be missing, but then
            every name in the data must be known; and what is no input is left out.
    """

    def __init__(self, ports: Sequence[Port], overridable: Sequence[Port] = (), strict: bool = True) -> None:
        self.required = [p.name for p in ports]
        self.ports = {p.name: p for p in (*ports, *overridable)}
        self.strict = strict

    def count(self, record: Record) -> int:
        """How many samples a record makes, from its shapes.

        Raises:
            UserError: see `samples`.
        """
        return self._plan(self._columns(record), record.label)[0]

    def samples(self, record: Record) -> Iterator[Sample]:
        """The samples of a record, each checked.

        Raises:
            UserError: an input is missing, or a value does not fit: its shape, its dtype, NaN or infinite.
        """
        columns = self._columns(record)
        count, modes = self._plan(columns, record.label)
        extra = {n: v for n, v in columns.items() if modes[n] == "shared" and n not in self.ports}
        columns = {n: v for n, v in columns.items() if n not in extra or _size(v) <= _LARGE}
        once = {n: v.whole() if isinstance(v, Column) else v for n, v in extra.items() if n in columns}
        rows = {
            n: v.rows()
            for n, v in columns.items()
            if isinstance(v, Column) and modes[n] in ("rows", "stack") and v.shape
        }
        held = {n: v for n, v in columns.items() if n not in rows and n not in once}
        for i in range(count):
            where = f"{record.label}, sample {i}" if count > 1 else record.label
            sample: dict[str, Any] = {}
            for name in columns:
                if name in rows:
                    value = next(rows[name])
                    sample[name] = value if modes[name] == "stack" else value[None]
                elif name in held:
                    value = held[name]
                    value = value.whole() if isinstance(value, Column) else value
                    sample[name] = value[None] if modes[name] == "lift" else value
                else:
                    sample[name] = once[name]
            if count == 1:
                sample |= self._rows_of_one(sample, "lift" in modes.values())
            yield {n: self._fit(n, v, where) for n, v in sample.items()}

    def _rows_of_one(self, sample: Mapping[str, Any], lift: bool) -> dict[str, Array]:
        """What one sample holds besides inputs, with the sample axis that a label, say, lacks."""
        found = {}
        for name, value in sample.items():
            if name in self.ports or not isinstance(value, bool | int | float | str | list | np.ndarray):
                continue
            try:
                array = np.array(value)  # its own: that several samples share one object means something
            except ValueError:  # ragged lists
                continue
            found[name] = array[None] if lift or not array.ndim else array
        return found

    # -- names ------------------------------------------------------------------------------------------

    def _columns(self, record: Record) -> dict[str, Any]:
        values = dict(record.values)
        missing = [n for n in self.required if n not in values]
        if missing and len(missing) == len(self.required) and values:
            # numpy.savez without names makes arr_0, arr_1, ...
            unnamed = {f"arr_{i}": n for i, n in enumerate(self.required)}
            if all(n in values for n in unnamed):
                values, missing = {unnamed.get(n, n): v for n, v in values.items()}, []
        strange = [n for n in values if n not in self.ports]
        if missing and (strange or self.strict or not values):
            raise missing_inputs(missing, values, record.label)
        if not self.strict:
            values = {n: v for n, v in values.items() if n in self.ports}
        return {n: self._column(n, v, record.label) for n, v in values.items()}

    def _column(self, name: str, value: Any, label: str) -> Any:
        if isinstance(value, Column):
            return value
        port = self.ports.get(name)
        if isinstance(value, np.ndarray | np.generic):
            return Held(np.asarray(value))
        if port is None and isinstance(value, list | tuple):
            with contextlib.suppress(ValueError):  # ragged lists stay lists
                return Held(np.asarray(value))
        if port is None or port.elem_type is None:
            return value
        return Held(untyped(value, port, label))

    # -- shapes -----------------------------------------------------------------------------------------

    def _plan(self, columns: Mapping[str, Any], label: str) -> tuple[int, dict[str, Mode]]:
        """How many samples these are, and what each value is to them."""
        modes: dict[str, Mode] = dict.fromkeys(columns, "shared")
        counts: dict[str, int] = {}
        fits: list[str] = []  # as long as declared: a feed of exactly so many samples, or no samples at all
        whole = False
        for name, value in columns.items():
            port = self.ports.get(name)
            if port is None:
                continue
            if not isinstance(value, Column):
                whole = True
            elif port.dims is None:
                if value.shape:
                    modes[name], counts[name] = "rows", value.shape[0]
            elif len(value.shape) == len(port.dims) + 1:
                modes[name], counts[name] = "stack", value.shape[0]
            elif port.dims and len(value.shape) == len(port.dims) - 1 and self._lifts(port):
                modes[name], counts[name] = "lift", 1
            elif len(value.shape) != len(port.dims):
                raise _misfit(name, port, value.shape, label)
            elif port.dims and port.dims[0] == value.shape[0]:
                fits.append(name)
            elif port.dims and (isinstance(port.dims[0], int) or port.leads_with_batch):
                modes[name], counts[name] = "rows", value.shape[0]
            elif port.has_symbols:
                whole = True
        one_feed: tuple[int, dict[str, Mode]] = (1, dict.fromkeys(columns, "shared"))
        stacks = [n for n in counts if modes[n] == "stack"]
        if whole and not stacks:
            return 1, {n: "lift" if modes[n] == "lift" else "shared" for n in columns}
        if len(set(counts.values())) > 1:
            if self._one_feed(counts, stacks):
                return one_feed
            found = ", ".join(f"{n} has {c}" for n, c in counts.items())
            raise UserError(f"the inputs differ in their number of samples: {found}", where=label)
        if not counts:
            leads = {columns[n].shape[0] for n in fits}
            if len(leads) != 1:
                return one_feed
            counts[fits[0]] = leads.pop()
        count = next(iter(counts.values()))
        for name in fits:
            if columns[name].shape[0] == count:
                modes[name] = "rows"
            elif self.ports[name].has_symbols and not stacks:
                return one_feed
        for name, value in columns.items():
            if (
                name not in self.ports
                and isinstance(value, Column)
                and count > 1
                and value.shape[:1] == (count,)
            ):
                modes[name] = "rows"
        return count, modes

    def _lifts(self, port: Port) -> bool:
        return port.leads_with_batch or bool(port.dims and isinstance(port.dims[0], int))

    def _one_feed(self, counts: Mapping[str, int], stacks: Sequence[str]) -> bool:
        """Inputs of different length are one feed if their leading dims are open, and not the same one."""
        if stacks:
            return False
        sizes: dict[str, int] = {}
        for name, count in counts.items():
            dims = self.ports[name].dims
            first = dims[0] if dims else None
            if isinstance(first, int):
                return False
            if isinstance(first, str) and sizes.setdefault(first, count) != count:
                return False
        return True

    # -- values -----------------------------------------------------------------------------------------

    def _fit(self, name: str, value: Any, where: str) -> Any:
        port = self.ports.get(name)
        if port is None or port.elem_type is None or not isinstance(value, np.ndarray):
            return value
        if port.dims is not None:
            _check_shape(name, port, value.shape, where)
        value = cast(value, port, where)
        if self.strict and port.elem_type in _FLOATS and not np.isfinite(value).all():
            bad = "NaN" if np.isnan(value).any() else "an infinite value"
            raise UserError(f"input {name!r} holds {bad}", where=where)
        return value


def _size(value: Any) -> int:
    return math.prod(value.shape) * value.dtype.itemsize if isinstance(value, Column) else 0


def _check_shape(name: str, port: Port, shape: tuple[int, ...], where: str) -> None:
    dims = port.dims or ()
    rows = (
        bool(dims) and shape[:1] == (1,) and isinstance(dims[0], int)
    )  # to be joined into a batch of so many
    if len(shape) != len(dims):
        raise _misfit(name, port, shape, where)
    for axis, (size, declared) in enumerate(zip(shape, dims, strict=True)):
        if isinstance(declared, int) and declared != size and not (axis == 0 and rows):
            raise _misfit(name, port, shape, where, axis)


def _misfit(name: str, port: Port, shape: tuple[int, ...], where: str, axis: int | None = None) -> UserError:
    what = f"input {name!r}"
    if axis is not None and port.dims:
        what = f"axis {axis} of input {name!r} is {port.dims[axis]}, the data has {shape[axis]}: it"
    what += f" takes {port.shape_text()}, the data is {dims_text(shape)}"
    return UserError(
        what, where=where, fix="the first axis counts samples" if port.leads_with_batch else None
    )


def cast(array: Array, port: Port, where: str) -> Array:
    """The array in the input's dtype, if that is a matter of width only.

    Raises:
        UserError: it is of another kind, or does not fit in.
    """
    elem_type = port.elem_type
    if not elem_type or elem_type == _T.STRING:
        if elem_type and array.dtype.kind not in "OUST":
            raise _wrong_dtype(array, port, where)
        return array
    wanted = numpy_dtype(elem_type)
    if array.dtype == wanted and array.dtype.isnative:
        return array
    if array.dtype.kind == "V" and array.dtype.names is None and array.dtype.itemsize == wanted.itemsize:
        return array.view(wanted)  # .npy files forget the names of bfloat16 and its like
    kind = array.dtype.kind
    if kind == "f" and elem_type in _FLOATS:
        if kind == "f" and np.isfinite(array).all():
            with np.errstate(over="ignore"):
                narrow = array.astype(wanted)
            if not np.isfinite(narrow).all():
                raise UserError(
                    f"input {port.name!r} is {wanted}, which cannot hold {np.abs(array).max():g}", where=where
                )
            return narrow
        return array.astype(wanted)
    if kind in "biu" and wanted.kind in "iu":
        converted = array.astype(wanted)
        if not np.array_equal(converted, array):
            raise UserError(
                f"input {port.name!r} is {wanted}, the data holds {_outside(array, wanted)}", where=where
            )
        return converted
    if kind == wanted.kind:
        return array.astype(wanted)
    raise _wrong_dtype(array, port, where)


def _outside(array: Array, wanted: np.dtype[Any]) -> int:
    info = np.iinfo(wanted)
    return int(array.max() if array.max() > info.max else array.min())


def _wrong_dtype(array: Array, port: Port, where: str) -> UserError:
    wanted = "string" if port.elem_type == _T.STRING else numpy_dtype(port.elem_type or 0)
    images = array.dtype == np.uint8 and wanted != "string" and array.ndim in (3, 4)
    return UserError(
        f"input {port.name!r} is {wanted}, the data is {array.dtype}",
        where=where,
        fix="describe how images become inputs in a data TOML file (see docs/data.md)"
        if images
        else "convert the data the way the model's users do",
    )


def untyped(value: Any, port: Port, where: str) -> Array:
    """Numbers without a dtype (lists, from JSON for instance) as the input has it.

    Raises:
        UserError: the lists are ragged, or hold something that is no such number.
    """
    try:
        found = np.asarray(value)
        if port.elem_type == _T.STRING:
            return np.asarray(value, dtype=object)
        wanted = numpy_dtype(port.elem_type or 0)
        if found.dtype.kind in "biu" and (port.elem_type in _FLOATS or wanted.kind == "f"):
            return found.astype(wanted)
    except (ValueError, TypeError, OverflowError) as e:
        raise UserError(f"input {port.name!r} is not an array: {e}", where=where) from e
    if found.dtype.kind not in "biufc":
        raise UserError(f"input {port.name!r} is not made of numbers", where=where)
    if not found.size:
        return found.astype(wanted)
    return found


def missing_inputs(missing: Sequence[str], there: Iterable[str], where: str) -> UserError:
    """The error for inputs that the data lacks, with what they may be called in it."""
    there = list(there)
    what = f"the data lacks {'input' if len(missing) == 1 else 'inputs'} {', '.join(map(repr, missing))}"
    close = {n: difflib.get_close_matches(n, there, n=1, cutoff=0.6) for n in missing}
    guesses = [f"{c[0]!r} -> {n!r}" for n, c in close.items() if c]
    fix = f"it holds: {', '.join(there) or 'nothing'}"
    return UserError(what, where=where, fix=f"{fix}; rename {', '.join(guesses)}?" if guesses else fix)
