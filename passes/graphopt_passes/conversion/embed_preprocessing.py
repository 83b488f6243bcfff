"""embed-preprocessing: the normalization of an input becomes part of the model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, ClassVar, Literal

import numpy as np
import onnx

from graphopt.passkit import (
    Adapter,
    Array,
    GraphView,
    Numerics,
    Pass,
    PassContext,
    PortRewriter,
    Rewriter,
    UserError,
    with_type,
)
from graphopt_passes.conversion._layout import denoted, from_layout, to_layout
from graphopt_passes.conversion._ports import (
    FLOATS,
    TYPES,
    dims_of,
    elem_type_of,
    find,
    info_of,
    inputs_of,
    main_of,
    np_dtype,
    type_name,
)


def fraction(text: str, what: str) -> float:
    """`"1/255"` or `"0.5"` as a number that is not zero.

    Raises:
        ValueError: it is none.
    """
    try:
        value = float(Fraction(text))
    except (ValueError, ZeroDivisionError):
        raise ValueError(f"{what} is {text!r}, which is no number; as in 1/255") from None
    if value == 0:
        raise ValueError(f"{what} is 0")
    return value


@dataclass(frozen=True)
class EmbedPreprocessing(Pass):
    """f(x) becomes f'(r) = f((scale * r - mean) / std): the new input is raw, as the camera or file gives it.

    The input keeps its name; its element type becomes `dtype`. In the model stand a Cast, a Mul by
    scale / std and a Sub of mean / std, per channel where several values are given. `layout=nhwc` says that
    the raw input has its channels last where the model wants them at axis 1: a Transpose comes first. Passes
    behind it fold Mul and Sub into a first Conv where that does not pad (`fold-affine-conv`).

    The result is compared with the original on raw values: the original is fed what the formula, computed in
    double precision, makes of them. Data of the original is taken back to raw values, and rounded.

    Refuses (before any work) when: there is no such input, or it is named although there are several; it is
    not of a float type (integers are raw already); `mean` or `std` have neither one value nor one per
    channel; a rank is needed and not declared. Leaves alone, with a reason: an input that is an output as
    well, or has a default value.
    """

    name: ClassVar[str] = "embed-preprocessing"
    numerics: ClassVar[Numerics] = Numerics.CLOSE
    changes_interface: ClassVar[bool] = True

    input: str = field(default="", metadata={"help": "the input; may be left out where there is one only"})
    mean: tuple[float, ...] = field(default=(0.0,), metadata={"help": "subtracted after scaling"})
    std: tuple[float, ...] = field(default=(1.0,), metadata={"help": "divided by"})
    scale: str = field(default="1", metadata={"help": "the raw value is multiplied by it, as in 1/255"})
    dtype: Literal["uint8", "int8", "uint16", "float16", "float32"] = field(
        default="uint8", metadata={"help": "element type of the raw input"}
    )
    layout: Literal["same", "nhwc"] = field(
        default="same", metadata={"help": "of the raw input: as the model's, or channels last"}
    )
    channel_axis: int = field(default=1, metadata={"help": "where the model's own input has its channels"})

    def __post_init__(self) -> None:
        fraction(self.scale, "scale")
        if not self.mean or not self.std:
            raise ValueError("mean and std have at least one value")
        if not all(np.isfinite([*self.mean, *self.std])):
            raise ValueError("mean and std are finite")
        if any(value == 0 for value in self.std):
            raise ValueError("std has a zero, which cannot be divided by")
        if 1 not in (len(self.mean), len(self.std)) and len(self.mean) != len(self.std):
            raise ValueError(f"mean has {len(self.mean)} values, std has {len(self.std)}")
        if self.layout == "nhwc" and self.channel_axis != 1:
            raise ValueError("layout=nhwc is for models that have their channels at axis 1")

    def check(self, bodies: Sequence[GraphView], ctx: PassContext) -> None:
        """Refuse an input that is not there, or that cannot be normalized."""
        self._require(info_of(find(inputs_of(main_of(bodies)), self.input, "input")))

    @property
    def _channels(self) -> int:
        return max(len(self.mean), len(self.std))

    def _require(self, info: onnx.ValueInfoProto) -> None:
        elem_type, dims = elem_type_of(info), dims_of(info)
        if elem_type not in FLOATS:
            raise UserError(
                f"the input {info.name!r} is of type {type_name(elem_type)}: only floats are normalized"
            )
        if dims is None:
            if self._channels > 1 or self.layout != "same":
                raise UserError(
                    f"the rank of the input {info.name!r} is not declared: where are its channels?"
                )
            return
        rank = len(dims)
        if self.layout != "same" and rank not in (3, 4, 5):
            raise UserError(f"the input {info.name!r} is of rank {rank}: it has no channels to come last")
        if self._channels == 1:
            return
        if not -rank <= self.channel_axis < rank:
            raise UserError(f"the input {info.name!r} is of rank {rank}: it has no axis {self.channel_axis}")
        dim = dims[self.channel_axis]
        if dim.HasField("dim_value") and dim.dim_value != self._channels:
            raise UserError(
                f"axis {self.channel_axis} of the input {info.name!r} is {dim.dim_value}, "
                f"but {self._channels} values are given",
                fix="give one value, or one per channel; channel_axis says where the channels are",
            )

    def run(self, graph: Rewriter, ctx: PassContext) -> None:
        """Insert the normalization."""
        if not graph.is_main:
            return
        tensor = find(PortRewriter(graph).inputs, self.input, "input")
        info = PortRewriter(graph).declared("input", tensor)
        self._require(info)
        dims = dims_of(info)
        rank = None if dims is None else len(dims)
        elem_type = elem_type_of(info)
        raw_dims = dims
        ops: list[tuple[str, list[Any], dict[str, Any]]] = []
        if self.layout == "nhwc" and dims is not None:
            perm = to_layout("nhwc", len(dims))
            raw_dims = denoted([dims[axis] for axis in perm], "nhwc")
            ops.append(("Transpose", [], {"perm": from_layout("nhwc", len(dims))}))
        ops += self._arithmetic(graph, tensor.name, elem_type, rank)
        if not ops:
            PortRewriter(graph).refuse("input", tensor.name, "there is nothing to do: it is raw already")
            return
        after = with_type(info, TYPES[self.dtype], raw_dims)
        PortRewriter(graph).replace_input(
            tensor, after, ops, self._adapter(elem_type, rank), f"raw: {self._words()}"
        )

    def _arithmetic(
        self, graph: Rewriter, name: str, elem_type: int, rank: int | None
    ) -> list[tuple[str, list[Any], dict[str, Any]]]:
        """Cast, Mul, Sub: those that do something."""
        ops: list[tuple[str, list[Any], dict[str, Any]]] = []
        if TYPES[self.dtype] != elem_type:
            ops.append(("Cast", [], {"to": elem_type}))
        mean, std = np.asarray(self.mean, np.float64), np.asarray(self.std, np.float64)
        factor, shift = fraction(self.scale, "scale") / std, mean / std
        for op, values in (("Mul", factor), ("Sub", shift)):
            if not np.all(values == (1 if op == "Mul" else 0)):
                column = self._column(values, rank).astype(np_dtype(elem_type))
                ops.append((op, [graph.new_constant(f"{name}_{op.lower()}", column)], {}))
        return ops

    def _column(self, values: Array, rank: int | None) -> Array:
        """Values per channel, shaped to be broadcast; of rank 0 where there is one."""
        if values.size == 1:
            return values.reshape(())
        assert rank is not None
        shape = [1] * rank
        shape[self.channel_axis] = -1
        return values.reshape(shape)

    def _words(self) -> str:
        def text(values: Sequence[float]) -> str:
            return f"{values[0]:g}" if len(values) == 1 else f"[{', '.join(f'{v:g}' for v in values)}]"

        layout = ", channels last" if self.layout == "nhwc" else ""
        return f"({self.scale} * {self.dtype} - {text(self.mean)}) / {text(self.std)}{layout}"

    def _adapter(self, elem_type: int, rank: int | None) -> Adapter:
        scale, raw_type, own_type = (
            fraction(self.scale, "scale"),
            np_dtype(TYPES[self.dtype]),
            np_dtype(elem_type),
        )
        mean = self._column(np.asarray(self.mean, np.float64), rank)
        std = self._column(np.asarray(self.std, np.float64), rank)
        last = self.layout == "nhwc" and rank is not None

        def forward(value: Array) -> Array:
            raw = (value.astype(np.float64) * std + mean) / scale
            if last:
                raw = raw.transpose(to_layout("nhwc", raw.ndim))
            if raw_type.kind in "iu":
                limits = np.iinfo(raw_type)
                raw = np.clip(np.rint(np.nan_to_num(raw)), limits.min, limits.max)
            return np.ascontiguousarray(raw.astype(raw_type))

        def backward(raw: Array) -> Array:
            value = raw.astype(np.float64)
            if last:
                value = value.transpose(from_layout("nhwc", value.ndim))
            return np.ascontiguousarray(((value * scale - mean) / std).astype(own_type))

        def draw(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
            limits = np.iinfo(raw_type)
            return rng.integers(limits.min, limits.max, shape, raw_type, endpoint=True)

        words = f"{self._words()}, channels at {self.channel_axis}"
        return Adapter(words, forward, backward, draw=draw if raw_type.kind in "iu" else None)
