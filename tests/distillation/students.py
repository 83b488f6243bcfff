"""Small students of models/digits_cnn.onnx, with random weights."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.parser


def thin_cnn(widths: tuple[int, int, int] = (8, 16, 32), seed: int = 0, bn: bool = False) -> onnx.ModelProto:
    """Four convolutions, half as wide as the teacher's, without residuals; weights as PyTorch begins."""
    a, b, c = widths
    norm = "[bn0] h0 = BatchNormalization(c0, g0, z0, z0, g0)" if bn else "h0 = Identity(c0)"
    text = f"""<ir_version: 8, opset_import: ["" : 17]>
    student (float[N, 1, 8, 8] image) => (float[N, 10] logits) {{
        [conv0] c0 = Conv<pads = [1, 1, 1, 1]>(image, w0, b0) {norm} r0 = Relu(h0)
        [conv1] c1 = Conv<pads = [1, 1, 1, 1]>(r0, w1, b1) r1 = Relu(c1)
        [conv2] c2 = Conv<pads = [1, 1, 1, 1], strides = [2, 2]>(r1, w2, b2) r2 = Relu(c2)
        [conv3] c3 = Conv(r2, w3, b3) r3 = Relu(c3)
        p = GlobalAveragePool(r3) f = Flatten(p)
        [fc] logits = Gemm<transB = 1>(f, w4, b4) }}"""
    model = onnx.parser.parse_model(text)
    rng = np.random.default_rng(seed)
    shapes = [(a, 1, 3, 3), (a, a, 3, 3), (b, a, 3, 3), (c, b, 1, 1), (10, c)]
    for i, shape in enumerate(shapes):
        bound = 1 / np.sqrt(np.prod(shape[1:]))
        for name, size in ((f"w{i}", shape), (f"b{i}", shape[:1])):
            values = rng.uniform(-bound, bound, size).astype(np.float32)
            model.graph.initializer.append(onnx.numpy_helper.from_array(values, name))
    if bn:
        for name, value in (("g0", 1.5), ("z0", 0.1)):
            model.graph.initializer.append(onnx.numpy_helper.from_array(np.full(a, value, np.float32), name))
    return model
