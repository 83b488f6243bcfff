from __future__ import annotations

import onnx

from graphopt.testing import assert_refuses, assert_rewrites, parse
from graphopt_passes.cleanup.prune_initializers import PruneInitializers

HEAD = '<ir_version: 8, opset_import: ["" : 17]>'
UNUSED = f"{HEAD} g (float[N] x) => (float[N] y) <float[1] w = {{1}}, float[1] u = {{2}}> {{ y = Mul(x, w) }}"


def test_unread_ones_go() -> None:
    done = assert_rewrites(PruneInitializers(), UNUSED, ops={"Mul": 1})
    assert [t.name for t in done.proto.graph.initializer] == ["w"]


def test_a_capture_is_a_reader_and_branches_have_their_own() -> None:
    done = assert_rewrites(
        PruneInitializers(),
        f"""{HEAD} g (float[N] x, bool c) => (float[N] y) <float[1] w = {{1}}> {{
            y = If(c) <
                then_branch = t () => (float[N] p) <float[1] v = {{2}}> {{ p = Mul(x, w) }},
                else_branch = e () => (float[N] q) {{ q = Neg(x) }}
            >
        }}""",
    )
    assert [t.name for t in done.proto.graph.initializer] == ["w"]
    assert not done.proto.graph.node[0].attribute[0].g.initializer


def test_an_overridable_default_belongs_to_the_interface() -> None:
    model = parse(f"{HEAD} g (float[N] x, float[1] u) => (float[N] y) {{ y = Relu(x) }}")
    model.graph.initializer.append(onnx.helper.make_tensor("u", 1, [1], [2.0]))
    assert_refuses(PruneInitializers(), model)


def test_a_returned_initializer_is_read() -> None:
    assert_refuses(PruneInitializers(), f"{HEAD} g (float[N] x) => (float[1] u) <float[1] u = {{2}}> {{ }}")


def test_a_quantization_annotation_names_its_scale() -> None:
    model = parse(UNUSED)
    entry = model.graph.quantization_annotation.add(tensor_name="x").quant_parameter_tensor_names.add()
    entry.key, entry.value = "SCALE_TENSOR", "u"
    assert_refuses(PruneInitializers(), model)


def test_the_training_information_names_what_it_updates() -> None:
    model = parse(UNUSED)
    model.training_info.add().update_binding.add(key="u", value="x")
    assert_refuses(PruneInitializers(), model)


def test_what_the_user_keeps_stays() -> None:
    assert_refuses(PruneInitializers(), UNUSED, keep=["u"])
