"""What is read off a model, in detail: versions, files, weights, interface, who runs what."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest
from gate_models import HEAD, TEXT, only
from onnx import numpy_helper

from graphopt.errors import ExternalDataError, UserError

FUNCTION = """<ir_version: 9, opset_import: ["" : 17, "local" : 1, "com.microsoft" : 1]>
g (float[4] x) => (float[4] y) { y = local.twice(x) }
<domain: "local", opset_import: ["" : 18]> twice (a) => (b) { c = Abs(a) b = Add(c, c) }
"""


def verdicts(report: Any) -> dict[str, str]:
    return {c.name: c.verdict for c in report.checks}


def save(folder: Path, text: str, name: str = "other.onnx") -> str:
    onnx.save(onnx.parser.parse_model(text), folder / name)
    return name


def test_opsets_of_functions_count(run: Any, folder: Path) -> None:
    other = save(folder, FUNCTION)
    report = run("[opset]\nmax = 17\nmin = 17\n", other)
    assert verdicts(report) == {"opset.max": "failed", "opset.min": "passed"}
    assert only(report, "opset.max").value == "17, 18"


def test_opsets_of_other_domains(run: Any, folder: Path) -> None:
    table = '[opset.domains."com.microsoft"]\n'
    other = save(folder, FUNCTION)
    for limit, verdict in (
        ("min = 1", "passed"),
        ("max = 1", "passed"),
        ("exact = 2", "failed"),
        ("min = 2", "failed"),
    ):
        assert run(table + limit, other).verdict == verdict, limit
    report = run(table + "exact = 1")
    assert report.verdict == "passed"
    assert report.checks[0].value == "not imported"


def test_operators_in_functions_and_bodies_count(run: Any, folder: Path) -> None:
    other = save(folder, FUNCTION)
    assert run('[ops]\nallowed = ["Abs", "Add"]', other).verdict == "passed"  # the call is not counted itself
    check = run('[ops]\nbanned = ["Abs"]', other).checks[0]
    assert (check.verdict, check.value, check.measured) == ("failed", "Abs", 1)
    assert "local::twice" in check.detail
    body = save(
        folder,
        f"""{HEAD} g (float[4] x, bool c) => (float[4] y) {{
        y = If (c) <then_branch = t () => (float[4] a) {{ a = Neg(x) }}, else_branch = e () => (float[4] b)
        {{ b = Relu(x) }}> }}""",
        "body.onnx",
    )
    assert run('[ops]\nbanned = ["Relu"]', body).checks[0].value == "Relu"
    assert run('[ops]\nbanned = ["Relu"]', other).verdict == "passed"


def test_domains_of_other_operators(run: Any, folder: Path) -> None:
    text = '<ir_version: 8, opset_import: ["" : 17, "com.microsoft" : 1, "acme" : 1]> g (float[4] x) => (float[4] y) {'
    contrib = save(folder, f"{text} y = com.microsoft.FastGelu(x) }}")
    acme = save(folder, f"{text} y = acme.Gelu(x) }}", "acme.onnx")
    assert run("[domains]\nknown = true", contrib).verdict == "passed"
    check = run("[domains]\nknown = true", acme).checks[0]
    assert (check.verdict, check.value) == ("failed", "acme::Gelu")
    assert run('[domains]\nallowed = ["ai.onnx", "com.*"]', contrib).verdict == "passed"
    assert run('[domains]\nallowed = ["ai.onnx", "com.*"]', acme).checks[0].value == "acme"
    assert run('[ops]\nbanned = ["com.microsoft::*"]', contrib).verdict == "failed"
    assert run('[ops]\nbanned = ["com.microsoft::*"]', acme).verdict == "passed"
    assert (
        run("[domains]\nknown = true", save(folder, f"{text} y = com.microsoft.FastGlue(x) }}")).verdict
        == "failed"
    )


# -- files -----------------------------------------------------------------------------------------


def test_sha256_of_external_data(run: Any, folder: Path) -> None:
    digest = hashlib.sha256((folder / "external.data").read_bytes()).hexdigest()
    table = "[external_data.sha256]\n"
    assert run(f'{table}"external.data" = "{digest.upper()}"', "external.onnx").verdict == "passed"
    check = run(f'{table}"external.data" = "{"0" * 64}"', "external.onnx").checks[0]
    assert (check.verdict, check.value) == ("failed", digest)
    assert run(f'{table}"other.data" = "{digest}"', "external.onnx").checks[0].value == "no such file"
    assert run(f'{table}"../{folder.name}/external.data" = "{digest}"', "external.onnx").verdict == "passed"
    (folder.parent / "outside.data").write_bytes((folder / "external.data").read_bytes())
    assert run(f'{table}"../outside.data" = "{digest}"', "external.onnx").verdict == "failed"


def test_checksums_that_the_model_states(run: Any, folder: Path) -> None:
    right = hashlib.sha1((folder / "external.data").read_bytes()).hexdigest()
    policy = "[external_data]\nchecksums = true"
    assert run(policy, "external.onnx").checks[0].value == "none stated"
    for digest, verdict in ((right, "passed"), ("0" * 40, "failed")):
        proto = onnx.load(folder / "external.onnx", load_external_data=False)
        for tensor in proto.graph.initializer:
            if tensor.external_data:
                tensor.external_data.add(key="checksum", value=digest)
        onnx.save(proto, folder / "stated.onnx")
        assert run(policy, "stated.onnx").verdict == verdict


@pytest.mark.parametrize("how", ["missing", "short", "link", "overlap"])
def test_external_data_that_is_refused(run: Any, folder: Path, how: str) -> None:
    data = folder / "external.data"
    if how == "missing":
        data.unlink()
    elif how == "short":
        data.write_bytes(data.read_bytes()[:-1])
    elif how == "link":
        data.rename(folder / "real.data")
        data.symlink_to(folder / "real.data")
    else:
        proto = onnx.load(folder / "external.onnx", load_external_data=False)
        (tensor,) = (t for t in proto.graph.initializer if t.external_data)
        twin = proto.graph.initializer.add()
        twin.CopyFrom(tensor)
        twin.name = "twin"
        for entry in twin.external_data:
            if entry.key == "length":
                entry.value = str(int(entry.value) - 4)
        twin.dims[0] -= 1
        onnx.save(proto, folder / "external.onnx")
    policy = "[external_data]\ninside_folder = true\nchecksums = true\n[file]\nmax_mb = 100\n[numerics]\nmax_abs = 1"
    report = run(policy, "external.onnx", reference=folder / "reference.onnx")
    assert verdicts(report) == {
        "external_data.inside_folder": "failed",
        "external_data.checksums": "error",
        "file.max_mb": "error",
        "numerics.max_abs": "error",
    }
    assert report.exit_code() == 1
    assert "external.data" in report.checks[0].detail
    assert "the model cannot be read" in only(report, "file.max_mb").detail
    with pytest.raises(ExternalDataError):  # where the policy does not ask about it, it is bad input
        run("[file]\nmax_mb = 100", "external.onnx")


def test_trust_does_not_change_what_the_policy_asks(run: Any, folder: Path) -> None:
    data = folder / "external.data"
    data.rename(folder.parent / "outside.data")
    data.symlink_to(folder.parent / "outside.data")
    policy = "[external_data]\ninside_folder = true\n[file]\nmax_mb = 100"
    report = run(policy, "external.onnx", trust_external_paths=True)
    assert verdicts(report) == {"external_data.inside_folder": "failed", "file.max_mb": "passed"}


def test_size_counts_external_data(run: Any, folder: Path) -> None:
    size = sum((folder / f).stat().st_size for f in ("external.onnx", "external.data"))
    check = run("[file]\nmax_mb = 0.4", "external.onnx").checks[0]
    assert check.measured == pytest.approx(size / 1e6)
    assert check.verdict == "failed"
    assert "1 external data file included" in check.detail


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16", "float8_e5m2"])
@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_weights_of_all_floats(run: Any, folder: Path, dtype: str, value: str) -> None:
    import ml_dtypes

    kind = np.dtype(getattr(ml_dtypes, dtype, None) or dtype)
    array = np.ones(2_000_000, kind)
    array[1_999_999] = float(value)  # beyond the first block
    proto = onnx.parser.parse_model(
        TEXT.replace('"" : 17', '"" : 21').replace("ir_version: 8", "ir_version: 10")
    )
    proto.graph.initializer.append(numpy_helper.from_array(array, "mask"))
    onnx.save(proto, folder / "odd.onnx")
    check = run("[weights]\nfinite = true", "odd.onnx").checks[0]
    assert (check.verdict, check.measured) == ("failed", 1)
    assert "mask (1 of 2,000,000 values)" in check.detail
    assert run('[weights]\nfinite = true\nfinite_except = ["ma*"]', "odd.onnx").verdict == "passed"


def test_weights_that_are_no_plain_initializers(run: Any, folder: Path) -> None:
    policy = "[weights]\nfinite = true"
    proto = onnx.parser.parse_model(
        f"{HEAD} g (float[2] x) => (float[2] y) {{ c = Constant <value_float = 1.0> () y = Add(x, c) }}"
    )
    assert proto.graph.node[0].attribute[0].name == "value_float"
    onnx.save(proto, folder / "constant.onnx")
    assert run(policy, "constant.onnx").verdict == "passed"
    proto.graph.node[0].attribute[0].f = float("inf")
    onnx.save(proto, folder / "constant.onnx")
    assert run(policy, "constant.onnx").checks[0].detail == "c (1 of 1 values)"
    proto = onnx.parser.parse_model(f"{HEAD} g (float[2] x) => (float[2] y) {{ y = Add(x, s) }}")
    values = numpy_helper.from_array(np.array([np.nan], np.float32), "s")
    proto.graph.sparse_initializer.add(
        values=values, indices=numpy_helper.from_array(np.array([1]), ""), dims=[2]
    )
    onnx.save(proto, folder / "sparse.onnx")
    assert run(policy, "sparse.onnx").verdict == "failed"
    # What is not a number cannot be infinite.
    assert run(policy, "quantized.onnx").verdict == "passed"


def test_finite_weights_take_no_memory(run: Any, folder: Path) -> None:
    import tracemalloc

    proto = onnx.parser.parse_model(TEXT)
    proto.graph.initializer.append(numpy_helper.from_array(np.ones(16 << 20, np.float32), "big"))  # 67 MB
    onnx.save(proto, folder / "big.onnx")
    del proto
    tracemalloc.start()
    try:
        assert run("[weights]\nfinite = true", "big.onnx").verdict == "passed"
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 20 << 20


# -- interface -------------------------------------------------------------------------------------


def inputs(text: str) -> str:
    return f"[interface]\ninputs = [{text}]"


@pytest.mark.parametrize(
    ("policy", "verdict", "said"),
    [
        (inputs('{name = "x"}'), "passed", ""),
        (inputs('{name = "x", dtype = "float", dims = ["batch", 4]}'), "passed", ""),
        (inputs('{name = "x", dims = ["?", "?"]}'), "passed", ""),
        (inputs('{name = "x", dtype = "float16"}'), "failed", "its type is float"),
        (inputs('{name = "x", dims = ["N", 4]}'), "failed", "dim 0 is batch"),
        (inputs('{name = "x", dims = [1, 5]}'), "failed", "dim 0 is batch, dim 1 is 4"),
        (inputs('{name = "x", dims = [4]}'), "failed", "it has 2 dims"),
        (inputs('{name = "image"}'), "failed", "missing: image; not expected: x"),
        (inputs(""), "failed", "not expected: x"),
        ('[interface]\noutputs = [{name = "y"}, {name = "best", dtype = "int64"}]', "passed", ""),
        ('[interface]\noutputs = [{name = "best"}, {name = "y"}]', "failed", "the order differs"),
        ('[[interface.outputs]]\nname = "y"', "failed", "not expected: best"),
    ],
)
def test_interface(run: Any, policy: str, verdict: str, said: str) -> None:
    report = run(policy)
    assert report.verdict == verdict
    assert said in " ".join(c.detail for c in report.checks)
    assert any(c.verdict == verdict for c in report.checks)


# -- who runs what ---------------------------------------------------------------------------------


def test_integer_kernels(run: Any) -> None:
    report = run("[int8]\nmin_share = 0.5\nmax_fallbacks = 1", "quantized.onnx")
    assert report.verdict == "passed"
    assert [c.measured for c in report.checks] == [0.5, 1]
    assert report.checks[0].value == "50 % (1 of 2)"
    report = run("[int8]\nmin_share = 0.51\nmax_fallbacks = 0", "quantized.onnx")
    assert [c.verdict for c in report.checks] == ["failed", "failed"]
    assert "second (Conv): its output is not quantized" in report.checks[0].detail


def test_integer_kernels_of_some_operators(run: Any) -> None:
    report = run('[int8]\nops = ["MatMul"]\nmin_share = 0.1', "quantized.onnx")
    assert (report.verdict, report.checks[0].value) == ("failed", "no such node")
    assert run('[int8]\nops = ["Conv"]\nmin_share = 0.5', "quantized.onnx").verdict == "passed"
    assert run("[int8]\nmin_share = 0.5").verdict == "failed"  # a float model


def test_providers(run: Any) -> None:
    table = "[providers.cpu]\nmin_share = 1.0\nallow_memcpy = false\n"
    report = run(table)
    assert verdicts(report) == {"providers.cpu.min_share": "passed", "providers.cpu.allow_memcpy": "passed"}
    with pytest.raises(UserError, match="'cuda' is not available") as caught:
        run("[providers.cuda]\nmin_share = 1.0")
    assert caught.value.where is not None
    assert caught.value.where.endswith("gate.toml:1")


def test_nodes_on_another_provider(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a GPU that lacks kernels would tell: stands in for a device that is not here."""
    from graphopt.gating import placement
    from graphopt.runtime.assignment import Assignment, PlacedNode

    def assigned(source: Any, *, provider: str, **how: Any) -> Assignment:
        nodes = (
            PlacedNode("m", "MatMul", "CUDAExecutionProvider"),
            PlacedNode("s", "Shape", "CPUExecutionProvider", "preferred on the CPU", "it computes shapes"),
            PlacedNode("t", "TopK", "CPUExecutionProvider", "no kernel", "no kernel"),
        )
        return Assignment("CUDAExecutionProvider", nodes, copies=("MemcpyToHost before t",), copy_count=2)

    monkeypatch.setattr(placement, "assignment", assigned)
    table = "[providers.cpu]\n"
    report = run(table + "min_share = 1.0\nallow_memcpy = false")
    assert verdicts(report) == {"providers.cpu.min_share": "failed", "providers.cpu.allow_memcpy": "failed"}
    assert report.checks[0].value == "33.33 % (1 of 3)"
    assert "t (TopK): on CPUExecutionProvider, no kernel" in report.checks[0].detail
    assert (report.checks[1].value, report.checks[1].detail) == ("2", "MemcpyToHost before t")
    assert run(table + "min_share = 1.0\nshapes_on_cpu = true").checks[0].value == "50 % (1 of 2)"
    assert run(table + 'min_share = 1.0\nshapes_on_cpu = true\nfallback = ["Top*"]').verdict == "passed"
    assert run(table + "min_share = 0.3").verdict == "passed"


def test_hard_links_are_refused(run: Any, folder: Path) -> None:
    os.link(folder / "external.data", folder / "twin.data")
    assert run("[external_data]\ninside_folder = true", "external.onnx").verdict == "failed"


def test_a_model_in_a_cache_of_links(run: Any, folder: Path) -> None:
    """Files with other names elsewhere, and links to them where they belong."""
    (folder / "blobs").mkdir()
    for name, blob in (("external.onnx", "a"), ("external.data", "b")):
        (folder / name).rename(folder / "blobs" / blob)
        (folder / name).symlink_to(folder / "blobs" / blob)
    policy = "[model]\nvalid = true\nshapes = true\nruns = true\n[external_data]\ninside_folder = true\n"
    report = run(policy + "[memory]\nmax_mb = 1000\n[weights]\nfinite = true", "external.onnx")
    assert report.verdict == "passed", report.checks
    proto = onnx.load(folder / "external.onnx", load_external_data=False)
    proto.graph.node[0].op_type = "Nonsense"
    onnx.save(proto, folder / "blobs/a")
    report = run(policy, "external.onnx")
    assert only(report, "model.valid").verdict == "failed"
    assert "Nonsense" in only(report, "model.valid").detail
