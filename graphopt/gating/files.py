"""Checks of the files: size on disk, external data, the values of weights."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np

from graphopt.errors import ExternalDataError, ModelError
from graphopt.gating.asked import matches, megabytes, names, number
from graphopt.gating.context import Context
from graphopt.graph.stats import constants
from graphopt.io.loading import data_checksums, data_locations
from graphopt.io.weights import FileValues, SparseProtoValues
from graphopt.ir import Constant, Node
from graphopt.model import Model
from graphopt.report.gated import Check
from graphopt.report.text import plural

_BLOCK: Final = 4 << 20
# numpy tests these by itself; smaller floats are widened first.
_NATIVE: Final = frozenset({"float16", "float32", "float64", "complex64", "complex128"})


def check_file(ctx: Context) -> Iterator[Check]:
    """`[file]`."""
    limits = ctx.policy.file
    assert limits is not None
    assert ctx.model
    size = ctx.info.bytes
    if limits.max_mb is not None:
        allowed = limits.max_mb
        asked = ctx.ask(("file", "max_mb"), "size on disk", f"at most {number(allowed)} MB", allowed)
        data = plural(len(ctx.info.data_files), "external data file")
        parts = f"{data} included" if ctx.info.data_files else ""
        yield asked.at_most(size / 1e6, megabytes(size), parts)
    if limits.max_ratio is not None:
        allowed = limits.max_ratio
        asked = ctx.ask(
            ("file", "max_ratio"), "size over the reference's", f"at most {number(allowed)}", allowed
        )
        before = ctx.reference_info.bytes if ctx.reference_info is not None else 0
        if not before:
            yield asked.not_measured("the reference is no file")
        else:
            ratio = size / before
            yield asked.at_most(ratio, number(ratio), f"{megabytes(size)}, reference {megabytes(before)}")


def check_external_data(ctx: Context) -> Iterator[Check]:
    """`[external_data]`, which is also there for models that are refused because of it."""
    limits = ctx.policy.external_data
    assert limits is not None
    locations = sorted(data_locations(ctx.path))
    held = plural(len(locations), "file")
    if limits.inside_folder:
        asked = ctx.ask(("external_data", "inside_folder"), "external data", "inside the model's folder")
        try:
            Model.load(ctx.path)
        except ModelError as refused:
            yield asked.judged(False, "refused", detail=refused.what)
        else:
            yield asked.judged(True, f"{held} inside" if locations else "none", detail=names(locations))
    if limits.allowed is False:
        asked = ctx.ask(("external_data", "allowed"), "external data", "none")
        yield asked.judged(not locations, held if locations else "none", len(locations), names(locations))
    if limits.checksums:
        yield _stated(ctx)
    for name, digest in limits.sha256.items():
        asked = ctx.ask(("external_data", "sha256", name), f"SHA-256 of {name}", digest.lower())
        found = _digest(ctx, name, "sha256")
        if found is None:
            yield asked.judged(False, "no such file", detail="it is not beside the model")
        else:
            yield asked.judged(found == digest.lower(), found)


def _stated(ctx: Context) -> Check:
    """Whether the files have the checksums that the model states."""
    asked = ctx.ask(("external_data", "checksums"), "checksums that the model states", "as the files are")
    stated = data_checksums(ctx.path)
    if isinstance(ctx.loaded, ExternalDataError):
        return asked.not_measured(ctx.loaded.what)
    wrong = [name for name, digests in stated.items() if {_digest(ctx, name, "sha1")} != digests]
    if wrong:
        return asked.judged(False, f"{len(wrong)} of {len(stated)} differ", len(wrong), names(wrong))
    return asked.judged(True, f"{len(stated)} hold" if stated else "none stated", 0)


def _digest(ctx: Context, location: str, kind: str) -> str | None:
    """The digest of a file beside the model (or beside what its link points to)."""
    for folder in dict.fromkeys((ctx.path.parent, ctx.path.resolve().parent)):
        file = folder / Path(location)
        inside = ctx.trust or file.resolve().is_relative_to(folder.resolve())
        if inside and file.is_file():
            with file.open("rb") as stream:
                return hashlib.file_digest(stream, kind).hexdigest()
    return None


def check_weights(ctx: Context) -> Iterator[Check]:
    """`[weights]`."""
    limits = ctx.policy.weights
    assert limits is not None
    if limits.finite:
        asked = ctx.ask(("weights", "finite"), "NaN or infinity in weights", "none", 0)
        bad = [
            f"{name} ({count:,} of {total:,} values)"
            for name, count, total in not_finite(ctx.model)
            if not matches(name, limits.finite_except)
        ]
        ctx.model.release()
        yield asked.at_most(len(bad), f"in {plural(len(bad), 'tensor')}" if bad else "none", names(bad))


def not_finite(model: Model) -> Iterator[tuple[str, int, int]]:
    """Constants with NaN or infinity in them: name, how many values, of how many.

    Weights are read in blocks: memory does not depend on their size.
    """
    for body in model.bodies():
        for constant in constants(body):
            if "float" in constant.dtype.name or constant.dtype.kind == "c":
                bad, total = _count(constant)
                if bad:
                    yield constant.name or "(a Constant)", bad, total
        for node in body.nodes:
            bad, total = _in_attributes(node)
            if bad:
                yield node.outputs[0].name, bad, total


def _count(constant: Constant) -> tuple[int, int]:
    total = bad = 0
    for block in _blocks(constant):
        plain = block if block.dtype.name in _NATIVE else block.astype(np.float32)
        bad += int(np.count_nonzero(~np.isfinite(plain)))
        total += block.size
    return bad, total


def _blocks(constant: Constant) -> Iterator[np.ndarray[Any, Any]]:
    """The values in pieces; a weight in a file is never read whole."""
    values = constant._values
    if isinstance(values, SparseProtoValues):
        values = values.values
    if isinstance(values, FileValues) and values.region.length == values.nbytes:
        region, step = values.region, _BLOCK // values.dtype.itemsize * values.dtype.itemsize
        for start in range(0, region.length, step):
            size = min(step, region.length - start)
            yield np.frombuffer(region.source.view(region.offset + start, size), values.dtype)
        return
    array = values if isinstance(values, np.ndarray) else values.load()
    yield array.reshape(-1)


def _in_attributes(node: Node) -> tuple[int, int]:
    """Of a Constant whose value is plain numbers."""
    if node.op != "Constant" or node.domain:
        return 0, 0
    found = [node.attrs[key] for key in ("value_float", "value_floats") if key in node.attrs]
    values = np.array([v for value in found for v in np.atleast_1d(value)], np.float64)
    return int(np.count_nonzero(~np.isfinite(values))), values.size
