"""Paired latency: a slower model is found slower, equal ones are not."""

import numpy as np
import onnx
import pytest
from onnx import parser

from graphopt.runtime.latency import compare_latency, compare_sessions, summarize
from graphopt.runtime.session import open_session


def chain(length: int) -> onnx.ModelProto:
    steps = "a0 = MatMul(x, x) " + " ".join(f"a{i + 1} = MatMul(a{i}, x)" for i in range(length))
    return parser.parse_model(
        f'<ir_version: 8, opset_import: ["": 17]> g(float[96,96] x) => (float[96,96] y)'
        f"{{ {steps} y = Identity(a{length}) }}"
    )


FEEDS = [{"x": np.eye(96, dtype=np.float32)}]


def test_a_slower_model_is_slower() -> None:
    result = compare_latency(chain(2), chain(20), FEEDS, seconds=0.3)
    assert result.is_slower
    assert not result.is_faster
    assert result.ratio > 2
    assert result.creation_ratio is not None
    assert result.a_seconds < result.b_seconds


def test_order_alternates_and_every_input_is_used() -> None:
    class Recorder:
        def __init__(self, name: str) -> None:
            self.name = name

        def run(self, feeds: object) -> dict[str, object]:
            log.append((self.name, feeds["k"]))  # type: ignore[index]
            return {}

    log: list[tuple[str, int]] = []
    result = compare_sessions(Recorder("a"), Recorder("b"), [{"k": 0}, {"k": 1}], seconds=0, most_pairs=8)  # type: ignore[arg-type]
    assert result.pairs == 7
    timed = log[8:]
    assert timed[:4] == [("a", 0), ("b", 0), ("a", 1), ("b", 1)]
    assert timed[4:8] == [("b", 0), ("a", 0), ("b", 1), ("a", 1)]


def test_the_interval_holds_the_median_and_outliers_do_not_move_it() -> None:
    rng = np.random.default_rng(1)
    a = 1 + 0.01 * rng.random(100)
    times = np.stack([a, a * (0.8 + 0.01 * rng.random(100))], axis=1)
    times[::10, 1] *= 30
    result = summarize(times)
    assert result.ratio == pytest.approx(0.805, abs=0.01)
    assert result.low <= result.ratio <= result.high
    assert result.q1 <= result.ratio <= result.q3
    assert result.is_faster


def test_one_session_against_itself() -> None:
    session = open_session(chain(2))
    result = compare_sessions(session, session, FEEDS, seconds=0.2)
    assert 0.5 < result.ratio < 2
    assert result.creation_ratio is None
