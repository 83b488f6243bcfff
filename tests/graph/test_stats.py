from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx.parser
import pytest

from graphopt.graph.stats import is_float, model_stats
from graphopt.ir import Constant
from graphopt.model import Model

TEXT = """
<ir_version: 9, opset_import: ["" : 17, "local" : 1]>
main (float[4] x, bool c, float[2] d) => (float[4] y)
<float[4] w = {1, 2, 3, 4}, int64[3] s = {1, 2, 3}, float[2] d = {1, 2}>
{
    b = If(c) <
        then_branch = t () => (float[4] p) { p = Add(x, w) },
        else_branch = e () => (float[4] q) <float one = {1}> { q = Mul(x, one) }
    >
    k = Constant<value = float[4] {1, 1, 1, 1}>()
    m = local.F(b)
    y = Add(m, k)
}
<domain: "local", opset_import: ["" : 17]>
F(a) => (r) { r = Add(a, a) }
"""


def test_everything_is_counted_once() -> None:
    stats = model_stats(Model.load(onnx.parser.parse_model(TEXT)))
    assert stats.nodes == 7
    assert stats.nodes_without_constants == 6
    assert stats.initializers == 4
    assert stats.parameters == 4 + 2 + 1 + 4  # w, d, one, k; not the integers
    assert stats.bytes == 4 * (4 + 2 + 1 + 4) + 8 * 3
    assert stats.ops == {"Add": 3, "Constant": 1, "If": 1, "Mul": 1, "local::F": 1}
    assert stats.opsets == {"": 17, "local": 1}
    assert stats.ir_version == 9


@pytest.mark.parametrize(
    ("dtype", "floating"),
    [
        (np.float16, True),
        (np.float64, True),
        (ml_dtypes.bfloat16, True),
        (ml_dtypes.float8_e4m3fn, True),
        (ml_dtypes.int4, False),
        (np.int64, False),
        (np.bool_, False),
    ],
)
def test_which_types_are_parameters(dtype: type, floating: bool) -> None:
    assert is_float(Constant("c", np.zeros(2, dtype))) is floating
