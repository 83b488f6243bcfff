"""Running a handful of nodes on known inputs, as constant folding does: batched, guarded, never fatal.

All nodes go into one session. If it fails, the batch is halved until the nodes that cannot run stand
alone, so one bad node does not keep the others from being computed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TypeAlias

import numpy as np
import onnx
from onnx import helper

from graphopt import ir
from graphopt.io.exporter import export_model
from graphopt.io.placement import Placement
from graphopt.io.sources import Sources
from graphopt.ir import Node, Tensor
from graphopt.runtime.session import RuntimeFailure, open_session
from graphopt.runtime.values import Array, Value, elem_type_of_array

Results: TypeAlias = tuple[dict[Tensor, Array], dict[Node, str]]

_IR_VERSION = 10
# So many nodes of one type that have no kernel, and the others of that type are not tried any more.
_HOPELESS = 3
_DIVISIONS = ("Div", "Mod")


def evaluate(
    nodes: Sequence[Node],
    feeds: Mapping[Tensor, Array],
    opsets: Mapping[str, int],
    functions: Iterable[ir.Function] = (),
    *,
    wanted: Iterable[Tensor] | None = None,
) -> Results:
    """Run nodes with optimizations off on one thread.

    Args:
        nodes: of one body, in any order that respects their dependencies.
        feeds: a value for every tensor that the nodes (and the bodies that they hold) read and that none of
            them computes.
        opsets: opset version per domain, "" for ai.onnx; domains that are missing count as version 1.
        functions: local functions that the nodes may call.
        wanted: the outputs to return; by default all of them, which keeps all intermediates in memory.

    Returns:
        The values of those outputs that are tensors, and for every node that could not be run the reason.
        Nodes behind such a node are among them.

    Raises:
        ProviderError: onnxruntime is not installed.
    """
    run = _Run(nodes, feeds, opsets, tuple(functions), None if wanted is None else set(wanted))
    for stage in _stages(nodes, feeds):
        run.batch(stage)
    values = {t: v for t, v in run.values.items() if isinstance(v, np.ndarray)}
    if run.wanted is not None:
        values = {t: v for t, v in values.items() if t in run.wanted}
    return values, run.reasons


def _stages(nodes: Sequence[Node], feeds: Mapping[Tensor, Array]) -> list[list[Node]]:
    """The nodes, cut so that the operands of integer divisions are known before those are run.

    Dividing the smallest integer by -1 ends the process, and by zero may, so both must be seen first.
    """
    level: dict[Tensor, int] = {}
    stages: list[list[Node]] = []
    for node in nodes:
        reads = list(node.inputs) + ([*level] if any(True for _ in node.bodies()) else [])
        stage = max((level.get(t, 0) for t in reads), default=0)
        if node.op in _DIVISIONS and not node.domain and any(t in level for t in node.inputs):
            stage += _may_be_integer(node, feeds)
        for t in node.outputs:
            level[t] = stage
        while len(stages) <= stage:
            stages.append([])
        stages[stage].append(node)
    return [s for s in stages if s]


def _may_be_integer(node: Node, feeds: Mapping[Tensor, Array]) -> bool:
    for t in node.inputs:
        dtype = feeds[t].dtype if t in feeds else t.dtype
        if dtype is not None and not isinstance(dtype, int):
            return bool(np.issubdtype(np.dtype(dtype), np.integer))
    return True


class _Run:
    def __init__(
        self,
        nodes: Sequence[Node],
        feeds: Mapping[Tensor, Array],
        opsets: Mapping[str, int],
        functions: tuple[ir.Function, ...],
        wanted: set[Tensor] | None,
    ) -> None:
        self.values: dict[Tensor, Value] = {}
        self.reasons: dict[Node, str] = {}
        self.wanted = wanted
        self._feeds, self._opsets, self._functions = feeds, opsets, functions
        self._lost: set[Tensor] = set()
        # A tensor's own list of readers may be out of date while its graph is being rewritten.
        self._readers: dict[Tensor, list[Node]] = {}
        for node in nodes:
            for t in node.inputs:
                self._readers.setdefault(t, []).append(node)
        self._bodies = any(True for n in nodes for _ in n.bodies())
        self._no_kernel: dict[tuple[str, str], list[str]] = {}

    def batch(self, nodes: Sequence[Node]) -> None:
        """Run nodes together, or in halves if that fails."""
        pending = [list(nodes)]
        while pending:
            batch = [n for n in pending.pop() if self._runnable(n)]
            if not batch:
                continue
            try:
                self.values.update(self._run(batch))
            except (RuntimeFailure, MemoryError) as e:
                if len(batch) == 1:
                    message = e.message if isinstance(e, RuntimeFailure) else "it needs too much memory"
                    self._give_up(batch[0], message)
                    if isinstance(e, RuntimeFailure) and e.kind == "no-kernel":
                        self._no_kernel.setdefault((batch[0].domain, batch[0].op), []).append(e.message)
                else:
                    middle = len(batch) // 2
                    pending += [batch[middle:], batch[:middle]]

    def _runnable(self, node: Node) -> bool:
        if any(t in self._lost for t in node.inputs):
            self._give_up(node, "one of its inputs could not be computed")
            return False
        failures = self._no_kernel.get((node.domain, node.op), [])
        if len(failures) >= _HOPELESS:
            self._give_up(node, failures[-1])
            return False
        if node.op in _DIVISIONS and not node.domain:
            reason = self._division(node)
            if reason:
                self._give_up(node, reason)
                return False
        return True

    def _give_up(self, node: Node, reason: str) -> None:
        self.reasons[node] = reason
        self._lost.update(t for t in node.outputs if t.name)

    def _division(self, node: Node) -> str:
        """Why an integer division must not be run; "" when it may."""
        if len(node.inputs) != 2:
            return ""
        a, b = (self._value(t) for t in node.inputs)
        if not isinstance(a, np.ndarray) or not isinstance(b, np.ndarray) or b.dtype.kind not in "iu":
            return ""
        if not b.all():
            return "integer division by zero"
        if b.dtype.kind == "i" and a.dtype.kind == "i" and (b == -1).any():
            lowest = np.iinfo(a.dtype).min
            if (a == lowest).any():
                return f"integer overflow: {lowest} / -1"
        return ""

    def _value(self, t: Tensor) -> Value:
        return self._feeds[t] if t in self._feeds else self.values.get(t)

    def _run(self, nodes: list[Node]) -> dict[Tensor, Value]:
        made = {t: None for n in nodes for t in n.outputs if t.name}
        holds_bodies = any(True for n in nodes for _ in n.bodies())
        if holds_bodies:  # what a body captures is not listed anywhere: offer everything
            read = dict.fromkeys((*self._feeds, *self.values))
        else:
            read = {t: None for n in nodes for t in n.inputs if t.name and t not in made}
        given = {t: self._value(t) for t in read if t not in made and t.name}
        model = self._model(nodes, given)
        wanted = self._outputs(nodes, made)
        for t in wanted:
            model.graph.output.add().name = t.name
        with open_session(model, optimize="none", threads=1, prepack=False, arena=False) as session:
            results = session.run({t.name: v for t, v in given.items()})
        return {t: results[t.name] for t in wanted}

    def _outputs(self, nodes: list[Node], made: Mapping[Tensor, None]) -> list[Tensor]:
        """What is wanted, and what nodes outside of this batch may read."""
        if self.wanted is None or self._bodies:
            return list(made)
        inside = set(nodes)
        readers = self._readers
        return [t for t in made if t in self.wanted or any(n not in inside for n in readers.get(t, ()))]

    def _model(self, nodes: list[Node], given: Mapping[Tensor, Value]) -> onnx.ModelProto:
        body = ir.Graph(nodes=list(nodes), name="evaluate", functions=list(self._functions))
        imports = (
            {"": self._opsets.get("", 1)} | {n.domain: 1 for n in nodes if n.domain} | dict(self._opsets)
        )
        body.opset_imports = dict(imports)
        model = export_model(body, onnx.ModelProto(), imports, _IR_VERSION, Sources(), Placement())
        for t, value in given.items():
            model.graph.input.append(_info(t.name, value))
        return model


def _info(name: str, value: Value) -> onnx.ValueInfoProto:
    """The type of an input with this value."""
    if isinstance(value, np.ndarray):
        return helper.make_tensor_value_info(name, elem_type_of_array(value), value.shape)
    if isinstance(value, list) and value and isinstance(value[0], np.ndarray):
        return helper.make_tensor_sequence_value_info(name, elem_type_of_array(value[0]), None)
    raise RuntimeFailure("unsupported", f"the type of {name!r} cannot be told from its value")
