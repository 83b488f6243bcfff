"""Half-precision formats, and what storing a tensor in one of them does to its values."""

from __future__ import annotations

import math
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import onnx

from graphopt.passkit import Array

FLOAT: Final = int(onnx.TensorProto.FLOAT)
# Of larger tensors, about as many elements are rounded to see what that does.
_SAMPLED: Final = 1 << 14


@dataclass(frozen=True)
class HalfFormat:
    """A 16-bit floating-point format.

    Attributes:
        name: as in ONNX's type strings: tensor(float16).
        onnx_type: the TensorProto.DataType.
        largest: the largest finite value.
        smallest: the smallest positive value, a subnormal one.
        floor_db: signal-to-noise ratio of a tensor below which more than ordinary rounding happens to it
            (ordinary: 74 dB for float16, 56 dB for bfloat16).
        max_error: error of the outputs, relative to their RMS, that is taken for granted.
    """

    name: str
    onnx_type: int
    largest: float
    smallest: float
    floor_db: float
    max_error: float

    @property
    def dtype(self) -> np.dtype[Any]:
        """The numpy dtype (ml_dtypes' where numpy has none)."""
        return np.dtype(onnx.helper.tensor_dtype_to_np_dtype(self.onnx_type))

    def store(self, values: Array) -> Array:
        """`values`, float32, rounded to this format."""
        with np.errstate(over="ignore"):
            return values.astype(self.dtype)

    def round(self, values: Array) -> Array:
        """`values` rounded to this format, as float32."""
        return self.store(values).astype(np.float32)


FLOAT16: Final = HalfFormat("float16", int(onnx.TensorProto.FLOAT16), 65504.0, 2.0**-24, 50.0, 0.01)
BFLOAT16: Final = HalfFormat(
    "bfloat16", int(onnx.TensorProto.BFLOAT16), float(2.0**127 * (2 - 2.0**-7)), 2.0**-133, 44.0, 0.05
)


@dataclass
class Rounding:
    """What storing a tensor in half precision does to it; a statistic that streams and merges.

    Attributes:
        format: the format.
        low, high: the least and the largest finite value.
        signal, noise: sums of squares of the finite values that fit, and of what rounding does to them.
    """

    format: HalfFormat
    low: float = 0.0
    high: float = 0.0
    signal: float = 0.0
    noise: float = field(default=0.0)

    @property
    def key(self) -> Hashable:
        """Equal for statistics of the same kind."""
        return ("rounding", self.format.name)

    def update(self, *values: Array) -> None:
        """Take in one batch of one tensor, of any shape and of a floating-point dtype."""
        flat = np.asarray(values[0], np.float32).reshape(-1)
        if not flat.size:
            return
        low, high = float(flat.min()), float(flat.max())
        if not (math.isfinite(low) and math.isfinite(high)):
            flat = flat[np.isfinite(flat)]
            if not flat.size:
                return
            low, high = float(flat.min()), float(flat.max())
        self.low, self.high = min(self.low, low), max(self.high, high)
        # The extremes count one by one; of the rounding, a sample tells enough. Its step is odd, so as not
        # to fall in with the dims, which are even.
        some = flat[:: (flat.size // _SAMPLED) | 1]
        fits = some[np.abs(some) <= self.format.largest]
        error = (fits - self.format.round(fits)).astype(np.float64)
        fits = fits.astype(np.float64)
        self.signal += float(np.dot(fits, fits))
        self.noise += float(np.dot(error, error))

    def merge(self, other: Rounding) -> None:
        """Take in what `other` has seen."""
        self.low, self.high = min(self.low, other.low), max(self.high, other.high)
        self.signal += other.signal
        self.noise += other.noise

    def fresh(self) -> Rounding:
        """An empty one."""
        return Rounding(self.format)

    @property
    def sqnr_db(self) -> float:
        """Signal-to-noise ratio of the values that fit; infinite where rounding changes nothing."""
        return math.inf if self.noise == 0.0 else 10 * math.log10(self.signal / self.noise)

    def trouble(self, headroom: float = 1.0, *, low_is_fine: bool = False) -> str:
        """Why these values cannot be stored in the format, "" if they can.

        Args:
            headroom: how many times larger than seen they may become.
            low_is_fine: very negative values have been taken care of.
        """
        limit = self.format.largest / headroom
        if self.high > limit:
            return f"values up to {self.high:.3g} overflow {self.format.name}"
        if -self.low > limit and not low_is_fine:
            return f"values down to {self.low:.3g} overflow {self.format.name}"
        if self.sqnr_db < self.format.floor_db:
            return f"values are so small that {self.format.name} keeps only {self.sqnr_db:.0f} dB of them"
        return ""

    @property
    def overflows(self) -> bool:
        """There are finite values that the format does not reach."""
        return max(self.high, -self.low) > self.format.largest

    @property
    def too_low(self) -> bool:
        """There are values below the most negative finite one of the format, but none above the largest."""
        return -self.low > self.format.largest and self.high <= self.format.largest


def rounding_of(values: Array, form: HalfFormat) -> Rounding:
    """What storing a constant in half precision does to it."""
    found = Rounding(form)
    found.update(values)
    return found
