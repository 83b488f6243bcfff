"""Inference over whole models: what is believed, what is scoped, what must not leak."""

from __future__ import annotations

import onnx
import onnx.parser
import pytest
from onnx import TensorProto, helper

from graphopt.graph.dims import Sym, symbol
from graphopt.graph.facts import Facts, Shape
from graphopt.graph.shapes import infer
from graphopt.ir import Node, Tensor, Variable
from graphopt.model import Model

N, S = symbol("N"), symbol("S")


class Inferred:
    """A model's facts, by tensor name."""

    def __init__(self, source: str | onnx.ModelProto) -> None:
        proto = onnx.parser.parse_model(source) if isinstance(source, str) else source
        self.model = Model.load(proto)
        self.facts = infer(self.model, strict=True)
        self.tensors: dict[str, Tensor] = {}
        for body in self.model.bodies():
            for tensor in (*body.inputs, *(t for n in body.nodes for t in n.outputs)):
                self.tensors[tensor.name] = tensor

    def shape(self, name: str) -> Shape | None:
        return self.facts.shape(self.tensors[name])

    def dtype(self, name: str) -> int | None:
        return self.facts.dtype(self.tensors[name])

    def value(self, name: str) -> object:
        return self.facts.value(self.tensors[name])


def main(body: str, inputs: str = "float[N, S, 8] x", opset: int = 18, extra: str = "") -> Inferred:
    return Inferred(
        f'<ir_version: 8, opset_import: ["" : {opset}, "custom" : 1, "com.microsoft" : 1]>'
        f"g ({inputs}) => (float[A] y) {{ {body} }} {extra}"
    )


def unknown(shape: Shape | None) -> list[bool]:
    assert shape is not None
    return [isinstance(d, Sym) and d.is_anonymous for d in shape]


def test_the_chain_that_exporters_write() -> None:
    got = main("""
        shape = Shape (x)
        i0 = Constant <value_int = 0> ()  i1 = Constant <value_int = 1> ()
        n = Gather <axis = 0> (shape, i0)  s = Gather <axis = 0> (shape, i1)
        four = Constant <value_int = 4> ()
        n4 = Mul (n, four)
        axes = Constant <value_ints = [0]> ()
        n4v = Unsqueeze (n4, axes)  sv = Unsqueeze (s, axes)
        rest = Constant <value_ints = [-1]> ()
        target = Concat <axis = 0> (n4v, sv, rest)
        y = Reshape (x, target)
    """)
    assert got.value("target") == (N * 4, S, -1)
    assert got.shape("y") == (N * 4, S, 2)


def test_declared_shapes_are_not_believed() -> None:
    text = """
        <ir_version: 8, opset_import: ["" : 18]>
        g (float[N, 4] x) => (float[7, 7] y) <float[9, 9, 9] h, int64[3] z> { h = Relu (x)  y = Relu (h) }
    """
    got = Inferred(text)
    assert got.shape("h") == (N, 4)
    assert got.shape("y") == (N, 4)


def test_declared_shapes_of_unknown_operators_are_not_believed() -> None:
    got = Inferred("""
        <ir_version: 8, opset_import: ["" : 18, "custom" : 1]>
        g (float[N, 4] x) => (float[7, 7] y) <float[9, 9] h> { h = custom.Thing (x)  y = Relu (h) }
    """)
    assert got.shape("h") is None
    assert got.shape("y") is None


def test_an_overridable_input_is_no_constant() -> None:
    shape = helper.make_tensor("target", TensorProto.INT64, [2], [2, -1])
    graph = helper.make_graph(
        [helper.make_node("Reshape", ["x", "target"], ["y"])],
        "g",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 6]),
            helper.make_tensor_value_info("target", TensorProto.INT64, [2]),
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [shape],
    )
    got = Inferred(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8))
    assert unknown(got.shape("y")) == [True, True]


def test_custom_operators_named_like_standard_ones() -> None:
    got = main("h = custom.Relu (x)  s = custom.Shape (x)  y = Relu (h)")
    assert got.shape("h") is None
    assert got.dtype("h") is None
    assert got.value("s") is None


