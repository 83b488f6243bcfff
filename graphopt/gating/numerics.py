"""Checks of what the model computes: outputs next to the reference's, and the task metric."""

from __future__ import annotations

from collections.abc import Iterator

from graphopt import api
from graphopt.gating.accuracy import Accuracy, Distance, NotMeasured
from graphopt.gating.asked import number
from graphopt.gating.context import Context
from graphopt.gating.policy import Figures
from graphopt.report.gated import Check

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
    if limits.standard is not None:
        yield _standard(ctx, limits.standard)
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
    for name in limits.outputs:
        if name not in known and distances:
            outputs = ", ".join(distances)
            key = next(iter(limits.outputs[name].limits()))
            missing = ctx.ask(
                ("numerics", "outputs", name, key), f"output {name}", _limit(limits.outputs[name], key)
            )
            yield missing.not_measured(f"there is no output {name!r}; there are: {outputs}")
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
        own = _value(limits.outputs.get(name) or Figures(), key)
        allowed = common if own is None else own
        if allowed is None:
            continue
        if floats_only and own is None and distance is not None and not distance.floats:
            continue  # the limit for all is about float outputs
        applied += 1
        place = ("numerics", "outputs", name, key) if own is not None else ("numerics", key)
        what = f"{words} of {name}" if name else words
        bound = "at least" if key.startswith("min") else "at most"
        asked = ctx.ask(
            place, what, f"{bound} {number(allowed)}{unit}", allowed, at=None if own is not None else name
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


def _value(table: Figures, key: str) -> float | None:
    value: float | None = getattr(table, key)
    return value


def _limit(table: Figures, key: str) -> str:
    value = _value(table, key)
    bound = "at least" if key.startswith("min") else "at most"
    return "" if value is None else f"{bound} {number(value)}{_FIGURES[key][2]}"


def _standard(ctx: Context, standard: str) -> Check:
    words = {"exact": "bit for bit", "close": "within the reference's noise floor"}[standard]
    asked = ctx.ask(("numerics", "standard"), "outputs next to the reference's", words)
    ctx.tell("prove", standard)
    assert ctx.reference is not None
    proof = api.validate(
        ctx.reference,
        ctx.model,
        data=ctx.data,
        input_shapes=ctx.input_shapes or None,
        providers=ctx.providers,
        numerics=standard.upper(),
    )
    ctx.warnings += [w for w in proof.warnings if w not in ctx.warnings]
    if proof.verdict == "unproven":
        return asked.not_measured(proof.reason)
    used = max((v.used for v in proof.outputs if v.used is not None), default=None)
    value = proof.verdict if used is None else f"{proof.verdict}, {number(used)} of the allowance"
    return asked.judged(proof.verdict == "proven", value, used, proof.reason or "; ".join(proof.runtimes))


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
