"""Gradient descent towards a teacher's outputs, in torch where that is installed."""

from __future__ import annotations

import copy
import importlib
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import numpy as np

from graphopt.distillation.torch_ops import OPS, Call, CannotCompute, Value
from graphopt.errors import UserError
from graphopt.graph.rewriter import Rewriter
from graphopt.graph.shapes import infer
from graphopt.graph.state import GraphState
from graphopt.graph.view import Array, GraphView
from graphopt.ir import Constant, Node, Tensor
from graphopt.model import Model

#: A batch of inputs, and the teacher's outputs for it, by name.
Pair: TypeAlias = tuple[Mapping[str, Any], Mapping[str, Any]]
Pairs: TypeAlias = Callable[[], Iterable[Pair]]

# Weights that are learned: of these operators all constants that are not integers.
_WEIGHTED: Final = frozenset(
    "BatchNormalization Conv Gemm InstanceNormalization LayerNormalization MatMul PRelu "
    "RMSNormalization".split()
)
# Of BatchNormalization only scale and bias.
_STATISTICS: Final = (3, 4)
# One batch in so many says when to stop.
_CHECKED: Final = 8
# Bytes of data up to which all of it is held, rather than computed again for every epoch.
_HELD: Final = 256 << 20
# Opset before which Softmax flattens its input.
_SOFTMAX: Final = 13
# How far torch may be from onnxruntime before anything is learned, relative to the outputs' power.
_SAME: Final = 1e-4


class Interpreter:
    """Executes a model's main graph in torch.

    Args:
        model: the model.

    Attributes:
        weights: what can be learned: leaf tensors by initializer.
        fixed: where pruned weights are, which stay zero.

    Raises:
        UserError: torch is not installed, or the graph has operators that are not known.
    """

    def __init__(self, model: Model) -> None:
        self.torch = needs_torch()
        self.state = GraphState(model, infer(model))
        self.graph = GraphView(self.state, model.graph)
        self.order = self.graph.nodes()
        unknown = sorted({n.op for n in self.order if not self._is_known(n)})
        if unknown:
            raise UserError(
                f"fine-tuning does not know how to differentiate {', '.join(unknown)}",
                fix="leave --fine-tune out, or train the student elsewhere from the model that is written",
            )
        self.weights: dict[Constant, Value] = {}
        self.fixed: dict[Constant, Value] = {}
        self._statistics = {
            n.inputs[slot] for n in self.order if n.op == "BatchNormalization" for slot in _STATISTICS
        }
        for node in self.order:
            for tensor in node.inputs:
                if isinstance(tensor, Constant) and self._is_learned(node, tensor):
                    self._learn(tensor)

    def _is_known(self, node: Node) -> bool:
        if node.op in ("Softmax", "LogSoftmax") and self.graph.opset < _SOFTMAX:
            return False
        return node.op == "Constant" or (node.op in OPS and self.graph.is_op(node, node.op))

    def _is_learned(self, node: Node, tensor: Constant) -> bool:
        if tensor in self.weights or np.dtype(tensor.dtype) != np.float32 or self.graph.keeps(node):
            return False
        if self.graph.is_output(tensor) or not self.graph.is_constant(tensor):
            return False
        if tensor in self._statistics:
            return False
        shifts = node.op in ("Add", "Mul") and math.prod(tensor.shape) > 1
        return node.op in _WEIGHTED or shifts

    def _learn(self, tensor: Constant) -> None:
        values = np.array(self.graph.array(tensor))
        leaf = self.torch.from_numpy(values).requires_grad_(True)
        self.weights[tensor] = leaf
        if values.ndim > 1 and (values == 0).any():
            self.fixed[tensor] = self.torch.from_numpy((values != 0).astype(np.float32))

    def run(self, feeds: Mapping[str, Any]) -> dict[str, Value]:
        """The outputs, by name."""
        values: dict[Tensor, Value] = {}
        for tensor in self.graph.inputs:
            if tensor.name in feeds:
                values[tensor] = self.torch.from_numpy(np.ascontiguousarray(feeds[tensor.name]))
            else:  # an overridable initializer
                values[tensor] = self._constant(self.state.model.graph.defaults[tensor])
        for node in self.order:
            if node.op == "Constant":
                values[node.outputs[0]] = self._constant(self.graph.constant(node.outputs[0]), node)
                continue
            inputs = [self._value(values, t) for t in node.inputs]
            try:
                made = OPS[node.op](Call(self.torch, self.graph, node, inputs))
            except CannotCompute as e:
                raise UserError(
                    f"fine-tuning does not know this form of {node.op}: {e}",
                    where=node.name or node.outputs[0].name,
                    fix="leave --fine-tune out",
                ) from e
            for tensor, value in zip(
                node.outputs, made if isinstance(made, tuple | list) else (made,), strict=False
            ):
                values[tensor] = value
        return {t.name: self._value(values, t) for t in self.graph.outputs}

    def _value(self, values: dict[Tensor, Value], tensor: Tensor) -> Value | None:
        if not tensor.name:
            return None
        if tensor in values:
            return values[tensor]
        assert isinstance(tensor, Constant)
        if tensor in self.weights:
            return self.weights[tensor]
        values[tensor] = self._constant(tensor)
        return values[tensor]

    def _constant(self, tensor: Constant | None, node: Node | None = None) -> Value:
        if tensor is None:
            assert node is not None
            held = next(v for k, v in node.attrs.items() if k.startswith("value"))
            kind = np.float32 if isinstance(held, float) or "float" in next(iter(node.attrs)) else np.int64
            return self.torch.from_numpy(np.array(held, kind))
        return self.torch.from_numpy(np.array(tensor.values))

    def store(self, why: str) -> None:
        """Put what was learned into the model, as new initializers."""
        rewriter = Rewriter(self.state, self.state.model.graph)
        for tensor, leaf in self.weights.items():
            fresh = rewriter.new_constant(tensor.name, leaf.detach().numpy().copy())
            rewriter.redirect(tensor, fresh, why=why)
        self.state.finish()


