"""`gate`: loads what a policy names, carries out its checks, and fills the report."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from graphopt import collector, summary
from graphopt.errors import ExternalDataError, ModelError, UserError
from graphopt.gating.accuracy import Accuracy
from graphopt.gating.context import Context, Tell, Unreadable
from graphopt.gating.files import check_external_data, check_file, check_weights
from graphopt.gating.interface import check_interface
from graphopt.gating.memory import check_memory
from graphopt.gating.numerics import check_metrics, check_numerics
from graphopt.gating.older import Comparison, check_against
from graphopt.gating.placement import check_providers
from graphopt.gating.policy import Table
from graphopt.gating.quantized import check_int8
from graphopt.gating.reading import PolicyFile, load_policy
from graphopt.gating.speed import check_latency, check_session
from graphopt.gating.structure import check_domains, check_ir_version, check_model, check_ops, check_opset
from graphopt.graph.stats import model_stats
from graphopt.model import Model
from graphopt.report.gated import Check, GateReport, Older
from graphopt.runtime.providers import ProviderSettings, parse_settings, resolve_provider

#: Limits that compare with the reference: table and key.
_OF_REFERENCE = (
    ("file", "max_ratio"),
    ("latency", "max_ratio"),
    ("session", "max_ratio"),
    ("memory", "max_ratio"),
    ("interface", "same_as_reference"),
)

Family = Callable[[Context], Iterator[Check]]


@collector.relaxed()
def gate(
    model: str | Path,
    policy: str | Path | PolicyFile,
    *,
    reference: str | Path | None = None,
    against: str | Path | None = None,
    data: Any = None,
    metric: Any = None,
    providers: str | Sequence[str] | None = None,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    trust_external_paths: bool = False,
    progress: Tell | None = None,
) -> GateReport:
    """Hold a model against a policy.

    Args:
        model: the file to be deployed.
        policy: the policy, or the file that it is in.
        reference: what the model is compared with; otherwise what the policy names.
        against: an older version of the model, likewise.
        data, metric, providers, input_shapes: what it is measured with, likewise.
        trust_external_paths: read external data from anywhere; what the policy asks of it holds all the same.
        progress: called with a stage and a detail as work goes on.

    Returns:
        The report: a check per limit, and "passed" if every one is.

    Raises:
        UserError: the policy makes no sense; a file, a provider or a metric that was named is not there; or
            a limit needs something that was not named.
    """
    clock = summary.Clock()
    tell = progress or (lambda stage, detail: None)
    providers = (providers,) if isinstance(providers, str) else providers
    file = policy if isinstance(policy, PolicyFile) else load_policy(policy)
    ctx = _context(
        file,
        Path(model),
        reference,
        against,
        data,
        metric,
        providers,
        input_shapes,
        trust_external_paths,
        tell,
    )
    clock.lap("load")
    checks: list[Check] = []
    seen = Comparison(ctx, ctx.old) if ctx.old is not None else None
    families = _families(ctx, seen)
    for table in sorted(file.policy.limits(), key=list(families).index):  # none may go unchecked
        checks += _timed(families[table], ctx, table)
        clock.lap(table)
    changes: tuple[str, ...] = ()
    older: Older | None = None
    if seen is not None and not isinstance(ctx.loaded, ExternalDataError):
        changes, older = tuple(seen.words()), seen.report()
        clock.lap("against")
    checks.sort(key=lambda check: check.line or 0)
    readable = not isinstance(ctx.loaded, ExternalDataError)
    return GateReport(
        model=ctx.info,
        policy=str(file.path),
        name=file.name,
        verdict="passed" if checks and all(c.verdict == "passed" for c in checks) else "failed",
        checks=tuple(checks),
        reference=ctx.reference_info,
        validation=ctx.validation,
        bench=ctx.bench,
        changes=changes,
        against=older,
        before=model_stats(ctx.reference) if ctx.reference is not None else None,
        after=ctx.stats if readable else None,
        warnings=tuple(ctx.warnings),
        seconds=clock.laps,
        versions=summary.versions(),
    )


def _families(ctx: Context, seen: Comparison | None) -> dict[str, Family]:
    """Table of the policy -> what checks it."""
    accuracy = Accuracy(ctx)

    def against(ctx: Context) -> Iterator[Check]:
        assert seen is not None
        return check_against(ctx, seen)

    return {
        "model": check_model,
        "file": check_file,
        "external_data": check_external_data,
        "weights": check_weights,
        "opset": check_opset,
        "ir_version": check_ir_version,
        "ops": check_ops,
        "domains": check_domains,
        "interface": check_interface,
        "numerics": lambda ctx: check_numerics(ctx, accuracy),
        "metrics": lambda ctx: check_metrics(ctx, accuracy),
        "providers": check_providers,
        "int8": check_int8,
        "session": check_session,
        "latency": check_latency,
        "memory": check_memory,
        "against": against,
    }


def _asked(file: PolicyFile, table: str) -> bool:
    """Whether a policy has limits in a table."""
    return table in set(file.policy.limits())


def _timed(family: Family, ctx: Context, table: str) -> list[Check]:
    """The checks of a table with the time that each took; as errors where the model cannot be read."""
    found: list[Check] = []
    last = time.perf_counter()
    try:
        for check in family(ctx):
            now = time.perf_counter()
            found.append(replace(check, seconds=now - last))
            last = now
    except Unreadable as refused:
        found += [
            ctx.ask(key, " ".join(key), "").not_measured(f"the model cannot be read: {refused}")
            for key in _keys(getattr(ctx.policy, table), (table,))
        ]
    return found


def _keys(value: Any, key: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """Where limits stand in a table."""
    if isinstance(value, Table):
        for name in value.limits():
            yield from _keys(getattr(value, name), (*key, name))
    elif isinstance(value, dict) and all(isinstance(v, Table) for v in value.values()):
        for name, inner in value.items():
            yield from _keys(inner, (*key, name))
    else:
        yield key


# ---------------------------------------------------------------------------------- what is measured


def _context(
    file: PolicyFile,
    path: Path,
    reference: str | Path | None,
    against: str | Path | None,
    data: Any,
    metric: Any,
    providers: Sequence[str] | None,
    input_shapes: Mapping[str, Sequence[int]] | None,
    trust: bool,
    tell: Tell,
) -> Context:
    """Load everything that was named, and refuse limits for which something was not."""
    measure = file.policy.measure
    older = file.policy.against.model if file.policy.against is not None else None
    named = {
        "reference": reference or _named(file, measure.reference, ("measure", "reference")),
        "against": against or _named(file, older, ("against", "model")),
    }
    data = data if data is not None else _named(file, measure.data, ("measure", "data"))
    metric = metric or (file.beside(measure.metric) if measure.metric else None)
    _check_complete(file, named, data, metric)
    if providers:
        resolved = [resolve_provider(name) for name in providers]
    else:
        resolved = [_provider(file, name, ("measure", "providers")) for name in measure.providers or ["cpu"]]
    for name in file.policy.providers:
        _provider(file, name, ("providers", name))
    tell("load", str(path))
    loaded: Model | ExternalDataError
    try:
        loaded = Model.load(path, trust_external_paths=trust)
    except ExternalDataError as refused:
        if file.policy.external_data is None:
            raise
        loaded = refused
    shapes = {name: tuple(dims) for name, dims in (input_shapes or measure.input_shapes).items()}
    return Context(
        file,
        path,
        loaded,
        _loaded(named["reference"], trust),
        _loaded(named["against"], trust),
        data,
        metric,
        tuple(dict.fromkeys(resolved)),
        shapes,
        _settings(file),
        trust,
        tell,
    )


def _settings(file: PolicyFile) -> ProviderSettings:
    """What the policy opens providers with."""
    measure = file.policy.measure
    try:
        return parse_settings(measure.provider_options, tf32=measure.tf32)
    except UserError as exc:
        raise type(exc)(exc.what, where=file.where("measure", "provider_options"), fix=exc.fix) from exc


def _provider(file: PolicyFile, name: str, key: tuple[str, ...]) -> str:
    """A provider that the policy names, by onnxruntime's name for it."""
    try:
        return resolve_provider(name)
    except UserError as exc:
        raise type(exc)(exc.what, where=file.where(*key), fix=exc.fix) from exc


