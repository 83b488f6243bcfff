"""Leaving out residual blocks: what is one, which goes first, and how many."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import onnx
import onnx.parser
import onnxruntime
import pytest

import graphopt
from graphopt.errors import UserError
from graphopt.testing import Applied, apply, assert_refuses, assert_same_interface
from graphopt_passes.pruning._influence import Influence
from graphopt_passes.pruning.drop_layers import DropLayers

HEAD = '<ir_version: 10, opset_import: ["" : 20]>'
WIDTH = 6


def with_weights(text: str, scales: dict[str, float] | None = None, seed: int = 0) -> onnx.ModelProto:
    """A model of text in which W* are float[6, 6] weights, F* and P* [4, 4, 3, 3] kernels, g*, h* vectors."""
    proto = onnx.parser.parse_model(text)
    rng = np.random.default_rng(seed)
    names = {name for node in _nodes(proto.graph) for name in node.input}
    names -= {name for node in _nodes(proto.graph) for name in node.output}
    for name in sorted(names):
        shape = {"W": (WIDTH, WIDTH), "F": (4, 4, 3, 3), "g": (WIDTH,), "h": (WIDTH,)}.get(name[:1])
        if shape is None or any(name == i.name for i in proto.graph.input):
            continue
        scale = (scales or {}).get(name, 1.0)
        values = scale * rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]) or 1)
        if name[0] == "g":
            values = 1 + 0.1 * values
        proto.graph.initializer.append(onnx.numpy_helper.from_array(values.astype(np.float32), name))
    return proto


def _nodes(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    found = []
    for node in graph.node:
        found.append(node)
        for attribute in node.attribute:
            if attribute.HasField("g"):
                found += _nodes(attribute.g)
    return found


def mlp(i: int, x: str, y: str) -> str:
    """x + f(x) with weights Wi and Vi."""
    return f"n{i} = LayerNormalization({x}, g{i}, h{i}) [add{i}_fc] m{i} = MatMul(n{i}, W{i}) r{i} = Relu(m{i}) [add{i}] {y} = Add({x}, r{i})"


def tower(count: int = 4, scales: dict[str, float] | None = None) -> onnx.ModelProto:
    """A stem, residual blocks, and a head."""
    blocks = " ".join(mlp(i, f"x{i}", f"x{i + 1}") for i in range(count))
    return with_weights(
        f"""{HEAD} g (float[N, {WIDTH}] x) => (float[N, {WIDTH}] y) {{
        x0 = MatMul(x, Wstem) {blocks} y = MatMul(x{count}, Whead) }}""",
        scales,
    )


def run(proto: onnx.ModelProto, feeds: dict[str, Any]) -> list[Any]:
    names = {i.name for i in proto.graph.input}
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    return list(session.run(None, {k: v for k, v in feeds.items() if k in names}))


SCALES = {"W0": 1.0, "W1": 0.02, "W2": 0.5, "W3": 0.2}


def data(n: int = 64, shape: tuple[int, ...] = (WIDTH,), name: str = "x") -> dict[str, Any]:
    return {name: np.random.default_rng(1).standard_normal((n, *shape)).astype(np.float32)}


def dropped(done: Applied) -> list[str]:
    return [c.why.partition(" left out")[0] for c in done.journal.changes]


def ops(done: Applied) -> dict[str, int]:
    return dict(done.ops)


def without(proto: onnx.ModelProto, old: str, new: str) -> onnx.ModelProto:
    """All readers of `old` read `new`, done by hand."""
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    for node in copy.graph.node:
        for i, name in enumerate(node.input):
            if name == old:
                node.input[i] = new
    return copy


def sqnr(proto: onnx.ModelProto, other: onnx.ModelProto, feeds: dict[str, Any]) -> float:
    (want,), (got,) = run(proto, feeds), run(other, feeds)
    want, got = want.astype(np.float64), got.astype(np.float64)
    return float(10 * np.log10((want**2).sum() / ((want - got) ** 2).sum()))


# -- which blocks, in which order ------------------------------------------------------------------


def test_goes_first_what_changes_the_output_least() -> None:
    proto = tower(4, SCALES)
    feeds = data(40)
    by_hand = {f"add{i}": sqnr(proto, without(proto, f"x{i + 1}", f"x{i}"), feeds) for i in range(4)}
    order = sorted(by_hand, key=lambda k: -by_hand[k])
    done = apply(DropLayers(count=1), proto, data=feeds)
    assert dropped(done) == order[:1] == ["add1"]
    assert_same_interface(proto, done.proto)
    expected = run(without(proto, "x2", "x1"), feeds)[0]
    np.testing.assert_allclose(run(done.proto, feeds)[0], expected, rtol=1e-5, atol=1e-5)
    assert ops(done) == {"MatMul": 5, "LayerNormalization": 3, "Relu": 3, "Add": 3}
    assert all("others matter less" in r for r in done.reasons)
    twice = apply(DropLayers(count=2), proto, data=feeds)
    assert dropped(twice) == ["add1", "add3"]


def test_scores_are_those_of_the_model_without_the_block() -> None:
    proto, feeds = tower(3, SCALES), data(64)
    done = apply(DropLayers(count=1, layers=("add1", "add2")), proto, data=feeds)
    (change,), (reason,) = done.journal.changes, done.reasons
    learned = {"x": np.delete(feeds["x"], np.arange(7, 64, 8), axis=0)}  # every 8th is held back
    for words, (old, new) in ((change.why, ("x2", "x1")), (reason, ("x3", "x2"))):
        expected = sqnr(proto, without(proto, old, new), learned)
        assert f"SQNR {expected:.1f} dB" in words


def test_a_second_run_with_a_goal_that_is_reached_changes_nothing() -> None:
    feeds = data()
    options: dict[str, Any] = {"count": 1, "layers": ("add1",)}
    done = apply(DropLayers(**options), tower(3), data=feeds)
    assert dropped(done) == ["add1"]
    with pytest.raises(UserError, match="cannot leave out 1 residual blocks"):
        apply(DropLayers(**options), done.proto, data=feeds)


@pytest.mark.parametrize("rerank", [True, False])
def test_ranked_again(rerank: bool) -> None:
    """Blocks 1 and 2 undo each other: either of them alone matters; once one is gone the other is nothing."""
    proto = with_weights(
        f"""{HEAD} g (float[N, {WIDTH}] x) => (float[N, {WIDTH}] y) {{
        x0 = MatMul(x, Wstem)
        [fc0] m0 = MatMul(x0, Wa) [add0] x1 = Add(x0, m0)
        [fc1] m1 = MatMul(x1, Wb) [add1] x2 = Add(m1, x1)
        [fc2] m2 = MatMul(x2, Wc) [add2] y = Add(x2, m2) }}""",
        {"Wa": 0.6, "Wc": 0.25},
    )
    weights = {t.name: t for t in proto.graph.initializer}
    a = onnx.numpy_helper.to_array(weights["Wa"]).astype(np.float64)
    undo = np.linalg.inv(np.eye(WIDTH) + a) - np.eye(WIDTH)
    weights["Wb"].CopyFrom(onnx.numpy_helper.from_array(undo.astype(np.float32), "Wb"))
    feeds = data()
    done = apply(DropLayers(count=3, rerank=rerank), proto, data=feeds)
    assert set(dropped(done)) == {"add0", "add1", "add2"}
    first = apply(DropLayers(count=1), proto, data=feeds)
    assert dropped(first) == ["add2"]
    after = apply(DropLayers(count=2), proto, data=feeds)
    assert len(dropped(after)) == 2


@pytest.mark.parametrize("operands", ["x0, f", "f, x0"])
def test_either_order_of_operands(operands: str) -> None:
    proto = with_weights(
        f"{HEAD} g (float[N, {WIDTH}] x) => (float[N, {WIDTH}] y) {{ x0 = MatMul(x, Ws) f = MatMul(x0, Wf) [a] s = Add({operands}) y = MatMul(s, Wh) }}"
    )
    assert ops(apply(DropLayers(count=1), proto, data=data())) == {"MatMul": 2}


def test_bias_that_is_added_first_belongs_to_the_block() -> None:
    proto = with_weights(
        f"{HEAD} g (float[N, {WIDTH}] x) => (float[N, {WIDTH}] y) {{ x0 = MatMul(x, Ws) m = MatMul(x0, Wf) f = Add(hb, m) [a] s = Add(f, x0) y = MatMul(s, Wh) }}"
    )
    assert ops(apply(DropLayers(count=1), proto, data=data())) == {"MatMul": 2}


def test_parallel_branches_are_one_block() -> None:
    """x + f(n) + g(n), n = norm(x), as in GPT-J: neither branch can go without the other."""
    proto = with_weights(
        f"""{HEAD} g (float[N, {WIDTH}] x) => (float[N, {WIDTH}] y) {{ x0 = MatMul(x, Ws)
        n = LayerNormalization(x0, gn, hn) f = MatMul(n, Wf) a = Add(x0, f) m = MatMul(n, Wm) [sum] s = Add(a, m)
        y = MatMul(s, Wh) }}"""
    )
    done = apply(DropLayers(count=1), proto, data=data())
    assert ops(done) == {"MatMul": 2}
    with pytest.raises(UserError, match="there are 1 residual blocks"):
        apply(DropLayers(count=2), proto, data=data())


def test_a_sum_with_something_else_behind_the_block() -> None:
    """(x + f(x)) + z: z is not computed from x, so only the inner sum is a block."""
    proto = with_weights(
        f"""{HEAD} g (float[N, {WIDTH}] x, float[N, {WIDTH}] z) => (float[N, {WIDTH}] y) {{ x0 = MatMul(x, Ws)
        f = MatMul(x0, Wf) [inner] a = Add(x0, f) [outer] s = Add(a, z) y = MatMul(s, Wh) }}"""
    )
    done = apply(DropLayers(count=1), proto, data={**data(), **data(name="z")})
    assert dropped(done) == ["inner"]
    assert ops(done) == {"MatMul": 2, "Add": 1}


def test_arithmetic_without_a_layer_is_no_block() -> None:
    """The polynomial in the approximation of GELU has the form x + f(x) too."""
    proto = with_weights(
        f"""{HEAD} g (float[N, {WIDTH}] x) => (float[N, {WIDTH}] y) <float three = {{3}}, float c = {{0.044715}}>
        {{ x0 = MatMul(x, Ws) p = Pow(x0, three) q = Mul(p, c) s = Add(x0, q) t = Tanh(s) y = MatMul(t, Wh) }}"""
    )
    with pytest.raises(UserError, match="there are 0 residual blocks"):
        apply(DropLayers(count=1), proto, data=data())


def residual_conv(shortcut: str = "x0", relu: bool = True) -> onnx.ModelProto:
    extra = "p = Conv<pads = [1, 1, 1, 1]>(x0, Fp)" if shortcut == "p" else ""
    tail = "z = Relu(s)" if relu else "z = Neg(s)"
    return with_weights(
        f"""{HEAD} g (float[N, 4, 5, 5] x) => (float[N, 4, 5, 5] y) {{ s0 = Conv<pads = [1, 1, 1, 1]>(x, Fs)
        x0 = Relu(s0) {extra} [c1] f1 = Conv<pads = [1, 1, 1, 1]>(x0, Fa) f2 = Relu(f1)
        [c2] f3 = Conv<pads = [1, 1, 1, 1]>(f2, Fb) [sum] s = Add(f3, {shortcut}) {tail}
        y = Conv<pads = [1, 1, 1, 1]>(z, Fh) }}"""
    )


IMAGES = data(24, (4, 5, 5))


def test_identity_block_of_a_conv_net_with_its_relu() -> None:
    proto = residual_conv()
    done = apply(DropLayers(count=1), proto, data=IMAGES)
    assert ops(done) == {"Conv": 2, "Relu": 1}
    expected = run(without(proto, "s", "x0"), IMAGES)[0]
    np.testing.assert_allclose(run(done.proto, IMAGES)[0], expected, rtol=1e-4, atol=1e-5)
    assert ops(apply(DropLayers(count=1), residual_conv(relu=False), data=IMAGES)) == {
        "Conv": 2,
        "Relu": 1,
        "Neg": 1,
    }


def test_post_norm_takes_the_better_end() -> None:
    """Behind LayerNorm(x + f(x)) either x or LayerNorm(x) can go on; which is better is measured."""
    text = f"""{HEAD} g (float[N, {WIDTH}] x) => (float[N, {WIDTH}] y) {{ s0 = MatMul(x, Ws)
        x0 = LayerNormalization(s0, g0, h0) f = MatMul(x0, Wf) [sum] s = Add(x0, f)
        x1 = LayerNormalization(s, g1, h1) y = MatMul(x1, Wh) }}"""
    slope = np.linspace(0.3, 3, WIDTH).astype(np.float32)
    # Blocks that only scale x, which the norm undoes; and that divide it by what the norm multiplies it with.
    for weight, best in ((np.eye(WIDTH), "s"), (np.diag(1 / slope) - np.eye(WIDTH), "x1")):
        proto = with_weights(text)
        values = {"Wf": weight, "g0": slope, "g1": slope, "h0": 0 * slope, "h1": 0 * slope}
        for t in proto.graph.initializer:
            if t.name in values:
                t.CopyFrom(onnx.numpy_helper.from_array(values[t.name].astype(np.float32), t.name))
        feeds = data()
        assert best == max(("x1", "s"), key=lambda end: sqnr(proto, without(proto, end, "x0"), feeds))
        done = apply(DropLayers(count=1), proto, data=feeds)
        assert ops(done)["LayerNormalization"] == (1 if best == "x1" else 2)
        np.testing.assert_allclose(run(done.proto, feeds)[0], run(proto, feeds)[0], rtol=1e-3, atol=1e-4)


# -- pairs -----------------------------------------------------------------------------------------


def attention(i: int, x: str, y: str) -> str:
    return f"""q{i} = MatMul({x}, Wq{i}) k{i} = Transpose<perm = [0, 2, 1]>({x}) l{i} = MatMul(q{i}, k{i})
    p{i} = Softmax(l{i}) v{i} = MatMul(p{i}, {x}) o{i} = MatMul(v{i}, Wo{i}) [attn{i}] {y} = Add({x}, o{i})"""


def encoder(order: str = "amam") -> onnx.ModelProto:
    blocks = " ".join(
        (attention if kind == "a" else mlp)(i, f"x{i}", f"x{i + 1}") for i, kind in enumerate(order)
    )
    return with_weights(
        f"""{HEAD} g (float[N, 5, {WIDTH}] x) => (float[N, 5, {WIDTH}] y) {{
        x0 = MatMul(x, Wstem) {blocks} y = MatMul(x{len(order)}, Whead) }}"""
    )


SENTENCES = data(24, (5, WIDTH))


def test_pairs_are_attention_and_what_follows() -> None:
    proto = encoder("mamam")
    feeds = SENTENCES
    by_hand = {i: sqnr(proto, without(proto, f"x{i + 2}", f"x{i}"), feeds) for i in (1, 3)}
    best = max(by_hand, key=lambda i: by_hand[i])
    done = apply(DropLayers(count=1, unit="pair"), proto, data=feeds)
    assert f"attn{best} + add{best + 1} left out" in done.journal.changes[0].why
    expected = run(without(proto, f"x{best + 2}", f"x{best}"), feeds)[0]
    np.testing.assert_allclose(run(done.proto, feeds)[0], expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(UserError, match="there are 2 pairs of blocks"):
        apply(DropLayers(count=3, unit="pair"), proto, data=feeds)


def test_pairs_without_attention_are_neighbors() -> None:
    done = apply(DropLayers(count=2, unit="pair"), tower(5), data=data())
    assert ops(done) == {"MatMul": 3, "LayerNormalization": 1, "Relu": 1, "Add": 1}


@pytest.mark.parametrize("importance", ["output", "influence"])
def test_the_last_sum_is_the_output(importance: Any) -> None:
    proto = with_weights(
        f"{HEAD} g (float[N, {WIDTH}] x) => (float[N, {WIDTH}] y) {{ x0 = MatMul(x, Wstem) {mlp(0, 'x0', 'x1')} {mlp(1, 'x1', 'y')} }}"
    )
    for unit, count in (("block", 2), ("pair", 1)):
        done = apply(DropLayers(count=count, unit=unit, importance=importance), proto, data=data())  # type: ignore[arg-type]
        assert ops(done) == {"MatMul": 1}
        assert_same_interface(proto, done.proto)


# -- influence -------------------------------------------------------------------------------------


def test_influence_ranks_by_cosine() -> None:
    proto, feeds = tower(4, SCALES), data(40)
    watched = onnx.ModelProto()
    watched.CopyFrom(proto)
    for i in range(5):
        watched.graph.output.append(onnx.helper.make_tensor_value_info(f"x{i}", 1, None))
    learned = {"x": np.delete(feeds["x"], np.arange(7, 40, 8), axis=0)}
    values = [v.astype(np.float64) for v in run(watched, learned)[1:]]
    influence = [
        1 - float(np.mean((a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)))
        for a, b in pairwise(values)
    ]
    done = apply(DropLayers(count=1, importance="influence"), proto, data=feeds)
    least = int(np.argmin(influence))
    assert dropped(done) == [f"add{least}"]
    assert f"influence {influence[least]:.4g}" in done.journal.changes[0].why


def test_influence_statistic() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((6, 4, 3)), rng.standard_normal((6, 4, 3))
    x[0, :, 0] = 0  # a zero vector has no direction
    y[0, :, 1] = np.nan
    x[1, :, 2] = y[1, :, 2] = 0
    cosines = []
    for i in range(6):
        for j in range(3):
            a, b = x[i, :, j], y[i, :, j]
            if np.isnan(b).any():
                continue
            size = np.linalg.norm(a) * np.linalg.norm(b)
            cosines.append(a @ b / size if size else float((a == b).all()))
    whole, first, second = Influence(1), Influence(1), Influence(1)
    whole.update(x, y)
    first.update(x[:2], y[:2])
    second.update(x[2:], y[2:])
    first.merge(second)
    assert whole.left_out == 1
    assert whole.count == len(cosines) == first.count
    assert whole.value == pytest.approx(1 - np.mean(cosines)) == first.value
    assert np.isnan(whole.fresh().value)
    with pytest.raises(ValueError, match="differ"):
        whole.update(x, y[:, :2])
    with pytest.raises(ValueError, match="do not merge"):
        whole.merge(Influence(2))


# -- how much --------------------------------------------------------------------------------------


def test_fraction() -> None:
    assert len(dropped(apply(DropLayers(fraction=0.5), tower(4), data=data()))) == 2


@pytest.mark.parametrize("goal", ["params", "flops"])
def test_share_of_parameters_and_operations(goal: str) -> None:
    """6 weight matrices, 4 of them in blocks: a third takes two of them, and hardly anything one."""
    for share, count in ((0.01, 1), (0.3, 2)):
        done = apply(DropLayers(**{goal: share}), tower(4), data=data())  # type: ignore[arg-type]
        assert len(dropped(done)) == count
    with pytest.raises(UserError, match=f"cannot reach {goal}=0.9: leaving out all 4"):
        apply(DropLayers(**{goal: 0.9}), tower(4), data=data())  # type: ignore[arg-type]


def test_latency_out_of_reach() -> None:
    with pytest.raises(UserError, match=r"cannot reach latency=0\.0001"):
        apply(DropLayers(latency=0.0001), tower(2), data=data())


def test_latency() -> None:
    done = apply(DropLayers(latency=1.0), tower(3), data=data())
    assert dropped(done)


def test_budget_stops_it() -> None:
    proto, feeds = tower(4, SCALES), data()
    learned = {"x": np.delete(feeds["x"], np.arange(7, 64, 8), axis=0)}
    alone = sqnr(proto, without(proto, "x2", "x1"), learned)
    both = sqnr(proto, without(without(proto, "x2", "x1"), "x4", "x3"), learned)
    assert both < alone
    done = apply(DropLayers(min_sqnr=(alone + both) / 2), proto, data=feeds)
    assert dropped(done) == ["add1"]
    assert all("the budget does not allow" in r for r in done.reasons)
    assert len(done.reasons) == 3
    assert len(dropped(apply(DropLayers(min_sqnr=both - 0.1), proto, data=feeds))) >= 2
    assert not dropped(apply(DropLayers(min_sqnr=alone + 1), proto, data=feeds))
    # A goal and a budget: what is reached first ends it.
    assert dropped(apply(DropLayers(count=3, min_sqnr=(alone + both) / 2), proto, data=feeds)) == ["add1"]


def test_only_some_layers() -> None:
    done = apply(DropLayers(fraction=1.0, layers=("add[02]", "x4")), tower(4), data=data())
    assert sorted(dropped(done)) == ["add0", "add2", "add3"]


# -- requests that cannot be met -------------------------------------------------------------------


def test_more_blocks_than_there_are() -> None:
    with pytest.raises(UserError, match=r"there are 4 residual blocks that can be left out") as e:
        apply(DropLayers(count=5), tower(4), data=data())
    assert "count=4" in str(e.value.fix)
    with pytest.raises(UserError, match=r"there are 0 residual blocks .* \(1 more cannot be"):
        apply(DropLayers(count=1), residual_conv("p"), data=IMAGES)


def test_nothing_matches() -> None:
    with pytest.raises(UserError, match="that match nothing"):
        apply(DropLayers(count=1, layers=("nothing*",)), tower(2), data=data())
    with pytest.raises(UserError, match="that match nothing"):
        apply(DropLayers(min_sqnr=10, layers=("nothing*",)), tower(2), data=data())
    with pytest.raises(UserError, match="matches no node"):
        graphopt.run(tower(2), [DropLayers(count=1, layers=("add0", "nothing*"))], data=data())


def test_refused_before_any_work() -> None:
    for options, feeds, reason in (
        ({}, data(), "how much to leave out"),
        ({"count": 1}, None, "needs data"),
        ({"count": 7}, data(), "all sums of the model are 2"),
    ):
        with pytest.raises(UserError, match=reason):
            graphopt.run(tower(2), [DropLayers(**options)], data=feeds)  # type: ignore[arg-type]
    assert_refuses(DropLayers(count=1), tower(2), "there is no data")
    result = graphopt.run(tower(2), [DropLayers()], data=data(), budget=graphopt.Budget(None, -100.0))
    assert "Add" not in {node.op for node in result.model.graph.nodes}


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"count": 0}, "at least 1"),
        ({"count": 1, "fraction": 0.5}, "give one of them"),
        ({"fraction": 1.5}, "at most 1"),
        ({"params": 0.0}, "above 0"),
        ({"count": 1, "samples": 0}, "samples"),
    ],
)
def test_bad_requests(options: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        DropLayers(**options)


# -- what is left alone ----------------------------------------------------------------------------

BUDGET = DropLayers(min_sqnr=-100)


def refuses(text: str, reason: str, feeds: dict[str, Any] | None = None, **options: Any) -> None:
    assert_refuses(BUDGET, with_weights(text), reason, data=feeds or data(), **options)


def test_projection_on_the_shortcut() -> None:
    assert_refuses(BUDGET, residual_conv("p"), "a layer on the shortcut", data=IMAGES)


def test_inner_tensor_is_read_elsewhere() -> None:
    refuses(
        f"{HEAD} g (float[N, {WIDTH}] x) => (float[N, {WIDTH}] y) {{ x0 = MatMul(x, Ws) f = MatMul(x0, Wf) [a] s = Add(x0, f) t = Mul(s, f) y = MatMul(t, Wh) }}",
        "f, inside the block, is read by",
    )


def test_inner_tensor_is_an_output() -> None:
    refuses(
        f"{HEAD} g (float[N, {WIDTH}] x) => (float[N, {WIDTH}] y, float[N, {WIDTH}] k) {{ x0 = MatMul(x, Ws) k = MatMul(x0, Wf) f = Relu(k) [a] s = Add(x0, f) y = MatMul(s, Wh) }}",
        "k, inside the block, is an output",
    )


def test_inner_tensor_is_captured() -> None:
    refuses(
        f"""{HEAD} g (float[N, {WIDTH}] x, bool c) => (float[N, {WIDTH}] y) {{ x0 = MatMul(x, Ws) f = MatMul(x0, Wf)
        [a] s = Add(x0, f) t = If (c) <then_branch = t () => (float[N, {WIDTH}] b) {{ b = Neg(f) }},
        else_branch = e () => (float[N, {WIDTH}] d) {{ d = Neg(x0) }}> u = Add(s, t) y = MatMul(u, Wh) }}""",
        "f, inside the block, is captured by a body",
        {**data(), "c": np.array(True)},
    )


def test_captured_input_and_a_body_inside_of_the_block() -> None:
    """x may be captured; an If whose body reads x is a part of f."""
    proto = with_weights(
        f"""{HEAD} g (float[N, {WIDTH}] x, bool c) => (float[N, {WIDTH}] y) {{ x0 = MatMul(x, Ws)
        t = If (c) <then_branch = t () => (float[N, {WIDTH}] b) {{ b = MatMul(x0, Wi) }},
        else_branch = e () => (float[N, {WIDTH}] d) {{ d = Neg(x0) }}> f = MatMul(t, Wf)
        [a] s = Add(x0, f) y = MatMul(s, Wh) }}"""
    )
    feeds = {**data(), "c": np.array(True)}
    assert ops(apply(DropLayers(count=1), proto, data=feeds)) == {"MatMul": 2}


def test_blocks_of_bodies_and_functions() -> None:
    refuses(
        f"""{HEAD} g (float[N, {WIDTH}] x, bool c) => (float[N, {WIDTH}] y) {{
        y = If (c) <then_branch = t () => (float[N, {WIDTH}] b) {{ x0 = MatMul(x, Ws) f = MatMul(x0, Wf) s = Add(x0, f) b = Neg(s) }},
        else_branch = e () => (float[N, {WIDTH}] d) {{ d = Neg(x) }}> }}""",
        "nested bodies",
        {**data(), "c": np.array(True)},
    )


def test_broadcast() -> None:
    refuses(
        f"""{HEAD} g (float[1, {WIDTH}] x, float[N, {WIDTH}] z) => (float[N, {WIDTH}] y) {{ x0 = MatMul(x, Ws)
        p = Mul(x0, z) f = MatMul(p, Wf) [a] s = Add(x0, f) y = MatMul(s, Wh) }}""",
        "x0 has the shape [1, 6], and the sum the shape [N, 6]",
        {"x": np.ones((1, WIDTH), np.float32), "z": np.ones((1, WIDTH), np.float32)},
    )


def test_shape_that_is_not_known() -> None:
    refuses(
        f"""{HEAD} g (float[N, {WIDTH}] x, int64[K] d) => (float[M, {WIDTH}] y) {{ x0 = Reshape(x, d)
        f = MatMul(x0, Wf) [a] s = Add(x0, f) y = MatMul(s, Wh) }}""",
        "x0 has a shape that is not known",
        {**data(), "d": np.array([-1, WIDTH])},
    )


@pytest.mark.parametrize("op", ["RandomNormalLike(f)", "Bernoulli(f)"])
def test_random(op: str) -> None:
    refuses(
        f"{HEAD} g (float[N, {WIDTH}] x) => (float[N, {WIDTH}] y) {{ x0 = MatMul(x, Ws) g0 = MatMul(x0, Wf) f = Sigmoid(g0) r = {op} h = Mul(f, r) [a] s = Add(x0, h) y = MatMul(s, Wh) }}",
        "draws random numbers",
    )


@pytest.mark.parametrize("kept", ["fc", "f", "a"])
def test_keep(kept: str) -> None:
    refuses(
        f"{HEAD} g (float[N, {WIDTH}] x) => (float[N, {WIDTH}] y) {{ x0 = MatMul(x, Ws) [fc] f = MatMul(x0, Wf) [a] s = Add(x0, f) y = MatMul(s, Wh) }}",
        "is kept",
        keep=[kept],
    )


def test_sum_is_an_output_and_x_an_input() -> None:
    refuses(
        f"{HEAD} g (float[N, {WIDTH}] x) => (float[N, {WIDTH}] y) {{ f = MatMul(x, Wf) [a] y = Add(x, f) }}",
        "only passes an input on",
    )


def test_overridable_weight_stays_an_input() -> None:
    proto = with_weights(
        f"""{HEAD} g (float[N, {WIDTH}] x, float[{WIDTH}] b = {{1, 2, 3, 4, 5, 6}}) => (float[N, {WIDTH}] y) {{ x0 = MatMul(x, Ws)
        f = MatMul(x0, Wf) h = Mul(f, b) [a] s = Add(x0, h) y = MatMul(s, Wh) }}"""
    )
    done = apply(DropLayers(count=1), proto, data=data())
    assert ops(done) == {"MatMul": 2}
    assert_same_interface(proto, done.proto)


def test_shared_weight_stays_for_the_other_block() -> None:
    proto = with_weights(
        f"""{HEAD} g (float[N, {WIDTH}] x) => (float[N, {WIDTH}] y) {{ x0 = MatMul(x, Ws)
        f = MatMul(x0, Wf) [a] x1 = Add(x0, f) h = MatMul(x1, Wf) [b] x2 = Add(x1, h) y = MatMul(x2, Wh) }}"""
    )
    done = apply(DropLayers(count=1), proto, data=data())
    assert {t.name for t in done.proto.graph.initializer} == {"Ws", "Wf", "Wh"}
