"""What a pass does to each layer by itself: found without the pass's help, and scored against the original."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pytest
from numpy.typing import NDArray

import graphopt
from graphopt.calibration.service import CalibrationService
from graphopt.errors import UserError
from graphopt.passkit import Node, Numerics, Part, Pass, PassContext, Rewriter, glob_of, is_selected
from graphopt.testing import apply, parse

W = "{1,2,3,4, 5,6,7,8, -1,-2,-3,-4, 0.5,0.25,0.125,1}"
TWO = f"""<ir_version: 8, opset_import: ["" : 17]>
g (float[N, 4] x) => (float[N, 4] a, float[N, 4] b) <float[4, 4] w = {W}, float[4, 4] v = {W}> {{
    i = Identity(x)
    [first] a = MatMul(i, w)
    [second] b = MatMul(x, v)
}}"""
BRANCHES = f"""<ir_version: 8, opset_import: ["" : 17]>
g (float[N, 4] x, bool c) => (float[N, 4] z) <float[4, 4] w = {W}> {{
    [outer] a = MatMul(x, w)
    z = If (c) <
        then_branch = t () => (float[N, 4] p) <float[4, 4] v = {W}> {{ [inner] p = MatMul(a, v) }},
        else_branch = e () => (float[N, 4] q) {{ q = Abs(a) }}
    >
}}"""


@dataclass(frozen=True)
class Shrink(Pass):
    """Scales the weights of all MatMuls, or sets the first `zero` rows to zero."""

    name: ClassVar[str] = "shrink"
    numerics: ClassVar[Numerics] = Numerics.LOSSY
    by: float = 0.5
    zero: int = 0
    layers: tuple[str, ...] = ()

    def run(self, graph: Rewriter, ctx: PassContext) -> None:
        for node in graph.by_op("MatMul"):
            w = graph.array(node.inputs[1])
            if w is None or not is_selected(node, self.layers):
                continue
            if self.by == 1 and not self.zero:
                graph.refuse(node, "it would be the same")
                continue
            fresh = (w * np.float32(self.by)).astype(w.dtype)
            fresh[: self.zero] = 0
            with graph.site(node, "shrunk"):
                graph.set_input(node, 1, graph.new_constant("w", fresh))


@dataclass(frozen=True)
class Coupled(Shrink):
    """Two sites each for one part: it says itself which belong together."""

    name: ClassVar[str] = "coupled"

    def parts(self, graph: Rewriter, ctx: PassContext) -> Sequence[Part]:
        nodes: list[Node] = graph.by_op("MatMul")
        return [Part(nodes[0], Coupled(self.by, layers=tuple(map(glob_of, nodes))))]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CalibrationService, "latency", lambda *_: 0.75)


def data(**more: Any) -> dict[str, NDArray[Any]]:
    return {"x": np.random.default_rng(0).standard_normal((32, 4)).astype(np.float32), **more}


def test_each_layer_alone_and_all_of_them() -> None:
    found = graphopt.survey(parse(TWO), ["remove-identity", Shrink(zero=1)], data=data())
    assert found.before == "remove-identity"
    assert found.measured.endswith("Shrink{zero=1}")
    assert (found.bytes, found.parameters) == (128, 32)
    assert [(e.node, e.op, e.body) for e in found.layers] == [
        ("first", "MatMul", ""),
        ("second", "MatMul", ""),
    ]
    # Computed here from the held-back samples, every eighth: 4 rows.
    w = np.array(eval(W.replace("{", "[").replace("}", "]")), np.float32).reshape(4, 4)
    fresh = w * 0.5
    fresh[0] = 0
    x = data()["x"][7::8]
    good, bad = x @ w, x @ fresh
    sqnr = 10 * np.log10((good**2).sum() / ((good - bad) ** 2).sum())
    for effect in (*found.layers, found.together):
        assert effect.score.sqnr_db == pytest.approx(sqnr, abs=0.01)
        assert effect.bytes == 0
    # One of four rows is zero: 12 elements of 4 bytes and 16 bits are left of 64 bytes.
    assert [e.packed_bytes for e in found.layers] == [64 - 12 * 4 - 2] * 2
    assert [e.parameters for e in found.layers] == [4, 4]
    assert (found.together.packed_bytes, found.together.parameters) == (28, 8)
    assert found.layers[0].latency is None
    assert found.together.latency == 0.75
    assert found.layers[0].cost_per_byte == pytest.approx(10 ** (-sqnr / 10) / 14, rel=0.01)


def test_layers_are_sorted_by_what_a_saved_byte_costs() -> None:
    model = TWO.replace(f"v = {W}", "v = {0,0,0,9, 0,0,0,9, 0,0,0,9, 0,0,0,9}")
    found = graphopt.survey(parse(model), [Shrink(by=1, zero=1)], data=data())
    assert found.layers[0].cost_per_byte < found.layers[1].cost_per_byte


def test_bodies_of_an_if() -> None:
    found = graphopt.survey(parse(BRANCHES), [Shrink()], data=data(c=np.array(True)))
    assert {(e.node, bool(e.body)) for e in found.layers} == {("outer", False), ("inner", True)}
    assert all(e.score.sqnr_db == pytest.approx(6.02, abs=0.01) for e in found.layers)
    assert found.together.score.sqnr_db == pytest.approx(20 * np.log10(1 / 0.75), abs=0.01)


def test_what_comes_after_is_left_out() -> None:
    found = graphopt.survey(parse(TWO), [Shrink(), "remove-identity"], data=data())
    assert found.left_out == "remove-identity"
    assert found.before == "none"


def test_parts_that_a_pass_names_itself() -> None:
    found = graphopt.survey(parse(TWO), [Coupled()], data=data())
    assert [e.node for e in found.layers] == ["first"]
    assert found.layers[0].score == found.together.score


def test_an_option_can_be_swept() -> None:
    found = graphopt.survey(parse(TWO), [Shrink()], data=data(), sweep="by=0.25, 0.5,0.75")
    assert found.option == "by"
    assert [s.value for s in found.sweep] == ["0.25", "0.5", "0.75"]
    for swept, by in zip(found.sweep, (0.25, 0.5, 0.75), strict=True):
        assert len(swept.layers) == 2
        assert swept.together.score.sqnr_db == pytest.approx(20 * np.log10(1 / (1 - by)), abs=0.01)
    assert found.sweep[1].together == found.together


def test_arithmetic_that_is_saved_is_counted_and_timed() -> None:
    text = f"""<ir_version: 8, opset_import: ["" : 17]>
    g (float[N, 4] x) => (float[N, 8] z) <float[4, 8] w = {W.replace("}", ",")} {W.replace("{", "")}> {{
        h = MatMul(x, w)  z = Relu(h)
    }}"""
    base = graphopt.survey(parse(text), [Shrink()], data=data())
    assert base.flops == 2 * 4 * 8 + 8  # of one sample
    from graphopt_passes.pruning.prune_channels import PruneChannels

    chain = f"""<ir_version: 8, opset_import: ["" : 17]>
    g (float[N, 4] x) => (float[N, 4] z) <float[4, 4] w = {W}, float[4, 4] v = {W}> {{
        h = MatMul(x, w)  r = Relu(h)  z = MatMul(r, v)
    }}"""
    found = graphopt.survey(
        parse(chain), [PruneChannels(ratio=0.5, multiple=1, importance="l2")], data=data()
    )
    assert len(found.layers) == 1
    assert found.layers[0].bytes == 64  # half of each matrix
    assert found.layers[0].flops == 2 * (2 * 4 * 2) + 2
    assert found.layers[0].latency == 0.75


@pytest.mark.parametrize(
    ("passes", "options", "says", "fix"),
    [
        (["default"], {}, "no pass of this pipeline moves the numbers", "prune-weights"),
        ([Shrink()], {"data": None}, "this needs data to measure on", "--data"),
        ([Shrink(by=1)], {}, "shrink finds nothing to change in this model", "it would be the same"),
        ([Shrink()], {"sweep": "by"}, "--sweep 'by' is not OPTION=VALUE,VALUE", "sparsity=0.3"),
        ([Shrink()], {"sweep": "by=,"}, "--sweep 'by=,' is not OPTION=VALUE,VALUE", ""),
        ([Shrink()], {"sweep": "bye=1"}, "pass 'shrink' has no option 'bye'", "did you mean 'by'?"),
        ([Shrink()], {"sweep": "by=0.5,much"}, "wants a number, not much", ""),
        ("prune-weights{sparsity=0.5}", {"sweep": "sparsity=0.5,1.5"}, "sparsity is the share", ""),
        ("prune-weights{sparsity=0.5 layers=[firts]}", {}, "'firts' matches no node", "first"),
        ("prune-weights{sparsity=0.5}", {"target": "cpu"}, "unknown target 'cpu'", ""),
    ],
)
def test_refusals(passes: Any, options: dict[str, Any], says: str, fix: str) -> None:
    with pytest.raises(UserError) as raised:
        graphopt.survey(parse(TWO), passes, **{"data": data(), **options})
    assert says in raised.value.what
    assert fix in (raised.value.fix or "")


@pytest.mark.parametrize("scope", ["auto", "global", "erk", "row"])
def test_weights_are_pruned_one_by_one(scope: str) -> None:
    text = f'prune-weights{{sparsity=0.5 scope={scope} importance=magnitude sparsities=["second=0.25"]}}'
    found = graphopt.survey(parse(TWO), text, data=data())
    assert {e.node: e.parameters for e in found.layers} == {"first": 8, "second": 4}


def test_blocks_that_can_be_left_out_are_measured_also_beyond_the_count() -> None:
    text = f"""<ir_version: 8, opset_import: ["" : 17]>
    g (float[N, 4] x) => (float[N, 4] z) <float[4, 4] w = {W}, float[4, 4] v = {W}> {{
        a = MatMul(x, w)  p = Relu(a)  [one] s = Add(x, p)
        b = MatMul(s, v)  q = Tanh(b)  [two] z = Add(s, q)
    }}"""
    found = graphopt.survey(parse(text), "drop-layers{count=1}", data=data())
    assert {e.node for e in found.layers} == {"one", "two"}
    assert all(e.bytes == 64 for e in (*found.layers, found.together))
    assert found.together.score == max((e.score for e in found.layers), key=lambda s: s.sqnr_db)


def test_a_share_that_rounds_to_no_channel_is_no_crash() -> None:
    text = f"""<ir_version: 8, opset_import: ["" : 17]>
    g (float[N, 4] x) => (float[N, 4] z) <float[4, 4] w = {W}, float[4, 4] v = {W}> {{
        h = MatMul(x, w)  r = Relu(h)  z = MatMul(r, v)
    }}"""
    from graphopt_passes.pruning.prune_channels import PruneChannels

    done = apply(PruneChannels(ratio=0.01, scope="uniform"), text, data=data())
    assert not done.journal.changes
    assert any("are to be kept" in reason for reason in done.reasons)
