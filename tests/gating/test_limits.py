"""Every limit that a policy can have: a model that keeps it, and one that does not."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import onnx
import onnx.parser
import pytest
from gate_models import HEAD, TEXT

from graphopt.gating.policy import Policy, Table

MEASURE = '[measure]\nreference = "reference.onnx"\n'
DATA = MEASURE + 'data = "data.npz"\nmetric = "metric.py:figures"\n'
OLD = '[against]\nmodel = "reference.onnx"\n'

# Key -> (before the table, table, what holds, what does not), with the models "model.onnx" unless one is named.
Case = tuple[str, str, str, str]
CASES: dict[str, Case] = {
    "model.max_nodes": ("", "model", "max_nodes = 4", "max_nodes = 3"),
    "file.max_mb": ("", "file", "max_mb = 0.001", "max_mb = 0.0001"),
    "file.max_ratio": (MEASURE, "file", "max_ratio = 1.0", "max_ratio = 0.99"),
    "opset.min": ("", "opset", "min = 17", "min = 18"),
    "opset.max": ("", "opset", "max = 17", "max = 16"),
    "opset.exact": ("", "opset", "exact = 17", "exact = 18"),
    "ir_version.min": ("", "ir_version", "min = 8", "min = 9"),
    "ir_version.max": ("", "ir_version", "max = 8", "max = 7"),
    "ir_version.exact": ("", "ir_version", "exact = 8", "exact = 7"),
    "ops.allowed": (
        "",
        "ops",
        'allowed = ["MatMul", "A*", "ai.onnx::Identity"]',
        'allowed = ["MatMul", "A*"]',
    ),
    "ops.banned": ("", "ops", 'banned = ["Conv", "matmul"]', 'banned = ["Mat*"]'),
    "domains.allowed": ("", "domains", 'allowed = ["ai.onnx"]', 'allowed = ["com.*"]'),
    "domains.banned": ("", "domains", 'banned = ["com.*"]', 'banned = ["ai.*"]'),
    "latency.max_ratio": (
        MEASURE,
        "latency",
        "seconds = 0.1\nmax_ratio = 50",
        "seconds = 0.1\nmax_ratio = 0.01",
    ),
    "latency.max_ms": ("", "latency", "seconds = 0.1\nmax_ms = 1000", "seconds = 0.1\nmax_ms = 1e-6"),
    "session.max_ms": ("", "session", "repeats = 3\nmax_ms = 10000", "repeats = 3\nmax_ms = 1e-6"),
    "session.max_ratio": (MEASURE, "session", "repeats = 5\nmax_ratio = 50", "repeats = 5\nmax_ratio = 0.01"),
    "providers.cpu.min_share": ("", "providers.cpu", "min_share = 1.0", ""),
}


@pytest.mark.parametrize("key", [key for key, case in CASES.items() if case[3]])
def test_one_model_two_limits(run: Any, key: str) -> None:
    before, table, good, bad = CASES[key]
    for text, verdict in ((good, "passed"), (bad, "failed")):
        report = run(f"{before}[{table}]\n{text}\n")
        (check,) = report.checks
        assert (check.name, check.verdict, report.verdict) == (key, verdict, verdict), check
        assert check.line == 1 + before.count("\n") + 1 + text.count("\n")
        assert check.value
        assert check.limit
        assert report.exit_code() == (verdict == "failed")


# Key -> (policy, the model that keeps it, the one that does not)
MODELS: dict[str, tuple[str, str, str]] = {
    "model.runs": ("[model]\nruns = true", "model.onnx", "does_not_load.onnx"),
    "model.valid": ("[model]\nvalid = true", "model.onnx", "unsorted.onnx"),
    "model.shapes": ("[model]\nshapes = true", "model.onnx", "wrong_shape.onnx"),
    "external_data.inside_folder": ("[external_data]\ninside_folder = true", "external.onnx", "escapes.onnx"),
    "external_data.allowed": ("[external_data]\nallowed = false", "model.onnx", "external.onnx"),
    "weights.finite": ("[weights]\nfinite = true", "model.onnx", "nan.onnx"),
    "ops.random": ("[ops]\nrandom = false", "model.onnx", "random.onnx"),
    "domains.known": ("[domains]\nknown = true", "model.onnx", "unknown.onnx"),
    "interface.same_as_reference": (
        MEASURE + "[interface]\nsame_as_reference = true",
        "near.onnx",
        "renamed.onnx",
    ),
    "numerics.standard": (MEASURE + '[numerics]\nstandard = "close"', "model.onnx", "near.onnx"),
    "numerics.min_sqnr_db": (DATA + "[numerics]\nmin_sqnr_db = 30", "near.onnx", "far.onnx"),
    "numerics.min_cosine": (DATA + "[numerics]\nmin_cosine = 0.99", "near.onnx", "far.onnx"),
    "numerics.max_abs": (DATA + "[numerics.outputs.y]\nmax_abs = 0.5", "near.onnx", "far.onnx"),
    "numerics.max_rel": (DATA + "[numerics]\nmax_rel = 0.5", "near.onnx", "far.onnx"),
    "numerics.min_equal": (DATA + "[numerics.outputs.best]\nmin_equal = 0.9", "near.onnx", "far.onnx"),
    "metrics.accuracy.min": (DATA + "[metrics.accuracy]\nmin = 90", "near.onnx", "far.onnx"),
    "metrics.accuracy.max_drop": (DATA + "[metrics.accuracy]\nmax_drop = 0", "near.onnx", "far.onnx"),
    "against.same_interface": (OLD + "same_interface = true", "near.onnx", "renamed.onnx"),
    "against.same_opsets": (OLD + "same_opsets = true", "near.onnx", "opset18.onnx"),
    "against.max_size_growth": (OLD + "max_size_growth = 0.5", "near.onnx", "large.onnx"),
    "against.max_node_growth": (OLD + "max_node_growth = 0.5", "near.onnx", "longer.onnx"),
    "against.max_new_ops": (OLD + "max_new_ops = 0", "near.onnx", "longer.onnx"),
}

BROKEN = {
    "does_not_load": f"{HEAD} g (float[4] x) => (float[4] y) {{ y = Gelu(x) }}",
    "wrong_shape": f"{HEAD} g (float[4] x) => (float[2] y) {{ y = Relu(x) }}",
    "random": f"{HEAD} g (float[4] x) => (float[4] y) {{ r = RandomNormalLike(x) y = Add(x, r) }}",
    "unknown": f"{HEAD} g (float[4] x) => (float[4] y) {{ y = Gelu(x) }}",
    "renamed": TEXT.replace(" best", " top"),
    "opset18": TEXT.replace('"" : 17', '"" : 18'),
    "longer": TEXT.replace("a = Identity(x)", "c = Neg(x) d = Neg(c) e = Neg(d) f = Neg(e) a = Identity(f)"),
}


@pytest.fixture
def broken(folder: Path) -> Path:
    """The folder with more models, which are wrong in one way each."""
    for name, text in BROKEN.items():
        onnx.save(onnx.parser.parse_model(text), folder / f"{name}.onnx")
    unsorted = onnx.parser.parse_model(TEXT)
    unsorted.graph.node.append(unsorted.graph.node.pop(0))
    onnx.save(unsorted, folder / "unsorted.onnx")
    escaping = onnx.load(folder / "external.onnx", load_external_data=False)
    for tensor in escaping.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = "../external.data"
    onnx.save(escaping, folder / "escapes.onnx")
    return folder


@pytest.mark.parametrize("key", MODELS)
def test_one_limit_two_models(run: Any, broken: Path, key: str) -> None:
    policy, good, bad = MODELS[key]
    report = run(policy, good)
    assert {c.verdict for c in report.checks} == {"passed"}, report.checks
    assert report.verdict == "passed"
    report = run(policy, bad)
    assert report.verdict == "failed"
    assert {c.verdict for c in report.checks} == {"failed"}, report.checks
    assert all(c.line == policy.count("\n") + 1 for c in report.checks)


#: Limits with tests of their own in this folder.
ELSEWHERE = {
    "opset.domains.NAME.min": "test_static",
    "opset.domains.NAME.max": "test_static",
    "opset.domains.NAME.exact": "test_static",
    "external_data.checksums": "test_static",
    "external_data.sha256": "test_static",
    "interface.inputs": "test_static",
    "interface.outputs": "test_static",
    "int8.min_share": "test_static",
    "int8.max_fallbacks": "test_static",
    "providers.NAME.min_share": "test_static",
    "providers.NAME.allow_memcpy": "test_static",
    "memory.max_mb": "test_memory",
    "memory.max_ratio": "test_memory",
}


def limits(table: type[Table], key: str = "") -> Iterator[str]:
    """All limits that a table can have."""
    for name, field in table.model_fields.items():
        if name in table.settings:
            continue
        inner = tables_in(field.annotation)
        if not inner or key == "interface.":
            yield f"{key}{name}"
        elif "dict" in str(field.annotation):
            yield from limits(inner[0], f"{key}{name}.NAME.")
        else:
            yield from limits(inner[0], f"{key}{name}.")


def tables_in(annotation: Any) -> list[type[Table]]:
    if isinstance(annotation, type) and issubclass(annotation, Table):
        return [annotation]
    return [t for inner in get_args(annotation) for t in tables_in(inner)]


def test_no_limit_is_left_out() -> None:
    tested = {*CASES, *MODELS, *ELSEWHERE} | {k.replace(".accuracy.", ".NAME.") for k in MODELS}
    known = set(limits(Policy))
    assert len(known) > 40
    same = {k.replace("numerics.outputs.NAME", "numerics") for k in known}
    assert same <= tested, same - tested
    for key, module in ELSEWHERE.items():
        text = (Path(__file__).parent / f"{module}.py").read_text()
        assert key.rpartition(".")[2] in text, key
