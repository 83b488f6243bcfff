"""A sample of the ONNX operator tests: each is proven equal to itself, on inputs made for it."""

import warnings

from onnx.backend.test.case.node import collect_testcases

from graphopt.validation.proof import prove

# Kernels that onnxruntime lacks, and what its own kernels refuse.
_MOST_UNPROVEN = 0.12


def test_operator_tests_are_proven_equal_to_themselves() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cases = sorted(collect_testcases(), key=lambda case: case.name)[::20]
    proofs = {case.name: prove(case.model, case.model, "EXACT") for case in cases}
    assert {name: p.reason for name, p in proofs.items() if p.verdict == "failed"} == {}
    unproven = {name: p.reason for name, p in proofs.items() if p.verdict == "unproven"}
    assert len(unproven) <= _MOST_UNPROVEN * len(cases), unproven
    lacking = {name: p.warnings for name, p in proofs.items() if p.verdict == "proven" and len(p.probes) < 2}
    assert len(lacking) <= 2, lacking
