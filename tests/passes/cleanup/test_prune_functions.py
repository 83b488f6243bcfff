from __future__ import annotations

from graphopt.testing import apply, assert_refuses, assert_rewrites, parse
from graphopt_passes.cleanup.prune_functions import PruneFunctions
from graphopt_passes.cleanup.remove_identity import RemoveIdentity

HEAD = """<ir_version: 8, opset_import: ["" : 17, "f" : 1]>
    g (float[N] x, bool c) => (float[N] y) { y = f.used(x) }"""
USED = '<domain: "f", opset_import: ["" : 17, "f" : 1]> used (a) => (b) { b = f.inner(a) }'
INNER = '<domain: "f", opset_import: ["" : 17]> inner (a) => (b) { b = Relu(a) }'
LOOSE = """<domain: "f", opset_import: ["" : 17, "f" : 1]> loose (a) => (b) { b = f.looser(a) }
    <domain: "f", opset_import: ["" : 17]> looser (a) => (b) { c = Neg(a)  b = Identity(c) }"""


def test_what_only_uncalled_functions_call_goes_too() -> None:
    done = assert_rewrites(
        PruneFunctions(), f"{HEAD}{USED}{INNER}{LOOSE}", ops={"f::used": 1, "f::inner": 1, "Relu": 1}
    )
    assert [f.name for f in done.proto.functions] == ["used", "inner"]


def test_a_call_in_a_branch() -> None:
    text = f"{HEAD}{INNER}".replace(
        "y = f.used(x)",
        """y = If(c) <
            then_branch = t () => (float[N] p) { p = f.inner(x) },
            else_branch = e () => (float[N] q) { q = Neg(x) }
        >""",
    )
    assert_refuses(PruneFunctions(), text)


def test_a_call_by_the_training_information() -> None:
    model = parse(f"{HEAD}{USED}{INNER}{INNER.replace('inner', 'train')}")
    algorithm = model.training_info.add().algorithm
    algorithm.node.add(op_type="train", domain="f", input=["x"], output=["t"])
    algorithm.name = "a"
    done = apply(PruneFunctions(), model)
    assert not done.journal.changes


def test_rewrites_before_and_bisection_after_it() -> None:
    from graphopt.graph.journal import Journal
    from graphopt.graph.rewriter import Rewriter
    from graphopt.graph.shapes import infer
    from graphopt.graph.state import GraphState
    from graphopt.model import Model

    done = apply([RemoveIdentity(), PruneFunctions()], f"{HEAD}{USED}{INNER}{LOOSE}")
    assert [f.name for f in done.proto.functions] == ["used", "inner"]
    model = Model.load(parse(f"{HEAD}{USED}{INNER}{LOOSE}"))
    before = model.to_proto().SerializeToString(deterministic=True)
    state = GraphState(model, infer(model), Journal(limit=0))
    graph = Rewriter(state, model.graph)
    loose = graph.unreachable_functions()
    assert [f.name for f in loose] == ["loose", "looser"]
    assert not graph.erase_function(loose[0])
    assert state.finish().to_proto().SerializeToString(deterministic=True) == before
