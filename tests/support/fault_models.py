"""Models with a seeded fault in one place, and the same models without."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper, parser

HEAD = '<ir_version: 8, opset_import: ["": 17]>'


def model(text: str, **weights: np.ndarray[Any, Any]) -> onnx.ModelProto:
    """A model in ONNX's text form, with these initializers."""
    proto = parser.parse_model(f"{HEAD} {text}")
    proto.graph.initializer.extend(numpy_helper.from_array(v, k) for k, v in weights.items())
    return proto


def node(proto: onnx.ModelProto, name: str) -> onnx.NodeProto:
    """The node of that name, in any body."""
    stack = [proto.graph]
    while stack:
        graph = stack.pop()
        for item in graph.node:
            if item.name == name:
                return item
            stack.extend(a.g for a in item.attribute if a.type == onnx.AttributeProto.GRAPH)
    raise KeyError(name)


def weight(proto: onnx.ModelProto, name: str, change: Callable[[Any], Any]) -> None:
    """Change the values of an initializer."""
    tensor = next(t for t in proto.graph.initializer if t.name == name)
    tensor.CopyFrom(numpy_helper.from_array(change(numpy_helper.to_array(tensor).copy()), name))


def attribute(proto: onnx.ModelProto, name: str, **values: Any) -> None:
    """Set attributes of a node."""
    item = node(proto, name)
    for key, value in values.items():
        kept = [a for a in item.attribute if a.name != key]
        del item.attribute[:]
        item.attribute.extend([*kept, helper.make_attribute(key, value)])


