"""Time by operator, from onnxruntime's profiler.

The profiler writes down every node that it executes. A node that runs a body (If, Loop, Scan) includes its
nodes, which are written down too: here each has only what it takes itself. Times are whole microseconds, and
profiling takes time itself, so that shares are more reliable than milliseconds.
"""

from __future__ import annotations

import bisect
import contextlib
import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from graphopt.runtime.measure import Contestant, Plan, bound_to
from graphopt.runtime.session import Session, open_session
from graphopt.runtime.values import Feeds

_KERNEL: Final = "_kernel_time"
_RUN: Final = "model_run"
_WARM_UP: Final = 3
_LEAST_RUNS: Final = 5
_MOST_RUNS: Final = 500
_TURN: Final = 10


@dataclass(frozen=True)
class OpProfile:
    """What one kind of operator takes of a run.

    Attributes:
        op: the operator that is executed, after onnxruntime's fusions.
        provider: where.
        nodes: how often one of them is executed per run.
        seconds: per run (mean of the middle half), of all of them, without the bodies that they run.
        share: of the time of all operators.
    """

    op: str
    provider: str
    nodes: float
    seconds: float
    share: float


@dataclass(frozen=True)
class Profile:
    """Time by operator.

    Attributes:
        ops: the most expensive first.
        runs: how many runs it is of.
        seconds: of a run (median), as the profiler sees it.
    """

    ops: tuple[OpProfile, ...]
    runs: int
    seconds: float


def profile(contestants: Sequence[Contestant], plan: Plan, seconds: float = 1.0) -> list[Profile]:
    """Run models under onnxruntime's profiler, in turns.

    Args:
        contestants: the models and their inputs.
        plan: provider, threads and so on.
        seconds: how long, about, for each.

    Raises:
        ProviderError: the provider is not there.
        RuntimeFailure: a model does not load or run.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(bound_to(plan.affinity))
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="graphopt-")))
        sessions = [
            stack.enter_context(
                open_session(
                    contestant.source,
                    optimize=plan.optimize,
                    threads=plan.threads,
                    provider=plan.provider,
                    settings=plan.settings,
                    affinity=plan.affinity,
                    profile=folder / f"{i}",
                )
            )
            for i, contestant in enumerate(contestants)
        ]
        took = [_warm(s, c.feeds) for s, c in zip(sessions, contestants, strict=True)]
        kinds = len(contestants[0].feeds)
        runs = max(min(int(seconds / max(took)), _MOST_RUNS), _LEAST_RUNS, kinds)
        runs -= runs % kinds
        for start in range(0, runs, _TURN):
            for session, contestant in zip(sessions, contestants, strict=True):
                for i in range(start, min(start + _TURN, runs)):
                    session.run(contestant.feeds[i % kinds])
        files = [session.end_profiling() for session in sessions]
        return [read_profile(json.loads(f.read_text(encoding="utf-8")), runs) for f in files]


def _warm(session: Session, feeds: Sequence[Feeds]) -> float:
    """Run a few times; seconds of the last one."""
    took = 0.0
    for i in range(max(_WARM_UP, len(feeds))):
        start = time.perf_counter()
        session.run(feeds[i % len(feeds)])
        took = time.perf_counter() - start
    return max(took, 1e-6)


def read_profile(events: Sequence[Mapping[str, Any]], runs: int) -> Profile:
    """Time by operator in the last `runs` runs of a profile.

    Args:
        events: what onnxruntime's profiler wrote.
        runs: how many runs count; those before were to warm up.
    """
    starts = sorted((e["ts"], e["dur"]) for e in events if e.get("name") == _RUN)[-runs:]
    begins = [ts for ts, _ in starts]
    count = len(starts)
    if not count:
        return Profile((), 0, 0.0)
    kernels = [e for e in events if e.get("cat") == "Node" and e["name"].endswith(_KERNEL)]
    kernels = [e for e in kernels if e["ts"] >= begins[0]]
    times: dict[tuple[str, str], Any] = {}
    nodes: dict[tuple[str, str], int] = {}
    for event, took in zip(kernels, _own_times(kernels), strict=True):
        key = (event["args"].get("op_name", ""), event["args"].get("provider", ""))
        per_run = times.setdefault(key, np.zeros(count))
        per_run[bisect.bisect_right(begins, event["ts"]) - 1] += took
        nodes[key] = nodes.get(key, 0) + 1
    typical = {key: _typical(per_run) for key, per_run in times.items()}
    everything = sum(typical.values()) or 1.0
    ops = [
        OpProfile(op, provider, nodes[op, provider] / count, t * 1e-6, t / everything)
        for (op, provider), t in typical.items()
    ]
    ops.sort(key=lambda o: (-o.seconds, o.op))
    return Profile(tuple(ops), count, float(np.median([d for _, d in starts])) * 1e-6)


def _typical(per_run: Any) -> float:
    """The mean of the middle half: runs that were interrupted do not count."""
    cut = len(per_run) // 4
    return float(np.mean(np.sort(per_run)[cut : len(per_run) - cut]))


def _own_times(kernels: Sequence[Mapping[str, Any]]) -> list[float]:
    """Microseconds of each event without the events inside of it, on the same thread."""
    own = [float(e["dur"]) for e in kernels]
    # Of two that start together, the longer one is the outer one.
    order = sorted(
        range(len(kernels)), key=lambda i: (kernels[i]["tid"], kernels[i]["ts"], -kernels[i]["dur"])
    )
    stack: list[int] = []
    for i in order:
        event = kernels[i]
        while stack and not _inside(event, kernels[stack[-1]]):
            stack.pop()
        if stack:
            own[stack[-1]] -= event["dur"]
        stack.append(i)
    return [max(t, 0.0) for t in own]


def _inside(inner: Mapping[str, Any], outer: Mapping[str, Any]) -> bool:
    return bool(
        inner["tid"] == outer["tid"]
        and inner["ts"] >= outer["ts"]
        and inner["ts"] + inner["dur"] <= outer["ts"] + outer["dur"]
        and (inner["ts"], inner["dur"]) != (outer["ts"], outer["dur"])
    )
