"""Products of dynamically quantized matrices, as onnxruntime fuses them: part of kernels."""

from __future__ import annotations

from graphopt.quantization.kernels_conditions import Verdict
from graphopt.quantization.kernels_shadow import Op, Shadow

_QUANTIZE = "DynamicQuantizeLinear"


def fused_product(shadow: Shadow, op: Op) -> Verdict | None:
    """MatMulInteger -> Cast -> Mul by the product of both scales (-> Add of a row) is one kernel.

    It quantizes its input itself (DynamicQuantizeMatMul) where nobody else reads that, and the input is
    float; otherwise it is MatMulIntegerToFloat.
    """
    if not shadow.is_op(op, "MatMulInteger"):
        return None
    cast = shadow.sole_reader(op.result)
    scaled = shadow.sole_reader(cast.result) if cast is not None and cast.op == "Cast" else None
    if cast is None or scaled is None or not shadow.is_op(scaled, "Mul"):
        return None
    other = scaled.inputs[1 - scaled.inputs.index(cast.result)]
    scales = shadow.source(other, "Mul")
    if scales is None or shadow.sole_reader(scales.result) is not scaled:
        return None
    absorbed = [cast, scales, scaled]
    add = shadow.sole_reader(scaled.result)
    if add is not None and shadow.is_op(add, "Add"):
        bias = shadow.literal(add.inputs[1 - add.inputs.index(scaled.result)])
        if bias is not None and len(bias.shape) == 1:
            absorbed.append(add)
    quantizer = shadow.source(op.input(0), _QUANTIZE)
    own = quantizer is not None and all(
        all(reader in (op, scales) for reader, _ in shadow.edges(key)) for key in quantizer.outputs
    )
    return Verdict("DynamicQuantizeMatMul" if own else "MatMulIntegerToFloat", absorbed=tuple(absorbed))
