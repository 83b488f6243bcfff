"""convert-bf16: computing, or only storing weights, in bfloat16."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from graphopt_passes.quantization._half import ConvertHalf
from graphopt_passes.quantization._precision import BFLOAT16, HalfFormat


@dataclass(frozen=True)
class ConvertBf16(ConvertHalf):
    """y = float32(f(bfloat16(x), bfloat16(w))): as convert-fp16, in bfloat16.

    bfloat16 has the range of float32 and 8 bits of precision: nothing overflows, but every value is off by
    up to 0.4%. Which nodes make the outputs move further than `max_error` is measured if there is data.

    onnxruntime's CPU provider has no bfloat16 arithmetic (and no fallback as for float16), only operators
    that move elements. So for the targets `portable` and `ort-cpu` only tables read by Gather are stored and
    moved in it; `storage=weights` stores all large initializers in it and runs everywhere.

    Refuses, per node, as convert-fp16 does, and when the target has no kernel for bfloat16.
    """

    name: ClassVar[str] = "convert-bf16"
    format: ClassVar[HalfFormat] = BFLOAT16

    def least_opset(self) -> int:
        """The first opset whose Cast knows the format."""
        return 13