def test_a_function_named_like_a_standard_operator() -> None:
    got = Inferred("""
        <ir_version: 8, opset_import: ["" : 18, "custom" : 1]>
        g (float[N, 4] x) => (int64[A, B] y) { y = custom.Relu (x) }
        <domain: "custom", opset_import: ["" : 18]>
        Relu (a) => (b) {
            shape = Shape (a)  one = Constant <value_ints = [1]> ()  b = Expand (one, shape)
        }
    """)
    # ONNX's inference sees through the call: the function makes integers.
    assert got.dtype("y") == TensorProto.INT64
    assert got.value("one") == (1,)


def test_function_inputs_are_unknown() -> None:
    got = Inferred("""
        <ir_version: 8, opset_import: ["" : 18, "custom" : 1]>
        g (float[2, 4] x) => (float[A] y) { y = custom.Twice (x) }
        <domain: "custom", opset_import: ["" : 18]>
        Twice (a) => (b) { b = Add (a, a) }
    """)
    assert got.shape("a") is None
    assert got.shape("b") is None


@pytest.mark.parametrize(
    ("attributes", "value"),
    [
        ("", (N, S, 8)),
        ("<start = 1>", (S, 8)),
        ("<end = -1>", (N, S)),
        ("<start = -1, end = 9>", (8,)),
        ("<start = 2, end = 1>", ()),
    ],
)
def test_shape_from_start_to_end(attributes: str, value: tuple[object, ...]) -> None:
    got = main(f"s = Shape {attributes} (x)  y = Relu (x)")
    assert got.value("s") == value
    assert got.shape("s") == (len(value),)


def test_attribute_and_input_forms_by_opset() -> None:
    old = main(
        "u = Unsqueeze <axes = [0, 4]> (x)  q = Squeeze <axes = [0]> (u)  r = ReduceSum <axes = [1], keepdims = 0> (x) y = Relu (q)",
        opset=11,
    )
    assert old.shape("u") == (1, N, S, 8, 1)
    assert old.shape("q") == (N, S, 8, 1)
    assert old.shape("r") == (N, 8)
    new = main(
        "one = Constant <value_ints = [1]> () u = Unsqueeze (x, one) r = ReduceMax <keepdims = 0> (x, one)"
        " e = ReduceSum <noop_with_empty_axes = 1> (x) y = Relu (u)"
    )
    assert new.shape("u") == (N, 1, S, 8)
    assert new.shape("r") == (N, 8)
    assert new.shape("e") == (N, S, 8)


