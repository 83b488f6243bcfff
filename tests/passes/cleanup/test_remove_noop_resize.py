from __future__ import annotations

import numpy as np
import pytest

from graphopt.testing import assert_refuses, assert_rewrites
from graphopt_passes.cleanup.remove_noop_resize import RemoveNoopResize

HEAD = '<ir_version: 8, opset_import: ["" : 18]>'
SCALES = "<float[4] s = {1, 1, 1, 1}>"
INFINITE = {"x": np.array([1, np.inf, -0.0, np.nan, 2, -np.inf], np.float32).reshape(1, 1, 2, 3)}


def resize(attributes: str, inputs: str = "x, , s", constants: str = SCALES) -> str:
    return f"""{HEAD} g (float[N, 1, 2, 3] x) => (float[A, B, C, D] y) {constants} {{
        a = Resize<{attributes}>({inputs})  y = Neg(a)
    }}"""


@pytest.mark.parametrize(
    "mode", ["half_pixel", "pytorch_half_pixel", "asymmetric", "align_corners", "half_pixel_symmetric"]
)
def test_scales_of_one(mode: str) -> None:
    assert_rewrites(
        RemoveNoopResize(),
        resize(f'coordinate_transformation_mode = "{mode}", nearest_mode = "ceil"'),
        ops={"Neg": 1},
        inputs=INFINITE,
    )


def test_sizes_of_the_input() -> None:
    assert_rewrites(
        RemoveNoopResize(),
        resize('mode = "nearest"', "x, , , z", "<int64[4] z = {1, 1, 2, 3}>").replace("[N, ", "[1, "),
        ops={"Neg": 1},
    )


@pytest.mark.parametrize(
    "attributes",
    [
        'mode = "linear"',
        'mode = "cubic"',
        'coordinate_transformation_mode = "tf_crop_and_resize"',
        'coordinate_transformation_mode = "tf_half_pixel_for_nn"',
    ],
)
def test_not_provably_exact(attributes: str) -> None:
    inputs = "x, r, s" if "crop" in attributes else "x, , s"
    constants = "<float[4] s = {1, 1, 1, 1}, float[8] r = {0, 0, 0, 0, 1, 1, 1, 1}>"
    text = resize(attributes, inputs, constants)
    assert_refuses(
        RemoveNoopResize(), text if "crop" in attributes else text.replace("N, 1, 2, 3", "1, 1, 2, 3")
    )


def test_the_same_size_by_another_scale() -> None:
    assert_refuses(RemoveNoopResize(), resize('mode = "nearest"', constants="<float[4] s = {1, 1, 1, 1.1}>"))


def test_upsample() -> None:
    assert_rewrites(
        RemoveNoopResize(),
        """<ir_version: 7, opset_import: ["" : 9]>
        g (float[N, 1, 2, 3] x) => (float[N, 1, 2, 3] y) <float[4] s = {1, 1, 1, 1}> {
            a = Relu(x)  y = Upsample(a, s)
        }""",
        ops={"Relu": 1},
    )
