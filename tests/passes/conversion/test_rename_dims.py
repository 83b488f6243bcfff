from __future__ import annotations

import onnx
import pytest

from graphopt.errors import UserError
from graphopt.testing import apply, assert_rewrites
from graphopt_passes.conversion.rename_dims import RenameDims

HEAD = '<ir_version: 8, opset_import: ["" : 17]>'
MODEL = f"""{HEAD} g (float[N, T, 4] x, float[?] s) => (float[N, T, 4] y) <float[N, T, 4] a> {{
    a = Relu(x)  y = Sigmoid(a) r = Relu(s)
}}"""


def dims(value: onnx.ValueInfoProto) -> list[int | str]:
    return [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]


def test_everywhere() -> None:
    done = assert_rewrites(RenameDims(("N=batch", "s:0=count")), MODEL, once=True)
    graph = done.proto.graph
    assert [dims(v) for v in (*graph.input, *graph.output, *graph.value_info)] == [
        ["batch", "T", 4], ["count"], ["batch", "T", 4], ["batch", "T", 4]
    ]  # fmt: skip


def test_swapping_two_names() -> None:
    done = assert_rewrites(RenameDims(("N=T", "T=N")), MODEL, once=True)
    assert dims(done.proto.graph.output[0]) == ["T", "N", 4]


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (("Q=a",), "no input has a dim 'Q'"),
        (("x:2=a",), "is the number 4"),
        (("N=T",), "another dim of the inputs"),
        (("N=a", "T=a"), "one name"),
        (("N=a", "x:0=b"), "two names"),
    ],
)
def test_refuses(names: tuple[str, ...], words: str) -> None:
    with pytest.raises(UserError, match=words):
        apply(RenameDims(names), MODEL)


@pytest.mark.parametrize("name", ["N=a b", "N=1", "N"])
def test_names_that_are_none(name: str) -> None:
    with pytest.raises(ValueError, match="N"):
        RenameDims((name,))
