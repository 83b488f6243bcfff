"""The Python API: every kind of source, what is proven, what is refused, what is left alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import onnx_graphsurgeon as gs
import pytest
from google.protobuf.message import DecodeError

import graphopt
import graphopt.api
from graphopt.errors import ModelError, ProviderError, UserError
from graphopt.pipeline.base import Limits

ROOT = Path(__file__).parents[1]
CNN = ROOT / "models" / "digits_cnn.onnx"
HEAD = '<ir_version: 8, opset_import: ["" : 17]> '


def parse(text: str) -> onnx.ModelProto:
    return onnx.parser.parse_model(HEAD + text)


@pytest.mark.parametrize("kind", ["path", "string", "proto", "graphsurgeon", "model"])
def test_every_kind_of_source(kind: str) -> None:
    proto = onnx.load(CNN)
    source = {
        "path": CNN,
        "string": str(CNN),
        "proto": proto,
        "graphsurgeon": gs.import_onnx(proto),
        "model": graphopt.load(CNN),
    }[kind]
    before = proto.SerializeToString()
    result = graphopt.run(source)
    assert result.report.verdict == "proven"
    assert result.report.after.nodes == 23
    assert "BatchNormalization" not in result.report.after.ops
    # The source is never changed.
    if kind == "proto":
        assert proto.SerializeToString() == before
    if kind == "model":
        assert len(source.graph.nodes) == len(proto.graph.node)
    if kind == "graphsurgeon":
        assert len(source.nodes) == len(proto.graph.node)


def test_the_result_is_saved_and_the_report_says_where(tmp_path: Path) -> None:
    result = graphopt.run(CNN)
    saved = result.save(tmp_path / "out.onnx")
    assert result.report.output is not None
    assert result.report.output.path == str(saved.model)
    assert result.report.output.bytes == saved.model.stat().st_size
    onnx.checker.check_model(onnx.load(saved.model), full_check=True)


def test_the_pipeline_string_of_the_report_reproduces_the_run() -> None:
    first = graphopt.run(CNN, "remove-identity,fold-conv-bn,fixpoint(dead-nodes,cse)")
    again = graphopt.run(CNN, first.report.pipeline)
    assert again.report.pipeline == first.report.pipeline
    assert again.model.to_proto() == first.model.to_proto()


def test_running_twice_gives_the_same_bytes() -> None:
    a, b = (graphopt.run(CNN).model.to_proto().SerializeToString(deterministic=True) for _ in range(2))
    assert a == b


def test_no_passes_changes_nothing() -> None:
    result = graphopt.run(CNN, "none")
    assert result.report.verdict == "proven"
    assert result.model.to_proto() == onnx.load(CNN)


def test_the_default_pipeline_is_idempotent() -> None:
    once = graphopt.run(CNN).model.to_proto()
    twice = graphopt.run(once)
    assert sum(p.rewrites for p in twice.report.passes) == 0
    assert twice.model.to_proto() == once


def test_random_models_are_unproven_and_say_why() -> None:
    report = graphopt.run(
        parse("g (float[2] x) => (float[2] y) { r = RandomNormalLike(x) i = Identity(r) y = Add(x, i) }")
    ).report
    assert report.verdict == "unproven"
    assert "RandomNormalLike" in report.verdict_reason
    assert report.after.ops["RandomNormalLike"] == 1
    assert (report.exit_code(), report.exit_code(strict=True)) == (0, 1)


def test_operators_that_no_runtime_has_are_unproven() -> None:
    proto = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17, "acme" : 1]>'
        " g (float[2] x) => (float[2] y) { a = Identity(x) y = acme.Relu(a) }"
    )
    report = graphopt.run(proto).report
    assert report.verdict == "unproven"
    assert report.after.ops == {"acme::Relu": 1}


def test_overridable_initializers_stay_overridable() -> None:
    proto = parse("g (float[2] x, float[2] w = {1, 2}) => (float[2] y) { s = Add(w, w) y = Mul(x, s) }")
    result = graphopt.run(proto)
    after = result.model.to_proto()
    assert result.report.verdict == "proven"
    assert [v.name for v in after.graph.input] == ["x", "w"]
    assert [t.name for t in after.graph.initializer] == ["w"]
    assert [n.op_type for n in after.graph.node] == ["Add", "Mul"]


def test_a_glob_of_keep_that_matches_nothing_is_a_mistake() -> None:
    with pytest.raises(UserError, match="matches no node"):
        graphopt.run(CNN, keep=["no/such/*"])


def test_what_is_kept_is_kept() -> None:
    name = next(n.name for n in onnx.load(CNN).graph.node if n.op_type == "BatchNormalization")
    result = graphopt.run(CNN, keep=[name])
    assert result.report.after.ops["BatchNormalization"] == 1
    assert any(n.name == name for n in result.model.graph.nodes)


def test_a_kept_initializer_is_not_built_upon() -> None:
    weight = next(n.input[1] for n in onnx.load(CNN).graph.node if n.op_type == "Conv")
    result = graphopt.run(CNN, keep=[weight])
    assert result.report.verdict == "proven"
    assert result.report.after.ops["BatchNormalization"] == 1
    conv = next(n for n in result.model.graph.nodes if n.op == "Conv")
    assert conv.inputs[1].name == weight


def test_a_kept_node_keeps_the_name_of_its_output() -> None:
    proto = parse("g (float[2] x) => (float[2] y) { a = Relu(x) y = Identity(a) }")
    proto.graph.node[0].name = "mine"
    after = graphopt.run(proto, "remove-identity", keep=["mine"]).model.to_proto()
    assert [n.op_type for n in after.graph.node] == ["Relu", "Identity"]


def test_a_single_pass_needs_no_list() -> None:
    from graphopt_passes.cleanup.remove_identity import RemoveIdentity

    assert graphopt.run(CNN, RemoveIdentity()).report.passes[0].rewrites == 1


def test_real_data_and_shapes_are_used() -> None:
    report = graphopt.run(CNN, data=ROOT / "models" / "digits.npz").report
    assert report.verdict == "proven"
    assert "digits.npz" in report.probes[0]
    report = graphopt.run(CNN, input_shapes={"image": (7, 1, 8, 8)}).report
    assert all("batch=7" in p for p in report.probes)
    with pytest.raises(UserError, match="no input is called"):
        graphopt.run(CNN, input_shapes={"picture": (7, 1, 8, 8)})


def test_missing_providers_targets_and_files() -> None:
    with pytest.raises(ProviderError, match="not available"):
        graphopt.run(CNN, providers=("abacus",))
    with pytest.raises(UserError, match="unknown target"):
        graphopt.run(CNN, target="toaster")
    with pytest.raises(ModelError):
        graphopt.run(ROOT / "models" / "no_such_model.onnx")


def test_validate_finds_a_difference() -> None:
    relu = parse("g (float[N] x) => (float[N] y) { y = Relu(x) }")
    clip = parse("g (float[N] x) => (float[N] y) <float z = {0}> { y = Clip(x, z) }")
    leaky = parse("g (float[N] x) => (float[N] y) { y = LeakyRelu(x) }")
    assert graphopt.validate(relu, clip).verdict == "proven"
    proof = graphopt.validate(relu, leaky)
    assert proof.verdict == "failed"
    assert "'y'" in proof.reason


def test_limits_reach_the_passes() -> None:
    proto = parse(
        "g (float[1] x) => (float[64, 64] y) <int64[2] s = {64, 64}, float[1] v = {3}> "
        "{ e = Expand(v, s) y = Add(x, e) }"
    )
    kept = graphopt.run(proto, "fold-constants", limits=Limits(growth_bytes=1 << 10))
    assert kept.report.after.ops["Expand"] == 1
    assert any(r.reason for p in kept.report.passes for r in p.refusals)
    folded = graphopt.run(proto, "fold-constants", limits=Limits(growth_bytes=1 << 20))
    assert "Expand" not in folded.report.after.ops


def test_progress_is_told() -> None:
    told: list[str] = []
    graphopt.run(CNN, progress=lambda stage, detail: told.append(stage))
    assert {"load", "reference", "prove", "pass", "changed"} <= set(told)


def test_dumps_of_every_change(tmp_path: Path) -> None:
    graphopt.run(CNN, "remove-identity,dead-nodes,fold-conv-bn", dump_dir=tmp_path)
    assert [f.name for f in sorted(tmp_path.iterdir())] == [
        "001_remove-identity.onnx",
        "003_fold-conv-bn.onnx",
    ]


def test_accuracy_on_real_data_is_the_same() -> None:
    ort = pytest.importorskip("onnxruntime")
    data = np.load(ROOT / "models" / "digits.npz")
    before, after = onnx.load(CNN), graphopt.run(CNN).model.to_proto()
    answers = []
    for proto in (before, after):
        session = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
        answers.append(session.run(None, {"image": data["image"]})[0].argmax(1))
    assert np.array_equal(*answers)
    assert (answers[1] == data["label"]).mean() > 0.99


SMALL = parse("g (float[N, 4] x) => (float[N, 4] y) { a = Identity(x) y = Relu(a) }")


def test_one_name_is_as_good_as_several() -> None:
    result = graphopt.run(SMALL, passes="none", keep="y", providers="cpu")
    assert result.report.verdict == "proven"
    assert graphopt.validate(SMALL, SMALL, providers="cpu").ok


def test_verify_is_checked() -> None:
    with pytest.raises(UserError, match="verify cannot be 'of'"):
        graphopt.run(SMALL, verify="of")  # type: ignore[arg-type]


def test_a_result_is_short_in_a_console() -> None:
    assert len(repr(graphopt.run(SMALL, passes="none"))) < 100


def test_every_kind_of_failed_allocation_is_the_memory_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    def encode(*args: object) -> None:
        raise DecodeError("Failed to serialize proto")

    monkeypatch.setattr(graphopt.api, "_judge", encode)
    with pytest.raises(UserError, match=r"the memory limit of 8 GB is reached"):
        graphopt.run(SMALL, memory_limit=8 * 10**9)
    with pytest.raises(DecodeError):
        graphopt.run(SMALL)


@pytest.mark.parametrize(
    ("passes", "held"),
    [
        ("int8-dynamic", True),
        ("cleanup,int8-dynamic", True),
        ("cleanup,quantize-dynamic", False),  # a preset that moves nothing asks for nothing
        ("default,quantize-dynamic", False),
    ],
)
def test_presets_that_move_the_numbers_are_held_to_a_budget(passes: str, held: bool) -> None:
    report = graphopt.run(ROOT / "models" / "digits_transformer.onnx", passes).report
    assert report.accuracy is not None
    assert bool(report.accuracy.budget) is held
