"""scalar-range: vectors of one element become scalars.

onnxruntime refuses the models before the pass, which is the point of it, so only the result is run.
"""

from __future__ import annotations

import numpy as np
import pytest

from graphopt.runtime.session import open_session
from graphopt.testing import apply, assert_refuses
from graphopt_passes.cleanup.scalar_range import ScalarRange

TEXT = """
<ir_version: 8, opset_import: ["" : {opset}]>
g (float[3] x) => (int64[n] y)
<int64 zero = {{0}}, int64 one = {{1}}, int64[1] limit = {{3}}>
{{
  s = Shape(x)
  y = Range(zero, {operand}, one)
}}
"""
IN_A_BRANCH = """
<ir_version: 8, opset_import: ["" : 17]>
g (float[3] x) => (int64[n] y) <int64 zero = {0}, int64 one = {1}, bool c = {1}>
{
  s = Shape(x)
  y = If (c) <
    then_branch = t () => (int64[m] r) { r = Range(zero, s, one) },
    else_branch = e () => (int64[k] q) { q = Range(zero, one, one) }
  >
}
"""


@pytest.mark.parametrize(
    ("text", "added"),
    [
        (TEXT.format(opset=11, operand="s"), {"Squeeze": 1}),
        (TEXT.format(opset=17, operand="s"), {"Squeeze": 1}),
        (TEXT.format(opset=17, operand="limit"), {}),
        (IN_A_BRANCH, {"Squeeze": 1}),
    ],
    ids=["opset 11", "opset 17", "constant", "branch"],
)
def test_one_element_becomes_a_scalar(text: str, added: dict[str, int]) -> None:
    done = apply(ScalarRange(), text)
    assert len(done.journal.changes) == 1
    assert {op: done.ops[op] for op in added} == added
    assert not apply(ScalarRange(), done.proto).journal.changes
    with open_session(done.proto) as session:
        y = session.run({"x": np.zeros(3, np.float32)})["y"]
    assert isinstance(y, np.ndarray)
    assert y.tolist() == [0, 1, 2]


def test_scalars_stay() -> None:
    assert_refuses(ScalarRange(), TEXT.format(opset=17, operand="one"))


def test_a_kept_node_stays() -> None:
    assert_refuses(ScalarRange(), TEXT.format(opset=17, operand="s"), keep=["y"])
