import ml_dtypes
import numpy as np
import onnx.parser
import pytest

from graphopt.ir import Constant
from graphopt.model import Model


def model(ir: int = 8) -> Model:
    text = f'<ir_version: {ir}, opset_import: ["" : 17]> g (float[2] x) => (float[2] y) {{ y = Relu(x) }}'
    return Model.load(onnx.parser.parse_model(text))


def test_it_stays_as_it_is() -> None:
    assert model(8).to_proto().ir_version == 8
    assert model(7).to_proto().ir_version == 7  # too old for its opset, but that is how it came


@pytest.mark.parametrize(("opset", "ir"), [(18, 8), (19, 9), (21, 10), (23, 11), (25, 13)])
def test_a_newer_opset(opset: int, ir: int) -> None:
    changed = model()
    changed.opset_imports[""] = opset
    assert changed.ir_version == changed.to_proto().ir_version == ir


@pytest.mark.parametrize(
    ("dtype", "ir"), [("float8_e4m3fn", 9), ("int4", 10), ("uint4", 10), ("float4_e2m1fn", 11)]
)
def test_a_type_that_a_pass_brought_in(dtype: str, ir: int) -> None:
    changed = model()
    made = Constant("c", np.zeros(2, getattr(ml_dtypes, dtype)), made_by="some-pass")
    changed.graph.initializers[made] = None
    assert changed.to_proto().ir_version == ir
    made.made_by = ""
    assert changed.to_proto().ir_version == 8
