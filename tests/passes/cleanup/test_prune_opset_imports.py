from __future__ import annotations

from graphopt.testing import assert_refuses, assert_rewrites, parse
from graphopt_passes.cleanup.prune_functions import PruneFunctions
from graphopt_passes.cleanup.prune_opset_imports import PruneOpsetImports


def imports(entries: object) -> list[str]:
    return [entry.domain for entry in entries]  # type: ignore[attr-defined]


def test_unused_domains_of_model_and_function() -> None:
    done = assert_rewrites(
        PruneOpsetImports(),
        """<ir_version: 8, opset_import: ["" : 17, "f" : 1, "com.microsoft" : 1, "ai.onnx.ml" : 3]>
        g (float[N] x) => (float[N] y) { y = f.foo(x) }
        <domain: "f", opset_import: ["" : 17, "ai.onnx.ml" : 3]> foo (a) => (b) { b = Relu(a) }""",
        ops={"f::foo": 1, "Relu": 1},
    )
    assert imports(done.proto.opset_import) == ["", "f"]
    assert imports(done.proto.functions[0].opset_import) == [""]


def test_what_functions_import_stays_in_the_model() -> None:
    assert_refuses(
        PruneOpsetImports(),
        """<ir_version: 8, opset_import: ["" : 17, "f" : 1, "ai.onnx.ml" : 3]>
        g (float[N] x) => (float[N] y) { y = f.foo(x) }
        <domain: "f", opset_import: ["" : 17, "ai.onnx.ml" : 3]>
        foo (a) => (b) { b = ai.onnx.ml.Binarizer<threshold = 0.5>(a) }""",
    )


def test_a_domain_used_only_in_a_branch() -> None:
    assert_refuses(
        PruneOpsetImports(),
        """<ir_version: 8, opset_import: ["" : 17, "ai.onnx.ml" : 3]>
        g (float[N] x, bool c) => (float[N] y) {
            y = If(c) <
                then_branch = t () => (float[N] p) { p = ai.onnx.ml.Binarizer<threshold = 0.5>(x) },
                else_branch = e () => (float[N] q) { q = Neg(x) }
            >
        }""",
    )


def test_the_training_information_uses_domains_too() -> None:
    model = parse("""<ir_version: 8, opset_import: ["" : 17, "ai.onnx.preview.training" : 1]>
        g (float[N] x) => (float[N] y) { y = Relu(x) }""")
    algorithm = model.training_info.add().algorithm
    algorithm.name = "a"
    algorithm.node.add(op_type="Adam", domain="ai.onnx.preview.training", input=["x"], output=["t"])
    assert_refuses(PruneOpsetImports(), model)


def test_after_the_functions_that_needed_them() -> None:
    done = assert_rewrites(
        [PruneFunctions(), PruneOpsetImports()],
        """<ir_version: 8, opset_import: ["" : 17, "f" : 1]> g (float[N] x) => (float[N] y) { y = Relu(x) }
        <domain: "f", opset_import: ["" : 17]> foo (a) => (b) { b = Relu(a) }""",
        ops={"Relu": 1},
    )
    assert imports(done.proto.opset_import) == [""]


def test_the_standard_domain_stays() -> None:
    assert_refuses(
        PruneOpsetImports(), '<ir_version: 8, opset_import: ["" : 17]> g (float[N] x) => (float[N] x) { }'
    )
