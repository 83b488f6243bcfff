import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import helper

from graphopt.errors import UserError
from graphopt.model import Model
from graphopt.passkit import Numerics
from graphopt.pipeline.manager import Settings, execute
from graphopt.pipeline.targets import get_target
from graphopt.runtime.session import open_session
from graphopt.testing import Applied, apply, assert_refuses, assert_rewrites
from graphopt_passes.conversion._opset_schemas import REVIEWED, difference, schema_at, versions_between
from graphopt_passes.conversion.raise_opset import ADAPTERS, RaiseOpset

EXACT = Numerics.EXACT


def head(opset: int, ir: int = 8) -> str:
    return f'<ir_version: {ir}, opset_import: ["" : {opset}]>'


def raised(before: str, least: int = 24, ops: dict[str, int] | None = None, **more: object) -> Applied:
    """`before`, raised to `least`, computes the same bit for bit."""
    done = assert_rewrites(RaiseOpset(least=least), before, ops=ops, numerics=EXACT, **more)  # type: ignore[arg-type]
    assert {o.domain: o.version for o in done.proto.opset_import}[""] == least
    return done


def unary(opset: int, body: str, x: str = "float[2, 3, 4]", y: str = "float[A, B, C]") -> str:
    return f"{head(opset)} g ({x} x) => ({y} y) {{ {body} }}"


# -- nothing to adapt ----------------------------------------------------------------------------------


def test_what_only_takes_more_types_stays() -> None:
    done = raised(unary(7, "a = Relu(x) b = Add(a, x) y = MatMul(b, b)", "float[4, 4]", "float[4, 4]"))
    assert dict(done.ops) == {"Relu": 1, "Add": 1, "MatMul": 1}
    assert len(done.journal.changes) == 1


def test_new_enough_models_stay_as_they_are() -> None:
    assert_refuses(RaiseOpset(least=17), unary(17, "y = Relu(x)"))
    assert_refuses(RaiseOpset(least=13), unary(17, "y = Relu(x)"))


def test_the_ir_version_is_the_least_that_the_opset_needs() -> None:
    assert raised(unary(13, "y = Relu(x)"), 17).proto.ir_version == 8
    assert raised(unary(13, "y = Relu(x)"), 21).proto.ir_version == 10


def test_initializers_listed_as_inputs_do_not_become_overridable() -> None:
    """Before IR version 4 every initializer is among the inputs; from it on, that has a meaning."""
    model = onnx.parser.parse_model(
        f"{head(8, 3)} g (float[2] x, float[2] w) => (float[2] y) <float[2] w = {{1, 2}}> {{ y = Mul(x, w) }}"
    )
    done = apply(RaiseOpset(least=21), model)
    assert [v.name for v in done.proto.graph.input] == ["x"]
    assert done.proto.ir_version == 10


def test_a_node_of_another_domain_or_a_local_function_is_none_of_ours() -> None:
    done = raised(
        """<ir_version: 8, opset_import: ["" : 12, "local" : 1, "com.microsoft" : 1]>
        g (float[2, 3] x) => (float[2, 3] z)
        { y = local.Softmax (x) z = com.microsoft.Gelu(y) }
        <opset_import: ["" : 12], domain: "local">
        Softmax (a) => (b) { b = Relu(a) }""",
        17,
    )
    assert done.ops["local::Softmax"] == 1


def test_unknown_opsets_are_an_error() -> None:
    with pytest.raises(UserError, match="99"):
        apply(RaiseOpset(least=99), unary(17, "y = Relu(x)"))


