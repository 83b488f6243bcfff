"""Random small quantized models, of every form that exporters and quantizers produce, and of some that none does."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

TYPES = {"u8": np.uint8, "s8": np.int8, "u16": np.uint16, "s16": np.int16}
OPSETS = (13, 17, 19, 21, 23)
IR = {13: 7, 17: 8, 19: 9, 21: 10, 23: 11}
ELEMENT = {
    "u8": TensorProto.UINT8,
    "s8": TensorProto.INT8,
    "u16": TensorProto.UINT16,
    "s16": TensorProto.INT16,
}


class Case:
    """One random model. `seed` says which."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.opset = self.random.choice(OPSETS)
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: dict[str, onnx.TensorProto] = {}
        self.outputs: dict[str, int] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.pairs: dict[str, list[tuple[str, str, Any]]] = {}
        self.count = 0
        # Most models are quantized to one type throughout.
        self.type = self.random.choices(("u8", "s8", "u16", "s16"), (6, 6, 1, 1))[0]
        if self.opset < 21 and self.type in ("u16", "s16"):
            self.type = "u8"
        self.sloppy = self.random.choice((0.0, 0.0, 0.05, 0.3))
        self.model = self.build()

    # -- parts

    def chance(self, p: float) -> bool:
        return self.random.random() < p

    def name(self, stem: str) -> str:
        self.count += 1
        return f"{stem}{self.count}"

    def constant(self, stem: str, values: Any) -> str:
        name = self.name(stem)
        self.initializers[name] = numpy_helper.from_array(np.asarray(values), name)
        return name

    def node(self, op: str, inputs: list[str], shape: tuple[int, ...], **attrs: Any) -> str:
        out = self.name(op.lower())
        self.nodes.append(helper.make_node(op, inputs, [out], name=f"n_{out}", **attrs))
        self.shapes[out] = shape
        return out

    def params(self, type_: str) -> tuple[list[str], Any]:
        scale = np.float32(self.random.choice((0.1, 6 / 255, 0.05)))
        low = {"u8": 0, "s8": -128, "u16": 0, "s16": -32768}[type_]
        zero = TYPES[type_](self.random.choice((low, low, low + 128, low + 5)))
        rank = [1] if self.chance(0.1) else []
        names = [self.constant("scale", np.full(rank, scale))]
        if type_ != "u8" or zero != 0 or not self.chance(0.3 * (self.sloppy > 0)):
            names.append(self.constant("zero", np.full(rank, zero)))
        return names, type_

    def q(self, x: str, params: list[str]) -> str:
        return self.node("QuantizeLinear", [x, *params], self.shapes[x])

    def dq(self, q: str, params: list[str], **attrs: Any) -> str:
        return self.node("DequantizeLinear", [q, *params], self.shapes[q], **attrs)

    def act(self, x: str, like: Any = None) -> str:
        """`x` dequantized, by a pair that is there or a new one; or as it is."""
        if self.chance(self.sloppy):
            return x
        known = self.pairs.setdefault(x, [])
        if known:
            q, d, params = self.random.choice(known)
            if self.chance(0.7):
                return d
            if self.chance(0.5):
                return self.dq(q, params)
        type_ = self.random.choice(tuple(TYPES)[:2]) if self.chance(0.1) else self.type
        params, _ = self.params(type_) if like is None else (like, None)
        q = self.q(x, params)
        d = self.dq(q, params)
        known.append((q, d, params))
        return d

    def pair_params(self, d: str) -> list[str] | None:
        return next((p for known in self.pairs.values() for _, e, p in known if e == d), None)

    def weight(self, shape: tuple[int, ...], axis: int) -> str:
        form = self.random.choices(("int", "float-qdq", "float", "shared"), (12, 3, 1, 1))[0]
        if self.chance(self.sloppy):
            form = "float"
        rng = np.random.default_rng(self.count)
        values = rng.normal(size=shape).astype(np.float32)
        if form == "float":
            return self.constant("w", values)
        kind = self.random.choices((np.int8, np.uint8), (4, 1))[0]
        if self.opset >= 21 and self.chance(0.03):
            kind = np.int16
        per_axis = self.chance(0.5)
        scales = np.full(shape[axis] if per_axis else (), 0.02, np.float32)
        zeros = np.full(scales.shape, 0 if kind is not np.uint8 else 128, kind)
        params = [self.constant("ws", scales)]
        if kind is np.uint8 or form == "float-qdq" or self.chance(0.8):
            params.append(self.constant("wz", zeros))
        attrs = {"axis": axis} if per_axis else {}
        if form == "float-qdq":
            w = self.constant("w", values)
            self.shapes[w] = shape
            q = self.node("QuantizeLinear", [w, *params], shape, **attrs)
        else:
            q = self.constant(
                "wq",
                np.clip(np.rint(values * 50) + zeros.max(), np.iinfo(kind).min, np.iinfo(kind).max).astype(
                    kind
                ),
            )
            self.shapes[q] = shape
        return self.dq(q, params, **attrs)

    def scale_of(self, d: str) -> Any:
        made = next((n for n in self.nodes if n.output[0] == d), None)
        if made is None or made.op_type != "DequantizeLinear":
            return np.float32(0.1)
        return numpy_helper.to_array(self.initializers[made.input[1]])

    def bias(self, n: int, x: str, w: str) -> list[str]:
        form = self.random.choice(("none", "float", "int32", "int32"))
        if form == "none":
            return []
        if form == "float":
            return [self.constant("b", np.linspace(-1, 1, n, dtype=np.float32))]
        b = self.constant("bq", np.arange(n, dtype=np.int32))
        self.shapes[b] = (n,)
        scale = np.asarray(self.scale_of(x).reshape(-1)[0] * self.scale_of(w), np.float32)
        scale = scale * np.float32(self.random.choices((1, 1.005, 1.5), (16, 1, 1))[0])
        params = [self.constant("bs", scale)]
        if self.chance(0.3):
            params.append(self.constant("bz", np.full(scale.shape, self.chance(0.1), np.int32)))
        return [self.dq(b, params, axis=0)]

    # -- operators

    def conv(self, x: str) -> str:
        n, c, h, w = self.shapes[x]
        group = self.random.choice((1, 1, c))
        out = c if group == c else self.random.choice((4, 8))
        k = self.random.choice((1, 3))
        weight = self.weight((out, c // group, k, k), 0)
        pads = [k // 2] * 4
        d = self.act(x)
        return self.node(
            "Conv", [d, weight, *self.bias(out, d, weight)], (n, out, h, w), group=group, pads=pads
        )

    def conv_transpose(self, x: str) -> str:
        n, c, h, w = self.shapes[x]
        weight = self.weight((c, 4, 1, 1), 1)
        d = self.act(x)
        return self.node("ConvTranspose", [d, weight, *self.bias(4, d, weight)], (n, 4, h, w))

    def binary(self, x: str) -> str:
        op = self.random.choice(("Add", "Add", "Add", "Mul", "Sub"))
        same = [t for t in self.live if self.shapes[t] == self.shapes[x]]
        other = self.random.choice(same)
        right = self.act(other)
        if self.chance(0.15):
            c = self.shapes[x][-1]
            right = self.constant("c", np.linspace(-1, 1, c, dtype=np.float32))
            if self.chance(0.5):
                self.shapes[right] = (c,)
                right = self.act(right)
        return self.node(op, [self.act(x), right], self.shapes[x])

    def concat(self, x: str) -> str:
        same = [t for t in self.live if self.shapes[t] == self.shapes[x]]
        n, c, *rest = self.shapes[x]
        return self.node(
            "Concat", [self.act(x), self.act(self.random.choice(same))], (n, 2 * c, *rest), axis=1
        )

    def unary(self, x: str) -> str:
        op = self.random.choice(
            ("Sigmoid", "LeakyRelu", "Softmax", "Tanh", "Relu", "Clip", "Identity", "Erf")
        )
        inputs = [self.act(x)]
        if op == "Clip":
            inputs += [self.constant("lo", np.float32(0)), self.constant("hi", np.float32(6))]
        return self.node(op, inputs, self.shapes[x])

    def pool(self, x: str) -> str:
        op = self.random.choice(("MaxPool", "AveragePool", "GlobalAveragePool", "ReduceMean"))
        n, c, h, w = self.shapes[x]
        if op == "GlobalAveragePool":
            return self.node(op, [self.act(x)], (n, c, 1, 1))
        if op == "ReduceMean":
            if self.opset >= 18:
                return self.node(op, [self.act(x), self.constant("axes", np.array([2, 3]))], (n, c, 1, 1))
            return self.node(op, [self.act(x)], (n, c, 1, 1), axes=[2, 3])
        if h < 2:
            return x
        return self.node(op, [self.act(x)], (n, c, h // 2, w // 2), kernel_shape=[2, 2], strides=[2, 2])

    def move(self, x: str) -> str:
        shape = self.shapes[x]
        op = self.random.choice(
            (
                "Reshape",
                "Transpose",
                "Flatten",
                "Slice",
                "Unsqueeze",
                "Expand",
                "ReduceMax",
                "Gather",
                "Split",
            )
        )
        x = self.act(x)
        shared = self.pair_params(x) if self.chance(0.8) else None
        if op == "Reshape":
            y = self.node(op, [x, self.constant("shape", np.array(shape))], shape)
        elif op == "Transpose":
            perm = list(range(len(shape)))
            perm[-1], perm[-2] = perm[-2], perm[-1]
            y = self.node(op, [x], tuple(shape[p] for p in perm), perm=perm)
        elif op == "Flatten":
            y = self.node(op, [x], (shape[0], int(np.prod(shape[1:]))))
        elif op == "Slice":
            ends = [max(1, shape[-1] - 1)]
            parts = [self.constant("i", np.array(v)) for v in ([0], ends, [len(shape) - 1])]
            y = self.node(op, [x, *parts], (*shape[:-1], ends[0]))
        elif op == "Unsqueeze":
            y = self.node(op, [x, self.constant("axes", np.array([0]))], (1, *shape))
        elif op == "Expand":
            y = self.node(op, [x, self.constant("shape", np.array(shape))], shape)
        elif op == "ReduceMax":
            if self.opset >= 18:
                y = self.node(op, [x, self.constant("axes", np.array([1]))], (shape[0], 1, *shape[2:]))
            else:
                y = self.node(op, [x], (shape[0], 1, *shape[2:]), axes=[1])
        elif op == "Gather":
            y = self.node(op, [x, self.constant("i", np.array([0, 0]))], (shape[0], 2, *shape[2:]), axis=1)
        else:
            if shape[1] % 2:
                return x
            attrs = {"num_outputs": 2} if self.opset >= 18 else {}
            first, second = self.name("split"), self.name("split")
            self.nodes.append(helper.make_node(op, [x], [first, second], name=f"n_{first}", axis=1, **attrs))
            for out in (first, second):
                self.shapes[out] = (shape[0], shape[1] // 2, *shape[2:])
            self.live.append(second)
            if shared is not None:
                self.act(second, shared)
            y = first
        if shared is not None:
            self.act(y, shared)
        return y

    def matmul(self, x: str) -> str:
        shape = self.shapes[x]
        k = shape[-1]
        if len(shape) == 2 and self.chance(0.5):
            trans_b = self.chance(0.5)
            weight = self.weight((6, k) if trans_b else (k, 6), 0 if trans_b else 1)
            attrs: dict[str, Any] = {"transB": 1} if trans_b else {}
            if self.chance(0.15):
                attrs["alpha"] = 0.5
            if self.chance(0.15):
                attrs["beta"] = 0.5
            d = self.act(x)
            return self.node("Gemm", [d, weight, *self.bias(6, d, weight)], (shape[0], 6), **attrs)
        if self.chance(0.25) and len(shape) > 2:
            other = self.node(
                "Transpose",
                [x],
                (*shape[:-2], shape[-1], shape[-2]),
                perm=[*range(len(shape) - 2), len(shape) - 1, len(shape) - 2],
            )
            return self.node("MatMul", [self.act(x), self.act(other)], (*shape[:-1], shape[-2]))
        y = self.node("MatMul", [self.act(x), self.weight((k, 6), 1)], (*shape[:-1], 6))
        if self.chance(0.5):
            bias = self.constant("b", np.linspace(-1, 1, 6, dtype=np.float32))
            y = self.node("Add", [y, bias] if self.chance(0.5) else [bias, y], self.shapes[y])
        return y

    def where(self, x: str) -> str:
        same = [t for t in self.live if self.shapes[t] == self.shapes[x]]
        mask = self.constant("mask", np.ones(self.shapes[x], bool))
        return self.node("Where", [mask, self.act(x), self.act(self.random.choice(same))], self.shapes[x])

    # -- the model

    def build(self) -> onnx.ModelProto:
        self.shapes["x"] = (1, 4, 6, 6) if self.chance(0.7) else (3, 8)
        first = self.shapes["x"]
        self.live = ["x"]
        for _ in range(self.random.randint(1, 5)):
            x = self.random.choice(self.live[-2:])
            rank = len(self.shapes[x])
            makers = [self.binary, self.unary, self.move, self.matmul]
            if rank == 4:
                makers += [
                    self.conv,
                    self.conv,
                    self.conv,
                    self.pool,
                    self.concat,
                    self.where,
                    self.conv_transpose,
                ]
            if rank > 4:
                makers = [self.binary, self.unary]
            y = self.random.choice(makers)(x)
            if y in self.live or y == x:
                continue
            if self.chance(0.3):
                op = self.random.choices(("Relu", "Clip", "LeakyRelu"), (4, 2, 1))[0]
                limits = []
                if op == "Clip":
                    high = self.random.choice((6.0, 100.0, 3.0))
                    limits = [self.constant("lo", np.float32(0)), self.constant("hi", np.float32(high))]
                y = self.node(op, [y, *limits], self.shapes[y])
            if self.chance(0.8):
                self.act(y)
            if self.chance(0.1):
                self.outputs[y] = TensorProto.FLOAT
            self.live.append(y)
        last = self.live[-1]
        self.outputs[self.act(last) if self.chance(0.7) else last] = TensorProto.FLOAT
        if last in self.pairs and self.pairs[last] and self.chance(0.1):
            q = self.pairs[last][0][0]
            self.outputs[q] = TensorProto.UNDEFINED
        self.outputs.pop("x", None)
        if not self.nodes or not self.outputs:
            y = self.node("Relu", ["x"], first)
            self.outputs[y] = TensorProto.FLOAT
        graph = helper.make_graph(
            self.nodes,
            "g",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, first)],
            [onnx.ValueInfoProto(name=name) for name in self.outputs],
            list(self.initializers.values()),
        )
        imports = [helper.make_opsetid("", self.opset)]
        model = helper.make_model(graph, opset_imports=imports, ir_version=IR[self.opset])
        typed = onnx.shape_inference.infer_shapes(model)
        del model.graph.output[:]
        model.graph.output.extend(typed.graph.output)
        for out in model.graph.output:
            if not out.type.tensor_type.elem_type:
                raise ValueError(f"{out.name} has no type")
        return model
