"""Time by operator: read from events made by hand, and from onnxruntime's own."""

from typing import Any

import numpy as np
import pytest
from onnx import parser

from graphopt.runtime.measure import Contestant, Plan
from graphopt.runtime.profile import profile, read_profile

CPU = "CPUExecutionProvider"


def run(ts: int, dur: int) -> dict[str, Any]:
    return {"cat": "Session", "name": "model_run", "ts": ts, "dur": dur, "tid": 1, "args": {}}


def kernel(op: str, ts: int, dur: int, tid: int = 1) -> dict[str, Any]:
    args = {"op_name": op, "provider": CPU}
    return {"cat": "Node", "name": f"{op}_kernel_time", "ts": ts, "dur": dur, "tid": tid, "args": args}


def test_bodies_count_once_and_warm_up_does_not() -> None:
    one = [
        run(100, 50),
        kernel("Conv", 101, 9),
        kernel("If", 112, 30),
        kernel("Add", 115, 10),
        kernel("Add", 126, 4),
    ]
    two = [run(200, 60), kernel("Conv", 201, 11), kernel("If", 214, 20), kernel("Add", 216, 8)]
    warm_up = [run(10, 80), kernel("Conv", 11, 70)]
    found = read_profile([*warm_up, *one, *two], runs=2)
    ops = {o.op: o for o in found.ops}
    assert found.runs == 2
    assert found.seconds == pytest.approx(55e-6)
    assert ops["Conv"].seconds == pytest.approx(10e-6)
    assert ops["Add"].seconds == pytest.approx((14 + 8) / 2 * 1e-6)
    assert ops["If"].seconds == pytest.approx((16 + 12) / 2 * 1e-6)
    assert (ops["Conv"].nodes, ops["Add"].nodes) == (1, 1.5)
    assert sum(o.share for o in found.ops) == pytest.approx(1)
    assert [o.op for o in found.ops] == ["If", "Add", "Conv"]


def test_threads_do_not_lie_within_each_other() -> None:
    events = [run(0, 50), kernel("Conv", 1, 40), kernel("Add", 5, 10, tid=2)]
    ops = {o.op: o.seconds for o in read_profile(events, runs=1).ops}
    assert ops == pytest.approx({"Conv": 40e-6, "Add": 10e-6})


def test_one_interrupted_run_does_not_count() -> None:
    events = [
        e for i in range(20) for e in (run(i * 1000, 20), kernel("Conv", i * 1000 + 1, 900 if i == 3 else 10))
    ]
    found = read_profile(events, runs=20)
    assert found.ops[0].seconds == pytest.approx(10e-6)


def test_nothing_was_run() -> None:
    assert read_profile([], runs=1).ops == ()


def test_real_models_in_turns() -> None:
    one = parser.parse_model(
        """<ir_version: 8, opset_import: ["": 17]> g (float[8,8] x) => (float[8,8] y) {
            a = MatMul(x, x) b = MatMul(a, x) y = Relu(b) }"""
    )
    other = parser.parse_model(
        '<ir_version: 8, opset_import: ["": 17]> g (float[8,8] x) => (float[8,8] y) { y = Exp(x) }'
    )
    feeds = [{"x": np.eye(8, dtype=np.float32)}]
    a, b = profile([Contestant(one, feeds), Contestant(other, feeds)], Plan(optimize="none"), 0.05)
    assert {o.op: o.nodes for o in a.ops} == {"MatMul": 2, "Relu": 1}
    assert {o.op: o.nodes for o in b.ops} == {"Exp": 1}
    assert a.runs == b.runs >= 5
    assert all(o.provider == CPU for o in (*a.ops, *b.ops))