# -- every adapter -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("opset", "body", "x", "y"),
    [
        (11, "y = Squeeze <axes = [0, 2]> (x)", "float[1, 3, 1]", "float[3]"),
        (12, "y = Squeeze <axes = [-1]> (x)", "float[2, 3, 1]", "float[2, 3]"),
        (12, "y = Squeeze (x)", "float[1, 3, 1]", "float[3]"),
        (11, "y = Unsqueeze <axes = [0, 2]> (x)", "float[N]", "float[1, N, 1]"),
        (12, "y = ReduceSum <axes = [1], keepdims = 0> (x)", "float[2, 3]", "float[2]"),
        (12, "y = ReduceSum (x)", "float[2, 3]", "float[1, 1]"),
        (17, "y = ReduceMean <axes = [-1]> (x)", "float[2, N]", "float[2, 1]"),
        (8, "y = ReduceMax <axes = [0]> (x)", "float[2, N]", "float[1, N]"),
        (17, "y = ReduceL2 <keepdims = 0> (x)", "float[2, N]", "float"),
        (17, "y = ReduceLogSumExp <axes = [1]> (x)", "float[2, N]", "float[2, 1]"),
        (7, "y = Clip <min = -0.5, max = 0.5> (x)", "float[9]", "float[9]"),
        (10, "y = Clip <min = -0.5> (x)", "float[9]", "float[9]"),
        (6, "y = Clip (x)", "float[9]", "float[9]"),
        (9, "y = Pad <pads = [0, 1, 2, 0], value = 1.5> (x)", "float[2, N]", "float[4, M]"),
        (10, "y = Pad <pads = [0, -1, 1, 0]> (x)", "float[3, 4]", "float[4, 3]"),
        (10, 'y = Pad <pads = [0, 1, 0, 1], mode = "reflect"> (x)', "float[3, 4]", "float[3, 6]"),
        (9, "y = Slice <starts = [0, 1], ends = [2, 99]> (x)", "float[3, N]", "float[2, M]"),
        (7, "y = Slice <axes = [1], starts = [-2], ends = [2147483647]> (x)", "float[3, 5]", "float[3, 2]"),
        (8, "y, i = TopK <k = 2, axis = 1> (x)", "float[3, 5]", "float[3, 2]"),
        (
            10,
            "k = Constant <value = int64[1] {2}> () y, i = TopK <axis = 1> (x, k)",
            "float[3, 5]",
            "float[3, 2]",
        ),
        (12, "y, b = Split <axis = 1, split = [2, 3]> (x)", "float[3, 5]", "float[3, 2]"),
        (12, "y, b = Split <axis = 1> (x)", "float[3, 4]", "float[3, 2]"),
        (17, "y, b = Split <axis = 0> (x)", "float[4, 4]", "float[2, 4]"),
        (11, "y = Dropout <ratio = 0.4> (x)", "float[4, 4]", "float[4, 4]"),
        (7, "y, mask = Dropout (x)", "float[4, 4]", "float[4, 4]"),
        (
            7,
            'y = Upsample <mode = "nearest", scales = [1.0, 1.0, 2.0, 3.0]> (x)',
            "float[1, 2, 3, 3]",
            "float[1, 2, 6, 9]",
        ),
        (
            8,
            'y = Upsample <mode = "linear", scales = [1.0, 1.0, 2.0, 2.0]> (x)',
            "float[1, 2, 3, 3]",
            "float[1, 2, 6, 6]",
        ),
        (
            9,
            "s = Constant <value = float[4] {1, 1, 1.5, 2}> () y = Upsample (x, s)",
            "float[1, 2, 3, 3]",
            "float[1, 2, 4, 6]",
        ),
        (
            10,
            "s = Constant <value = float[4] {1, 1, 2, 2}> () y = Resize (x, s)",
            "float[1, 2, 3, 3]",
            "float[1, 2, 6, 6]",
        ),
        (
            10,
            "s = Constant <value = float[4] {1, 1, 0.4, 0.5}> () y = Resize (x, s)",
            "float[1, 1, 7, 8]",
            "float[1, 1, 2, 4]",
        ),
        (
            10,
            's = Constant <value = float[4] {1, 1, 0.5, 2}> () y = Resize <mode = "linear"> (x, s)',
            "float[1, 1, 7, 8]",
            "float[1, 1, 3, 16]",
        ),
    ],
)
def test_adapters(opset: int, body: str, x: str, y: str) -> None:
    for least in (13, 24):
        if least > opset:
            raised(unary(opset, body, x, y), least)


