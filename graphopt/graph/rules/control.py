"""Control flow: what the facts of the bodies' outputs say about the node's own.

The bodies have been inferred already. What was made inside a Loop or Scan body differs from iteration
to iteration, so only dims that do not depend on anything made there leave it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from graphopt.graph.dims import Dim, Sym, as_dim, fresh_dim
from graphopt.graph.rules.call import Call, Rule, Shape, SymValue, Unknown, axis_of
from graphopt.ir import Graph, Tensor


def join(call: Call, tensors: list[Tensor]) -> tuple[int | None, Shape | None, SymValue | None]:
    """What holds for all of `tensors`."""
    facts = call.facts
    dtypes = {facts.dtype(t) for t in tensors}
    shapes = [facts.shape(t) for t in tensors]
    values = {repr(v): v for v in map(facts.value, tensors)}  # 0.0 is not -0.0
    shape: Shape | None = shapes[0]
    for other in shapes[1:]:
        if shape is None or other is None or len(shape) != len(other):
            shape = None
            break
        shape = tuple(a if a == b else fresh_dim() for a, b in zip(shape, other, strict=True))
    return (
        dtypes.pop() if len(dtypes) == 1 else None,
        shape,
        next(iter(values.values())) if len(values) == 1 else None,
    )


def if_(call: Call) -> None:
    """If: what both branches agree on. A symbol of one branch never equals one of the other."""
    branches = [call.attr("then_branch"), call.attr("else_branch")]
    if not all(isinstance(b, Graph) for b in branches):
        raise Unknown
    for slot in range(len(call.node.outputs)):
        call.out(slot, *join(call, [b.outputs[slot] for b in branches]))


def _stacked(shape: Shape | None, axis: int, length: Dim) -> Shape | None:
    """`shape` with a new axis. Where no iteration ran, dims other than ints are not what the body says."""
    if shape is None:
        return None
    at = axis_of(axis, len(shape) + 1)
    known = tuple(d if isinstance(d, int) else fresh_dim() for d in shape)
    return known[:at] + (length,) + known[at:]


def loop(call: Call) -> None:
    """Loop: carried values keep the dims that the body was found to preserve; others are stacked."""
    body = call.attr("body")
    if not isinstance(body, Graph):
        raise Unknown
    carried = len(body.inputs) - 2
    facts = call.facts
    for slot in range(len(call.node.outputs)):
        if slot < carried:
            # The body's input facts hold before each iteration and after the last.
            into = body.inputs[slot + 2]
            call.out(slot, facts.dtype(into), _outer(call, facts.shape(into)))
            continue
        made = body.outputs[slot + 1]
        call.out(slot, facts.dtype(made), _stacked(facts.shape(made), 0, fresh_dim()))


def _outer(call: Call, shape: Shape | None) -> Shape | None:
    """The dims of a loop-carried tensor, with new symbols for those which may change."""
    if shape is None:
        return None
    carried_anew = call.facts.local_dims.get(call.node, frozenset())
    return tuple(fresh_dim() if isinstance(d, Sym) and d in carried_anew else d for d in shape)


def scan(call: Call) -> None:
    """Scan (opset 9 on): carried values as in Loop; others are stacked along an axis."""
    body = call.attr("body")
    if not isinstance(body, Graph) or call.opset < 9:
        raise Unknown
    scanned = call.attr("num_scan_inputs")
    carried = len(body.inputs) - scanned
    facts = call.facts
    length: Dim = fresh_dim()
    in_axes = call.attr("scan_input_axes") or [0] * scanned
    for i in range(scanned):
        shape = call.shape(carried + i)
        if shape is not None:
            found = shape[axis_of(in_axes[i], len(shape))]
            length = found if isinstance(length, Sym) else length
    out_axes = call.attr("scan_output_axes") or [0] * (len(call.node.outputs) - carried)
    for slot in range(len(call.node.outputs)):
        if slot < carried:
            into = body.inputs[slot]
            call.out(slot, facts.dtype(into), _outer(call, facts.shape(into)))
        else:
            made = body.outputs[slot]
            axis = out_axes[slot - carried]
            call.out(slot, facts.dtype(made), _stacked(facts.shape(made), axis, as_dim(length)))


RULES: Final[Mapping[str, Rule]] = {"If": if_, "Loop": loop, "Scan": scan}
