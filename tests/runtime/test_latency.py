"""Paired latency: a slower model is found slower. How equal ones fare: test_measure.py."""

import numpy as np
import onnx
import pytest
from onnx import parser

from graphopt.runtime.latency import compare_latency, summarize
from graphopt.runtime.providers import ProviderSettings


def chain(length: int, name: str = "x") -> onnx.ModelProto:
    steps = f"a0 = MatMul({name}, {name}) " + " ".join(
        f"a{i + 1} = MatMul(a{i}, {name})" for i in range(length)
    )
    return parser.parse_model(
        f'<ir_version: 8, opset_import: ["": 17]> g(float[96,96] {name}) => (float[96,96] y)'
        f"{{ {steps} y = Identity(a{length}) }}"
    )


FEEDS = [{"x": np.eye(96, dtype=np.float32)}]


def test_a_slower_model_is_slower() -> None:
    result = compare_latency(chain(2), chain(20), FEEDS, seconds=0.3)
    assert result.is_slower
    assert not result.is_faster
    assert result.ratio > 2
    assert result.low <= result.ratio <= result.high
    assert result.q1 <= result.q3
    assert result.creation_ratio > 0
    assert result.a_seconds < result.b_seconds
    assert result.rounds >= 3
    assert result.pairs >= 2 * result.rounds


def test_distributions_go_with_the_medians() -> None:
    result = compare_latency(chain(2), chain(20), FEEDS, seconds=0.3)
    for quantiles, median in ((result.a_quantiles, result.a_seconds), (result.b_quantiles, result.b_seconds)):
        assert len(quantiles) == 101
        assert list(quantiles) == sorted(quantiles)
        assert quantiles[50] == median


def test_pairs_of_times_that_are_given() -> None:
    rng = np.random.default_rng(1)
    a = 1 + 0.01 * rng.random(100)
    times = np.stack([a, a * (0.8 + 0.01 * rng.random(100))], axis=1)
    times[::10, 1] *= 30
    result = summarize(times)
    assert result.ratio == pytest.approx(0.805, abs=0.01)
    assert result.low <= result.ratio <= result.high
    assert result.is_faster
    assert result.creation_ratio is None
    assert result.pairs == result.rounds == 100
    assert summarize(times[:, [0, 0]]).verdict == "no difference"


def test_inputs_of_other_names_and_settings() -> None:
    result = compare_latency(
        chain(20),
        chain(2, "z"),
        FEEDS,
        seconds=0.3,
        b_feeds=[{"z": FEEDS[0]["x"]}],
        settings=ProviderSettings(tf32=True),
        threads=2,
    )
    assert result.is_faster
    assert result.verdict == "faster"
