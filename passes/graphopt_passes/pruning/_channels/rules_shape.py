"""Operators that move elements: what they do to a tensor's axes they do to its layout."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from graphopt.passkit import Dim, Node, RefusedRewrite
from graphopt_passes.pruning._channels.axes import Axes
from graphopt_passes.pruning._channels.labels import Ints, along
from graphopt_passes.pruning._channels.rules_linear import attribute, data_only

if TYPE_CHECKING:
    from graphopt_passes.pruning._channels.surgery import Surgery


def known(size: Dim) -> int:
    """A size that must be a number."""
    if not isinstance(size, int):
        raise RefusedRewrite("a size along which channels lie is not known")
    return size


def matching_axes(before: Sequence[Dim], after: Sequence[Dim]) -> list[tuple[range, range]] | None:
    """The smallest groups of axes that hold the same elements before and after a Reshape; None: not known."""
    blocks: list[tuple[range, range]] = []
    i = j = 0
    while i < len(before) or j < len(after):
        left, right = i, j
        a: Dim = 1
        b: Dim = 1
        if i < len(before) and j < len(after) and before[i] == after[j]:
            left, right = i + 1, j + 1
        elif i < len(before) and before[i] == 1:
            left = i + 1
        elif j < len(after) and after[j] == 1:
            right = j + 1
        else:
            while a != b or (left == i and right == j):
                numbers = isinstance(a, int) and isinstance(b, int)
                behind = a <= b if numbers else left <= right  # type: ignore[operator]
                if left < len(before) and (behind or right == len(after)):
                    a, left = before[left] * a, left + 1
                elif right < len(after):
                    b, right = after[right] * b, right + 1
                else:
                    return None
        blocks.append((range(i, left), range(j, right)))
        i, j = left, right
    return blocks


def reshape(ax: Axes, node: Node) -> None:
    """Reshape, Flatten, Squeeze, Unsqueeze."""
    data = data_only(ax, node)
    before, after = ax.shape(data), ax.shape(node.outputs[0])
    layout = ax.labels.compress(ax.layout(data))
    blocks = matching_axes(before, after)
    if blocks is None or 0 in before:
        raise RefusedRewrite(f"it is not known how {node.op} {node.name} moves elements")
    full, target = [1] * len(before), [1] * len(after)
    for left, right in blocks:
        if all(layout.shape[a] == 1 for a in left):
            continue
        for axes, sizes, shape in ((left, full, before), (right, target, after)):
            for a in axes:
                d = shape[a]
                if not isinstance(d, int):
                    raise RefusedRewrite(f"{node.op} {node.name} moves elements between axes of unknown size")
                sizes[a] = d
    out = ax.labels.compress(np.broadcast_to(layout, full).reshape(target))
    ax.put(node.outputs[0], out)
    if node.op == "Reshape":
        ax.fix(node, out, lambda s: fix_target(s, node))


def fix_target(s: Surgery, node: Node) -> None:
    """Have the constant target of a Reshape or Expand say the new sizes; any other is left to be checked."""
    graph = s.graph
    old, new = s.before(node.outputs[0]), s.after(node.outputs[0])
    inputs = s.after(node.inputs[0])
    target = graph.ints(graph.input(node, 1))
    copies = node.op == "Reshape" and not graph.attr(node, "allowzero")
    if target is None:
        if node.op != "Reshape" or not copies or 0 in new:
            return
        # A computed target: sizes that are not numbers are copied from the input, and one of them inferred.
        wanted = []
        for axis, d in enumerate(new):
            same = axis < len(inputs) and inputs[axis] == d
            wanted.append(d if isinstance(d, int) else 0 if same else -1)
        if wanted.count(-1) > 1:
            return
    else:
        if len(target) > len(new):
            return
        old, new = old[len(old) - len(target) :], new[len(new) - len(target) :]
        wanted = list(target)
        for axis, (was, d) in enumerate(zip(old, new, strict=True)):
            if not isinstance(d, int) or target[axis] == -1 or (target[axis] == 1 and node.op == "Expand"):
                continue
            is_copy = target[axis] == 0 and copies
            if (is_copy and (axis >= len(inputs) or inputs[axis] != d)) or (was != d and not is_copy):
                wanted[axis] = d
    if wanted != target:
        s.set_constant(node, 1, np.array(wanted, np.int64))


def transpose(ax: Axes, node: Node) -> None:
    """Transpose."""
    layout = ax.layout(data_only(ax, node))
    order = attribute(ax, node, "perm") or list(range(layout.ndim))[::-1]
    ax.put(node.outputs[0], layout.transpose(list(order)))


def expand(ax: Axes, node: Node) -> None:
    """Expand repeats what is of size 1."""
    data = data_only(ax, node)
    layout, rank = ax.layout(data), len(ax.shape(node.outputs[0]))
    out = layout.reshape((1,) * (rank - layout.ndim) + layout.shape)
    ax.put(node.outputs[0], out)
    ax.fix(node, out, lambda s: fix_target(s, node))


def tile(ax: Axes, node: Node) -> None:
    """Tile repeats channels, which then go together."""
    layout = ax.layout(data_only(ax, node))
    repeats = ax.graph.ints(ax.graph.input(node, 1))
    if repeats is None or len(repeats) != layout.ndim or 0 in repeats:
        raise RefusedRewrite(f"how often Tile {node.name} repeats it is not constant")
    times = [r if d > 1 else 1 for r, d in zip(repeats, layout.shape, strict=True)]
    ax.put(node.outputs[0], np.tile(layout, times))


def concat(ax: Axes, node: Node) -> None:
    """Concat: the layouts of the pieces, one behind another; or one layout for all of them."""
    out = node.outputs[0]
    rank = len(ax.shape(out))
    axis = int(attribute(ax, node, "axis")) % rank
    layouts = [ax.layout(t) for t in node.inputs]
    if any(x.shape[axis] > 1 for x in layouts):
        sizes = [known(ax.shape(t)[axis]) for t in node.inputs]
        layouts = [
            np.broadcast_to(x, tuple(d if a == axis else n for a, n in enumerate(x.shape)))
            for x, d in zip(layouts, sizes, strict=True)
        ]
        other = [a for a in range(rank) if a != axis and any(x.shape[a] > 1 for x in layouts)]
        layouts = [ax.labels.level(np.ascontiguousarray(x), other) for x in layouts]
        ax.put(out, np.concatenate(layouts, axis))
        return
    operands = [x for t, x in zip(node.inputs, layouts, strict=True) if ax.weight_shape(t) is None]
    reason = f"Concat {node.name} puts it beside a tensor that has no such channels"
    whole = ax.same_along(operands, reason)
    for slot, t in enumerate(node.inputs):
        if ax.weight_shape(t) is not None:
            ax.cut_beside(node, slot, whole)
    ax.put(out, whole)


def split(ax: Axes, node: Node) -> None:
    """Split: pieces of the layout."""
    data = data_only(ax, node)
    layout = ax.layout(data)
    axis = int(attribute(ax, node, "axis")) % layout.ndim
    if layout.shape[axis] == 1:
        for t in node.outputs:
            ax.put(t, layout)
        return
    if any(not t.name for t in node.outputs):
        raise RefusedRewrite(f"Split {node.name} omits an output")
    sizes = [known(ax.shape(t)[axis]) for t in node.outputs]
    if sum(sizes) != layout.shape[axis]:
        raise RefusedRewrite(f"the pieces of Split {node.name} do not add up")
    ends = np.cumsum(np.array(sizes, np.int64))[:-1]
    for t, part in zip(node.outputs, np.split(layout, ends, axis), strict=True):
        ax.put(t, part)
    ax.fix(node, layout, lambda s: _fix_split(s, node, axis))


def _fix_split(s: Surgery, node: Node, axis: int) -> None:
    sizes = [known(s.after(t)[axis]) for t in node.outputs]
    if sizes == [s.before(t)[axis] for t in node.outputs]:
        return
    if s.graph.opset < 13:
        s.set_attr(node, "split", sizes)
        return
    if s.graph.input(node, 1) is None and len(set(sizes)) == 1:
        return  # equal pieces, as before
    s.set_attr(node, "num_outputs", None)
    s.set_constant(node, 1, np.array(sizes, np.int64))


def slice_(ax: Axes, node: Node) -> None:
    """Slice: a part of the layout; along the channels, one range with constant bounds."""
    graph, data = ax.graph, data_only(ax, node)
    layout, shape = ax.layout(data), ax.shape(data)
    if graph.opset < 10:
        given = [list(attribute(ax, node, name) or ()) for name in ("starts", "ends", "axes")] + [[]]
        given[2] = given[2] or list(range(len(given[0])))
        if not all(given[:2]):
            raise RefusedRewrite(f"Slice {node.name} has no bounds")
    else:
        read = [graph.ints(graph.input(node, slot)) for slot in range(1, 5)]
        absent = [graph.input(node, slot) is None for slot in range(1, 5)]
        axes = read[2] if read[2] is not None else list(range(layout.ndim)) if absent[2] else None
        if axes is None or (read[3] is None and not absent[3]):
            raise RefusedRewrite(f"the axes or steps of Slice {node.name} are not constant")
        given = [read[0] or [], read[1] or [], axes, read[3] or []]
    places = {int(a) % layout.ndim: i for i, a in enumerate(given[2])}
    out = layout
    for axis, place in places.items():
        if layout.shape[axis] == 1:
            continue
        step = given[3][place] if given[3] else 1
        if place >= len(given[0]) or place >= len(given[1]) or step != 1:
            raise RefusedRewrite(f"Slice {node.name} takes channels in steps, or by bounds not constant")
        bounds = slice(given[0][place], given[1][place])
        start, stop, _ = bounds.indices(known(shape[axis]))
        if stop <= start:
            raise RefusedRewrite(f"Slice {node.name} takes nothing")
        out = np.take(out, range(start, stop), axis)
        if (start, stop) != (0, shape[axis]):
            ax.fix(node, layout, _fix_slice(node, axis, place, layout, start, stop))
    ax.put(node.outputs[0], out)


def _fix_slice(
    node: Node, axis: int, place: int, layout: Ints, start: int, stop: int
) -> Callable[[Surgery], None]:
    def fix(s: Surgery) -> None:
        stays = s.stays(layout, axis)
        begin, end = int(stays[:start].sum()), int(stays[:stop].sum())
        for slot, name, value in ((1, "starts", begin), (2, "ends", end)):
            if s.graph.opset < 10:
                values = list(s.graph.attr(node, name))
                values[place] = value
                s.set_attr(node, name, values)
            else:
                values = s.graph.ints(s.graph.input(node, slot)) or []
                values[place] = value
                s.set_constant(node, slot, np.array(values, np.int64))

    return fix


def gather(ax: Axes, node: Node) -> None:
    """Gather: positions of the layout, where they are constant; or whole channels at computed positions."""
    graph, data = ax.graph, data_only(ax, node)
    layout, extra = ax.layout(data), len(ax.shape(node.inputs[1]))
    axis = int(attribute(ax, node, "axis")) % layout.ndim
    if layout.shape[axis] == 1:
        rest = layout.shape[:axis] + (1,) * extra + layout.shape[axis + 1 :]
        ax.put(node.outputs[0], layout.reshape(rest))
        return
    indices = graph.array(node.inputs[1])
    if indices is None or indices.size > 1 << 16:
        raise RefusedRewrite(f"Gather {node.name} picks channels by positions that are not constant")
    size = layout.shape[axis]
    places = np.where(indices < 0, indices + size, indices).astype(np.int64)
    ax.put(node.outputs[0], np.take(layout, places, axis))
    if places.ndim != 1:
        # A position that is picked by number is one that must be there.
        ax.rigid.append((layout, axis, f"Gather {node.name} picks it by its number"))

    def fix(s: Surgery) -> None:
        stays = s.stays(layout, axis)
        if stays.all():
            return
        numbers = np.cumsum(stays) - 1
        kept = places[stays[places]]
        s.set_constant(node, 1, numbers[kept].astype(indices.dtype))

    ax.fix(node, layout, fix)


def pad(ax: Axes, node: Node) -> None:
    """Pad, of axes along which nothing can be removed."""
    graph, data = ax.graph, data_only(ax, node)
    layout = ax.layout(data)
    pads = attribute(ax, node, "pads") if graph.opset < 11 else graph.ints(graph.input(node, 1))
    axes = list(range(layout.ndim))
    if graph.input(node, 3) is not None:
        axes = [int(a) % layout.ndim for a in graph.ints(graph.input(node, 3)) or ()]
    for axis, size in enumerate(layout.shape):
        if size == 1 or (axes and axis not in axes):
            continue
        if pads is None or not axes:
            raise RefusedRewrite(f"the sizes of Pad {node.name} are not constant")
        place = axes.index(axis)
        if pads[place] or pads[place + len(axes)]:
            raise RefusedRewrite(f"Pad {node.name} adds channels")
    ax.put(node.outputs[0], layout)


def resize(ax: Axes, node: Node) -> None:
    """Resize and Upsample, of axes along which nothing can be removed."""
    graph, data = ax.graph, data_only(ax, node)
    layout = ax.layout(data)
    before, after = ax.shape(data), ax.shape(node.outputs[0])
    for axis, size in enumerate(layout.shape):
        if size > 1 and before[axis] != after[axis]:
            raise RefusedRewrite(f"{node.op} {node.name} resizes along it")
    ax.put(node.outputs[0], layout)

    def fix(s: Surgery) -> None:
        sizes = graph.ints(graph.input(node, 3))
        now = s.after(node.outputs[0])
        if sizes is None or graph.opset < 11:
            return
        axes = [int(a) % len(now) for a in graph.attr(node, "axes") or range(len(now))]
        wanted = [
            known(now[a]) if now[a] != s.before(node.outputs[0])[a] else d
            for a, d in zip(axes, sizes, strict=True)
        ]
        if wanted != sizes:
            s.set_constant(node, 3, np.array(wanted, np.int64))

    ax.fix(node, layout, fix)


def depth_to_space(ax: Axes, node: Node) -> None:
    """DepthToSpace: the channels that become one channel's plane go together."""
    data = data_only(ax, node)
    block = int(attribute(ax, node, "blocksize"))
    labels = ax.channels(data, 1, known(ax.shape(data)[1]))
    if attribute(ax, node, "mode") in ("CRD", b"CRD"):
        out = ax.labels.level(labels.reshape(-1, block * block), [1]).reshape(-1)
    else:
        out = ax.labels.level(labels.reshape(block * block, -1), [0]).reshape(-1)
    ax.put(node.outputs[0], along(out, 1, 4))


def space_to_depth(ax: Axes, node: Node) -> None:
    """SpaceToDepth: a channel becomes several, which go together."""
    data = data_only(ax, node)
    block = int(attribute(ax, node, "blocksize"))
    labels = ax.channels(data, 1, known(ax.shape(data)[1]))
    ax.put(node.outputs[0], along(np.tile(labels, block * block), 1, 4))


def sizes(ax: Axes, node: Node) -> None:
    """Shape and Size: what is computed with them is checked when a size has changed."""
