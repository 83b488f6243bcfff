from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from graphopt.passkit import RefusedRewrite
from graphopt_passes.fusion import _affine as affine

rng = np.random.default_rng(3)


def conv1d(x: np.ndarray, w: np.ndarray, groups: int) -> np.ndarray:
    """Conv over (C, L) without padding, by the definition."""
    out, depth, k = w.shape
    y = np.zeros((out, x.shape[1] - k + 1))
    for m in range(out):
        first = (m // (out // groups)) * depth
        for i in range(y.shape[1]):
            y[m, i] = (x[first : first + depth, i : i + k] * w[m]).sum()
    return y


def conv_transpose1d(x: np.ndarray, w: np.ndarray, groups: int) -> np.ndarray:
    """ConvTranspose over (C, L) with stride 1, by the definition."""
    channels, out_depth, k = w.shape
    y = np.zeros((out_depth * groups, x.shape[1] + k - 1))
    for c in range(channels):
        first = (c // (channels // groups)) * out_depth
        for i in range(x.shape[1]):
            y[first : first + out_depth, i : i + k] += x[c, i] * w[c]
    return y


def test_batch_norm_affine() -> None:
    gamma, beta, mean = rng.standard_normal((3, 4))
    var = rng.random(4) + 0.1
    scale, shift = affine.batch_norm_affine(gamma, beta, mean, var, 1e-3)
    x = rng.standard_normal((5, 4))
    want = (x - mean) / np.sqrt(var + np.float32(1e-3)) * gamma + beta
    np.testing.assert_allclose(x * scale + shift, want, rtol=1e-12)


@pytest.mark.parametrize("var", [-1.0, np.nan, np.inf])
def test_batch_norm_affine_declines_bad_variance(var: float) -> None:
    one = np.ones(2)
    if np.isinf(var):  # a scale of zero is a fine number
        scale, _ = affine.batch_norm_affine(one, one, one, np.array([1.0, var]), 1e-5)
        assert scale[1] == 0
        return
    with pytest.raises(RefusedRewrite, match="not finite"):
        affine.batch_norm_affine(one, one, one, np.array([1.0, var]), 1e-5)


def test_batch_norm_affine_declines_zero_variance_without_epsilon() -> None:
    one = np.ones(1)
    with pytest.raises(RefusedRewrite, match="not finite"):
        affine.batch_norm_affine(one, one, one, np.zeros(1), 0.0)


@pytest.mark.parametrize("groups", [1, 2, 3])
@pytest.mark.parametrize("transposed", [False, True])
def test_channel_layouts(groups: int, transposed: bool) -> None:
    channels, out = 6, 12
    shape = (channels, out // groups, 3) if transposed else (out, channels // groups, 3)
    w, x = rng.standard_normal(shape), rng.standard_normal((channels, 7))
    s_in, s_out = rng.standard_normal(channels), rng.standard_normal(out)
    run = conv_transpose1d if transposed else conv1d
    w_out = w * affine.per_output_channel(s_out, shape, groups, transposed)
    np.testing.assert_allclose(run(x, w_out, groups), run(x, w, groups) * s_out[:, None], atol=1e-12)
    w_in = w * affine.per_input_channel(s_in, shape, groups, transposed)
    np.testing.assert_allclose(run(x, w_in, groups), run(x * s_in[:, None], w, groups), atol=1e-12)


@pytest.mark.parametrize("groups", [1, 2])
def test_conv_of_shift(groups: int) -> None:
    w, t = rng.standard_normal((4, 6 // groups, 3)), rng.standard_normal(6)
    want = conv1d(np.repeat(t[:, None], 3, axis=1), w, groups)[:, 0]
    np.testing.assert_allclose(affine.conv_of_shift(w, t, groups), want, atol=1e-12)
    flat = conv1d(np.full((6, 3), 2.0), w, groups)[:, 0]
    np.testing.assert_allclose(affine.conv_of_shift(w, np.array(2.0), groups), flat, atol=1e-12)


def test_channel_vector() -> None:
    v = affine.channel_vector
    ramp = np.arange(4.0, dtype=np.float32)
    np.testing.assert_array_equal(v(ramp.reshape(4, 1, 1), 4, 1, 4), ramp)
    np.testing.assert_array_equal(v(ramp.reshape(1, 4, 1, 1), 4, 1, 4), ramp)
    assert v(np.float32(3).reshape(()), 4, 1, 4).shape == ()
    assert v(np.float32(3).reshape(1, 1, 1), 4, 1, 4).shape == ()
    assert v(ramp, 4, 1, 4) is None, "a vector lies along the last axis, also when it has C elements"
    assert v(ramp.reshape(4, 1), 4, 1, 4) is None
    assert v(ramp.reshape(4, 1, 1, 1), 4, 1, 4) is None, "the batch axis"
    assert v(np.ones((2, 4, 1, 1)), 4, 1, 4) is None, "the batch axis as well"
    assert v(ramp.reshape(1, 1, 4, 1, 1), 4, 1, 4) is None, "a higher rank"
    assert v(ramp.reshape(4, 1, 1), 4, 1, 1) is None, "it would enlarge one channel to four"
    np.testing.assert_array_equal(v(ramp, 2, 1, 4), ramp)


def test_affine_of() -> None:
    x, c = rng.standard_normal(3), np.array([2.0, -4.0, 0.5])
    for op, want in {"Add": x + c, "Sub": x - c, "Mul": x * c, "Div": x / c}.items():
        scale, shift = affine.affine_of(op, c)
        np.testing.assert_allclose(x * scale + shift, want)
    with pytest.raises(RefusedRewrite, match="divides by zero"):
        affine.affine_of("Div", np.array([1.0, 0.0]))
    with pytest.raises(RefusedRewrite, match="not finite"):
        affine.affine_of("Add", np.array([-np.inf]))


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32, np.float64])
def test_scaled_rounds_once_and_leaves_the_weight_alone(dtype: type) -> None:
    w = rng.standard_normal((4, 3)).astype(dtype)
    before = w.copy()
    s = rng.standard_normal((4, 1))
    result = affine.scaled(w, s)
    assert result.dtype == w.dtype
    np.testing.assert_array_equal(result, (w.astype(np.float64) * s).astype(dtype))
    np.testing.assert_array_equal(w, before)


def test_scaled_declines_overflow_and_underflow() -> None:
    with pytest.raises(RefusedRewrite, match="not finite in float16"):
        affine.scaled(np.full(2, 1000, np.float16), np.array(1000.0))
    with pytest.raises(RefusedRewrite, match="too small for float16"):
        affine.scaled(rng.standard_normal(64).astype(np.float16), np.array(1e-6))
    with pytest.raises(RefusedRewrite, match="not finite in float32"):
        affine.scaled(np.ones(2, np.float32), np.array(1e39))
    assert not affine.scaled(np.ones(2, np.float16), np.array(0.0)).any()


def test_check_offset() -> None:
    affine.check_offset(np.array([1.0, -2.0]), np.array([0.5, 1.0]))
    with pytest.raises(RefusedRewrite, match="cancel"):
        affine.check_offset(np.array([100.0]))
    with pytest.raises(RefusedRewrite, match="cancel"):
        affine.check_offset(np.array([1.0]), np.array([0.0]))
