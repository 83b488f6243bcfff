"""An operator with its Q and DQ, and the conditions that integer kernels share: part of kernels_rules."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import onnx

from graphopt.quantization.grid import quant_type
from graphopt.quantization.kernels_pairs import is_implied
from graphopt.quantization.kernels_shadow import DQ, Made, Op, Q, Shadow

_T: Final = onnx.TensorProto
BITS_8: Final = (_T.UINT8, _T.INT8)
BITS_16: Final = (_T.UINT16, _T.INT16)
# onnxruntime compares a bias's scale with what it should be, to one per cent.
_BIAS_TOLERANCE: Final = 0.0105

PAIR: Final = "a QuantizeLinear/DequantizeLinear pair"


@dataclass(frozen=True)
class Verdict:
    """What becomes of an operator.

    Attributes:
        kernel: the integer kernel; None when it stays float.
        reason, fix: why it stays float, and what to do.
        absorbed: operators behind it that become part of the kernel.
    """

    kernel: str | None
    reason: str = ""
    fix: str = ""
    absorbed: tuple[Op, ...] = ()


class Stays(Exception):
    """The operator stays float: reason, fix."""


@dataclass(frozen=True)
class Site:
    """An operator with what stands around it.

    Attributes:
        inputs: per input the DQ that computes it.
        clip: a Relu or Clip behind it that the Q behind that implies.
        quantizers: the Qs behind it (or behind `clip`).
        blocked: a Relu or Clip behind it that must be computed, and the Q behind that.
    """

    shadow: Shadow
    op: Op
    inputs: tuple[Op | None, ...]
    clip: Op | None
    quantizers: tuple[Op, ...]
    blocked: tuple[Op, ...] = ()

    @property
    def types(self) -> list[int | None]:
        """Integer types of the dequantized inputs, in order."""
        return [self.shadow.quantized_type(dq) for dq in self.inputs if dq is not None]

    @property
    def output_type(self) -> int | None:
        """Integer type of the quantized output."""
        return self.shadow.quantized_type(self.quantizers[0])

    def name(self, slot: int) -> str:
        """The name of an input."""
        return self.shadow.name(self.op.input(slot))


def look(shadow: Shadow, op: Op) -> Site:
    """Find the Q and DQ around an operator."""
    inputs = tuple(shadow.source(key, DQ) for key in op.inputs)
    edges = [edge for key in op.outputs for edge in shadow.edges(key)]
    clip = None
    if len(edges) == 1:
        reader = edges[0][0]
        after = [edge for key in reader.outputs for edge in shadow.edges(key)]
        if reader.op in ("Relu", "Clip") and len(after) == 1 and reader.result not in shadow.returned:
            clip = reader
            edges = after
    quantizers = _quantizers(shadow, edges)
    if clip is not None and not (quantizers and is_implied(shadow, clip, quantizers[0])):
        return Site(shadow, op, inputs, None, (), (clip, *quantizers))
    return Site(shadow, op, inputs, clip, quantizers)


def _quantizers(shadow: Shadow, edges: list[tuple[Op, int]]) -> tuple[Op, ...]:
    return tuple(dict.fromkeys(o for o, slot in edges if slot == 0 and shadow.is_op(o, Q)))


def _unquantized_inputs(shadow: Shadow, op: Op) -> Stays:
    names = [shadow.name(key) for key in op.inputs if key is not None and shadow.source(key, DQ) is None]
    names = [name for name in names if name][:3]
    return Stays(
        f"not quantized: {', '.join(names) or 'its inputs'}",
        f"put {PAIR} on its inputs and on its output",
    )


# -- conditions -----------------------------------------------------------------------------------------


def need_inputs(site: Site, slots: tuple[int, ...]) -> None:
    """Raise unless a DQ computes each of these inputs."""
    missing = [site.name(slot) for slot in slots if slot >= len(site.inputs) or site.inputs[slot] is None]
    if len(missing) == len(slots):
        raise _unquantized_inputs(site.shadow, site.op)
    if missing:
        which = "is" if len(missing) == 1 else "are"
        raise Stays(
            f"its input {', '.join(missing)} {which} not quantized", f"put {PAIR} on {', '.join(missing)}"
        )


def all_slots(site: Site) -> tuple[int, ...]:
    """Slots of the inputs that are there."""
    return tuple(slot for slot, key in enumerate(site.op.inputs) if key is not None)


def need_output(site: Site, *, optional: bool = False) -> None:
    """Every output is quantized, and read by that one Q only."""
    shadow, last = site.shadow, site.clip or site.op
    if not site.quantizers:
        if optional and not site.blocked:
            return
        if not site.blocked:
            raise Stays("its output is not quantized", f"put {PAIR} after it")
        clip = site.blocked[0]
        after = shadow.name(clip.result)
        if len(site.blocked) == 1:
            raise Stays(f"the {clip.op} behind it is not quantized", f"put {PAIR} after the {clip.op}")
        if clip.op == "Relu":
            raise Stays(
                "the Relu behind it cannot be part of the kernel: its quantized range goes below 0",
                f"let the range of {after} start at 0, so that its zero point is the least integer",
            )
        raise Stays(
            "the Clip behind it cannot be part of the kernel: its quantized range goes beyond the bounds",
            f"let the range of {after} be within the Clip's bounds",
        )
    outputs = [key for key in last.outputs if key is not None]
    edges = [edge for key in outputs for edge in shadow.edges(key)]
    if len(site.quantizers) != len(outputs) or len(edges) != len(outputs):
        others = [o.label for o, _ in edges if o not in site.quantizers][:2]
        if others:
            raise Stays(
                f"its float output is also read by {', '.join(others)}",
                f"let {', '.join(others)} read the dequantized output",
            )
        raise Stays("its output is quantized in two ways", "use one QuantizeLinear for all readers")
    if any(key in shadow.returned for key in outputs):
        raise Stays(
            "its float output is also an output of the model", "return the dequantized tensor in its place"
        )


def _type_name(onnx_type: int | None) -> str:
    found = quant_type(onnx_type)
    return found.name if found is not None else "of an unknown type"


def need_8bit(site: Site, slots: tuple[int, ...]) -> None:
    """Raise unless each of these inputs is dequantized from 8 bits."""
    for slot in slots:
        dq = site.inputs[slot]
        dtype = site.shadow.quantized_type(dq) if dq is not None else None
        if dtype in BITS_16:
            raise Stays(
                f"{site.name(slot)} is {_type_name(dtype)}, and there are no 16-bit kernels",
                "quantize it to 8 bits",
            )
        if dtype not in BITS_8:
            raise Stays(
                f"{site.name(slot)} is {_type_name(dtype)}, for which there is no kernel of {site.op.op}",
                "quantize it to 8 bits",
            )


def need_equal(site: Site, types: list[int | None]) -> None:
    """Raise unless these integer types are one."""
    if len(set(types)) > 1:
        # Only int8 pairs that branch are left as int8 beside uint8 ones.
        if set(types) == set(BITS_8):
            raise Stays(
                "its inputs and its output are not of one type: an int8 tensor that is dequantized more "
                "than once "
                "stays int8, the others become uint8",
                "quantize activations to uint8",
            )
        names = sorted({_type_name(t) for t in types})
        raise Stays(f"its inputs and its output differ in type: {', '.join(names)}", "use one type for all")


def need_unsigned(site: Site) -> None:
    """int8 activations: there is no kernel unless their pair could become uint8."""
    if site.types[0] != _T.INT8:
        return
    raise Stays(
        f"{site.name(0)} is int8, and its QuantizeLinear is read more than once or has no explicit zero "
        "point, "
        "so onnxruntime cannot turn it into uint8",
        "quantize activations to uint8",
    )


def need_bias_scale(site: Site) -> None:
    """The integer kernel adds the bias as it is stored, so its scale must be the product's."""
    if len(site.inputs) < 3 or site.inputs[2] is None:
        return
    if isinstance(site.inputs[2].input(0), Made):
        # The bias is quantized by onnxruntime, which gets the shape of its scale wrong in one case.
        ranks = [len(site.shadow.shape(dq.input(1)) or ()) for dq in site.inputs[:2] if dq is not None]
        if ranks == [1, 0]:
            raise Stays(
                f"its bias is float, and the scale of {site.name(0)} has rank 1 while its weight's has "
                "rank 0",
                "write scales as scalars of rank 0, or quantize the bias",
            )
        return
    scales = []
    for dq in site.inputs[:3]:
        found = site.shadow.literal(dq.input(1)) if dq is not None else None
        if found is None or found.values is None:
            return
        scales.append(found.values.astype(float).reshape(-1))
    zero = site.shadow.literal(site.inputs[2].input(2))
    if zero is not None and zero.values is not None and zero.values.any():
        raise Stays(
            f"its bias {site.name(2)} has a zero point other than 0", "quantize the bias symmetrically"
        )
    x, w, bias = scales
    if not np.all(np.abs(bias - x * w) <= _BIAS_TOLERANCE * np.abs(x * w)):
        raise Stays(
            f"the scale of its bias {site.name(2)} is not the product of its input's and its weight's scales",
            "quantize the bias with that product as its scale, or leave it float",
        )


def need_int32_bias(site: Site) -> None:
    """Raise if the bias is dequantized from another type than int32."""
    if len(site.types) > 2 and site.types[2] != _T.INT32:
        raise Stays(
            f"its bias is {_type_name(site.types[2])}", "quantize the bias to int32, or leave it float"
        )


def need_rank0(site: Site) -> None:
    """Raise unless scales and zero points on all sides are constants of rank 0."""
    for op in (*site.inputs, *site.quantizers):
        for key in op.inputs[1:3] if op is not None else ():
            found = site.shadow.literal(key)
            if key is not None and (found is None or found.shape != ()):
                raise Stays(
                    f"{site.shadow.name(key)} is not a constant of rank 0",
                    "write scales and zero points as scalars",
                )