def fine_tune(
    model: Model,
    pairs: Pairs,
    *,
    epochs: int,
    learning_rate: float,
    tell: Callable[[str], None] = lambda detail: None,
) -> tuple[float, float]:
    """Move the weights of `model` so that its outputs come closer to the teacher's.

    The loss is the squared error of every float output over its variance. One batch in eight is not learned
    from: the weights that suited those best are what stays.

    Args:
        model: changed in place, if that helps.
        pairs: batches of inputs and the teacher's outputs; called once per epoch.
        epochs: how often all of them are seen.
        learning_rate: of Adam, falling to zero along a cosine (D. P. Kingma, J. Ba, arXiv:1412.6980, 2015).
        tell: called with how far it is.

    Returns:
        The loss on what was not learned from, before and after.

    Raises:
        UserError: torch is not installed, does not know an operator, or computes something else.
    """
    student = Interpreter(model)
    torch = student.torch
    leaves = list(student.weights.values())
    if not leaves:
        raise UserError("there are no weights to fine-tune")
    lessons = _Lessons.of(pairs)
    before = lessons.loss(student)
    best, kept = before, None
    optimizer = torch.optim.Adam(leaves, lr=learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    for epoch in range(epochs):
        for pair in lessons.part(checked=False):
            optimizer.zero_grad()
            lessons.error(student, pair).backward()
            optimizer.step()
            with torch.no_grad():
                for tensor, mask in student.fixed.items():
                    student.weights[tensor].mul_(mask)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            schedule.step()
        loss = lessons.loss(student)
        tell(f"epoch {epoch + 1} of {epochs}, loss {loss:.4g}")
        if loss < best:
            best, kept = loss, [copy.deepcopy(leaf.detach()) for leaf in leaves]
    if kept is not None:
        with torch.no_grad():
            for leaf, values in zip(leaves, kept, strict=True):
                leaf.copy_(values)
        student.store(f"fine-tuned in {epochs} epochs")
    return before, best


@dataclass(frozen=True)
class _Lessons:
    """The data in two parts: batches to learn from, and those that say when to stop.

    Attributes:
        pairs: all of it.
        count: of batches.
        scale: the variance of each float output of the teacher.
    """

    pairs: Pairs
    count: int
    scale: Mapping[str, float]

    @classmethod
    def of(cls, pairs: Pairs) -> _Lessons:
        sums: dict[str, Array] = {}
        count = size = 0
        held: list[Pair] = []
        for feeds, outputs in pairs():
            count += 1
            size += sum(getattr(v, "nbytes", _HELD) for v in (*feeds.values(), *outputs.values()))
            held = [*held, (feeds, outputs)] if size <= _HELD else []
            for name, value in outputs.items():
                if isinstance(value, np.ndarray) and value.dtype.kind == "f":
                    x = value.astype(np.float64)
                    sums[name] = sums.get(name, np.zeros(3)) + np.array([x.size, x.sum(), (x * x).sum()])
        scale = {n: max(float(s[2] / s[0] - (s[1] / s[0]) ** 2), 1e-12) for n, s in sums.items() if s[0]}
        if not scale:
            raise UserError("there is no float output to fine-tune towards")
        return cls((lambda: held) if len(held) == count else pairs, count, scale)

    def part(self, *, checked: bool) -> Iterator[Pair]:
        """The batches of one part; of fewer than eight the last is checked, and of one both is done."""
        for i, pair in enumerate(self.pairs()):
            is_checked = i % _CHECKED == _CHECKED - 1 or (self.count < _CHECKED and i == self.count - 1)
            if is_checked == checked or self.count == 1:
                yield pair

    def error(self, student: Interpreter, pair: Pair) -> Value:
        """Squared error over variance, of all outputs."""
        feeds, wanted = pair
        outputs = student.run(feeds)
        torch = student.torch
        parts = [
            ((outputs[name] - torch.from_numpy(np.asarray(wanted[name], np.float32))) ** 2).mean() / variance
            for name, variance in self.scale.items()
        ]
        return sum(parts)

    def loss(self, student: Interpreter) -> float:
        """The mean error on what is not learned from."""
        with student.torch.no_grad():
            found = [float(self.error(student, pair)) for pair in self.part(checked=True)]
        return float(np.mean(found)) if found else math.nan


def check_same(student: Interpreter, feeds: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """Raise UserError if torch computes something else than the runtime did."""
    with student.torch.no_grad():
        outputs = student.run(feeds)
    for name, value in expected.items():
        if not (isinstance(value, np.ndarray) and value.dtype.kind == "f"):
            continue
        mine = outputs[name].numpy()
        power = float(np.mean(value.astype(np.float64) ** 2))
        if mine.shape != value.shape or not np.mean((mine - value) ** 2) <= _SAME * max(power, 1e-12):
            raise UserError(
                f"torch computes another {name} than onnxruntime, so gradients would be wrong",
                fix="leave --fine-tune out, and report the model",
            )


def needs_torch() -> Any:
    """The module torch. Raises UserError where it is not installed."""
    try:
        return importlib.import_module("torch")
    except ImportError as e:
        raise UserError("fine-tuning needs torch", fix="pip install 'graphopt[torch]'") from e
