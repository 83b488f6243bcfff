"""Which tensors of two models belong together."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import onnx
import onnx.parser
import pytest

from graphopt.distillation.anchors import find_anchors
from graphopt.distillation.channels import assign, choose_channels, representative
from graphopt.distillation.match import in_order
from graphopt.distillation.similarity import ROWS, Samples, correlations, similarities
from graphopt.graph.shapes import infer
from graphopt.graph.state import GraphState
from graphopt.graph.view import GraphView
from graphopt.model import Model


def view(text: str) -> GraphView:
    proto = onnx.parser.parse_model(text)
    model = Model.load(proto)
    return GraphView(GraphState(model, infer(model)), model.graph)


def weights(**shapes: tuple[int, ...]) -> str:
    """Initializers of zeros as text."""
    return ", ".join(
        f"float[{', '.join(map(str, s))}] {n} = {{{', '.join(['0'] * int(np.prod(s)))}}}"
        for n, s in shapes.items()
    )


def linear_cka(x: np.ndarray, y: np.ndarray) -> float:
    """Kornblith et al., section 3, with centered columns; biased."""
    x, y = x - x.mean(0), y - y.mean(0)
    return float(np.linalg.norm(x.T @ y) ** 2 / (np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y)))


def test_similarity_is_linear_cka() -> None:
    rng = np.random.default_rng(0)
    base = rng.standard_normal((700, 5)).astype(np.float32)
    turned = 3 * base @ np.linalg.qr(rng.standard_normal((5, 5)))[0].astype(np.float32) + 7
    noisy = base + rng.standard_normal((700, 5)).astype(np.float32)
    other = rng.standard_normal((700, 40)).astype(np.float32)
    found = similarities([base, noisy], [turned, other, base[:600]])
    assert found[0, 0] == pytest.approx(1, abs=1e-4)
    assert found[1, 0] == pytest.approx(linear_cka(noisy, turned), abs=0.02)
    # Where there is nothing in common, wide tensors do not look alike: the plain estimate would say so.
    assert found[0, 1] < 0.02 < linear_cka(base, other)
    assert found[0, 2] == 0  # other positions


def test_samples_are_bounded_and_the_same_positions() -> None:
    rng = np.random.default_rng(0)
    whole = rng.standard_normal((400, 6, 5, 5)).astype(np.float32)
    index = np.broadcast_to(np.arange(400)[:, None, None, None], (400, 2, 5, 5)) * 100.0
    index = (index + np.arange(25).reshape(5, 5)).astype(np.float32)
    wide, narrow = Samples(1), Samples(1)
    for start in range(0, 400, 30):
        wide.update(whole[start : start + 30])
        narrow.update(index[start : start + 30])
    assert wide.shape == (6, 5, 5)
    assert wide.rows.shape == (ROWS, 6)
    sample, position = np.divmod(narrow.rows[:, 0].astype(int), 100)
    expected = whole.reshape(400, 6, 25)[sample, :, position]
    np.testing.assert_array_equal(wide.rows, expected)
    first, second = Samples(1), Samples(1)
    first.update(whole[:30])
    second.update(whole[30:200])
    first.merge(second)
    np.testing.assert_array_equal(first.rows, wide.rows[: len(first.rows)])


def test_correlations() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((50, 3)), rng.standard_normal((50, 4))
    b[:, 2] = 5  # does not vary
    found = correlations(a.astype(np.float32), b.astype(np.float32))
    expected = np.corrcoef(a.T, np.delete(b, 2, 1).T)[:3, 3:]
    np.testing.assert_allclose(np.delete(found, 2, 1), expected, atol=1e-5)
    assert (found[:, 2] == 0).all()


def brute_force(mine: list[int], theirs: list[int], score: np.ndarray) -> float:
    """The best total over all ways to pair anchors so that levels rise together."""

    def search(i: int, used: frozenset[int], last: tuple[int, int]) -> float:
        if i == len(mine):
            return 0.0
        best = search(i + 1, used, last)
        for j in range(len(theirs)):
            if j in used or not np.isfinite(score[i, j]):
                continue
            level, other = last
            rises = mine[i] > level and theirs[j] > other
            stays = mine[i] == level and theirs[j] == other
            if rises or stays:
                best = max(best, score[i, j] + search(i + 1, used | {j}, (mine[i], theirs[j])))
        return best

    return search(0, frozenset(), (-1, -1))


@pytest.mark.parametrize("seed", range(8))
def test_order_is_kept_with_the_largest_total(seed: int) -> None:
    rng = np.random.default_rng(seed)
    mine = list(range(4))
    theirs = sorted(rng.integers(0, 5, 6).tolist())
    score = rng.random((4, 6))
    score[rng.random((4, 6)) < 0.3] = -np.inf
    pairs = in_order(mine, theirs, score)
    assert sum(score[i, j] for i, j in pairs) == pytest.approx(brute_force(mine, theirs, score))
    levels = [(mine[i], theirs[j]) for i, j in pairs]
    assert all(a[0] < b[0] and a[1] < b[1] for a, b in pairwise(levels))


def test_branches_at_one_level_may_cross() -> None:
    score = np.array([[0.1, 0.9, 0.2], [0.8, 0.7, 0.1], [0.3, 0.2, 0.6]])
    assert in_order([1, 1, 1], [1, 1, 1], score) == [(0, 1), (1, 0), (2, 2)]


def test_representative_channels_explain_the_others() -> None:
    rng = np.random.default_rng(0)
    base = rng.standard_normal((200, 3))
    mixed = base @ rng.standard_normal((3, 9)) + 0.01 * rng.standard_normal((200, 9))
    rows = np.concatenate([mixed, 1e-3 * rng.standard_normal((200, 3))], axis=1).astype(np.float32)
    chosen = representative([rows], 3)
    assert len(set(chosen.tolist())) == 3
    assert chosen.max() < 9
    x, y = rows[:, chosen] - rows[:, chosen].mean(0), rows - rows.mean(0)
    left = y - x @ np.linalg.lstsq(x, y, rcond=None)[0]
    assert (left**2).sum() < 0.02 * (y**2).sum()
    assert sorted(representative([rows], 12).tolist()) == list(range(12))


def test_channels_that_were_learned_are_found_again() -> None:
    rng = np.random.default_rng(0)
    teacher = rng.standard_normal((300, 8)).astype(np.float32)
    order = rng.permutation(8)[:5]
    student = (teacher[:, order] * rng.choice([-1, 1], 5) + 0.3 * rng.standard_normal((300, 5))).astype(
        np.float32
    )
    np.testing.assert_array_equal(choose_channels([student], [teacher], 5), order)
    shuffled = rng.permutation(8)
    np.testing.assert_array_equal(choose_channels([teacher[:, shuffled]], [teacher], 8), shuffled)
    assert choose_channels([teacher], [teacher], 8) is None
    assert choose_channels([rng.standard_normal((300, 8)).astype(np.float32)], [teacher], 8) is None


def test_assign() -> None:
    found, mean = assign(np.array([[0.9, 0.8], [0.85, 0.1]]))
    assert found.tolist() == [0, 1]
    assert mean == pytest.approx(0.5)


def test_anchors_of_a_residual_net() -> None:
    graph = view(
        f"""<ir_version: 8, opset_import: ["" : 17]> g (float[N, 2, 4, 4] x) => (float[N, 3] y)
        <{weights(a=(2, 2, 1, 1), b=(2, 2, 1, 1), s=(2,), d=(2, 1, 1, 1), f=(2, 3), g=(3,))}> {{
        c0 = Conv(x, a) n0 = BatchNormalization(c0, s, s, s, s) r0 = Relu(n0)
        c1 = Conv(r0, b) t = Add(c1, r0) r1 = Relu(t) e = Conv<group = 2>(r1, d)
        p = GlobalAveragePool(e) q = Flatten(p) m = MatMul(q, f) y = Add(m, g) }}"""
    )
    anchors = {a.name: a for a in find_anchors(graph)}
    assert {n: a.kind for n, a in anchors.items()} == {
        "n0": "layer",
        "c1": "layer",
        "t": "sum",
        "e": "layer",
        "y": "layer",
    }
    assert [anchors[n].level for n in ("n0", "c1", "t", "e", "y")] == [1, 2, 3, 4, 5]
    assert anchors["n0"].clipped
    assert anchors["t"].clipped
    assert not anchors["c1"].clipped
    # The sum, its summands and the depthwise convolution behind it have the same channels.
    assert len({anchors[n].group for n in ("n0", "c1", "t", "e")}) == 1
    assert anchors["y"].group != anchors["e"].group
    assert not any(a.attends for a in anchors.values())


def test_operands_of_attention_are_told() -> None:
    w = weights(a=(4, 4), b=(4, 4), c=(4, 4), d=(4, 4))
    graph = view(
        f"""<ir_version: 8, opset_import: ["" : 17]> g (float[N, 3, 4] x) => (float[N, 3, 4] y) <{w}> {{
        q = MatMul(x, a) k = MatMul(x, b) t = Transpose<perm = [0, 2, 1]>(k) l = MatMul(q, t) p = Softmax(l)
        v = MatMul(x, c) o = MatMul(p, v) y = MatMul(o, d) }}"""
    )
    assert {a.name: a.attends for a in find_anchors(graph)} == {"q": "q", "k": "k", "v": "v", "y": ""}
