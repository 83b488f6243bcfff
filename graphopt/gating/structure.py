"""Checks of what the model is made of: validity, versions, operators, domains."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import onnx
import onnx.checker
import onnx.shape_inference

from graphopt.gating.asked import Asked, matches, names
from graphopt.gating.context import Context
from graphopt.gating.policy import VersionLimits
from graphopt.io.loading import data_locations
from graphopt.ir import Function
from graphopt.report.gated import Check
from graphopt.runtime.operators import is_known
from graphopt.runtime.probe import randomness
from graphopt.runtime.session import RuntimeFailure, open_session
from graphopt.runtime.structure import Structure

_STANDARD = "ai.onnx"
_FIRST_LINES = 3


def check_model(ctx: Context) -> Iterator[Check]:
    """`[model]`."""
    limits = ctx.policy.model
    assert limits is not None
    if limits.valid:
        asked = ctx.ask(("model", "valid"), "ONNX checker", "finds nothing")
        why = _objection(ctx, full=False)
        yield asked.judged(not why, "objects" if why else "finds nothing", detail=why)
    if limits.shapes:
        asked = ctx.ask(("model", "shapes"), "strict shape inference", "finds no contradiction")
        why = _objection(ctx, full=True)
        yield asked.judged(not why, "objects" if why else "finds none", detail=why)
    if limits.max_nodes is not None:
        asked = ctx.ask(
            ("model", "max_nodes"), "number of nodes", f"at most {limits.max_nodes:,}", limits.max_nodes
        )
        yield asked.at_most(ctx.stats.nodes, f"{ctx.stats.nodes:,}")
    if limits.runs:
        yield from _runs(ctx)


def _objection(ctx: Context, *, full: bool) -> str:
    """What ONNX's checker says against the model; "" if nothing.

    It reads the file by itself: external data stays where it is, and models of any size can be checked.
    """
    try:
        with _checkable(ctx) as path:
            onnx.checker.check_model(str(path), full_check=full)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as exc:
        return "; ".join(str(exc).strip().splitlines()[:_FIRST_LINES])
    return ""


@contextlib.contextmanager
def _checkable(ctx: Context) -> Iterator[Path]:
    """The model's file as ONNX's checker takes it.

    The checker refuses data behind links, which is how caches of models keep it: a copy without the weights,
    beside empty files of their size, stands in for such a model.
    """
    data = ctx.model.data_files
    if not (ctx.path.is_symlink() and data):
        yield ctx.path.resolve()
        return
    sizes = {location: _size_of(ctx, location) for location in data_locations(ctx.path)}
    with tempfile.TemporaryDirectory(prefix="graphopt-") as name:
        folder = Path(name).resolve()
        path = folder / "model.onnx"
        path.write_bytes(ctx.path.read_bytes())
        for location, size in sizes.items():
            file = folder / location
            file.parent.mkdir(parents=True, exist_ok=True)
            with file.open("wb") as stream:
                stream.truncate(size)
        yield path


def _size_of(ctx: Context, location: str) -> int:
    """Bytes of a data file, beside the model or beside what it is a link to."""
    beside = ctx.path.parent / location
    return (beside if beside.exists() else ctx.path.resolve().parent / location).stat().st_size


def _runs(ctx: Context) -> Iterator[Check]:
    for provider in ctx.providers:
        asked = ctx.ask(
            ("model", "runs"), f"runs on {provider}", "yes", at=provider if len(ctx.providers) > 1 else None
        )
        try:
            with open_session(
                ctx.model.session_source(), optimize="all", provider=provider, settings=ctx.settings
            ) as session:
                if ctx.inputs.reason:
                    yield asked.not_measured(ctx.inputs.reason)
                    continue
                for given in ctx.inputs.sets:
                    session.run(given.feeds)
        except RuntimeFailure as failure:
            verb = "run" if failure.kind == "run" else "load"
            yield asked.judged(False, f"does not {verb}", detail=failure.message)
        else:
            tried = "; ".join(given.describe() for given in ctx.inputs.sets[:2])
            yield asked.judged(True, "yes", detail=f"on {tried}")


def check_opset(ctx: Context) -> Iterator[Check]:
    """`[opset]`; functions import operator sets of their own, which count too."""
    limits = ctx.policy.opset
    assert limits is not None
    imported: dict[str, set[int]] = {}
    bodies = [ctx.model.opset_imports, *(f.opset_imports for f in ctx.model.graph.functions)]
    for imports in bodies:
        for domain, version in imports.items():
            imported.setdefault(domain or _STANDARD, set()).add(version)
    yield from _versions(ctx, ("opset",), f"opset of {_STANDARD}", limits, imported.get(_STANDARD, set()))
    for domain, inner in limits.domains.items():
        yield from _versions(
            ctx,
            ("opset", "domains", domain),
            f"opset of {domain}",
            inner,
            imported.get(domain or _STANDARD, set()),
        )


def check_ir_version(ctx: Context) -> Iterator[Check]:
    """`[ir_version]`."""
    limits = ctx.policy.ir_version
    assert limits is not None
    yield from _versions(ctx, ("ir_version",), "IR version", limits, {ctx.model.ir_version})


def _versions(
    ctx: Context, key: tuple[str, ...], what: str, limits: VersionLimits, found: set[int]
) -> Iterator[Check]:
    value = ", ".join(map(str, sorted(found))) or "not imported"
    for bound, allowed, words, passed in (
        ("min", limits.min, "at least", lambda n: min(found) >= n),
        ("max", limits.max, "at most", lambda n: max(found) <= n),
        ("exact", limits.exact, "", lambda n: found == {n}),
    ):
        if allowed is not None:
            asked = ctx.ask((*key, bound), what, f"{words} {allowed}".strip(), allowed)
            measured = (min(found) if bound == "min" else max(found)) if found else None
            yield asked.judged(not found or bool(passed(allowed)), value, measured)


def check_ops(ctx: Context) -> Iterator[Check]:
    """`[ops]`."""
    limits = ctx.policy.ops
    assert limits is not None
    ops = _operators(ctx)
    if limits.allowed is not None:
        asked = ctx.ask(("ops", "allowed"), "operators", "only " + ", ".join(limits.allowed))
        yield _offenders(asked, [op for op in ops if not _op_matches(op, limits.allowed)], ops, len(ops))
    if limits.banned:
        asked = ctx.ask(("ops", "banned"), "operators", "none of " + ", ".join(limits.banned))
        yield _offenders(asked, [op for op in ops if _op_matches(op, limits.banned)], ops, len(ops))
    if limits.random is False:
        asked = ctx.ask(("ops", "random"), "random operators", "none that reaches an output")
        why = randomness(Structure(ctx.model.skeleton()))
        yield asked.judged(not why, "some" if why else "none", detail=why)


def check_domains(ctx: Context) -> Iterator[Check]:
    """`[domains]`."""
    limits = ctx.policy.domains
    assert limits is not None
    ops = _operators(ctx)
    domains: dict[str, list[str]] = {}
    for (domain, _), nodes in ops.items():
        domains.setdefault(domain, []).extend(nodes)
    if limits.allowed is not None:
        asked = ctx.ask(("domains", "allowed"), "domains", "only " + ", ".join(limits.allowed))
        bad = {d: n for d, n in domains.items() if not matches(d, limits.allowed)}
        yield asked.judged(not bad, ", ".join(bad or domains), len(bad), _places(bad))
    if limits.banned:
        asked = ctx.ask(("domains", "banned"), "domains", "none of " + ", ".join(limits.banned))
        bad = {d: n for d, n in domains.items() if matches(d, limits.banned)}
        yield asked.judged(not bad, ", ".join(bad or domains), len(bad), _places(bad))
    if limits.known:
        asked = ctx.ask(("domains", "known"), "operators that nobody defines", "none", 0)
        version = ctx.model.opset_imports.get("", 1)
        unknown = {
            op: nodes
            for op, nodes in ops.items()
            if not is_known("" if op[0] == _STANDARD else op[0], op[1], version)
        }
        yield _offenders(asked, list(unknown), ops, 0)


def _operators(ctx: Context) -> dict[tuple[str, str], list[str]]:
    """(domain, operator) -> its nodes, in all bodies; calls of local functions are those functions' nodes."""
    graph = ctx.model.graph
    local = {(f.domain, f.name) for f in graph.functions}
    found: dict[tuple[str, str], list[str]] = {}
    for body in ctx.model.bodies():
        inside = f" in {body.domain}::{body.name}" if isinstance(body, Function) else ""
        for node in body.nodes:
            if (node.domain or "", node.op) not in local:
                name = node.name or next((t.name for t in node.outputs if t.name), "(unnamed)")
                found.setdefault((node.domain or _STANDARD, node.op), []).append(f"{name}{inside}")
    return found


def _op_text(op: tuple[str, str]) -> str:
    return op[1] if op[0] == _STANDARD else f"{op[0]}::{op[1]}"


def _op_matches(op: tuple[str, str], globs: Iterable[str]) -> bool:
    """Standard operators go by their name alone, and with their domain."""
    return matches(_op_text(op), globs) or matches(f"{op[0]}::{op[1]}", globs)


def _offenders(
    asked: Asked, bad: Sequence[tuple[str, str]], ops: Mapping[tuple[str, str], list[str]], kinds: int
) -> Check:
    shown = ", ".join(map(_op_text, bad)) if bad else (f"{kinds} kinds" if kinds else "none")
    return asked.judged(not bad, shown, len(bad), _places({_op_text(op): ops[op] for op in bad}))


def _places(bad: dict[str, list[str]]) -> str:
    return "; ".join(f"{what} at {names(nodes)}" for what, nodes in bad.items())
