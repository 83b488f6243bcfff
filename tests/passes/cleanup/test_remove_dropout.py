from __future__ import annotations

import onnx

from graphopt.model import Model
from graphopt.pipeline.manager import Settings, execute
from graphopt.pipeline.registry import Fixpoint
from graphopt.pipeline.targets import get_target
from graphopt.testing import assert_refuses, assert_rewrites, count_ops, parse
from graphopt_passes.cleanup.remove_dropout import RemoveDropout
from graphopt_passes.folding.fold_shapes import FoldShapes

HEAD = '<ir_version: 8, opset_import: ["" : 17]>'


def test_without_training_mode() -> None:
    assert_rewrites(
        RemoveDropout(),
        f"""{HEAD} g (float[N] x) => (float[N] y) <float r = {{0.5}}, bool t = {{0}}> {{
            a = Dropout(x)  b, unused = Dropout(a, r)  c = Dropout(b, r, t)  y = Relu(c)
        }}""",
        ops={"Relu": 1},
    )


def test_a_ratio_of_zero_drops_nothing_even_in_training() -> None:
    assert_rewrites(
        RemoveDropout(),
        f"""{HEAD} g (float[N] x, bool t) => (float[N] y) <float r = {{0}}> {{
            a = Dropout(x, r, t)  y = Relu(a)
        }}""",
        ops={"Relu": 1},
    )


def test_opset_10_is_inference_only() -> None:
    assert_rewrites(
        RemoveDropout(),
        """<ir_version: 7, opset_import: ["" : 10]>
        g (float[N] x) => (float[N] y) { a = Relu(x)  y = Dropout<ratio = 0.5>(a) }""",
        ops={"Relu": 1},
    )


def test_opset_6_trains_unless_told() -> None:
    assert_refuses(
        RemoveDropout(),
        """<ir_version: 7, opset_import: ["" : 6]>
        g (float[N] x) => (float[N] y) { a = Relu(x)  y = Dropout(a) }""",
        "is_test is not set",
    )


def test_training() -> None:
    assert_refuses(
        RemoveDropout(),
        f"""{HEAD} g (float[N] x) => (float[N] y) <float r = {{0.5}}, bool t = {{1}}> {{
            a = Dropout(x, r, t)  y = Relu(a)
        }}""",
        "training_mode t",
    )


def test_an_overridable_training_mode() -> None:
    model = parse(f"""{HEAD} g (float[N] x, bool t) => (float[N] y) <float r = {{0.5}}> {{
        a = Dropout(x, r, t)  y = Relu(a)
    }}""")
    model.graph.initializer.append(onnx.helper.make_tensor("t", onnx.TensorProto.BOOL, [], [False]))
    assert_refuses(RemoveDropout(), model, "training_mode t")


def test_a_used_mask() -> None:
    assert_refuses(
        RemoveDropout(),
        f"{HEAD} g (float[N] x) => (float[N] y, bool[N] m) {{ a, m = Dropout(x)  y = Relu(a) }}",
        "mask m is used",
    )


def test_a_shared_reader_an_output_and_a_branch() -> None:
    assert_rewrites(
        RemoveDropout(),
        f"""{HEAD} g (float[N] x, bool c) => (float[N] y, float[N] z) {{
            a = Relu(x)  y = Dropout(a)
            z = If(c) <
                then_branch = t () => (float[N] p) {{ d = Dropout(y)  p = Exp(d) }},
                else_branch = e () => (float[N] q) {{ q = Neg(a) }}
            >
        }}""",
        ops={"Relu": 1, "If": 1, "Exp": 1, "Neg": 1},
    )


def test_a_mask_that_is_no_longer_read() -> None:
    """Another pass takes the only reader of the mask away: this pass looks at the Dropout again."""
    before = """
        <ir_version: 8, opset_import: ["" : 17]>
        g (float[N, 4] x) => (float[N, 4] y, int64[1] z) {
          a, m = Dropout(x)
          y = Relu(a)
          z = Shape<start = 1>(m)
        }
    """
    model = Model.load(parse(before))
    done = execute(model, [Fixpoint((RemoveDropout(), FoldShapes()))], Settings(get_target("portable")))
    assert count_ops(done.model) == {"Relu": 1}