@pytest.mark.parametrize(
    ("bounds", "dim"),
    [
        ("[0], [2147483647], [1], [1]", S),
        ("[0], [9223372036854775807], [1], [2]", (S + 1) // 2),
        ("[1], [9], [2], [1]", 7),
        ("[-3], [-1], [2], [1]", 2),
        ("[-100], [100], [2], [3]", 3),
        ("[-1], [-9223372036854775807], [2], [-1]", 8),
        ("[-1], [-9223372036854775807], [1], [-1]", S),
        ("[5], [2], [2], [1]", 0),
    ],
)
def test_slices(bounds: str, dim: object) -> None:
    names = [
        f"c{i} = Constant <value_ints = {b.strip()}> ()"
        for i, b in enumerate(bounds.replace("],", "];").split(";"))
    ]
    got = main(" ".join(names) + " y = Slice (x, c0, c1, c2, c3)")
    shape = got.shape("y")
    assert shape is not None
    assert dim in shape[1:]


def test_equal_to_minus_one_is_decided() -> None:
    """torch's expand(-1, ...): Where(Equal(target, -1), shape, target)."""
    got = main("""
        shape = Shape (x)
        minus = Constant <value_ints = [-1, -1, -1]> ()  ones = Constant <value_ints = [1, 1, 1]> ()
        is_minus = Equal (shape, minus)
        target = Where (is_minus, ones, shape)
        y = Expand (x, target)
    """)
    assert got.value("is_minus") == (False, False, False)
    assert got.value("target") == (N, S, 8)
    assert got.shape("y") == (N, S, 8)


def test_unknown_small_integers_become_symbols_of_their_own() -> None:
    got = main(
        """
        zero = Constant <value_int = 0> () one = Constant <value_int = 1> ()
        a = Range (zero, limit, one)  b = Range (zero, limit, one)  y = Relu (x)
        """,
        inputs="float[N] x, int64 limit",
    )
    assert got.shape("a") == got.shape("b")
    assert unknown(got.shape("a")) == [True]


IF = """
    <ir_version: 8, opset_import: ["" : 18]>
    g (bool c, float[N, 4] x, float[N, 5] z) => (float[A] y, float[B] same) {
        y, same = If (c) <
            then_branch = t () => (float[3, 3] ty, float[N, 4] ts) { ty = Relu (x) ts = Identity (x) },
            else_branch = e () => (float[3, 3] ey, float[N, 4] es) { ey = Relu (z) es = Neg (x) }
        >
    }
"""


def test_if_keeps_what_both_branches_agree_on() -> None:
    got = Inferred(IF)
    assert got.shape("ty") == (N, 4)
    assert got.shape("ey") == (N, 5)
    shape = got.shape("y")
    assert unknown(shape) == [False, True]
    assert shape is not None
    assert shape[0] == N
    assert got.shape("same") == (N, 4)


def loop(body: str, carried: str = "v", extra: str = "") -> Inferred:
    return Inferred(f"""
        <ir_version: 8, opset_import: ["" : 18]>
        g (int64 n, float[N, 4] x) => (float[A] y, float[B] stack) {{
            true = Constant <value = bool {{1}}> ()
            y, stack = Loop (n, true, x) <body = b (int64 i, bool c, float[9] {carried}) =>
                (bool c2, float[9] v2, float[9] made) {{ c2 = Identity (c) {body} }}>
            {extra}
        }}
    """)


def test_a_loop_carried_shape_is_kept_if_the_body_preserves_it() -> None:
    got = loop("v2 = Relu (v) made = Neg (v)")
    assert got.shape("v") == (N, 4)
    assert got.shape("y") == (N, 4)
    assert unknown(got.shape("stack")) == [True, True, False]
    assert got.dtype("y") == TensorProto.FLOAT


def test_a_loop_carried_dim_that_grows_is_unknown() -> None:
    got = loop("v2 = Concat <axis = 0> (v, v) made = Neg (v2)", extra="q = Relu (y)")
    inside, outside = got.shape("v"), got.shape("y")
    assert unknown(inside) == [True, False]
    assert unknown(outside) == [True, False]
    assert inside is not None
    assert outside is not None
    assert inside[0] != outside[0]  # the last iteration's dim is not that of any other
    assert got.shape("q") == outside


def test_a_loop_carried_rank_that_grows_is_unknown() -> None:
    got = loop("zero = Constant <value_ints = [0]> () v2 = Unsqueeze (v, zero) made = Neg (v2)")
    assert got.shape("v") is None
    assert got.shape("y") is None


def test_dims_that_depend_on_the_iteration_do_not_leave_the_loop() -> None:
    got = loop("v2 = Relu (v) z = NonZero (v) f = Cast <to = 1> (z) made = Relu (f)")
    inside, stack = got.shape("made"), got.shape("stack")
    assert inside is not None
    assert stack is not None
    assert not {d for d in inside if isinstance(d, Sym)} & {d for d in stack if isinstance(d, Sym)}


def test_scan() -> None:
    got = Inferred("""
        <ir_version: 8, opset_import: ["" : 18]>
        g (float[4] start, float[S, 4] x) => (float[A] y, float[B] all) {
            y, all = Scan <num_scan_inputs = 1, body = b (float[4] state, float[4] item) =>
                (float[4] next, float[4] out) { next = Add (state, item) out = Identity (next) }> (start, x)
        }
    """)
    assert got.shape("item") == (4,)
    assert got.shape("y") == (4,)
    assert got.shape("all") == (S, 4)


def test_captured_tensors_keep_their_facts() -> None:
    got = Inferred("""
        <ir_version: 8, opset_import: ["" : 18]>
        g (bool c, float[N, 4] x) => (float[A] y) {
            s = Shape (x)
            y = If (c) <
                then_branch = t () => (float[1] ty) { ty = Reshape (x, s) },
                else_branch = e () => (float[1] ey) { ey = Expand (x, s) }
            >
        }
    """)
    assert got.shape("ty") == (N, 4)
    assert got.shape("y") == (N, 4)


def test_nodes_out_of_order_are_inferred_in_order() -> None:
    model = Model.load(
        onnx.parser.parse_model(
            '<ir_version: 8, opset_import: ["" : 18]> g (float[N] x) => (float[A] y) { a = Relu (x) b = Neg (a) y = Abs (b) }'
        )
    )
    model.graph.nodes.reverse()
    facts = infer(model, strict=True)
    assert facts.shape(model.graph.outputs[0]) == (N,)


def test_contradictions_leave_nothing() -> None:
    facts = Facts()
    a, b = Variable("a"), Variable("b")
    facts.set(a, (2, N, 3), TensorProto.FLOAT, None)
    facts.set(b, (2, 5, 4), TensorProto.INT64, None)
    facts.merge(a, b)
    shape = facts.shape(a)
    assert shape == facts.shape(b)
    assert shape is not None
    assert shape[:2] == (2, 5)
    assert isinstance(shape[2], Sym)
    assert facts.dtype(a) is None


def test_merge_prefers_what_is_known() -> None:
    facts = Facts()
    a, b = Variable("a"), Variable("b")
    facts.set(a, (N, 4))
    facts.set(b, None, TensorProto.FLOAT)
    facts.merge(a, b)
    assert facts.shape(b) == (N, 4)
    assert facts.dtype(a) == TensorProto.FLOAT


def test_saved_facts_can_be_restored() -> None:
    facts = Facts()
    a = Variable("a")
    facts.set(a, (2,), TensorProto.INT64, (N, 4))
    saved = facts.save(a)
    facts.set(a, (3,), TensorProto.FLOAT, (1, 2, 3))
    facts.restore(a, saved)
    assert (facts.shape(a), facts.dtype(a), facts.value(a)) == ((2,), TensorProto.INT64, (N, 4))


def test_infer_node_of_a_new_node() -> None:
    facts = Facts()
    x, y = Variable("x"), Variable("y")
    facts.set(x, (N, 4), TensorProto.FLOAT)
    facts.infer_node(Node("Transpose", inputs=[x], outputs=[y]), {"": 18})
    assert facts.shape(y) == (4, N)
    facts.infer_node(Node("Gelu", inputs=[y], outputs=[x], domain="com.microsoft"), {"": 18})
    assert facts.shape(x) == (4, N)


@pytest.mark.parametrize(
    "node",
    [
        Node("Transpose", attrs={"perm": [7, 8]}),
        Node("Concat", attrs={"axis": 9}),
        Node("Conv", attrs={"strides": "no"}),
        Node("MatMul"),
        Node("Reshape"),
        Node("If"),
        Node("Einsum", attrs={"equation": 3}),
    ],
)
def test_invalid_nodes_never_raise(node: Node) -> None:
    facts = Facts()
    x = Variable("x")
    facts.set(x, (2, 3), TensorProto.FLOAT)
    node.inputs.append(x)
    node.outputs.append(Variable("y"))
    facts.infer_node(node, {"": 18})


def test_integer_overflow_is_declined() -> None:
    got = main("""
        big = Constant <value_int = 9223372036854775807> ()  one = Constant <value_int = 1> ()
        sum = Add (big, one)  narrow = Cast <to = 6> (big)  zero = Constant <value_int = 0> ()
        quotient = Div (one, zero)  y = Relu (x)
    """)
    assert got.value("sum") is None
    assert got.value("narrow") is None
    assert got.value("quotient") is None


def test_microsoft_operators() -> None:
    got = main(
        "g = com.microsoft.Gelu (x)  s, a, b, t = com.microsoft.SkipLayerNormalization (g, x, w)  y = Relu (s)",
        inputs="float[N, S, 8] x, float[8] w",
    )
    assert got.shape("g") == (N, S, 8)
    assert got.shape("t") == (N, S, 8)


def test_fifty_thousand_nodes() -> None:
    names = ["x", *(f"t{i}" for i in range(50_000))]
    nodes = [helper.make_node("Relu" if i % 2 else "Neg", [names[i]], [names[i + 1]]) for i in range(50_000)]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 4])],
        [helper.make_tensor_value_info(names[-1], TensorProto.FLOAT, None)],
    )
    model = Model.load(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8))
    facts = infer(model)
    assert facts.shape(model.graph.outputs[0]) == (N, 4)


def test_a_slope_that_is_wider_than_the_input() -> None:
    """The standard forbids it, onnxruntime runs it: ONNX's inference and ours disagree, so nothing is said."""
    got = main(
        "a = PRelu(x, deep) b = PRelu(one, wide) c = PRelu(x, fits)",
        "float[N, S, 8] x, float[2, 1, 1, 8] deep, float[1, 1] one, float[3] wide, float[8] fits",
    )
    assert got.shape("a") is None
    assert unknown(got.shape("b")) == [False, True]
    assert got.shape("c") == (N, S, 8)
