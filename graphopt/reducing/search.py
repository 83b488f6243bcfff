"""The search: what is tried to make a failing model smaller, and in which order."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from graphopt import ir, summary
from graphopt.checking import CheckCommand
from graphopt.errors import UserError
from graphopt.graph.stats import model_stats
from graphopt.graph.text import model_text
from graphopt.model import Model
from graphopt.reducing.bodies import shrink_bodies
from graphopt.reducing.candidate import Plan, Swap
from graphopt.reducing.extras import simplifications
from graphopt.reducing.specimen import Specimen, StopSearch
from graphopt.report.document import FileInfo
from graphopt.report.searched import ReduceReport

# A model of so many nodes is shown as text.
_SHOWN = 12


def reduce(
    source: Any,
    output: str | Path,
    *,
    check: str,
    expect: str | None = None,
    check_timeout: float | None = None,
    data: Any = None,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    keep_inputs: bool = False,
    max_checks: int | None = None,
    timeout: float | None = None,
    trust_external_paths: bool = False,
    progress: Callable[[str, str], None] | None = None,
) -> ReduceReport:
    """Find the smallest model that fails a check in the way that a given one does, and write it.

    Delta debugging (Zeller and Hildebrandt, "Simplifying and isolating failure-inducing input", IEEE TSE
    28(2), 2002) on the nodes: what is cut off at the end is no longer returned; what is cut out at the start
    or in the middle is replaced by another tensor of the same type, by a constant that holds the value which
    the model computes there, or by an input.

    Args:
        source: the model, on which the check fails.
        output: the file to write.
        check: a shell command with `{model}` in it, which exits with 0 for a right model; `{data}` is an .npz
            file of inputs for that model.
        expect: regular expression that the output of a failing check must match. By default a check fails in
            the same way if its exit code, and the kind of error that it prints last, are the same.
        check_timeout: seconds after which a check is stopped, which is a way to fail.
        data: real inputs to record values on; synthesized by default.
        input_shapes: dims by input name, for synthesized inputs.
        keep_inputs: put constants, never inputs, in the place of what is no longer computed.
        max_checks: run the check no more often than that.
        timeout: stop after so many seconds, with what was found by then.
        trust_external_paths: follow external data out of the model's folder.
        progress: called with a stage and a detail as the search goes on.

    Raises:
        UserError: the check passes, cannot be run, or wants inputs where none can be found.
    """
    start = time.perf_counter()
    tell = progress or (lambda stage, detail: None)
    original = Model.load(source, trust_external_paths=trust_external_paths)
    path = original.path
    command = CheckCommand(check, original=path.absolute() if path else "", timeout=check_timeout)
    with tempfile.TemporaryDirectory(prefix="graphopt-reduce-") as folder:
        tell("check", "the model itself")
        specimen = Specimen.open(
            original, command, Path(folder), data, input_shapes or {}, expect, not keep_inputs
        )
        specimen.limit(max_checks, None if timeout is None else time.monotonic() + timeout, tell)
        before, stopped = model_stats(original), ""
        try:
            _search(specimen)
        except StopSearch as e:
            stopped = str(e)
        saved = specimen.model.save(output)
        inputs = ""
        if command.wants_data:
            inputs = str(Path(output).with_suffix(".npz"))
            specimen.write_feeds(Path(inputs))
    small = specimen.model
    return ReduceReport(
        model=summary.file_info(path, original.data_files) if path else FileInfo(),
        output=summary.file_info(saved.model, saved.data),
        inputs=inputs,
        check=check,
        failure=specimen.failure.words(),
        before=before,
        after=model_stats(small),
        steps=tuple(specimen.steps),
        minimal=not stopped,
        stopped=stopped,
        text=model_text(small) if len(small.graph.nodes) <= _SHOWN else "",
        checks=command.runs,
        seconds=time.perf_counter() - start,
    )


def _search(specimen: Specimen) -> None:
    """Everything, again and again, until nothing helps any more."""
    while True:
        before = specimen.weight
        _outputs(specimen)
        _tail(specimen)
        _outputs(specimen)
        _head(specimen)
        _middle(specimen)
        shrink_bodies(specimen)
        if specimen.weight >= before:
            break
    for what, model in simplifications(specimen):
        specimen.attempt(model, what)


def _outputs(specimen: Specimen) -> None:
    """Return as few outputs as possible."""
    names = [t.name for t in specimen.model.graph.outputs]
    plan = specimen.plan

    def fails(kept: Sequence[str]) -> bool:
        return specimen.attempt(plan.build(outputs=kept), f"returns {_few(kept)} only")

    minimize(names, fails)


def _tail(specimen: Specimen) -> None:
    """Cut off the end: the shortest prefix of the nodes, in topological order, that still fails."""
    low, high = 0, len(specimen.plan.nodes)
    while high - low > 1:
        middle = (low + high) // 2
        plan = specimen.plan
        nodes = plan.nodes[:middle]
        ends = [t for t in plan.leaving(nodes) if plan.is_returned(t) or not _read_in(plan, t, nodes)]
        names = [t.name for t in ends]
        what = f"the last {len(plan.nodes) - middle} nodes are cut off"
        if names and specimen.attempt(plan.build(outputs=names, values=specimen.values(names)), what):
            high = len(specimen.plan.nodes)
        else:
            low = middle
        low = min(low, high)


def _read_in(plan: Plan, tensor: ir.Tensor, nodes: Sequence[ir.Node]) -> bool:
    inside = set(nodes)
    return any(r in inside for r in plan.index.readers.get(tensor, ()))


def _head(specimen: Specimen) -> None:
    """Cut off the start: the shortest suffix that still fails, fed what the rest computes."""
    total = len(specimen.plan.nodes)
    low, high = 0, total
    while high - low > 1:
        middle = (low + high) // 2
        plan = specimen.plan
        gone = len(plan.nodes) - (total - middle)
        if gone <= 0:
            low = middle
            continue
        entering = [t.name for t in plan.entering(plan.nodes[gone:])]
        if _replace(specimen, plan, entering, f"the first {gone} nodes are cut off"):
            low = middle
        else:
            high = middle


def _middle(specimen: Specimen) -> None:
    """Leave out stretches of nodes, ever shorter ones, from the end to the start."""
    length = max(len(specimen.plan.nodes) // 2, 1)
    while True:
        position = len(specimen.plan.nodes)
        while position > 0:
            plan = specimen.plan
            position = min(position, len(plan.nodes))
            chosen = plan.nodes[max(position - length, 0) : position]
            position -= length
            if len(chosen) < len(plan.nodes):
                _leave_out(specimen, plan, chosen)
        if length == 1:
            return
        length = max(length // 2, 1)


def _leave_out(specimen: Specimen, plan: Plan, chosen: Sequence[ir.Node]) -> bool:
    """Compute none of `chosen`. Their outputs become what they were computed from, where types agree."""
    leaving = plan.leaving(chosen)
    if any(plan.is_returned(t) for t in leaving):
        return False  # outputs are another phase's business
    names = [t.name for t in leaving]
    what = f"without {_few([n.op for n in chosen])}"
    sources = list(dict.fromkeys(t for n in chosen for t in plan.reads(n)))
    made = {t for n in chosen for t in n.outputs}
    around = [t for t in sources if t not in made]
    around.sort(key=lambda t: isinstance(t, ir.Constant))  # an activation rather than a weight
    bypass = [next((s.name for s in around if plan.same_type(t, s)), "") for t in leaving]
    if all(bypass):
        swaps = [Swap(name, "tensor", other) for name, other in zip(names, bypass, strict=True)]
        if specimen.attempt(plan.build(swaps=swaps), what):
            return True
    if _replace(specimen, plan, names, what):
        return True
    # What is before them may be needed although nothing else depends on it: then it is returned.
    before = [t.name for t in plan.entering(chosen)]
    returned = [t.name for t in plan.model.graph.outputs]
    kept = [*returned, *(name for name in before if name not in returned)]
    return len(kept) > len(returned) and _replace(specimen, plan, names, what, kept)


def _replace(
    specimen: Specimen, plan: Plan, names: Sequence[str], what: str, outputs: Sequence[str] | None = None
) -> bool:
    """Compute the tensors `names` no longer: by constants or inputs, whichever worked last first."""
    values = specimen.values(names)
    for by in list(specimen.ways):
        swaps = [Swap(name, by) for name in names]
        feeds = {n: v for n, v in values.items() if n in names} if by == "input" else {}
        if specimen.attempt(plan.build(outputs=outputs, swaps=swaps, values=values), what, feeds):
            specimen.prefer(by)
            return True
    return False


def minimize(items: Sequence[str], fails: Callable[[Sequence[str]], bool]) -> list[str]:
    """A smallest part of `items` for which `fails` is true: none of it can be left out (ddmin).

    Args:
        items: for all of which it is true; at least one is kept.
        fails: whether a part of them is enough.
    """
    kept, pieces = list(items), 2
    while len(kept) > 1:
        for part in _splits(kept, pieces):
            if fails(part):
                kept, pieces = part, 2
                break
        else:
            for part in _splits(kept, pieces):
                rest = [item for item in kept if item not in part]
                if rest and pieces > 2 and fails(rest):
                    kept, pieces = rest, max(pieces - 1, 2)
                    break
            else:
                if pieces >= len(kept):
                    return kept
                pieces = min(2 * pieces, len(kept))
    return kept


def _splits(items: Sequence[str], pieces: int) -> Iterator[list[str]]:
    size = -(-len(items) // pieces)
    for start in range(0, len(items), size):
        yield list(items[start : start + size])


def _few(names: Sequence[str]) -> str:
    shown = ", ".join(names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"


def check_arguments(check: str | None) -> str:
    """The check; UserError where there is none."""
    if not check:
        raise UserError(
            "what has to fail is not said", fix="name a command: --check 'python check.py {model}'"
        )
    return check
