"""Running pipelines: order, fixpoint groups, instruments, segments around lossy passes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import onnx
import onnx.parser
import pytest
import wrong_passes as wrong

import graphopt
from graphopt.budget import Budget
from graphopt.errors import PassError
from graphopt.model import Model
from graphopt.passkit import Node, NodePass, Numerics, Pass, PassContext, Rewriter
from graphopt.pipeline.instruments import DumpChanges, Instrument, Progress
from graphopt.pipeline.manager import Settings, execute, flatten, without
from graphopt.pipeline.registry import Fixpoint
from graphopt.pipeline.targets import get_target
from graphopt_passes.cleanup.dead_nodes import DeadNodes
from graphopt_passes.cleanup.remove_identity import RemoveIdentity

SETTINGS = Settings(get_target("portable"))
CHAIN = """
<ir_version: 8, opset_import: ["" : 17]>
g (float[N, 4] x) => (float[N, 4] y) { a = Identity(x) b = Relu(a) c = Identity(b) y = Sigmoid(c) }
"""


def model(text: str = CHAIN) -> Model:
    return Model.load(onnx.parser.parse_model(text))


@dataclass(frozen=True)
class ReluOnce(Pass):
    """Insert one Relu behind the first one, as often as it is run."""

    name: ClassVar[str] = "relu-once"
    numerics: ClassVar[Numerics] = Numerics.EXACT

    def run(self, graph: Rewriter, ctx: PassContext) -> None:
        relus = graph.by_op("Relu")
        if relus and len(relus) < 5:
            first = relus[0]
            graph.replace(first.outputs[0], "Relu", [graph.op("Relu", [first.inputs[0]])])


@dataclass(frozen=True)
class Ping(NodePass):
    """Relu -> Abs and back, for ever."""

    name: ClassVar[str] = "ping"
    numerics: ClassVar[Numerics] = Numerics.EXACT
    ops: ClassVar[tuple[str, ...]] = ("Relu", "Abs")

    def visit(self, node: Node, graph: Rewriter, ctx: PassContext) -> None:
        graph.replace(node.outputs[0], "Abs" if node.op == "Relu" else "Relu", [node.inputs[0]])


@dataclass(frozen=True)
class Noise(NodePass):
    """Sigmoid(x) -> Sigmoid(1.01 x): lossy, and says so."""

    name: ClassVar[str] = "noise"
    numerics: ClassVar[Numerics] = Numerics.LOSSY
    ops: ClassVar[tuple[str, ...]] = ("Sigmoid",)

    factor: float = 1.01

    def visit(self, node: Node, graph: Rewriter, ctx: PassContext) -> None:
        producer = graph.producer(node.inputs[0])
        if producer is None or producer.made_by != self.name:
            factor = graph.new_constant("factor", np.float32(self.factor))
            with graph.site(node, "noise"):
                graph.set_input(node, 0, graph.op("Mul", [node.inputs[0], factor]))


def test_a_fixpoint_repeats_until_nothing_changes() -> None:
    done = execute(model(), [Fixpoint((ReluOnce(), DeadNodes()))], SETTINGS)
    assert sum(n.op == "Relu" for n in done.model.graph.nodes) == 5
    assert done.timing.runs[ReluOnce()] == 5
    limited = execute(model(), [Fixpoint((ReluOnce(),), limit=2)], SETTINGS)
    assert sum(n.op == "Relu" for n in limited.model.graph.nodes) == 3


def test_a_pass_is_not_run_again_on_an_unchanged_graph() -> None:
    done = execute(model(), [RemoveIdentity(), RemoveIdentity(), RemoveIdentity()], SETTINGS)
    assert done.timing.runs[RemoveIdentity()] == 1
    assert len(done.journal.changes) == 2


def test_a_pass_that_never_ends_is_stopped() -> None:
    with pytest.raises(PassError, match="does not come to an end"):
        execute(model(), [Ping()], SETTINGS)


def test_a_limit_applies_a_prefix_of_the_same_rewrites() -> None:
    full = execute(model(), [RemoveIdentity()], SETTINGS)
    part = execute(model(), [RemoveIdentity()], SETTINGS, limit=1)
    assert [c.key for c in part.journal.changes] == [c.key for c in full.journal.changes][:1]


def test_flatten_and_without() -> None:
    steps = (RemoveIdentity(), Fixpoint((DeadNodes(), Fixpoint((RemoveIdentity(), ReluOnce())))))
    assert [p.name for p in flatten(steps)] == ["remove-identity", "dead-nodes", "relu-once"]
    assert without(steps, {"remove-identity", "relu-once"}) == (Fixpoint((DeadNodes(),)),)


def test_instruments_see_every_pass(tmp_path: Path) -> None:
    told: list[tuple[str, str]] = []

    class Count(Instrument):
        changes = 0

        def after_pass(self, item: Pass, state: object, changes: int) -> None:
            self.changes += changes

    count = Count()
    watchers = [count, Progress(lambda stage, detail: told.append((stage, detail))), DumpChanges(tmp_path)]
    execute(model(), [DeadNodes(), RemoveIdentity()], SETTINGS, instruments=watchers)
    assert count.changes == 2
    assert ("changed", "remove-identity: 2 rewrites") in told
    (dump,) = tmp_path.iterdir()
    assert dump.name == "002_remove-identity.onnx"
    assert [n.op_type for n in onnx.load(dump).graph.node] == ["Relu", "Sigmoid"]


def test_provenance_names_the_pass() -> None:
    done = execute(model(), [wrong.ReluToClip()], SETTINGS)
    clip = next(n for n in done.model.to_proto().graph.node if n.op_type == "Clip")
    assert clip.doc_string == "graphopt: relu-to-clip"  # IR 8 has no metadata on nodes
    newer = model(CHAIN.replace("ir_version: 8", "ir_version: 10"))
    proto = execute(newer, [wrong.ReluToClip()], SETTINGS).model.to_proto()
    clip = next(n for n in proto.graph.node if n.op_type == "Clip")
    assert [(p.key, p.value) for p in clip.metadata_props] == [("graphopt.pass", "relu-to-clip")]


def test_a_lossy_pass_is_held_to_the_budget(tmp_path: Path) -> None:
    proto = onnx.parser.parse_model(CHAIN)
    kept = graphopt.run(proto, [RemoveIdentity(), Noise()], budget=Budget(min_cosine=0.99))
    assert kept.report.verdict == "proven"
    (row,) = kept.report.outputs
    assert row.numerics == "LOSSY"
    far = graphopt.run(proto, [RemoveIdentity(), Noise(factor=-50.0)], budget=Budget(min_cosine=0.99))
    assert far.report.verdict == "over budget"
    assert far.report.exit_code() == 1
    assert far.report.accuracy is not None
    assert "is below 0.99" in far.report.verdict_reason
    with pytest.raises(graphopt.UserError, match="does not keep its budget"):
        far.save(tmp_path / "far.onnx")
    assert not list(tmp_path.iterdir())
    far.save(tmp_path / "far.onnx", over_budget=True)


def test_a_wrong_exact_pass_cannot_hide_behind_a_lossy_one() -> None:
    text = CHAIN.replace("y = Sigmoid(c)", "d = Sub(c, x) y = Sigmoid(d)")
    report = graphopt.run(
        onnx.parser.parse_model(text), [wrong.SwapsSub(), Noise()], budget=Budget(None, None)
    ).report
    assert report.verdict == "rolled back"
    assert [c.pass_name for c in report.culprits] == ["swaps-sub"]
    assert next(p for p in report.passes if p.name == "noise").rewrites == 1


def test_a_wrong_exact_pass_after_a_lossy_one_is_found() -> None:
    text = CHAIN.replace("y = Sigmoid(c)", "d = Sub(c, x) y = Sigmoid(d)")
    report = graphopt.run(
        onnx.parser.parse_model(text), [Noise(), wrong.SwapsSub()], budget=Budget(None, None)
    ).report
    assert report.verdict == "rolled back"
    assert [c.pass_name for c in report.culprits] == ["swaps-sub"]


@dataclass(frozen=True)
class Greedy(NodePass):
    """Runs out of memory."""

    name: ClassVar[str] = "greedy"
    numerics: ClassVar[Numerics] = Numerics.EXACT

    def visit(self, node: Node, graph: Rewriter, ctx: PassContext) -> None:
        raise MemoryError


def test_running_out_of_memory_is_not_the_fault_of_the_pass() -> None:
    with pytest.raises(MemoryError):
        execute(model(), [Greedy()], SETTINGS)
