"""convert-fp16: computing, or only storing weights, in float16."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from graphopt_passes.quantization._half import ConvertHalf
from graphopt_passes.quantization._precision import FLOAT16, HalfFormat


@dataclass(frozen=True)
class ConvertFp16(ConvertHalf):
    """y = float32(f(float16(x), float16(w))): regions compute in float16, with casts at their borders.

    Inputs and outputs of the model and of control-flow bodies keep their type. What stays in float32 is
    found by measuring: with data, every tensor that a node would read or compute in float16 is observed, and
    nodes whose values come near 65504, or are so small that float16 loses them, stay; then groups of nodes
    are rounded on trial and the outputs compared, and those that move them further than `max_error` stay.
    Mask fills beyond the range (-1e9, -3.4e38) that only reach a Softmax are raised to what fits.

    `storage=weights` halves the file and leaves the arithmetic alone: large initializers are stored as
    float16 and cast before use. On CPUs that is all there is to gain: onnxruntime computes in float32 there.

    Refuses, per node, when: a constant or an epsilon overflows or vanishes in float16; it counts (floats
    made from integers, as positions are); it is in a local function; it works on coordinates; nothing near
    it multiplies matrices; ONNX or the target has no such operator for float16.
    """

    name: ClassVar[str] = "convert-fp16"
    format: ClassVar[HalfFormat] = FLOAT16

    def least_opset(self) -> int:
        """The first opset whose Cast knows the format."""
        return 6
