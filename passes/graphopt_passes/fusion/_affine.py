"""Arithmetic of folding `y = x * scale + shift` into the weights of a linear operator. Pure numpy.

Everything is computed in float64 and rounded once to the weight's own dtype, so that folding several
operators one after another loses no more than a rounding each. Scales and shifts are float64 vectors
with one element per channel, or scalars (shape `()`).

Weight layouts: Conv `(M, C/g, *kernel)`, ConvTranspose `(C, M/g, *kernel)`, with `C` input channels, `M`
output channels and `g` groups.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from graphopt.passkit import Array, RefusedRewrite

# A shift this many times larger than what it centres, applied after the product instead of before it,
# cancels away more digits than float reordering ever does.
MAX_OFFSET = 32.0


def wide(values: Array | np.generic | float) -> Array:
    """`values` as float64; exact for every ONNX float type."""
    return np.asarray(values).astype(np.float64)


def is_identity(scale: Array) -> bool:
    """Whether multiplying by `scale` changes nothing."""
    return bool((scale == 1.0).all())


def check_offset(shift: Array, spread: Array | float = 1.0) -> None:
    """Decline to move a large shift from before a product to behind it, where it would cancel.

    Args:
        shift: what is added to the input.
        spread: how far the input is thought to spread around `-shift`.

    Raises:
        RefusedRewrite: the shift exceeds the spread by far.
    """
    with np.errstate(all="ignore"):
        ratio = np.abs(shift) / np.abs(spread)
    if not (ratio <= MAX_OFFSET).all():
        raise RefusedRewrite("the shift is so large that it would cancel digits behind the product")


def batch_norm_affine(
    gamma: Array, beta: Array, mean: Array, var: Array, epsilon: float
) -> tuple[Array, Array]:
    """The `(scale, shift)` of an inference BatchNormalization, float64 `(C,)` each.

    Raises:
        RefusedRewrite: the statistics do not give finite numbers (var + epsilon <= 0, inf, NaN).
    """
    with np.errstate(all="ignore"):
        scale = wide(gamma) / np.sqrt(wide(var) + float(np.float32(epsilon)))
        shift = wide(beta) - wide(mean) * scale
    if not (np.isfinite(scale).all() and np.isfinite(shift).all()):
        raise RefusedRewrite("the statistics of BatchNormalization give numbers that are not finite")
    return scale, shift


def rounded(exact: Array, dtype: np.dtype[np.generic], what: str) -> Array:
    """`exact` in `dtype`.

    Raises:
        RefusedRewrite: it holds numbers that are not finite in `dtype`, or float16 is too coarse for it.
    """
    with np.errstate(all="ignore"):
        values = exact.astype(dtype)
    check_folded(exact, values, what)
    return values


def check_folded(exact: Array, values: Array, what: str) -> None:
    """Decline values that a dtype cannot hold.

    Args:
        exact: the values before rounding (any wider float type).
        values: the values as they will be stored.
        what: what they are, for the reason.

    Raises:
        RefusedRewrite: overflow, or so many float16 subnormals that precision is lost.
    """
    if not np.isfinite(values).all():
        raise RefusedRewrite(f"the folded {what} is not finite in {values.dtype}")
    if values.dtype == np.float16:
        error = np.linalg.norm(np.ravel(values.astype(np.float32) - exact))
        if error > 2.0**-10 * np.linalg.norm(np.ravel(exact)):
            raise RefusedRewrite(f"the folded {what} is too small for float16")


def scaled(weight: Array, factor: Array, what: str = "weight") -> Array:
    """`weight * factor`, rounded once to the weight's dtype.

    Args:
        weight: any float dtype.
        factor: float64, broadcastable to the weight's shape.
        what: what is scaled, for the reason of a refusal.

    Raises:
        RefusedRewrite: the result does not fit the dtype.
    """
    if weight.dtype.itemsize < 4:  # half precision has no mixed loops in numpy, and is small
        with np.errstate(all="ignore"):
            exact = weight.astype(np.float32).astype(np.float64) * factor
        return rounded(exact, weight.dtype, what)
    result = np.empty(weight.shape, weight.dtype)
    with np.errstate(all="ignore"):
        # The float64 loop casts through numpy's small buffers: no widened copy of the weight.
        np.multiply(weight, factor, out=result, dtype=np.float64, casting="unsafe")
    check_folded(result, result, what)
    return result


def per_output_channel(scale: Array, weight_shape: Sequence[int], groups: int, transposed: bool) -> Array:
    """`scale` (`()` or `(M,)`) arranged to multiply a Conv or ConvTranspose weight."""
    if scale.ndim == 0:
        return scale
    kernel = (1,) * (len(weight_shape) - 2)
    if not transposed:
        return scale.reshape(-1, 1, *kernel)
    by_group = scale.reshape(groups, -1)
    return np.repeat(by_group, weight_shape[0] // groups, axis=0).reshape(weight_shape[0], -1, *kernel)


def per_input_channel(scale: Array, weight_shape: Sequence[int], groups: int, transposed: bool) -> Array:
    """`scale` (`()` or `(C,)`) arranged to multiply a Conv or ConvTranspose weight."""
    if scale.ndim == 0:
        return scale
    kernel = (1,) * (len(weight_shape) - 2)
    if transposed:
        return scale.reshape(-1, 1, *kernel)
    by_group = scale.reshape(groups, -1)
    return np.repeat(by_group, weight_shape[0] // groups, axis=0).reshape(weight_shape[0], -1, *kernel)


def conv_of_shift(weight: Array, shift: Array, groups: int) -> Array:
    """What a Conv without padding makes of an input that is `shift` everywhere: `(M,)` in float64.

    Args:
        weight: `(M, C/g, *kernel)`.
        shift: `()` or `(C,)`.
        groups: number of groups.
    """
    taps = wide(weight).reshape(*weight.shape[:2], -1).sum(axis=2)
    factor = per_input_channel(shift, taps.shape, groups, transposed=False)
    product: Array = (taps * factor).sum(axis=1)
    return product


def channel_vector(values: Array, rank: int, axis: int, channels: int) -> Array | None:
    """A broadcast operand as one number per channel.

    Args:
        values: the constant operand of an elementwise operator.
        rank: rank of the other operand.
        axis: the channel axis of the other operand, not negative.
        channels: size of that axis.

    Returns:
        float64 of shape `()` (the same for all channels) or `(channels,)`; None when the operand varies
        along another axis, or would enlarge the other operand by broadcasting.
    """
    if values.ndim > rank:
        return None
    if values.size == 1:
        return wide(values).reshape(())
    aligned = (1,) * (rank - values.ndim) + values.shape
    if any(size != 1 for at, size in enumerate(aligned) if at != axis) or aligned[axis] != channels:
        return None
    return wide(values).reshape(channels)


def affine_of(op: str, operand: Array) -> tuple[Array, Array]:
    """The `(scale, shift)` of `x op operand`, for op Add, Sub, Mul or Div; shapes as `operand`'s.

    Raises:
        RefusedRewrite: division by zero, or an operand that is not finite.
    """
    if not np.isfinite(operand).all():
        raise RefusedRewrite(f"the constant of {op} is not finite")
    one, zero = np.ones(()), np.zeros(())
    if op == "Add":
        return one, operand
    if op == "Sub":
        return one, -operand
    if op == "Mul":
        return operand, zero
    if (operand == 0).any():
        raise RefusedRewrite("Div divides by zero")
    return 1.0 / operand, zero
