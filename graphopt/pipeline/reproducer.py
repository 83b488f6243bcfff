"""A folder that shows one wrong rewrite by itself: small model, inputs, pipeline, command."""

from __future__ import annotations

import json
import re
import shlex
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx

from graphopt.errors import GraphOptError
from graphopt.graph.view import Array
from graphopt.model import Model
from graphopt.pipeline.base import Numerics
from graphopt.pipeline.manager import Settings, execute, flatten
from graphopt.pipeline.registry import Step
from graphopt.pipeline.select import unmatched
from graphopt.pipeline.transaction import Guilt, Judge

# Distances, in nodes, around the guilty site that are tried in turn.
RADII = (1, 2, 3, 4, 6, 8, 12, 16, 24)
# Models beyond this are not cut up: their weights would have to be in one message.
MAX_BYTES = 1 << 30

#: Values of intermediate tensors of a model: (model, names) -> arrays by name, for one set of inputs.
Tap = Callable[[onnx.ModelProto, Sequence[str]], Mapping[str, Array]]
#: A judge for a reference model on given inputs.
MakeJudge = Callable[[Model, Mapping[str, Array]], Judge]


def write_reproducer(
    folder: Path,
    original: Model,
    guilt: Guilt,
    steps: Sequence[Step],
    settings: Settings,
    *,
    pipeline: str,
    feeds: Mapping[str, Array],
    tap: Tap,
    make_judge: MakeJudge,
    versions: Mapping[str, str],
    providers: Sequence[str] = ("cpu",),
) -> str:
    """Write the folder.

    Args:
        folder: where to; it is created.
        original: the model before any pass.
        guilt: what to show.
        steps: the smallest pipeline that shows it.
        settings: target, limits, what to keep.
        pipeline: the same pipeline as a string.
        feeds: inputs of the original that show it.
        tap: computes intermediate tensors.
        make_judge: makes the judge of a cut-out model.
        versions: of the packages involved.
        providers: the execution providers that the run compared on, as the user named them.

    Returns:
        The command, to be run inside the folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    small = None
    if original.nbytes <= MAX_BYTES:
        small = _shrink(original, guilt, steps, settings, feeds, tap, make_judge)
    if small is None:
        original.save(folder / "model.onnx")
    else:
        proto, feeds = small
        onnx.save(proto, str(folder / "model.onnx"))
    if feeds:
        np.savez(folder / "inputs.npz", **dict(feeds))  # type: ignore[arg-type]
    options = ["--target", settings.target.name] if settings.target.name != "portable" else []
    if list(providers) != ["cpu"]:
        options += ["--providers", ",".join(providers)]
    for glob in _matching(settings.keep, Model.load(folder / "model.onnx")):
        options += ["--keep", glob]
    if feeds:
        options += ["--data", "inputs.npz"]
    command = shlex.join(
        ["graphopt", "run", "model.onnx", "--passes", pipeline, *options, "-o", "result.onnx"]
    )
    (folder / "pipeline.txt").write_text(pipeline + "\n")
    (folder / "versions.json").write_text(json.dumps(dict(versions), indent=2) + "\n")
    where = str(guilt.site) if guilt.site else f"pass {guilt.pass_name}"
    partners = f" together with {', '.join(guilt.partners)}" if guilt.partners else ""
    trace = f"\n```\n{guilt.trace}```\n" if guilt.trace else ""
    fault = "crashes on this model" if guilt.trace else "changes what this model computes"
    (folder / "README.md").write_text(
        f"# {where}\n\n{guilt.pass_name}{partners} {fault}: {guilt.why}\n{trace}\n"
        f"In this folder, run:\n\n    {command}\n\nExit code 3 means that the fault is still there.\n"
    )
    return command


def _matching(globs: Sequence[str], model: Model) -> list[str]:
    """The globs that still match something in the cut-out model; the others would be refused."""
    missing = {glob for glob, _ in unmatched(globs, model)}
    return [glob for glob in globs if glob not in missing]


def folder_name(guilt: Guilt) -> str:
    """A folder name for `guilt`, safe on every file system."""
    text = f"{guilt.pass_name}-{guilt.site.anchor}" if guilt.site else guilt.pass_name
    return re.sub(r"[^A-Za-z0-9_.-]+", "_", text).strip("_.")[:80] or "culprit"


def _shrink(
    original: Model,
    guilt: Guilt,
    steps: Sequence[Step],
    settings: Settings,
    feeds: Mapping[str, Array],
    tap: Tap,
    make_judge: MakeJudge,
) -> tuple[onnx.ModelProto, dict[str, Array]] | None:
    """The smallest neighbourhood of the guilty site in which the fault still shows."""
    proto = original.to_proto(weights="inline")
    start = _find_node(proto.graph, guilt)
    if start is None or proto.functions:
        return None
    distance = _distances(proto.graph, start)
    tried = 0
    for radius in RADII:
        chosen = [n for i, n in enumerate(proto.graph.node) if distance.get(i, 1 << 30) <= radius]
        if len(chosen) == tried or len(chosen) == len(proto.graph.node):
            continue
        tried = len(chosen)
        try:
            cut = _cut(proto, chosen, feeds, tap)
            if cut is not None and _still_wrong(cut, guilt, steps, settings, make_judge):
                return cut
        except (GraphOptError, ValueError, onnx.checker.ValidationError):
            continue
    return None


def _find_node(graph: onnx.GraphProto, guilt: Guilt) -> int | None:
    """Index of the top-level node around the guilty site."""
    if guilt.site is None:
        return None
    anchor = guilt.site.anchor
    if guilt.site.body != "main":
        anchor = guilt.site.body.removeprefix("main/").partition(":")[0]
    for i, node in enumerate(graph.node):
        if anchor in node.output or anchor == node.name:
            return i
    return None


def _reads(node: onnx.NodeProto) -> set[str]:
    """Names that `node` reads, also inside its bodies."""
    names = {name for name in node.input if name}
    for attribute in node.attribute:
        for body in [attribute.g] if attribute.HasField("g") else attribute.graphs:
            own = {t.name for t in body.initializer} | {v.name for v in body.input}
            inner: set[str] = {v.name for v in body.output}
            for held in body.node:
                inner |= _reads(held)
                own.update(held.output)
            names |= inner - own
    return names


def _distances(graph: onnx.GraphProto, start: int) -> dict[int, int]:
    """Breadth-first distance of every node from `start`, along tensors in both directions."""
    maker = {name: i for i, node in enumerate(graph.node) for name in node.output if name}
    neighbours: list[set[int]] = [set() for _ in graph.node]
    for i, node in enumerate(graph.node):
        for name in _reads(node):
            if name in maker:
                neighbours[i].add(maker[name])
                neighbours[maker[name]].add(i)
    distance, queue = {start: 0}, deque([start])
    while queue:
        i = queue.popleft()
        for j in neighbours[i]:
            if j not in distance:
                distance[j] = distance[i] + 1
                queue.append(j)
    return distance


def _cut(
    proto: onnx.ModelProto, nodes: Sequence[onnx.NodeProto], feeds: Mapping[str, Array], tap: Tap
) -> tuple[onnx.ModelProto, dict[str, Array]] | None:
    """A model of `nodes` alone, whose inputs are the tensors that enter them."""
    graph = proto.graph
    made = {name for node in nodes for name in node.output if name}
    read = {name for node in nodes for name in _reads(node)}
    own = {t.name: t for t in graph.initializer}
    own_sparse = {t.values.name: t for t in graph.sparse_initializer}
    overridable = {v.name for v in graph.input}
    entering = sorted(
        name for name in read - made if (name not in own and name not in own_sparse) or name in overridable
    )
    chosen = {id(node) for node in nodes}
    read_outside = {name for node in graph.node if id(node) not in chosen for name in _reads(node)}
    returned = {v.name for v in graph.output}
    leaving = sorted(name for name in made if name in read_outside or name in returned or name not in read)
    values = dict(tap(proto, [*entering, *leaving]))
    if any(name not in values for name in [*entering, *leaving]):
        return None
    small = onnx.ModelProto()
    small.CopyFrom(proto)
    small.graph.Clear()
    small.graph.name = graph.name or "reproducer"
    small.graph.node.extend(nodes)
    small.graph.initializer.extend(t for name, t in own.items() if name in read and name not in overridable)
    small.graph.sparse_initializer.extend(t for name, t in own_sparse.items() if name in read)
    for names, ports in ((entering, small.graph.input), (leaving, small.graph.output)):
        for name in names:
            array = values[name]
            elem = onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
            ports.append(onnx.helper.make_tensor_value_info(name, elem, array.shape))
    onnx.checker.check_model(small)
    return small, {name: values[name] for name in entering}


def _still_wrong(
    cut: tuple[onnx.ModelProto, dict[str, Array]],
    guilt: Guilt,
    steps: Sequence[Step],
    settings: Settings,
    make_judge: MakeJudge,
) -> bool:
    proto, feeds = cut
    done = execute(Model.load(proto), steps, settings)
    if not any(c.key.pass_name == guilt.pass_name for c in done.journal.changes):
        return False
    declared = {p.name: p.numerics for p in flatten(steps)}
    order = list(Numerics)
    allowance = max((declared[c.key.pass_name] for c in done.journal.changes), key=order.index)
    return make_judge(Model.load(proto), feeds).judge(done.model, allowance).verdict == "failed"