def thirty(layers: int = 30, channels: int = 6, **epsilon: float) -> onnx.ModelProto:
    """Conv, BatchNormalization and Relu, thirty times; `bn17=1e-2` sets the epsilon of one."""
    rng = np.random.default_rng(7)
    nodes, weights, last = [], [], "x"
    for i in range(layers):
        w = rng.standard_normal((channels, channels, 3, 3)) * np.sqrt(2 / (9 * channels))
        tensors = {
            f"w{i}": w,
            f"gamma{i}": rng.uniform(0.8, 1.2, channels),
            f"beta{i}": rng.uniform(-0.2, 0.2, channels),
            f"mean{i}": rng.uniform(-0.2, 0.2, channels),
            f"var{i}": rng.uniform(0.3, 1.0, channels),
        }
        weights += [numpy_helper.from_array(v.astype(np.float32), k) for k, v in tensors.items()]
        names = list(tensors)
        nodes += [
            helper.make_node("Conv", [last, names[0]], [f"c{i}"], f"conv{i}", pads=[1, 1, 1, 1]),
            helper.make_node(
                "BatchNormalization",
                [f"c{i}", *names[1:]],
                [f"b{i}"],
                f"bn{i}",
                epsilon=epsilon.get(f"bn{i}", 1e-5),
            ),
            helper.make_node("Relu", [f"b{i}"], [f"r{i}"], f"relu{i}"),
        ]
        last = f"r{i}"
    nodes.append(helper.make_node("Identity", [last], ["y"], "out"))
    shape = ["N", channels, 8, 8]
    graph = helper.make_graph(
        nodes,
        "thirty",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        weights,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def renamed(proto: onnx.ModelProto, *, start: int = 1000, nodes: bool = True) -> onnx.ModelProto:
    """The same model as another tool might write it: all tensors but inputs and outputs get numbers."""
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    graph = copy.graph
    fixed = {v.name for v in (*graph.input, *graph.output)}
    names: dict[str, str] = {}

    def fresh(name: str) -> str:
        if not name or name in fixed:
            return name
        return names.setdefault(name, str(start + len(names)))

    def visit(body: onnx.GraphProto) -> None:
        for tensor in body.initializer:
            tensor.name = fresh(tensor.name)
        for value in (*body.input, *body.output) if body is not graph else ():
            value.name = fresh(value.name)
        del body.value_info[:]
        for i, item in enumerate(body.node):
            for field in (item.input, item.output):
                new = [fresh(n) for n in field]
                del field[:]
                field.extend(new)
            if nodes:
                item.name = f"n{i}"
                del item.metadata_props[:]
                item.doc_string = ""
            for a in item.attribute:
                if a.type == onnx.AttributeProto.GRAPH:
                    visit(a.g)

    visit(graph)
    return copy


def with_if(bias: float = 1.0, *, fused: bool = False) -> onnx.ModelProto:
    """A linear layer in the then-branch of an If; fused, it is a Gemm, whose beta is `bias`."""
    rng = np.random.default_rng(3)
    layer = f"m = Gemm<beta={bias}>(h, w, b)" if fused else "p = MatMul(h, w) m = Add(p, b)"
    proto = model(
        f"""g (float[N, 8] x, bool c) => (float[N, 8] y) {{
            h = Tanh(x)
            z = If (c) <
                then_branch = t () => (float[N, 8] a) {{ {layer} a = Sigmoid(m) }},
                else_branch = e () => (float[N, 8] b2) {{ b2 = Relu(h) }}
            >
            y = Neg(z)
        }}""",
        w=rng.standard_normal((8, 8)).astype(np.float32),
        b=rng.standard_normal(8).astype(np.float32),
    )
    node_names(proto)
    return proto


def node_names(proto: onnx.ModelProto) -> None:
    """Name every node after its first output."""
    stack = [proto.graph]
    while stack:
        graph = stack.pop()
        for item in graph.node:
            item.name = f"{item.op_type}_{item.output[0]}"
            stack.extend(a.g for a in item.attribute if a.type == onnx.AttributeProto.GRAPH)


def look_alike(*, plain: bool) -> onnx.ModelProto:
    """Almost a LayerNormalization: with the fourth power, which onnxruntime's optimizer takes for the second.

    Where it is not written as one Pow (not `plain`), the optimizer leaves it alone.
    """
    power = "p = Pow(d, e)" if plain else "t = Mul(d, d) p = Mul(t, t)"
    one = np.ones(8, np.float32)
    proto = model(
        f"""g (float[N, 3, 8] x) => (float[N, 3, 8] y) {{
            h = Sin(x)
            m = ReduceMean<axes=[-1]>(h) d = Sub(h, m) {power} v = ReduceMean<axes=[-1]>(p)
            a = Add(v, eps) s = Sqrt(a) q = Div(d, s) r = Mul(q, w) n = Add(r, b)
            y = Tanh(n)
        }}""",
        e=np.array(4, np.float32),
        eps=np.array(1e-5, np.float32),
        w=one,
        b=0.5 * one,
    )
    node_names(proto)
    return proto


def chain(*, half_at: int = -1, layers: int = 6) -> onnx.ModelProto:
    """Multiplications that grow values beyond what float16 holds; `half_at` is computed in float16."""
    lines, last = [], "x"
    for i in range(layers):
        if i == half_at:
            # Without the Reshape, onnxruntime drops the Cast: it multiplies in float32 in any case.
            lines.append(f"h{i} = Cast<to=10>({last}) g{i} = Reshape(h{i}, rows)")
            lines.append(f"hm{i} = Mul(g{i}, k16) m{i} = Cast<to=1>(hm{i})")
        else:
            lines.append(f"m{i} = Mul({last}, k)")
        lines.append(f"t{i} = Add(m{i}, o)")
        last = f"t{i}"
    proto = model(
        f"g (float[N, 16] x) => (float[N, 16] y) {{ {' '.join(lines)} y = Mul({last}, small) }}",
        k=np.array(8, np.float32),
        k16=np.array(8, np.float16),
        o=np.array(1, np.float32),
        rows=np.array([-1, 16], np.int64),
        small=np.array(1e-6, np.float32),
    )
    node_names(proto)
    return proto


def looped(scale: float = 0.5) -> onnx.ModelProto:
    """A Loop of four iterations over a carried state; the fault is the scale of what is added in its body."""
    proto = model(
        """g (float[N, 4] x) => (float[N, 4] y) {
            h = Sin(x)
            s = Loop (trips, go, h) <
                body = b (int64 i, bool go_in, float[N, 4] state) => (bool go_out, float[N, 4] next) {
                    go_out = Identity(go_in)
                    d = Cos(state)
                    e = Mul(d, scale)
                    next = Add(state, e)
                }
            >
            y = Exp(s)
        }""",
        trips=np.array(4, np.int64),
        go=np.array(True),
        scale=np.array(scale, np.float32),
    )
    node_names(proto)
    return proto


def scanned(scale: float = 0.5) -> onnx.ModelProto:
    """A Scan over the rows of its input, with a state; the fault is the scale of what is added in its body."""
    proto = model(
        """g (float[5, 4] x) => (float[4] y, float[5, 4] z) {
            h = Sin(x)
            s, r = Scan <num_scan_inputs = 1,
                body = b (float[4] state, float[4] row) => (float[4] next, float[4] out) {
                    d = Cos(state)
                    e = Mul(d, scale)
                    next = Add(row, e)
                    out = Tanh(next)
                }> (start, h)
            y = Exp(s)
            z = Neg(r)
        }""",
        start=np.array([0.1, 0.2, 0.3, 0.4], np.float32),
        scale=np.array(scale, np.float32),
    )
    node_names(proto)
    return proto


def growing(scale: float = 0.5) -> onnx.ModelProto:
    """A Loop whose state gets longer in every iteration."""
    proto = model(
        """g (float[2] x) => (float[M] y) {
            h = Sin(x)
            s = Loop (trips, go, h) <
                body = b (int64 i, bool go_in, float[K] state) => (bool go_out, float[L] next) {
                    go_out = Identity(go_in)
                    e = Mul(state, scale)
                    next = Concat<axis=0>(state, e)
                }
            >
            y = Exp(s)
        }""",
        trips=np.array(3, np.int64),
        go=np.array(True),
        scale=np.array(scale, np.float32),
    )
    node_names(proto)
    return proto


def parallel(wrong: float = 0.0) -> onnx.ModelProto:
    """A layer in two halves, as tensor parallelism divides it; `wrong` is added to the second half's bias."""
    rng = np.random.default_rng(5)
    w, b = rng.standard_normal((12, 12)).astype(np.float32), rng.standard_normal(12).astype(np.float32)
    v = rng.standard_normal((12, 12)).astype(np.float32)
    proto = model(
        """g (float[N, 12] x) => (float[N, 12] y) {
            p0 = MatMul(x, w0) q0 = Add(p0, b0) r0 = Relu(q0) s0 = MatMul(r0, v0)
            p1 = MatMul(x, w1) q1 = Add(p1, b1) r1 = Relu(q1) s1 = MatMul(r1, v1)
            t = Add(s0, s1)
            y = Tanh(t)
        }""",
        w0=w[:, :6],
        w1=w[:, 6:],
        b0=b[:6],
        b1=b[6:] + np.float32(wrong),
        v0=v[:6],
        v1=v[6:],
    )
    node_names(proto)
    return proto
