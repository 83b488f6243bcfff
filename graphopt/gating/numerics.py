"""Checks of what the model computes: outputs next to the reference's, and the task metric."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from graphopt.gating.accuracy import Accuracy, Distance, NotMeasured
from graphopt.gating.asked import matches, number
from graphopt.gating.context import Context
from graphopt.gating.policy import Figures, NumericsLimits
from graphopt.report.gated import Check
from graphopt.report.validated import ValidationReport
from graphopt.validating import validate

# Key -> the distance's figure, in words, unit, of float outputs only.
_FIGURES = {
    "min_sqnr_db": ("sqnr_db", "SQNR", " dB", True),
    "min_cosine": ("cosine", "cosine similarity", "", True),
    "max_abs": ("max_abs", "largest difference", "", False),
    "max_rel": ("max_rel", "largest relative difference", "", True),
    "min_equal": ("equal", "share of equal values", "", False),
}


def check_numerics(ctx: Context, accuracy: Accuracy) -> Iterator[Check]:
    """`[numerics]`."""
    limits = ctx.policy.numerics
    assert limits is not None
    ctx.validation = _validated(ctx)
    if limits.standard is not None:
        yield _standard(ctx, limits.standard, ctx.validation)
    asked = {
        key
        for table in (limits, *limits.outputs.values())
        for key in _FIGURES
        if _value(table, key) is not None
    }
    if not asked:
        return
    why, distances = "", dict[str, Distance]()
    try:
        distances = accuracy.distances()
    except NotMeasured as failure:
        why = str(failure)
    known: dict[str, Distance | None] = {**distances} or dict.fromkeys(limits.outputs) or {"": None}
    meant = {_meant(limits, name) for name in known}
    for name, table in limits.outputs.items():
        if distances and name not in meant:
            key = next(iter(table.limits()))
            missing = ctx.ask(("numerics", "outputs", name, key), f"output {name}", _limit(table, key))
            yield missing.not_measured(f"there is no output {name!r}; there are: {', '.join(distances)}")
    for key in _FIGURES:
        if key in asked:
            yield from _for_all(ctx, accuracy, key, known, why)


def _for_all(
    ctx: Context, accuracy: Accuracy, key: str, outputs: dict[str, Distance | None], why: str
) -> Iterator[Check]:
    """One limit, for each output that it is about."""
    limits = ctx.policy.numerics
    assert limits is not None
    attribute, words, unit, floats_only = _FIGURES[key]
    common, applied = _value(limits, key), 0
    for name, distance in outputs.items():
        meant = _meant(limits, name)
        own = None if meant is None else _value(limits.outputs[meant], key)
        allowed = common if own is None else own
        if allowed is None:
            continue
        if floats_only and own is None and distance is not None and not distance.floats:
            continue  # the limit for all is about float outputs
        applied += 1
        place = ("numerics", key) if own is None or meant is None else ("numerics", "outputs", meant, key)
        what = f"{words} of {name}" if name else words
        bound = "at least" if key.startswith("min") else "at most"
        asked = ctx.ask(
            place,
            what,
            f"{bound} {number(allowed)}{unit}",
            allowed,
            at=None if own is not None and meant == name else name,
        )
        if distance is None:
            yield asked.not_measured(why or "there is no such output")
        elif floats_only and not distance.floats:
            yield asked.not_measured("it is no float output")
        else:
            measured = getattr(distance, attribute)
            judge = asked.at_least if key.startswith("min") else asked.at_most
            detail = f"{distance.where}; {accuracy.measured_on()}"
            if measured != measured:
                detail = f"NaN or infinity at other places, or other shapes; {detail}"
            yield judge(measured, f"{number(measured)}{unit if measured == measured else ''}", detail)
    if common is not None and not applied:
        asked = ctx.ask(("numerics", key), words, _limit(limits, key), common)
        yield asked.not_measured("no output of the model has floats")


def _meant(limits: NumericsLimits, output: str) -> str | None:
    """The entry of `[numerics.outputs]` that is about an output: its name, that of a sequence that it is an
    element of ("y" for "y[0]"), or a glob.
    """
    if output in limits.outputs:
        return output
    for name in limits.outputs:
        if output.startswith((f"{name}[", f"{name}.")) or matches(output, [name]):
            return name
    return None


def _value(table: Figures, key: str) -> float | None:
    value: float | None = getattr(table, key)
    return value


def _limit(table: Figures, key: str) -> str:
    value = _value(table, key)
    bound = "at least" if key.startswith("min") else "at most"
    return "" if value is None else f"{bound} {number(value)}{_FIGURES[key][2]}"


def _standard(ctx: Context, standard: str, found: ValidationReport) -> Check:
    words = {"exact": "bit for bit", "close": "within the reference's noise floor"}[standard]
    asked = ctx.ask(("numerics", "standard"), "outputs next to the reference's", words)
    if found.verdict == "unproven":
        return asked.not_measured(found.reason)
    used = max((r.candidate_used for r in found.runtimes if r.candidate_used is not None), default=None)
    words = "" if used is None else f", {number(used)}{' times' if used > 1 else ' of'} the allowance"
    value = found.verdict + words
    fault = f"at fault: {found.fault}" if found.fault else ""
    detail = "; ".join(text for text in (_where(found), fault, found.reason) if text)
    return asked.judged(found.verdict == "proven", value, used, detail)


def _where(found: ValidationReport) -> str:
    """Where the difference starts, if that was looked for; what was compared, if there is none."""
    place = found.localization
    if place is None or not place.found:
        return "; ".join(r.runtime for r in found.runtimes) if found.verdict == "proven" else ""
    by = f", made by {place.made_by}" if place.made_by else ""
    return f"it starts at {place.node} ({place.op}{by})"


def _validated(ctx: Context) -> ValidationReport:
    """The comparison that the report shows, and that `standard` is about."""
    assert ctx.reference is not None
    assert ctx.policy.numerics is not None
    limits = ctx.policy.numerics
    ctx.tell("prove", limits.standard or "how far the outputs are apart")
    found = validate(
        ctx.reference,
        ctx.model,
        data=ctx.data,
        input_shapes=ctx.input_shapes or None,
        providers=ctx.providers,
        settings=replace(ctx.settings, tf32=bool(ctx.settings.tf32)),  # it would hide what is wrong
        numerics=(limits.standard or "lossy").upper(),
        localize=limits.localize,
    )
    ctx.warnings += [w for w in found.warnings if w not in ctx.warnings]
    return found


def check_metrics(ctx: Context, accuracy: Accuracy) -> Iterator[Check]:
    """`[metrics.NAME]`."""
    figures: dict[str, float] = {}
    before: dict[str, float] = {}
    why = ""
    try:
        figures = accuracy.figures()
        if any(m.max_drop is not None for m in ctx.policy.metrics.values()):
            before = accuracy.reference_figures
    except NotMeasured as failure:
        why = str(failure)
    for name, limits in ctx.policy.metrics.items():
        lacking = why or f"the metric returns no {name!r}, only: {', '.join(figures)}"
        if limits.min is not None:
            asked = ctx.ask(("metrics", name, "min"), name, f"at least {number(limits.min)}", limits.min)
            if name not in figures:
                yield asked.not_measured(lacking)
            else:
                yield asked.at_least(figures[name], number(figures[name]), accuracy.measured_on())
        if limits.max_drop is not None:
            asked = ctx.ask(
                ("metrics", name, "max_drop"),
                f"{name} below the reference's",
                f"at most {number(limits.max_drop)}",
                limits.max_drop,
            )
            if name not in figures or name not in before:
                yield asked.not_measured(lacking)
            else:
                drop = before[name] - figures[name]
                detail = f"{number(before[name])} -> {number(figures[name])}; {accuracy.measured_on()}"
                yield asked.at_most(drop, number(drop), detail)