def _named(file: PolicyFile, name: str | None, key: tuple[str, ...]) -> str | None:
    """What the policy names, relative to the working directory.

    Raises:
        UserError: it is a file that is not there.
    """
    if name is None:
        return None
    found = file.beside(name)
    is_file = ":" not in Path(found).name and not name.startswith("synthetic")
    if is_file and not Path(found).exists():
        option = "--against" if key[0] == "against" else f"--{key[1]}"
        raise UserError(f"there is no {found!r}", where=file.where(*key), fix=f"correct it, or use {option}")
    return found


def _loaded(path: str | Path | None, trust: bool) -> Model | None:
    try:
        return None if path is None else Model.load(path, trust_external_paths=trust)
    except ModelError as exc:
        raise exc if exc.where else ModelError(exc.what, where=str(path), fix=exc.fix) from exc


def _check_complete(file: PolicyFile, named: Mapping[str, Any], data: Any, metric: Any) -> None:
    """Every limit has what it needs."""
    policy = file.policy
    wanting = [key for key in _OF_REFERENCE if _limit(policy, key)]
    if _asked(file, "numerics"):
        wanting.append(("numerics", ""))
    wanting += [("metrics", name) for name, limits in policy.metrics.items() if limits.max_drop is not None]
    if wanting and named["reference"] is None:
        key = tuple(part for part in wanting[0] if part)
        raise UserError(
            f"`{'.'.join(key)}` compares with a reference, and none is named",
            where=file.where(*key),
            fix='name it: --reference FILE, or reference = "..." under [measure]',
        )
    if _asked(file, "metrics"):
        for what, given in (("metric", metric), ("data", data)):
            if given is None:
                raise UserError(
                    f"[metrics] needs {'a function that computes them' if what == 'metric' else 'data'}",
                    where=file.where("metrics"),
                    fix=f'name it: --{what}, or {what} = "..." under [measure]',
                )
    if _asked(file, "against") and named["against"] is None:
        raise UserError(
            "[against] compares with an older version of the model, and none is named",
            where=file.where("against"),
            fix='name it: --against FILE, or model = "..." under [against]',
        )


def _limit(policy: Any, key: tuple[str, str]) -> bool:
    table = getattr(policy, key[0])
    return table is not None and key[1] in set(table.limits())