@pytest.mark.parametrize("op", ["Softmax", "LogSoftmax", "Hardmax"])
@pytest.mark.parametrize("axis", ["", "<axis = 0>", "<axis = 1>", "<axis = 2>", "<axis = 3>"])
def test_softmax_over_all_dims_from_the_axis_on(op: str, axis: str) -> None:
    raised(unary(11, f"y = {op} {axis} (x)", "float[2, 3, N, 2]", "float[2, 3, N, 2]"))


def test_softmax_over_the_last_dim_needs_no_flattening() -> None:
    raised(unary(11, "y = Softmax <axis = -1> (x)"), ops={"Softmax": 1})
    raised(unary(11, "y = Softmax (x)", "float[N, 10]", "float[N, 10]"), ops={"Softmax": 1})
    raised(unary(9, "y = Softmax (x)", "float[N, 10, 1, 1]", "float[N, 10, 1, 1]"), ops={"Softmax": 1})


def test_softmax_of_unknown_rank() -> None:
    raised(
        f"""{head(11)} g (float[2, 3, 4] x, int64[K] s) => (float[A, B, C] z)
        {{ y = Reshape(x, s) z = Softmax(y) }}""",
        inputs={
            "x": np.random.default_rng(0).standard_normal((2, 3, 4)).astype("f"),
            "s": np.array([4, 3, 2]),
        },
    )


def test_batch_normalization() -> None:
    text = """ g (float[N, 2, 3] x) => (float[N, 2, 3] y)
        <float[2] s = {1, 2}, float[2] b = {0, 1}, float[2] m = {0.5, 1}, float[2] v = {1, 3}>
        { y = BatchNormalization %s (x, s, b, m, v) }"""
    raised(head(7) + text % "<spatial = 1>")
    raised(head(8) + text % "")
    assert_refuses(RaiseOpset(least=13), head(8) + text % "<spatial = 0>", "spatial = 0")
    assert_refuses(
        RaiseOpset(least=15),
        (head(9) + text % "").replace(" y)", " y, float[2] rm)").replace("{ y =", "{ y, rm, rv, sm, sv ="),
        "is an output for training",
    )


def test_scatter_is_scatter_elements() -> None:
    raised(
        f"""{head(9)} g (float[3, 3] x, int64[2, 3] i, float[2, 3] u) => (float[3, 3] y)
        {{ y = Scatter <axis = 0> (x, i, u) }}""",
        ops={"ScatterElements": 1},
        inputs={
            "x": np.zeros((3, 3), "f"),
            "i": np.array([[1, 0, 2], [0, 2, 1]]),
            "u": np.arange(6, dtype="f").reshape(2, 3),
        },
    )


def test_one_hot_where_an_index_cannot_be_negative() -> None:
    raised(
        f"""{head(9)} g (float[3, 5] x) => (float[3, 1, 5] y) <int64 d = {{5}}, float[2] v = {{0, 1}}>
        {{ i = ArgMax <axis = 1> (x) y = OneHot (i, d, v) }}"""
    )
    assert_refuses(
        RaiseOpset(least=13),
        f"""{head(9)} g (int64[3] i) => (float[3, 5] y) <int64 d = {{5}}, float[2] v = {{0, 1}}>
        {{ y = OneHot (i, d, v) }}""",
        "might be negative",
    )


def test_roi_align() -> None:
    raised(
        f"""{head(10)} g (float[1, 1, 8, 8] x) => (float[1, 1, 2, 2] y)
        <float[1, 4] r = {{1, 1, 5, 6}}, int64[1] b = {{0}}>
        {{ y = RoiAlign <output_height = 2, output_width = 2, sampling_ratio = 2> (x, r, b) }}""",
        21,
    )


@pytest.mark.parametrize("mode", ["bilinear", "nearest", "bicubic"])
def test_grid_sample(mode: str) -> None:
    raised(
        f"""{head(16)} g (float[1, 1, 4, 4] x, float[1, 3, 3, 2] grid) => (float[1, 1, 3, 3] y)
        {{ y = GridSample <mode = "{mode}"> (x, grid) }}"""
    )


