"""Statistics that fitting needs: they stream, merge, and mean what they say."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from weight_models import build

from graphopt.passkit import Numerics, Pass, PassContext, Rewriter
from graphopt.testing import apply
from graphopt_passes.linear.channels import ChannelLines
from graphopt_passes.linear.judged import judged_by
from graphopt_passes.linear.layer import linear_layers
from graphopt_passes.linear.moments import LayerMoments, Selection
from graphopt_passes.linear.rows import MatrixRows
from graphopt_passes.linear.sweeps import depths

RNG = np.random.default_rng(2)


def test_of_a_narrower_student_only_its_channels_count() -> None:
    x, mine = RNG.standard_normal((8, 3)), RNG.standard_normal((8, 2))
    theirs = RNG.standard_normal((8, 4))
    narrow = LayerMoments(MatrixRows(), Selection(1, (3, 1)))
    narrow.update(x, mine, theirs)
    plain = LayerMoments(MatrixRows())
    plain.update(x, mine, theirs[:, [3, 1]])
    np.testing.assert_array_equal(narrow.total.xd, plain.total.xd)
    assert narrow.key != plain.key
    assert narrow.fresh().selection == Selection(1, (3, 1))


@pytest.mark.parametrize("bounds", [(0.0, np.inf), (0.0, 6.0), (-1.0, 1.0), (-np.inf, 2.0)])
def test_the_error_before_a_clip_bounds_the_one_behind_it(bounds: tuple[float, float]) -> None:
    """The wanted output makes |z - wanted|^2 an upper bound of |clip(z) - clip(teacher)|^2, for any z."""
    mine, theirs = (4 * RNG.standard_normal((500, 1))).astype(np.float32), 4 * RNG.standard_normal((500, 1))
    theirs = theirs.astype(np.float32)
    moments = LayerMoments(MatrixRows(), bounds=bounds)
    wanted = mine + moments._error(mine, theirs)
    for other in (mine, mine + 1, mine - 3, np.zeros_like(mine)):
        behind = (np.clip(other, *bounds) - np.clip(theirs, *bounds)) ** 2
        assert (behind <= (other - wanted) ** 2 * (1 + 1e-5) + 1e-5).all()
    tight = (mine > bounds[0]) & (mine < bounds[1])
    behind = np.abs(np.clip(mine, *bounds) - np.clip(theirs, *bounds))
    inside = (theirs > bounds[0]) & (theirs < bounds[1])
    np.testing.assert_allclose(np.abs(mine - wanted)[tight & ~inside], behind[tight & ~inside], atol=1e-6)
    np.testing.assert_allclose(np.abs(mine - wanted)[tight & inside], behind[tight & inside], atol=1e-6)


def test_lines_merge_and_fit() -> None:
    s = RNG.standard_normal((40, 3, 5))
    t = 2.0 * s + np.array([1.0, -1.0, 0.5])[None, :, None]
    whole, one, two = ChannelLines(1), ChannelLines(1), ChannelLines(1)
    whole.update(s, t)
    one.update(s[:20], t[:20])
    two.update(s[20:], t[20:])
    one.merge(two)
    for lines in (whole, one):
        slope, shift = lines.total.line(shifted=True)
        np.testing.assert_allclose(slope, 2.0)
        np.testing.assert_allclose(shift, [1.0, -1.0, 0.5])
        assert lines.total.error(slope, shift).max() < 1e-9
        assert lines.total.count == 200
    slope, shift = whole.total.line(shifted=False)
    assert not shift.any()
    centered = ((t - slope[:, None] * s) ** 2).sum(axis=(0, 2))
    np.testing.assert_allclose(whole.total.error(slope, shift), centered)
    with pytest.raises(ValueError, match="different kinds"):
        one.merge(ChannelLines(2))


def test_a_channel_that_never_moves_keeps_its_slope() -> None:
    lines = ChannelLines(-1)
    lines.update(np.full((10, 2), 3.0), np.full((10, 2), 5.0))
    slope, shift = lines.total.line(shifted=True)
    assert slope.tolist() == [1.0, 1.0]
    assert shift.tolist() == [2.0, 2.0]


class Look(Pass):
    """Note where the layers of a model are judged."""

    name = "look"
    numerics = Numerics.LOSSY

    def __init__(self) -> None:
        object.__setattr__(self, "found", {})

    def run(self, graph: Rewriter, ctx: PassContext) -> None:
        layers = linear_layers(graph)
        depth = depths(graph, [layer.node for layer in layers])
        for layer in layers:
            judged = judged_by(graph, layer, depth)
            self.found[layer.node.outputs[0].name] = (judged.tensor.name, judged.bounds)  # type: ignore[attr-defined]


def judged(body: str, **weights: Any) -> dict[str, tuple[str, tuple[float, float]]]:
    look = Look()
    apply(look, build(body, **weights))
    found: dict[str, tuple[str, tuple[float, float]]] = look.found  # type: ignore[attr-defined]
    return found


def test_judged_behind_bias_residual_and_before_relu() -> None:
    found = judged(
        """(float[N, 8] x) => (float y) {
            a = MatMul(x, w1)  b = Add(a, b1)  h = Relu(b)
            c = MatMul(h, w2)  d = Add(c, b1)  s = Add(x, d)  y = Relu(s)
        }""",
        w1=(8, 8),
        w2=(8, 8),
        b1=(8,),
    )
    assert found == {"a": ("b", (0.0, np.inf)), "c": ("s", (0.0, np.inf))}


def test_of_two_layers_in_one_sum_the_deeper_takes_it() -> None:
    found = judged(
        """(float[N, 4, 6, 6] x) => (float y) {
            p = Conv(x, w1)  a = Conv(x, w1)  h = Relu(a)  b = Conv(h, w2)  s = Add(b, p)
            y = Clip(s, lo, hi)
        }""",
        w1=(4, 4, 1, 1),
        w2=(4, 4, 1, 1),
        lo=np.float32(0),
        hi=np.float32(6),
    )
    assert found == {
        "p": ("p", (-np.inf, np.inf)),
        "a": ("a", (0.0, np.inf)),
        "b": ("s", (0.0, 6.0)),
    }


def test_what_others_see_is_judged_itself() -> None:
    found = judged(
        """(float[N, 8] x) => (float y, float a) {
            a = MatMul(x, w)  y = Relu(a)
        }""",
        w=(8, 8),
    )
    assert found == {"a": ("a", (-np.inf, np.inf))}


def test_a_broadcast_sum_is_not_residual() -> None:
    found = judged(
        """(float[N, 8] x, float[N, 1] e) => (float y) { a = MatMul(x, w)  y = Add(a, e) }""", w=(8, 8)
    )
    assert found == {"a": ("a", (-np.inf, np.inf))}
