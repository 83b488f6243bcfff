"""Probe inputs, synthesized from the graph: values that every op on the way can make sense of."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import onnx
from onnx import numpy_helper

from graphopt.errors import UserError
from graphopt.runtime.draw import Style, generate
from graphopt.runtime.roles import Place, Role, strongest
from graphopt.runtime.rules import RULES
from graphopt.runtime.sizes import Sizes, assignments, axis_symbol, symbols_of
from graphopt.runtime.structure import Meet, Shapes, Structure, is_stripped
from graphopt.runtime.values import Array, Feeds, Value, elem_type_of_array, numpy_dtype


@dataclass(frozen=True)
class ProbeSet:
    """Inputs for one run.

    Attributes:
        feeds: value per input. Overridable initializers that are left out keep their defaults.
        sizes: sizes of the symbolic dims.
        source: "synthesized", or where the user's data came from.
        overridden: overridable initializers that got other values than their defaults.
    """

    feeds: Feeds
    sizes: Mapping[str, int] = field(default_factory=dict)
    source: str = "synthesized"
    overridden: tuple[str, ...] = ()

    def describe(self) -> str:
        """One line for people: "synthesized, batch=2, seq=5"."""
        sizes = ", ".join(f"{k}={v}" for k, v in self.sizes.items())
        more = f", {len(self.overridden)} defaults overridden" if self.overridden else ""
        return f"{self.source}{', ' if sizes else ''}{sizes}{more}"


class Synthesizer:
    """Makes probe inputs for one model.

    Args:
        model: the model; initializers may be stripped of their data.
        input_shapes: dims by input name, from the user. A dim of -1 or 0 leaves it open.
        seed: the same seed makes the same inputs.

    Raises:
        UserError: `input_shapes` names an input that the model does not have, or contradicts its shape.
    """

    def __init__(
        self,
        model: onnx.ModelProto,
        input_shapes: Mapping[str, Sequence[int]] | None = None,
        seed: int = 0,
    ) -> None:
        self.structure = Structure(model)
        self.seed = seed
        self.user_shapes = {k: tuple(v) for k, v in (input_shapes or {}).items()}
        self.values = {v.name: v for v in self.structure.inputs}
        self.values |= {name: v for name, (v, _) in self.structure.overridable.items()}
        self._meets: dict[str, list[Meet]] = {}
        self.symbols = symbols_of([v for v in self.structure.inputs if _has_shape(v)])
        self.pinned = self._pinned()

    def _pinned(self) -> dict[str, int]:
        pinned: dict[str, int] = {}
        for value in self.structure.inputs:
            for axis, size in self._sizes_from_weights(value).items():
                symbol = axis_symbol(value, axis)
                if isinstance(symbol, str):
                    pinned.setdefault(symbol, size)
        for name, dims in self.user_shapes.items():
            value = self.values.get(name)
            if value is None:
                raise UserError(
                    f"no input is called {name!r}", fix=f"the inputs are: {', '.join(self.values)}"
                )
            if not _has_shape(value):
                continue
            declared = value.type.tensor_type.shape.dim
            if len(declared) != len(dims):
                raise UserError(
                    f"input {name!r} has {len(declared)} dims, but {len(dims)} were given: {list(dims)}"
                )
            for axis, size in enumerate(dims):
                symbol = axis_symbol(value, axis)
                if size <= 0:
                    continue
                if isinstance(symbol, int) and symbol != size:
                    raise UserError(f"axis {axis} of input {name!r} is {symbol}, not {size}")
                if isinstance(symbol, str):
                    pinned[symbol] = size
        return pinned

    def _sizes_from_weights(self, value: onnx.ValueInfoProto) -> dict[int, int]:
        """Sizes of axes that meet a weight directly: channels of a Conv, features of a MatMul."""
        if not _has_shape(value):
            return {}
        rank = len(value.type.tensor_type.shape.dim)
        found: dict[int, int] = {}
        for node, slot in self.structure.readers.get(value.name, ()):
            weight = self.structure.stored_dims(node.input[1]) if slot == 0 and len(node.input) > 1 else None
            if weight is None:
                continue
            if node.op_type == "Conv" and len(weight) == rank:
                group = next((a.i for a in node.attribute if a.name == "group"), 1)
                found.setdefault(1, weight[1] * group)
            elif node.op_type in ("ConvTranspose", "BatchNormalization"):
                found.setdefault(1, weight[0])
            elif node.op_type == "MatMul" and len(weight) >= 2 and rank:
                found.setdefault(rank - 1, weight[-2])
            elif node.op_type == "Gemm" and len(weight) == 2:
                flipped = any(a.name == "transB" and a.i for a in node.attribute)
                found.setdefault(1, weight[1] if flipped else weight[0])
            elif node.op_type in ("LSTM", "GRU", "RNN") and len(weight) == 3:
                found.setdefault(2, weight[2])
            elif node.op_type == "LayerNormalization":
                found.setdefault(rank - 1, weight[-1])
        return found

    def candidates(self, probe: int) -> Iterator[ProbeSet]:
        """Probe sets for place `probe` in the list, likeliest to run first."""
        styles: list[Style] = ["typical", "meek"]
        hints = self.structure.sizes_in_constants() if self.symbols else []
        sizes_tried = list(assignments(self.symbols, self.pinned, probe, hints))
        for style in styles:
            for sizes in sizes_tried[: 8 if style != "typical" else None]:
                yield self.make(probe, sizes, style)
        for style in ("ones", "zeros"):
            for sizes in sizes_tried[:2]:
                yield self.make(probe, sizes, style)

    def make(self, probe: int, sizes: Sizes, style: Style = "typical") -> ProbeSet:
        """The probe set with these sizes of the symbolic dims."""
        shapes = {v.name: self._shape(v, sizes) for v in self.structure.inputs if _is_tensor(v)}
        shapes = {n: s for n, s in shapes.items() if s is not None}
        facts = Shapes(self.structure, sizes, shapes)
        feeds: dict[str, Value] = {}
        for value in self.structure.inputs:
            rng = self._rng(probe, value.name)
            feeds[value.name] = self._value(
                value.name, value.type, shapes.get(value.name), facts, rng, probe, style
            )
        overridden = []
        if probe % 2 and style in ("typical", "meek"):
            for name, (_value, default) in self.structure.overridable.items():
                changed = self._perturbed(name, default, facts, self._rng(probe, name), style)
                if changed is not None:
                    feeds[name] = changed
                    overridden.append(name)
        return ProbeSet(feeds, sizes, overridden=tuple(overridden))

    def _rng(self, probe: int, name: str) -> np.random.Generator:
        return np.random.default_rng([self.seed, probe, *name.encode()])

    def _shape(self, value: onnx.ValueInfoProto, sizes: Sizes) -> tuple[int, ...]:
        if not _has_shape(value):
            given = self.user_shapes.get(value.name)
            return given if given is not None else self._guess_shape(value)
        rank = len(value.type.tensor_type.shape.dim)
        dims = (axis_symbol(value, axis) for axis in range(rank))
        return tuple(sizes[d] if isinstance(d, str) else d for d in dims)

    def _guess_shape(self, value: onnx.ValueInfoProto) -> tuple[int, ...]:
        """The shape of an input whose rank is not declared, from the op that reads it."""
        for node, slot in self.structure.readers.get(value.name, ()):
            if node.op_type == "Conv" and slot == 0:
                weight = self.structure.stored_dims(node.input[1])
                if weight is not None:
                    return (1, weight[1], *(32 for _ in weight[2:]))
            if (node.op_type, slot) in (("If", 0), ("Loop", 0), ("Loop", 1), ("Range", 0), ("Range", 1)):
                return ()
            takes_shape = node.op_type in ("Reshape", "Expand", "Tile", "ConstantOfShape")
            if takes_shape and slot == len(node.input) - 1:
                return (2,)
        return (2, 3)

    def _role(self, name: str, shape: tuple[int, ...], facts: Shapes) -> Role | None:
        roles: list[Role] = []
        for meet in self._find_meets(name):
            rule = RULES.get((meet.node.op_type, meet.slot)) if meet.node.domain in _DOMAINS else None
            role = rule(Place(meet.node, meet.slot, facts)) if rule is not None else None
            if role is None or (role.kind == "exact" and not (meet.same_elements and _fits(role, shape))):
                continue
            if role.kind == "index" and meet.offset and isinstance(role.high, int | float):
                role = replace(role, low=max(0, role.low - meet.offset), high=role.high - meet.offset)
            roles.append(role)
        return strongest(roles)

    def _find_meets(self, name: str) -> list[Meet]:
        if name not in self._meets:
            self._meets[name] = self.structure.meets(name)
        return self._meets[name]

    def _value(
        self,
        name: str,
        type_proto: onnx.TypeProto,
        shape: tuple[int, ...] | None,
        facts: Shapes,
        rng: np.random.Generator,
        probe: int,
        style: Style,
    ) -> Value:
        kind = type_proto.WhichOneof("value")
        if kind == "optional_type":
            # The second probe of an optional is the empty one.
            if probe % 2:
                return None
            return self._value(name, type_proto.optional_type.elem_type, None, facts, rng, probe, style)
        if kind == "sequence_type":
            inner = type_proto.sequence_type.elem_type
            return [self._value(name, inner, None, facts, rng, probe, style) for _ in range(3)]
        if kind == "map_type":
            keys = ("a", "b", "c") if type_proto.map_type.key_type == onnx.TensorProto.STRING else (0, 1, 2)
            return {k: float(v) for k, v in zip(keys, rng.random(3), strict=True)}
        tensor = type_proto.sparse_tensor_type if kind == "sparse_tensor_type" else type_proto.tensor_type
        if shape is None:
            dims = tensor.shape.dim if tensor.HasField("shape") else ()
            shape = tuple(int(d.dim_value) or 2 for d in dims) if tensor.HasField("shape") else (2,)
        dtype = numpy_dtype(tensor.elem_type)
        return generate(
            self._role(name, shape, facts), name, rng, shape, dtype, probe, style, self._is_additive(name)
        )

    def _is_additive(self, name: str) -> bool:
        """A float mask that is added to scores, rather than multiplied or subtracted from one."""
        for meet in self._find_meets(name):
            if meet.node.op_type in ("Add", "Sub", "Mul", "Softmax", "Attention"):
                return meet.node.op_type == "Add" or (meet.node.op_type == "Attention" and meet.slot == 3)
        return False

    def _perturbed(
        self, name: str, default: onnx.TensorProto, facts: Shapes, rng: np.random.Generator, style: Style
    ) -> Array | None:
        """Another value for an overridable initializer, so that freezing it shows; None to leave it alone."""
        dims, dtype = tuple(default.dims), numpy_dtype(default.data_type)
        role = self._role(name, dims, facts)
        if role is not None and role.kind == "exact":
            return None  # it steers shapes
        if dtype.kind in "fV" or dtype == numpy_dtype(onnx.TensorProto.BFLOAT16):
            if is_stripped(default):
                return (rng.standard_normal(dims) * 0.05).astype(dtype)
            value = numpy_helper.to_array(default).astype(np.float64)
            size = float(np.sqrt(np.mean(value**2))) if value.size else 0.0
            factor = 1 + 0.2 * rng.random(dims)
            return (value * factor + (0.0 if role is not None else 0.05 * size * rng.random(dims))).astype(
                dtype
            )
        if style == "meek" or is_stripped(default):
            return None
        if role is not None and role.kind in ("index", "nonzero"):
            return generate(role, name, rng, dims, dtype, 1, style)
        default_value = numpy_helper.to_array(default)
        if dtype.kind == "b":
            return np.asarray(np.logical_not(default_value))
        return np.asarray(default_value + 1, default_value.dtype) if dtype.kind in "iu" else None


_DOMAINS = ("", "ai.onnx", "ai.onnx.ml", "com.microsoft")


def _fits(role: Role, shape: tuple[int, ...]) -> bool:
    return int(np.size(role.value)) == math.prod(shape)


def _is_tensor(value: onnx.ValueInfoProto) -> bool:
    return bool(value.type.WhichOneof("value") == "tensor_type")


def _has_shape(value: onnx.ValueInfoProto) -> bool:
    return _is_tensor(value) and value.type.tensor_type.HasField("shape")


def synthesize(
    model: onnx.ModelProto,
    *,
    count: int = 2,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    seed: int = 0,
) -> list[ProbeSet]:
    """The likeliest `count` probe sets, without trying whether the model accepts them."""
    maker = Synthesizer(model, input_shapes, seed)
    return [next(maker.candidates(i)) for i in range(count)]


def check_feeds(feeds: Feeds, values: Mapping[str, onnx.ValueInfoProto], source: str) -> None:
    """UserError when the user's data names an input that is not there, or has another dtype or shape."""
    for name, value in feeds.items():
        info = values.get(name)
        if info is None:
            raise UserError(
                f"no input is called {name!r}", where=source, fix=f"the inputs are: {', '.join(values)}"
            )
        if not isinstance(value, np.ndarray) or not _is_tensor(info):
            continue
        wanted = info.type.tensor_type.elem_type
        if elem_type_of_array(value) != wanted:
            raise UserError(
                f"input {name!r} is {numpy_dtype(wanted)}, the data is {value.dtype}", where=source
            )
        if _has_shape(info) and len(info.type.tensor_type.shape.dim) != value.ndim:
            raise UserError(
                f"input {name!r} has {len(info.type.tensor_type.shape.dim)} dims, the data {value.ndim}",
                where=source,
            )
        for axis in range(value.ndim if _has_shape(info) else 0):
            size = axis_symbol(info, axis)
            if isinstance(size, int) and size != value.shape[axis]:
                raise UserError(
                    f"axis {axis} of input {name!r} is {size}, the data has {value.shape[axis]}", where=source
                )