def test_dft() -> None:
    raised(unary(17, "y = DFT (x)", "float[1, 8, 4, 1]", "float[1, 8, 4, 2]"), 21)
    raised(unary(17, "y = DFT <axis = 2> (x)", "float[1, 8, 4, 1]", "float[1, 8, 4, 2]"), 21)


@pytest.mark.parametrize("channels", ["4", "C"])
def test_group_normalization_is_scaled_per_channel(channels: str) -> None:
    """Its first version is deprecated from the day it came, so neither checker nor runtime is asked."""
    model = onnx.parser.parse_model(
        f"""{head(18)} g (float[N, {channels}, 3] x) => (float[N, {channels}, 3] y)
        <float[2] s = {{1, 2}}, float[2] b = {{0, 3}}>
        {{ y = GroupNormalization <num_groups = 2> (x, s, b) }}"""
    )
    done = execute(Model.load(model), [RaiseOpset(least=21)], Settings(get_target("portable")))
    x = np.random.default_rng(0).standard_normal((2, 4, 3)).astype("f")
    with open_session(done.model.to_proto(), optimize="none") as session:
        y = np.asarray(session.run({"x": x})["y"])
    rows = x.reshape(2, 2, 6)
    normal = (rows - rows.mean(-1, keepdims=True)) / np.sqrt(rows.var(-1, keepdims=True) + 1e-5)
    expected = normal * np.array([[1], [2]]) + np.array([[0], [3]])
    np.testing.assert_allclose(y.reshape(2, 2, 6), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("mode", ["half_pixel", "tf_half_pixel_for_nn", "align_corners", "asymmetric"])
def test_resize_with_empty_inputs(mode: str) -> None:
    for opset in (11, 12):
        raised(
            f"""{head(opset)} g (float[1, 1, 5, 4] x) => (float[1, 1, H, W] y)
            <float[0] none = {{}}, int64[4] size = {{1, 1, 7, 9}}>
            {{ y = Resize <coordinate_transformation_mode = "{mode}", nearest_mode = "floor">
                (x, none, none, size) }}"""
        )


def test_resize_where_nothing_says_what_is_nearest() -> None:
    assert_refuses(
        RaiseOpset(least=11),
        f"{head(10)} g (float[1, 1, 7, 8] x, float[4] s) => (float[A, B, C, D] y) {{ y = Resize (x, s) }}",
        "samples up or down",
    )
    assert_refuses(
        RaiseOpset(least=11),
        unary(
            10,
            "s = Constant <value = float[4] {1, 1, 0.5, 2}> () y = Resize (x, s)",
            "float[1, 1, 8, 8]",
            "float[1, 1, 4, 16]",
        ),
        "some axes up and others down",
    )


def test_mask_of_dropout() -> None:
    assert_refuses(
        RaiseOpset(least=12),
        f"{head(10)} g (float[3] x) => (float[3] y, bool[3] m) {{ y, m = Dropout(x) }}",
        "the mask m is read",
    )


def test_scan_over_a_batch() -> None:
    text = f"""{head(8)} g (float[1, 2] a, float[1, 3, 2] x) => (float[1, 2] b) {{
        b, z = Scan <num_scan_inputs = 1, body = s (float[2] c, float[2] e) => (float[2] d, float[2] f)
            {{ d = Add(c, e) f = Identity(d) }}> ("", a, x) }}"""
    assert_refuses(RaiseOpset(least=9), text, "Scan runs over a batch")


def test_half_and_double_bounds() -> None:
    raised(unary(10, "y = Clip <min = 0.0, max = 1.0> (x)", "float16[4]", "float16[4]"), 13)


# -- the whole model, or nothing -----------------------------------------------------------------------


def test_bodies_and_what_they_capture() -> None:
    done = raised(
        f"""{head(10)} g (float[1, 3] x, bool c) => (float[3] y) {{
            h = Relu(x)
            y = If (c) <
                then_branch = t () => (float[3] a) {{ a = Squeeze <axes = [0]> (h) }},
                else_branch = e () => (float[3] b) {{ k = Clip <max = 0.25> (h) b = Squeeze (k) }}
            >
        }}"""
    )
    assert len(done.journal.changes) == 1


def test_a_refusal_in_a_body_leaves_the_whole_model_alone() -> None:
    done = assert_refuses(
        RaiseOpset(least=13),
        f"""{head(9)} g (float[1, 3] x, int64[3] i, bool c) => (float[3] y) {{
            h = Squeeze <axes = [0]> (x)
            y = If (c) <
                then_branch = t () => (float[3] a) {{ a = Neg(h) }},
                else_branch = e () => (float[3] b) <int64 d = {{3}}, float[2] v = {{0, 1}}> {{
                    o = OneHot(i, d, v) b = ReduceSum <axes = [0], keepdims = 0> (o)
                }}
            >
        }}""",
        "no opset 13",
    )
    assert done.proto.opset_import[0].version == 9
    assert done.proto.ir_version == 8


def test_local_functions_have_imports_of_their_own() -> None:
    done = raised(
        """<ir_version: 8, opset_import: ["" : 10, "local" : 1]>
        g (float[1, 3] x) => (float[3] y) { y = local.f <axes = [0], top = 0.5> (x) }
        <opset_import: ["" : 10], domain: "local">
        f <axes, top> (a) => (b) { c = Clip <max: float = @top> (a) b = Squeeze <axes: ints = @axes> (c) }""",
        18,
    )
    (function,) = done.proto.functions
    assert function.opset_import[0].version == 18


def test_what_a_function_decides_by_an_attribute() -> None:
    assert_refuses(
        RaiseOpset(least=13),
        """<ir_version: 8, opset_import: ["" : 12, "local" : 1]>
        g (float[1, 3] x) => (float[1, 3] y) { y = local.f <axis = 1> (x) }
        <opset_import: ["" : 12], domain: "local">
        f <axis> (a) => (b) { b = Softmax <axis: int = @axis> (a) }""",
        "attribute of the function",
    )


def test_a_kept_node_that_would_have_to_change() -> None:
    text = unary(12, "h = Relu(x) y = Squeeze(h)", "float[1, 3]", "float[3]")
    assert_refuses(
        RaiseOpset(least=13), text.replace("Squeeze(h)", "Squeeze<axes=[0]>(h)"), "is kept", keep=["y"]
    )
    raised(text, 13, keep=["y"])


def test_shared_operands_and_outputs() -> None:
    raised(
        f"""{head(10)} g (float[1, 3] x) => (float[3] y, float[1, 3] r, float[3] z) {{
            r = Clip <min = 0.0> (x) y = Squeeze <axes = [0]> (r) s = Softmax <axis = 0> (r) z = Squeeze(s)
        }}"""
    )


def test_a_model_with_training_information() -> None:
    model = onnx.parser.parse_model(unary(12, "y = Relu(x)"))
    info = model.training_info.add()
    info.algorithm.name = "step"
    info.algorithm.node.append(helper.make_node("Relu", ["x"], ["z"]))
    loaded = Model.load(model)
    done = execute(loaded, [RaiseOpset(least=13)], Settings(get_target("portable")))
    assert not done.journal.changes
    assert any("training" in r.reason for r in done.journal.refusals)


# -- every operator ------------------------------------------------------------------------------------


def test_every_change_of_every_operator_is_accounted_for() -> None:
    """Either nothing needs doing, or there is an adapter; what is left is refused, and listed here."""
    refused = set()
    for op in sorted(
        {s.name for s in onnx.defs.get_all_schemas() if s.domain == ""} | {"Upsample", "Scatter"}
    ):
        if schema_at(op, 7) is None and not versions_between(op, 7, REVIEWED):
            continue
        for version in versions_between(op, 7, 26):
            older = [v for v in versions_between(op, 0, version) if v < version]
            if older and (op, version) not in ADAPTERS and difference(op, version).reason:
                refused.add((op, version))
    assert refused == set()


def test_no_adapter_is_for_a_version_that_does_not_exist() -> None:
    for op, version in ADAPTERS:
        assert version in versions_between(op, 0, REVIEWED)
