"""When onnxruntime's CPU provider runs an operator as an integer kernel, operator by operator."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import onnx

from graphopt.quantization.kernels_conditions import (
    BITS_8,
    BITS_16,
    PAIR,
    Site,
    Stays,
    Verdict,
    all_slots,
    look,
    need_8bit,
    need_bias_scale,
    need_equal,
    need_inputs,
    need_int32_bias,
    need_output,
    need_rank0,
    need_unsigned,
)
from graphopt.quantization.kernels_pairs import same_grid, scalar_pair
from graphopt.quantization.kernels_shadow import Op, Q, Shadow

_T: Final = onnx.TensorProto


def judge(shadow: Shadow, op: Op) -> Verdict:
    """Which integer kernel `op` becomes, or why none."""
    rule = RULES.get(op.op) if shadow.is_op(op, op.op) else None
    if rule is None:
        return Verdict(None)
    try:
        return rule(look(shadow, op))
    except Stays as stays:
        reason, fix = stays.args
        return Verdict(None, reason, fix)


def _done(site: Site, kernel: str) -> Verdict:
    return Verdict(kernel, absorbed=() if site.clip is None else (site.clip,))


# -- operators ------------------------------------------------------------------------------------------


def _conv(site: Site) -> Verdict:
    need_inputs(site, (0, 1))
    need_output(site)
    if site.op.input(2) is not None and site.inputs[2] is None:
        raise Stays(
            f"its bias {site.name(2)} is computed, or its weight's scales do not run along axis 0",
            "make the bias a constant, or quantize it to int32",
        )
    need_8bit(site, (0, 1))
    need_equal(site, [site.types[0], site.output_type])
    need_unsigned(site)
    need_int32_bias(site)
    need_bias_scale(site)
    return _done(site, "QLinearConv")


def _gemm(site: Site) -> Verdict:
    blocks = _weight_only(site)
    if blocks is not None:
        return blocks
    need_inputs(site, (0, 1))
    need_output(site, optional=True)
    if site.op.input(2) is not None and site.inputs[2] is None:
        if not site.quantizers:
            raise Stays(
                "its bias is float and its output is not quantized",
                f"quantize the bias to int32, or put {PAIR} after it",
            )
        raise Stays(
            f"its bias {site.name(2)} is computed, has more than one row, or the weight's scales do not "
            "run along "
            "the output",
            "make the bias a constant of one row, or quantize it to int32",
        )
    need_8bit(site, (0, 1))
    for slot in (0, 1):
        dq = site.inputs[slot]
        if dq is not None and dq.input(2) is None:
            raise Stays(
                f"the zero point of {site.name(slot)} is left out",
                "write the zero point down, also where it is 0",
            )
    if site.quantizers:
        need_equal(site, [site.types[0], site.output_type])
    if site.types[0] == _T.INT8 and site.types[1] != _T.INT8:
        need_unsigned(site)
    for name in ("alpha", "beta"):
        if site.op.input(2) is not None and float(site.op.attrs.get(name, 1.0)) != 1.0:
            raise Stays(f"it has a bias and {name} is not 1", f"multiply {name} into the weight or the bias")
    need_int32_bias(site)
    return _done(site, "QGemm")


def _matmul(site: Site) -> Verdict:
    blocks = _weight_only(site)
    if blocks is not None:
        return blocks
    need_inputs(site, (0, 1))
    need_8bit(site, (0, 1))
    need_unsigned(site)
    need_output(site, optional=True)
    if not site.quantizers:
        return _done(site, "MatMulIntegerToFloat")
    need_equal(site, [site.types[0], site.output_type])
    return _done(site, "QLinearMatMul")


def _weight_only(site: Site) -> Verdict | None:
    """DQ of a constant matrix -> MatMul or Gemm with a float input: MatMulNBits."""
    shadow, op = site.shadow, site.op
    dq = site.inputs[1] if len(site.inputs) > 1 else None
    data = site.inputs[0]
    wide = data is not None and shadow.quantized_type(data) in BITS_16
    if dq is None or not (data is None or wide):
        return None
    weight, scale = shadow.literal(dq.input(0)), shadow.literal(dq.input(1))
    zero = shadow.literal(dq.input(2))
    if weight is None or scale is None or (dq.input(2) is not None and zero is None):
        return None
    if site.quantizers and site.output_type in BITS_16:
        # 16-bit activations are computed in float, hence a Q behind it is no hindrance, but a mixture is.
        last = site.clip or op
        mixed = any(not shadow.is_op(reader, Q) for reader, _ in shadow.edges(last.result))
        if mixed or last.result in shadow.returned:
            need_output(site)
    elif site.blocked:
        need_output(site)
    elif site.quantizers:
        raise Stays(
            f"its input {site.name(0)} is not quantized, while its output is",
            f"put {PAIR} on {site.name(0)} too, or none after it",
        )
    narrow = {_T.UINT4, _T.INT4, getattr(_T, "UINT2", -1), getattr(_T, "INT2", -1), *BITS_8}
    if len(weight.shape) != 2 or weight.dtype not in narrow:
        return None
    if any(shadow.is_shared(key) for key in dq.inputs[1:3]):
        raise Stays(
            "another operator reads the same scale or zero point as its weight, which onnxruntime does "
            "not rewrite",
            "give the weight a scale and a zero point of its own",
        )
    block = int(dq.attrs.get("block_size", 0))
    n = weight.shape[1]
    if block:
        if int(dq.attrs.get("axis", 1)) != 0:
            raise Stays(
                "the blocks of its weight run along the output", "let the blocks run along axis 0 (inputs)"
            )
        if block < 16 or block & (block - 1):
            raise Stays(
                f"the blocks of its weight have {block} elements", "use blocks of 16, 32, 64, 128 or 256"
            )
    elif scale.shape not in ((), (n,)) or (scale.shape == (n,) and int(dq.attrs.get("axis", 1)) != 1):
        raise Stays(
            "the scales of its weight do not run along the output", "use a scale per column, or blocks"
        )
    if op.op == "Gemm":
        flags = [float(op.attrs.get("alpha", 1.0)) != 1.0, op.attrs.get("transA"), op.attrs.get("transB")]
        bias = shadow.shape(op.input(2))
        scaled = op.input(2) is not None and float(op.attrs.get("beta", 1.0)) != 1.0
        if any(flags) or scaled or (op.input(2) is not None and bias != (n,)):
            raise Stays(
                "its input is not in 8 bits, and it scales or transposes, or its bias is not one row",
                "write it as MatMul and Add",
            )
    return _done(site, "MatMulNBits")


def _elementwise(kernel: str, *, rank0: bool = True) -> Callable[[Site], Verdict]:
    def rule(site: Site) -> Verdict:
        slots = all_slots(site)
        need_inputs(site, slots)
        need_output(site)
        if rank0:
            need_rank0(site)
        for slot in slots:
            need_8bit(site, (slot,))
        need_equal(site, [*site.types, site.output_type])
        return _done(site, kernel)

    return rule


def _unary(kernel: str) -> Callable[[Site], Verdict]:
    def rule(site: Site) -> Verdict:
        need_inputs(site, (0,))
        need_output(site)
        need_8bit(site, (0,))
        need_equal(site, [site.types[0], site.output_type])
        return _done(site, kernel)

    return rule


def _where(site: Site) -> Verdict:
    need_inputs(site, (1, 2))
    need_output(site)
    need_8bit(site, (1, 2))
    need_equal(site, [*site.types, site.output_type])
    return _done(site, "QLinearWhere")


def _move(*, wide: bool = True, versions: tuple[int, ...] = ()) -> Callable[[Site], Verdict]:
    """Operators that only move data: the pair in front and the one behind fall away if they are equal."""

    def rule(site: Site) -> Verdict:
        if versions and site.shadow.version(site.op) not in versions:
            raise Stays(
                f"{site.op.op} of this opset is not known to onnxruntime as one that can run on integers",
                "use an older opset",
            )
        if site.clip is not None:
            raise Stays(
                f"a {site.clip.op} stands between it and the QuantizeLinear",
                f"put {PAIR} before the {site.clip.op}",
            )
        need_inputs(site, (0,))
        need_output(site)
        if not wide:
            need_8bit(site, (0,))
        dq = site.inputs[0]
        assert dq is not None
        for quantizer in site.quantizers:
            need_equal(site, [site.types[0], site.shadow.quantized_type(quantizer)])
            if not same_grid(site.shadow, quantizer, dq):
                raise Stays(
                    "its input and its output have different scales or zero points, or leave them implicit",
                    "give both sides the same scale and zero point",
                )
        return Verdict(site.op.op)

    return rule


def _arg_max(site: Site) -> Verdict:
    need_inputs(site, (0,))
    dq = site.inputs[0]
    assert dq is not None
    need_8bit(site, (0,))
    if dq.input(2) is None or not scalar_pair(site.shadow, dq):
        raise Stays("its input has no constant zero point", "write the zero point down")
    return Verdict("ArgMax")


#: Standard operators that have an integer kernel on onnxruntime's CPU provider.
RULES: Final[dict[str, Callable[[Site], Verdict]]] = {
    "Add": _elementwise("QLinearAdd"),
    "ArgMax": _arg_max,
    "AveragePool": _unary("QLinearAveragePool"),
    "Concat": _elementwise("QLinearConcat", rank0=False),
    "Conv": _conv,
    "Expand": _move(),
    "Flatten": _move(),
    "Gather": _move(),
    "GatherElements": _move(),
    "Gemm": _gemm,
    "GlobalAveragePool": _unary("QLinearGlobalAveragePool"),
    "LeakyRelu": _unary("QLinearLeakyRelu"),
    "MatMul": _matmul,
    "MaxPool": _move(wide=False, versions=(12, 22)),
    "Mul": _elementwise("QLinearMul"),
    "ReduceMax": _move(wide=False),
    "ReduceMin": _move(wide=False),
    "Reshape": _move(),
    "Resize": _move(wide=False),
    "Sigmoid": _unary("QLinearSigmoid"),
    "Slice": _move(),
    "Softmax": _unary("QLinearSoftmax"),
    "Split": _move(),
    "Squeeze": _move(),
    "Tile": _move(),
    "Transpose": _move(),
    "Unsqueeze": _move(),
    "Where": _where,
}
#: Those of them that only move data.
MOVES: Final = frozenset(
    "ArgMax Expand Flatten Gather GatherElements MaxPool ReduceMax ReduceMin Reshape Resize Slice Split "
    "Squeeze "
    "Tile Transpose Unsqueeze".split()
)
