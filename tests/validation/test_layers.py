"""Two models tensor by tensor: figures, slices, loops, what is observed."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import parser

from graphopt.budget import Budget
from graphopt.model import Model
from graphopt.validation.gaps import gap, spread_of
from graphopt.validation.layers import Comparison, compare_layers
from graphopt.validation.matching import match
from graphopt.validation.net import Net
from graphopt.validation.oracles import JUDGE
from graphopt.validation.watching import Watch, slices
from tests.support import fault_models as fm

RNG = np.random.default_rng(1)


def tapped(proto: onnx.ModelProto, feeds: dict[str, Any], names: list[str]) -> dict[str, Any]:
    """Values of tensors of the main graph, by onnxruntime alone."""
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    for name in names:
        copy.graph.output.add().name = name
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(copy.SerializeToString(), options)
    return dict(zip(names, session.run(names, feeds), strict=True))


def test_figures_are_those_of_an_independent_computation() -> None:
    a, b = fm.thirty(layers=8), fm.thirty(layers=8, bn3=1e-2)
    feeds = {"x": RNG.standard_normal((2, 6, 8, 8)).astype(np.float32)}
    rows = compare_layers(Model.load(a), Model.load(b), feeds)
    assert [r.depth for r in rows] == sorted(r.depth for r in rows)
    names = [f"{kind}{i}" for i in range(8) for kind in "cbr"] + ["y"]
    assert {r.tensor for r in rows} == set(names)
    left, right = tapped(a, feeds, names[:-1]), tapped(b, feeds, names[:-1])
    for row in rows:
        if row.tensor == "y":
            continue
        x, y = (side[row.tensor].astype(np.float64) for side in (left, right))
        assert row.max_abs == pytest.approx(np.abs(x - y).max(), rel=1e-6, abs=1e-12)
        noise = float(((x - y) ** 2).sum())
        if not noise:
            assert row.sqnr_db == math.inf
            assert row.ok
        else:
            assert row.sqnr_db == pytest.approx(10 * np.log10((x**2).sum() / noise), abs=1e-3)
            assert not row.ok
        assert (row.counterpart, row.matched_by) == (row.tensor, "name")
    assert [r.tensor for r in rows if r.ok] == [f"{k}{i}" for i in range(3) for k in "cbr"] + ["c3"]


def test_several_sets_of_inputs_are_taken_together() -> None:
    a, b = (Model.load(fm.thirty(layers=3, **e)) for e in ({}, {"bn1": 1e-2}))
    sets = [{"x": RNG.standard_normal((n, 6, 8, 8)).astype(np.float32)} for n in (1, 3)]
    alone = [compare_layers(a, b, feeds) for feeds in sets]
    for row, one, two in zip(compare_layers(a, b, sets), *alone, strict=True):
        assert row.tensor == one.tensor == two.tensor
        assert row.max_abs == max(one.max_abs or 0, two.max_abs or 0)
        assert row.ok == (one.ok and two.ok)
        if row.sqnr_db is not None and math.isfinite(row.sqnr_db):
            assert min(one.sqnr_db or 0, two.sqnr_db or 0) <= row.sqnr_db
            assert row.sqnr_db <= max(one.sqnr_db or 0, two.sqnr_db or 0)


def test_slices_change_nothing_but_the_number_of_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = Net(Model.load(fm.thirty())), Net(Model.load(fm.thirty(bn9=1e-2)))
    feeds = {"x": RNG.standard_normal((1, 6, 8, 8)).astype(np.float32)}
    whole = Comparison(match(a, b), feeds)
    small = Comparison(match(a, b), feeds, slice_bytes=6 * 8 * 8 * 4 * 5)
    held: list[int] = []
    real = Watch.read

    def counting(self: Watch, tensors: Any) -> Any:
        found = real(self, tensors)
        held.append(sum(v.nbytes for values in found.values() for v in values))
        return found

    monkeypatch.setattr(Watch, "read", counting)
    found = small.gaps(small.matching.computed())
    assert max(held) <= 6 * 8 * 8 * 4 * 5
    expected = whole.gaps(whole.matching.computed())
    assert [g and (g.ok, g.max_abs) for g in found.values()] == [
        g and (g.ok, g.max_abs) for g in expected.values()
    ]
    assert small.runs > whole.runs


def test_slices_keep_the_order_and_the_limit() -> None:
    sizes = {"a": 3, "b": 3, "c": 9, "d": 1, "e": 2}
    assert list(slices(list("abcde"), sizes, 6)) == [["a", "b"], ["c"], ["d", "e"]]
    assert list(slices([], sizes, 6)) == []


def test_every_iteration_of_a_loop_counts() -> None:
    a = fm.looped()
    feeds = {"x": RNG.standard_normal((2, 4)).astype(np.float32)}
    rows = {r.tensor: r for r in compare_layers(Model.load(a), Model.load(fm.looped(0.6)), feeds)}
    assert {"state", "d", "e", "next", "s", "h", "y"} <= set(rows)
    assert rows["d"].body.endswith("body")
    # What the Loop hands out is the last of what its body computes.
    assert rows["next"].max_abs is not None
    assert rows["next"].max_abs >= (rows["s"].max_abs or 0)
    assert rows["h"].ok
    assert not rows["e"].ok


def test_a_branch_that_is_not_taken_has_no_rows() -> None:
    model = Model.load(fm.with_if())
    feeds = {"x": RNG.standard_normal((2, 8)).astype(np.float32), "c": np.array(False)}
    bodies = {r.body for r in compare_layers(model, model, feeds)}
    assert any(body.endswith("else_branch") for body in bodies)
    assert not any(body.endswith("then_branch") for body in bodies)


def test_what_cannot_be_observed_is_left_out() -> None:
    text = """<ir_version: 8, opset_import: ["": 17]> g (float[2] x) => (float[2] y) {
        s = SequenceConstruct(x, x) n = Neg(x) z = SequenceAt(s, at) y = Add(z, n) }"""
    proto = parser.parse_model(text)
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.array(1, np.int64), "at"))
    rows = compare_layers(Model.load(proto), Model.load(proto))
    assert {r.tensor for r in rows} == {"n", "z", "y"}
    net = Net(Model.load(proto))
    watch = Watch(net, JUDGE, {"x": np.ones(2, np.float32)})
    sequence = next(t for t in net.values if t.name == "s")
    assert watch.read([sequence]) == {}
    assert watch.hidden[sequence]


def test_tensors_of_one_name_in_two_branches_are_told_apart() -> None:
    text = """<ir_version: 8, opset_import: ["": 17]> g (float[2] x, bool c) => (float[2] y) {
        y = If (c) <then_branch = t () => (float[2] a) { h = Sin(x) a = Neg(h) },
                    else_branch = e () => (float[2] a) { h = Cos(x) a = Neg(h) }> }"""
    net = Net(Model.load(parser.parse_model(text)))
    inner = [t for t in net.values if net.name(t) == "h"]
    assert len({t.name for t in inner}) == 2
    x = RNG.standard_normal(2).astype(np.float32)
    for condition, function in ((True, np.sin), (False, np.cos)):
        found = Watch(net, JUDGE, {"x": x, "c": np.array(condition)}).read(inner)
        values = {net.places[t].node.op: v for t, v in found.items()}
        taken = "Sin" if condition else "Cos"
        np.testing.assert_allclose(values[taken][0], function(x), rtol=1e-6)
        assert values["Cos" if condition else "Sin"] == []


# -- gaps ----------------------------------------------------------------------------------------------


def array(*values: float, dtype: Any = np.float32) -> Any:
    return np.array(values, dtype)


def test_gaps() -> None:
    a = RNG.standard_normal(1000).astype(np.float32)
    equal = gap([a], [a.copy()])
    assert equal is not None
    assert (equal.ok, equal.used, equal.sqnr_db) == (True, 0.0, math.inf)
    rms = float(np.sqrt(np.mean(a.astype(np.float64) ** 2)))
    limit = 8 * 16 * 2.0**-23 * rms
    for share in (0.9, 1.1):
        b = a.copy()
        b[5] = np.float32(np.float64(a[5]) + share * limit)
        found = gap([a], [b])
        assert found is not None
        assert found.ok == (share < 1)
        assert found.used == pytest.approx(share, rel=0.05)
    # The reference's own spread widens it.
    wide = gap([a], [a + np.float32(1e-3)], spread=1e-3)
    assert wide is not None
    assert wide.ok


def test_gaps_of_other_shapes_types_and_counts() -> None:
    a = array(1, 2)
    assert gap([], []) is None
    for other, says in (
        ([array(1, 2, 3)], "shape [3], not [2]"),
        ([array(1, 2, dtype=np.int64)], "type int64, not float32"),
        ([a, a], "computed 2 times, not 1"),
        ([], "computed 0 times, not 1"),
    ):
        found = gap([a], other)
        assert found is not None
        assert not found.ok
        assert says in found.why
        assert found.max_abs is None
    half = gap([a], [a.astype(np.float16)])  # another precision is compared in the coarser one's terms
    assert half is not None
    assert half.ok
    assert gap([array(1, 2, dtype=np.int64)], [array(1, 2, dtype=np.int32)]).ok  # type: ignore[union-attr]
    assert not gap([array(1, 2, dtype=np.int64)], [array(1, 3, dtype=np.int64)]).ok  # type: ignore[union-attr]


def test_gaps_with_nan_and_infinity() -> None:
    a = array(1, 2, 3)
    for value, word in ((np.nan, "1 of 3 values became NaN"), (np.inf, "1 of 3 values became infinity")):
        b = array(1, value, 3)
        found = gap([a], [b])
        assert found is not None
        assert not found.ok
        assert not found.pattern
        assert found.why == word
        assert gap([b], [b.copy()]).ok  # type: ignore[union-attr]
        lost = gap([b], [a])
        assert lost is not None
        assert "no longer" in lost.why


def test_the_first_iteration_that_is_off() -> None:
    good, bad = array(1, 2), array(1, 3)
    found = gap([good] * 4, [good, good, bad, bad])
    assert found is not None
    assert (found.ok, found.first) == (False, 2)


def test_budgets_and_bits() -> None:
    a = RNG.standard_normal(1000).astype(np.float32)
    b = (a + 0.1 * RNG.standard_normal(1000)).astype(np.float32)  # about 20 dB
    for limit in (15.0, 25.0):
        found = gap([a], [b], budget=Budget(None, limit))
        assert found is not None
        assert found.ok == (limit < 20)
    close = np.nextafter(a, np.float32(9))
    assert gap([a], [close]).ok  # type: ignore[union-attr]
    exact = gap([a], [close], exact=True)
    assert exact is not None
    assert not exact.ok


def test_a_spread_that_is_no_reordering_is_none() -> None:
    a = RNG.standard_normal(100).astype(np.float32)
    rms = float(np.sqrt(np.mean(a.astype(np.float64) ** 2)))
    assert spread_of([a], [a + np.float32(1e-3 * rms)]) == pytest.approx(1e-3, rel=1e-2)
    assert spread_of([a], [a + np.float32(0.05 * rms)]) == 0
    assert spread_of([a], [a + np.float32(0.05 * rms)], 2.0**-10) == pytest.approx(0.05, rel=1e-2)  # TF32
