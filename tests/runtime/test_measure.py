"""The plan of a measurement, on a simulated machine whose clock only the test moves.

The machine has what real ones have: sessions that are persistently lucky or not, other processes that slow it
down for a while, interruptions, warm-up. So how often a difference is found where there is none, and how
often a true one, does not depend on the machine that runs the tests.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from onnx import parser

from graphopt.errors import ProviderError
from graphopt.runtime import measure as measuring
from graphopt.runtime import running
from graphopt.runtime.measure import Contestant, ContestantFailure, Plan, bound_to, burst, measure
from graphopt.runtime.session import RuntimeFailure

FEEDS = [{"x": np.zeros(1, np.float32)}]


class Machine:
    """A machine in which time passes only while models run and sessions open."""

    def __init__(self, seed: int, noise: float = 1.0, crowd: float = 1.0) -> None:
        self.crowd = crowd
        self.rng = np.random.default_rng(seed)
        self.noise, self.now, self.used, self.switches = noise, 0.0, 0.0, 0
        self.load, self.until = 1.0, 0.0
        self.log: list[Any] = []

    def speed(self) -> float:
        """Other processes slow everything down by up to a half for some tenths of a second."""
        if self.now > self.until:
            self.until = self.now + float(self.rng.exponential(0.2))
            self.load = 1 + self.noise * 0.5 * float(self.rng.random()) * float(self.rng.random() < 0.5)
        return self.load

    def open(self, source: Any, **options: Any) -> SimpleNamespace:
        self.log.append(("open", source.name, options))
        self.now += source.opening
        self.used += source.opening
        if source.fails == "load":
            raise RuntimeFailure("load", "broken")
        luck = 1 + self.noise * 0.02 * float(self.rng.standard_normal())
        state = {"runs": 0}

        def run(feeds: Any) -> dict[str, Any]:
            if source.fails == "run":
                raise RuntimeFailure("run", "refused")
            state["runs"] += 1
            took = source.seconds * luck * self.speed()
            took *= 1 + self.noise * float(self.rng.gamma(1, 0.01))
            took *= 3 if state["runs"] == 1 else 1
            self.used += took
            if self.rng.random() < self.noise * min(source.seconds * 20 * self.crowd, 0.9):
                self.switches += 1
                took += 0.004 * self.crowd
            self.now += took
            self.log.append(("run", source.name, feeds))
            return {}

        return SimpleNamespace(run=run, close=lambda: None, provider="CPUExecutionProvider")


def model(seconds: float, name: str = "m", opening: float = 0.002, fails: str = "") -> Any:
    return SimpleNamespace(seconds=seconds, name=name, opening=opening, fails=fails)


@pytest.fixture
def on_machine(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Machine]:
    def install(seed: int, noise: float = 1.0, crowd: float = 1.0) -> Machine:
        machine = Machine(seed, noise, crowd)
        monkeypatch.setattr(measuring.time, "thread_time", lambda: machine.used)
        monkeypatch.setattr(measuring, "open_session", machine.open)
        monkeypatch.setattr(measuring.time, "perf_counter", lambda: machine.now)
        monkeypatch.setattr(running, "_switches", lambda: machine.switches)
        return machine

    return install


def compare(a: float, b: float, seed: int, seconds: float = 4.0) -> measuring.Ratio:
    plan = Plan(seconds=seconds, seed=seed)
    return measure([Contestant(model(a, "a"), FEEDS), Contestant(model(b, "b"), FEEDS)], plan).ratios[0]


@pytest.mark.parametrize(("seconds", "trials"), [(1e-4, 20), (1e-3, 60), (1e-2, 60)])
def test_equal_models_on_a_busy_machine_do_not_differ(
    on_machine: Callable[..., Machine], seconds: float, trials: int
) -> None:
    verdicts = Counter[str]()
    for seed in range(trials):
        on_machine(seed)
        verdicts[compare(seconds, seconds, seed, seconds=2.0).verdict] += 1
    # At 99%, more than 4 of 60 wrong ones happen once in 5000 tests.
    assert verdicts["no difference"] >= trials - 4, verdicts


@pytest.mark.parametrize(("seconds", "trials"), [(1e-4, 10), (1e-3, 30), (1e-2, 30)])
def test_a_true_twentieth_is_found(on_machine: Callable[..., Machine], seconds: float, trials: int) -> None:
    found = []
    for seed in range(trials):
        on_machine(seed)
        found.append(compare(seconds, seconds * 1.05, seed, seconds=2.0 if seconds < 1e-3 else 8.0))
    assert sum(r.verdict == "slower" for r in found) >= trials - 3
    assert sum(r.low <= 1.05 <= r.high for r in found) >= trials - 2
    assert not any(r.verdict == "faster" for r in found)


def test_a_quiet_machine_tells_a_percent_and_is_done_early(on_machine: Callable[..., Machine]) -> None:
    machine = on_machine(0, noise=0.0)
    same = compare(1e-3, 1e-3, 0, seconds=20)
    assert same.equivalent
    assert same.verdict == "no difference"
    assert same.rounds == 12  # the first look suffices
    assert machine.now < 20
    on_machine(0, noise=0.0)
    slower = compare(1e-3, 1.02e-3, 0)
    assert slower.verdict == "slower"
    assert slower.ratio == pytest.approx(1.02, abs=1e-3)


def test_a_sure_difference_that_is_too_small_to_count(on_machine: Callable[..., Machine]) -> None:
    on_machine(0, noise=0.0)
    found = compare(1e-3, 1.005e-3, 0)
    assert found.significant
    assert found.verdict == "no difference"
    on_machine(0, noise=0.0)
    contestants = [Contestant(model(1e-3), FEEDS), Contestant(model(1.005e-3), FEEDS)]
    assert measure(contestants, Plan(min_effect=0.002)).ratios[0].verdict == "slower"


def test_sessions_are_opened_anew_in_random_order_and_runs_take_turns(
    on_machine: Callable[..., Machine],
) -> None:
    machine = on_machine(1, noise=0.0)
    feeds = [{"k": 0}, {"k": 1}]
    contestants = [Contestant(model(0.1, name), feeds) for name in "ab"]  # type: ignore[arg-type]
    found = measure(contestants, Plan(seconds=100, rounds=8))
    opened = "".join(name for what, name, _ in machine.log if what == "open")
    rounds = [opened[i : i + 2] for i in range(0, len(opened), 2)]
    assert sorted(set(rounds)) == ["ab", "ba"]
    assert len(rounds) == 8
    assert [len(i) for i in found.instances] == [8, 8]
    # In the last round, behind the warm-up: both orders, each followed by its reverse, on the same inputs.
    last = machine.log[max(i for i, e in enumerate(machine.log) if e[0] == "open") + 1 :]
    warm_up = sum(found.instances[i][-1].warm_up for i in (0, 1))
    runs = [(name, given["k"]) for _, name, given in last[warm_up:]]
    for i in range(0, len(runs) - 3, 4):
        (n1, k1), (n2, k2), (n3, k3), (n4, k4) = runs[i : i + 4]
        assert (n1, n2) == (n4, n3)
        assert n1 != n2
        assert k1 == k2 == k3 == k4 == (i // 4) % 2
    assert len(runs) >= 8


def test_the_time_is_kept(on_machine: Callable[..., Machine]) -> None:
    for seconds in (1e-3, 1e-2, 0.1):
        machine = on_machine(2)
        found = measure([Contestant(model(seconds), FEEDS)] * 2, Plan(seconds=6.0))
        assert machine.now < 6.0 * 2.1, seconds
        assert found.ratios[0].rounds >= 3


def test_sessions_that_take_long_to_open_are_opened_less_often(on_machine: Callable[..., Machine]) -> None:
    machine = on_machine(3)
    found = measure([Contestant(model(1e-2, opening=1.0), FEEDS)] * 2, Plan(seconds=10.0))
    assert found.ratios[0].rounds == 4  # two seconds each and a first run, and ten in all
    assert machine.now < 30


def test_at_least_so_many_runs(on_machine: Callable[..., Machine]) -> None:
    on_machine(4)
    found = measure([Contestant(model(1e-2), FEEDS)] * 2, Plan(seconds=1.0, runs=300))
    assert all(len(found.times(i)) >= 300 for i in (0, 1))


def test_one_model_alone_has_times_and_no_ratio(on_machine: Callable[..., Machine]) -> None:
    on_machine(5)
    found = measure([Contestant(model(1e-3), FEEDS)], Plan(seconds=2.0))
    assert found.ratios == []
    assert np.median(found.times(0)) == pytest.approx(1e-3, rel=0.5)


def test_three_models_are_compared_with_the_first(on_machine: Callable[..., Machine]) -> None:
    on_machine(6)
    contestants = [Contestant(model(t), FEEDS) for t in (1e-3, 2e-3, 0.5e-3)]
    found = measure(contestants, Plan(seconds=4.0))
    assert [r.verdict for r in found.ratios] == ["slower", "faster"]
    assert [r.ratio for r in found.ratios] == pytest.approx([2, 0.5], rel=0.1)


def test_interruptions_do_not_move_the_ratio(on_machine: Callable[..., Machine]) -> None:
    on_machine(7)
    found = measure([Contestant(model(1e-2), FEEDS)] * 2, Plan(seconds=8.0))
    disturbed = np.concatenate([i.disturbed for i in found.instances[0]])
    assert 0.05 < disturbed.mean() < 0.5
    assert np.quantile(found.times(0), 0.95) > 0.0135  # they are in the times


def test_a_crowd_in_which_every_run_is_interrupted(on_machine: Callable[..., Machine]) -> None:
    """One thread: then the processor time of interrupted runs counts, and a twentieth is still found."""
    found = []
    for seed in range(20):
        on_machine(seed, crowd=5.0)
        found.append(compare(1e-2, 1.05e-2, seed, seconds=6.0))
    assert sum(r.verdict == "slower" for r in found) >= 17
    machine = on_machine(0, crowd=5.0)
    pair = [Contestant(model(1e-2), FEEDS), Contestant(model(1.05e-2), FEEDS)]
    measure(pair, Plan(seconds=4.0, rounds=20))
    patient = machine.now
    assert 4.0 < patient < 4.0 * 3 * 1.2  # what others took does not count, up to a point
    machine = on_machine(0, crowd=5.0)
    measure(pair, Plan(seconds=4.0, rounds=20, threads=2))
    assert machine.now < patient


@pytest.mark.parametrize("fails", ["load", "run"])
def test_a_failure_says_which_model(on_machine: Callable[..., Machine], fails: str) -> None:
    on_machine(8)
    with pytest.raises(ContestantFailure) as e:
        measure([Contestant(model(1e-3), FEEDS), Contestant(model(1e-3, fails=fails), FEEDS)])
    assert e.value.contestant == 1
    assert e.value.kind == fails


def test_bursts() -> None:
    assert burst(1e-6) == (40, 1)
    assert burst(1e-3) == (2, 1)
    assert burst(0.004) == (1, 1)
    assert burst(0.01) == (1, 0)


IDENTITY = '<ir_version: 8, opset_import: ["": 17]> g(float[1] x) => (float[1] y) { y = Identity(x) }'


def test_for_real() -> None:
    contestants = [Contestant(parser.parse_model(IDENTITY), FEEDS)] * 2
    found = measure(contestants, Plan(seconds=0.2, rounds=3, affinity=(min(os.sched_getaffinity(0)),)))
    assert len(found.instances[0]) == 3
    assert found.times(0).min() > 0
    assert not found.bound  # nothing is copied on the CPU
    with pytest.raises(ProviderError):
        measure(contestants, Plan(provider="NoSuchProvider"))


def test_the_thread_is_bound_and_released() -> None:
    before = os.sched_getaffinity(0)
    one = max(before)
    with bound_to([one]):
        assert os.sched_getaffinity(0) == {one}
    assert os.sched_getaffinity(0) == before
    with bound_to([]):
        assert os.sched_getaffinity(0) == before
