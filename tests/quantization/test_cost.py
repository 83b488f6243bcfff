from __future__ import annotations

import onnx.parser
import pytest

from graphopt.graph.shapes import infer
from graphopt.graph.state import GraphState
from graphopt.graph.view import GraphView
from graphopt.model import Model
from graphopt.quantization.cost import LayerShape, expected_gain, layer_shape, seconds, terms


def test_counts_of_a_convolution() -> None:
    shape = LayerShape.conv(1, 3, 8, (3, 3), (10, 10), (8, 8))
    assert shape.macs == 8 * 8 * 27 * 8
    assert (shape.read, shape.written) == (300, 512)
    assert (shape.copied, shape.pieces) == (64 * 27, 64 * 9)
    assert LayerShape.conv(1, 16, 8, (1, 1), (10, 10), (10, 10)).copied == 0
    assert LayerShape.conv(1, 16, 16, (3, 3), (10, 10), (10, 10), 16).kind == "depthwise"
    assert LayerShape.conv(1, 16, 16, (3, 3), (10, 10), (10, 10), 2).kind == "conv"


def test_vectors_are_padded() -> None:
    narrow, wide = LayerShape.matmul(4, 64, 3), LayerShape.matmul(4, 64, 16)
    assert terms(narrow, "integer")[1] == terms(wide, "integer")[1]
    assert narrow.macs < wide.macs


@pytest.mark.parametrize(
    ("shape", "worth"),
    [
        (LayerShape.conv(1, 64, 128, (3, 3), (28, 28), (28, 28)), True),
        (LayerShape.conv(1, 256, 64, (1, 1), (14, 14), (14, 14)), True),
        (LayerShape.conv(1, 1, 16, (3, 3), (56, 56), (56, 56)), False),  # one input channel
        (LayerShape.conv(1, 3, 16, (3, 3), (112, 112), (112, 112)), False),
        (LayerShape.matmul(128, 768, 768), True),
        (LayerShape.matmul(1, 32, 32), False),  # hardly any work
    ],
)
def test_what_pays(shape: LayerShape, worth: bool) -> None:
    found = expected_gain(shape, quantized=shape.read)
    assert (found.seconds > 0) == worth
    assert (found.ratio > 1) == worth
    assert bool(found.reason) != worth


def test_conversions_count() -> None:
    shape = LayerShape.conv(1, 32, 32, (3, 3), (28, 28), (28, 28))
    inside, alone = (
        expected_gain(shape),
        expected_gain(shape, quantized=shape.read, dequantized=shape.written),
    )
    assert inside.seconds > alone.seconds
    assert alone.conversions > inside.conversions == 0
    assert seconds(shape, "integer") < seconds(shape, "float")


def test_a_depthwise_layer_pays_only_among_integers() -> None:
    shape = LayerShape.conv(1, 64, 64, (3, 3), (28, 28), (28, 28), 64)
    assert expected_gain(shape).ratio < 1
    assert expected_gain(shape, between_integers=True).ratio > 1


def test_the_reason_says_how_much_slower() -> None:
    shape = LayerShape.conv(1, 1, 16, (5, 5), (56, 56), (56, 56))
    found = expected_gain(shape)
    assert found.reason == f"its integer kernel is expected to be slower (x{found.ratio:.2g})"


def layers(text: str) -> list[LayerShape | None]:
    model = Model.load(onnx.parser.parse_model(text))
    view = GraphView(GraphState(model, infer(model)), model.graph)
    return [layer_shape(view, node) for node in view.nodes()]


def test_shapes_of_nodes() -> None:
    found = layers(
        """<ir_version: 9, opset_import: ["" : 17]>
        g (float[N, 4, 8, 8] x, float[16, 2, 3, 3] w, float[5, 6] a, float[7, 6] b, float[N, 3, 6, 7] c,
           float[N, 3, 7, 9] d)
        => (float[N, 16, 4, 4] y, float[5, 7] z, float[N, 3, 6, 9] p, float[N, 4, 8, 8] r) {
            y = Conv <strides = [2, 2], pads = [1, 1, 1, 1], group = 2> (x, w)
            z = Gemm <transB = 1> (a, b)
            p = MatMul(c, d)
            r = Relu(x)
        }"""
    )
    assert found == [
        LayerShape.conv(1, 4, 16, (3, 3), (8, 8), (4, 4), 2),
        LayerShape.matmul(5, 6, 7),
        LayerShape.matmul(6, 7, 9, 3),
        None,
    ]


def test_unknown_sizes() -> None:
    assert layers(
        """<ir_version: 9, opset_import: ["" : 17]>
        g (float[1, 4, H, W] x, float[16, 4, 3, 3] w) => (float[1, 16, A, B] y) { y = Conv(x, w) }"""
    ) == [None]
