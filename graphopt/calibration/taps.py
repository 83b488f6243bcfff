"""Models cut down to what it takes to compute some of their tensors, which become outputs.

Tensors inside of control flow are led out: an If hands out an empty tensor where the other branch was taken;
a Loop or Scan stacks the values of all iterations along a new first axis. Where those differ in shape, a Loop
collects flattened values instead. onnxruntime executes every node that it is given, wanted or not: what the
wanted tensors do not depend on is left out.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import onnx

from graphopt.calibration.values import Array

_FLOAT: Final = onnx.TensorProto.FLOAT


@dataclass(frozen=True)
class Tap:
    """Where the values of a tensor come out.

    Attributes:
        output: name of the session's output.
        stacked: how many leading axes count iterations.
        flat: several values one after the other, flattened.
        optional: it may be empty because it was not computed.
    """

    output: str
    stacked: int = 0
    flat: bool = False
    optional: bool = False

    def values(self, array: Array) -> list[Array]:
        """The values that were computed in one run, one per iteration."""
        if self.stacked:
            shape = array.shape[self.stacked :]
            count = 1
            for dim in array.shape[: self.stacked]:
                count *= dim
            return [] if not array.size else list(array.reshape(count, *shape))
        return [] if self.optional and not array.size else [array]


@dataclass(frozen=True)
class Cut:
    """A model with taps, in the form in which sessions are opened.

    Attributes:
        proto: the serialized model.
        folder: what its external references are relative to.
        original: owns the files that the weights are read from.
        taps: for each tensor where its values come out; several in case branches share its name.
        sizes: for each tap's output, the output that holds its number of elements, if asked for.
    """

    proto: bytes
    folder: str | Path | None
    original: object
    taps: Mapping[str, tuple[Tap, ...]]
    sizes: Mapping[str, str]


class CannotTap(Exception):
    """A tensor has no place in the model where it can be observed. Its message says why."""


def cut(
    proto: bytes,
    folder: str | Path | None,
    original: object,
    names: Iterable[str],
    *,
    dtypes: Mapping[str, int] | None = None,
    flat: bool = False,
    sizes: bool = False,
) -> Cut:
    """Make a model that computes `names` and nothing else.

    Args:
        proto, folder, original: the model, as in a SessionSource.
        names: tensors of any body that are computed, or graph inputs.
        dtypes: element types of tensors in nested bodies (float by default).
        flat: collect what loops compute flattened; it need not have the same shape in each iteration.
        sizes: do not hand out the values but their number of elements.

    Raises:
        CannotTap: a name is not computed in any body, or stands where it cannot be observed.
    """
    model = onnx.ModelProto.FromString(proto)
    graph = model.graph
    wanted = list(dict.fromkeys(names))
    known = {n for node in graph.node for n in node.output} | {v.name for v in graph.input}
    found: dict[str, tuple[Tap, ...]] = {n: (Tap(n),) for n in wanted if n in known}
    nested = {n for n in wanted if n not in found}
    if nested:
        surface = _Surface(model, nested, dtypes or {}, flat)
        for name, taps in surface.lead_out(graph).items():
            found[name] = tuple(taps)
    for name in wanted:
        if name not in found:
            raise CannotTap(f"no tensor {name!r} is computed in the model")
    outputs = dict.fromkeys(tap.output for taps in found.values() for tap in taps)
    counts: dict[str, str] = {}
    if sizes:
        for i, name in enumerate(outputs):
            counts[name] = f"graphopt_size_{i}"
            graph.node.append(onnx.helper.make_node("Size", [name], [counts[name]]))
    del graph.output[:]
    for name in counts.values() if sizes else outputs:
        graph.output.add().name = name
    keep_needed(graph)
    del model.training_info[:]
    return Cut(model.SerializeToString(), folder, original, found, counts)


def keep_needed(graph: onnx.GraphProto) -> None:
    """Remove nodes, initializers and inputs that the outputs do not depend on."""
    needed = {v.name for v in graph.output}
    nodes = []
    for node in reversed(list(graph.node)):  # in topological order, as ONNX wants it
        if any(name in needed for name in node.output):
            needed.update(reads(node))
            nodes.append(node)
    nodes.reverse()
    kept = [_copy(node) for node in nodes]
    del graph.node[:]
    graph.node.extend(kept)
    for field in (graph.initializer, graph.input):
        _filter(field, needed)
    sparse = [t for t in graph.sparse_initializer if t.values.name in needed]
    if len(sparse) < len(graph.sparse_initializer):
        sparse = [_copy_sparse(t) for t in sparse]
        del graph.sparse_initializer[:]
        graph.sparse_initializer.extend(sparse)
    del graph.quantization_annotation[:]
    del graph.value_info[:]


def reads(node: onnx.NodeProto) -> set[str]:
    """Names that a node, or any body in it, reads."""
    names: set[str] = set()
    stack = [node]
    while stack:
        current = stack.pop()
        names.update(current.input)
        for attribute in current.attribute:
            for body in (attribute.g, *attribute.graphs) if attribute.type in _GRAPHS else ():
                stack.extend(body.node)
                names.update(v.name for v in body.output)
    names.discard("")
    return names


_GRAPHS: Final = (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS)


def _copy(node: onnx.NodeProto) -> onnx.NodeProto:
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    return copy


def _copy_sparse(tensor: onnx.SparseTensorProto) -> onnx.SparseTensorProto:
    copy = onnx.SparseTensorProto()
    copy.CopyFrom(tensor)
    return copy


def _filter(field: object, needed: Collection[str]) -> None:
    unneeded = [i for i, item in enumerate(field) if item.name not in needed]  # type: ignore[arg-type,var-annotated]
    for i in reversed(unneeded):
        del field[i]  # type: ignore[attr-defined]


class _Surface:
    """Leads tensors of nested bodies out to the main graph."""

    def __init__(
        self, model: onnx.ModelProto, wanted: set[str], dtypes: Mapping[str, int], flat: bool
    ) -> None:
        self._wanted, self._dtypes, self._flat = wanted, dtypes, flat
        self._opset = next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 1)
        self._made = 0

    def lead_out(self, graph: onnx.GraphProto) -> dict[str, list[Tap]]:
        """Taps, in the scope of `graph`, of what the bodies of its nodes compute."""
        found: dict[str, list[Tap]] = {}
        for node in graph.node:
            for attribute in node.attribute:
                if attribute.type == onnx.AttributeProto.GRAPH and self._mentions(attribute.g):
                    for name, tap in self._of_body(attribute.g):
                        found.setdefault(name, []).append(self._through(graph, node, attribute.g, name, tap))
        return found

    def _mentions(self, body: onnx.GraphProto) -> bool:
        stack = [body]
        while stack:
            inner = stack.pop()
            if any(v.name in self._wanted for v in inner.input):
                return True
            for node in inner.node:
                if any(name in self._wanted for name in node.output):
                    return True
                stack.extend(a.g for a in node.attribute if a.type == onnx.AttributeProto.GRAPH)
        return False

    def _of_body(self, body: onnx.GraphProto) -> list[tuple[str, Tap]]:
        nested = self.lead_out(body)
        found = [(name, tap) for name, taps in nested.items() for tap in taps]
        own = [v.name for v in body.input] + [n for node in body.node for n in node.output]
        found += [(name, Tap(name)) for name in dict.fromkeys(own) if name in self._wanted]
        return found

    def _through(
        self, graph: onnx.GraphProto, node: onnx.NodeProto, body: onnx.GraphProto, name: str, tap: Tap
    ) -> Tap:
        """Lead a tensor of `body` out of the `node` that holds it."""
        dtype = self._dtypes.get(name, _FLOAT)
        outer = self._name()
        if node.op_type == "If":
            inner = self._identity(body, tap.output, dtype)
            body.output.append(_declare(inner, dtype))
            for attribute in node.attribute:
                if attribute.type == onnx.AttributeProto.GRAPH and attribute.g is not body:
                    if attribute.g.output and len(attribute.g.output) == len(body.output):
                        continue
                    nothing = self._name()
                    shape = [0] * (tap.stacked + 1)
                    empty = onnx.helper.make_tensor(nothing, dtype, shape, b"", raw=True)
                    attribute.g.node.append(onnx.helper.make_node("Constant", [], [nothing], value=empty))
                    attribute.g.output.append(_declare(nothing, dtype))
            node.output.append(outer)
            return replace(tap, output=outer, optional=True)
        if node.op_type == "Loop" and (self._flat or tap.optional or tap.flat):
            self._collect(graph, node, body, tap, dtype, outer)
            return Tap(outer, flat=True, optional=True)
        if node.op_type == "Scan" and (tap.optional or tap.flat):
            raise CannotTap(f"{name!r} is computed in some iterations of a Scan only")
        if node.op_type in ("Loop", "Scan"):
            inner = self._identity(body, tap.output, dtype)
            body.output.append(_declare(inner, dtype))
            node.output.append(outer)
            for attribute in node.attribute:
                if attribute.name in ("scan_output_axes", "scan_output_directions"):
                    attribute.ints.append(0)
            return replace(tap, output=outer, stacked=tap.stacked + 1)
        raise CannotTap(f"{name!r} is computed in a body of a {node.op_type}")

    def _collect(
        self,
        graph: onnx.GraphProto,
        node: onnx.NodeProto,
        body: onnx.GraphProto,
        tap: Tap,
        dtype: int,
        outer: str,
    ) -> None:
        """Concatenate what each iteration computes to a loop-carried vector."""
        before, after, row, start, minus = (self._name() for _ in range(5))
        graph.initializer.append(onnx.helper.make_tensor(start, dtype, [0], b"", raw=True))
        body.initializer.append(onnx.helper.make_tensor(minus, onnx.TensorProto.INT64, [1], [-1]))
        body.node.append(onnx.helper.make_node("Reshape", [tap.output, minus], [row]))
        body.node.append(onnx.helper.make_node("Concat", [before, row], [after], axis=0))
        while len(node.input) < 2:
            node.input.append("")
        carried = len(node.input) - 2
        node.input.append(start)
        body.input.append(_declare(before, dtype))
        outputs = list(node.output)
        del node.output[:]
        node.output.extend([*outputs[:carried], outer, *outputs[carried:]])
        results = [onnx.ValueInfoProto.FromString(v.SerializeToString()) for v in body.output]
        del body.output[:]
        body.output.extend([*results[: 1 + carried], _declare(after, dtype), *results[1 + carried :]])

    def _identity(self, body: onnx.GraphProto, name: str, dtype: int) -> str:
        made = self._name()
        body.node.append(onnx.helper.make_node("Identity", [name], [made]))
        return made

    def _name(self) -> str:
        self._made += 1
        return f"graphopt_tap_{self._made}"


def _declare(name: str, dtype: int) -> onnx.ValueInfoProto:
    return onnx.helper.make_tensor_value_info(name, dtype, None)
