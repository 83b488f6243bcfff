"""Which execution provider computes which node, read from onnxruntime itself.

Three things are asked, each of which knows something that the others do not. The assignment that onnxruntime
records while it divides a graph (from 1.24 on) has every node of the model by name. Its log names the nodes
that are executed in the end, the copies between devices among them, and why a provider left a node alone.
Where the record is missing, the log's list takes its place.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import onnx

from graphopt.runtime.logs import LogLine, captured
from graphopt.runtime.providers import CPU, ProviderSettings, current, onnxruntime, resolve_provider
from graphopt.runtime.session import Optimize, Source, Translated, create, message, session_options

#: Why a node is not where it was to be: there is no kernel for its operator and types; there is one, but not
#: for its attributes or shapes; onnxruntime prefers the CPU for it (it computes shapes); or it does not say.
Cause = Literal["", "no kernel", "not supported", "preferred on the CPU", "unknown"]

_ALL: Final = re.compile(r"All nodes placed on \[(\w+)\]\. Number of nodes: (\d+)")
_SOME: Final = re.compile(r"Node\(s\) placed on \[(\w+)\]\. Number of nodes: (\d+)")
# What a provider compiled as a whole is listed without an operator.
_NODE: Final = re.compile(r"^\s+(\S+)(?: \((.*)\))?$")
_COPY: Final = re.compile(r"Add (Memcpy(?:From|To)Host) (after|before) (.*) for (\w+)")
_COPIES: Final = re.compile(r"(\d+) Memcpy nodes are added to the graph")
_REASONS: Final[tuple[tuple[re.Pattern[str], Cause], ...]] = (
    (re.compile(r"(\w+) kernel not found in registries for Op type: (\S+) node name: (.*)"), "no kernel"),
    (
        re.compile(
            r"(\w+) kernel not supported\. Fallback to CPU execution provider for Op type: (\S+)"
            r" node name: (.*)"
        ),
        "not supported",
    ),
    (
        re.compile(r"()()Force fallback to CPU execution for node: (.*?)(?: because the CPU .*)?$"),
        "preferred on the CPU",
    ),
)
_WORDS: Final[Mapping[Cause, str]] = {
    "no kernel": "the provider has no kernel for {op} of this version and these types",
    "not supported": "the provider's kernel does not support these attributes or shapes of {op}",
    "preferred on the CPU": "it computes shapes, which onnxruntime keeps on the CPU on purpose",
    "unknown": "onnxruntime does not say why",
}


@dataclass(frozen=True)
class PlacedNode:
    """A node, and who computes it.

    Attributes:
        name: its name in the model; nodes without one are called `OP:OUTPUT`.
        op: its operator.
        provider: the execution provider that it is assigned to.
        cause: why it is not on the provider that was asked for; "" when it is.
        reason: the same in words.
    """

    name: str
    op: str
    provider: str
    cause: Cause = ""
    reason: str = ""


@dataclass(frozen=True)
class Assignment:
    """Who computes a model's nodes.

    Attributes:
        provider: the provider that was asked for.
        nodes: of all bodies, after what onnxruntime folds away while it loads, before it fuses.
        executed: provider -> how many nodes are executed there in the end, after fusions, copies included.
        copies: copies between devices that onnxruntime inserts, in words: "MemcpyToHost before x".
        copy_count: how many there are; more than `copies` names where onnxruntime only counts them.
        source: where this was read from, in words.
    """

    provider: str
    nodes: tuple[PlacedNode, ...]
    executed: Mapping[str, int] = field(default_factory=dict)
    copies: tuple[str, ...] = ()
    copy_count: int = 0
    source: str = ""

    @property
    def counts(self) -> dict[str, int]:
        """Provider -> how many of `nodes` it computes, the one that was asked for first."""
        found = Counter(node.provider for node in self.nodes)
        return {self.provider: found.pop(self.provider, 0), **dict(found.most_common())}

    @property
    def fallbacks(self) -> tuple[PlacedNode, ...]:
        """Nodes that the provider that was asked for does not compute."""
        return tuple(node for node in self.nodes if node.provider != self.provider)

    @property
    def coverage(self) -> float:
        """The share of nodes that the provider computes, from 0 to 1; 1 for a model without nodes."""
        return 1.0 - len(self.fallbacks) / len(self.nodes) if self.nodes else 1.0


def assignment(
    source: Source,
    *,
    provider: str = CPU,
    optimize: Optimize = "all",
    settings: ProviderSettings | None = None,
) -> Assignment:
    """Load a model, and read off who computes its nodes. It is not run.

    Args:
        source: what a session is made from (`Model.session_source()`, a ModelProto, or its bytes).
        provider: execution provider, or a short name ("cpu", "cuda").
        optimize: onnxruntime's graph optimization level.
        settings: the provider's options, as for `open_session`.

    Raises:
        ProviderError: onnxruntime or the provider is not there.
        RuntimeFailure: the model does not load.
    """
    while isinstance(source, Translated):
        source = source.source
    ort = onnxruntime()
    provider = resolve_provider(provider)
    options = session_options(
        optimize=optimize,
        config={"session.record_ep_graph_assignment_info": "1", "session.disable_prepacking": "1"},
    )
    options.log_severity_level = 0
    serialized, keep_alive = message(source, options)
    proto = onnx.ModelProto.FromString(serialized)
    _name_all(proto.graph)
    with captured(ort) as lines:
        raw = create(ort, proto.SerializeToString(), options, provider, settings or current())
    recorded = _recorded(raw)
    del raw, keep_alive
    return read(provider, lines, recorded, list(_all_nodes(proto.graph)))


def read(
    provider: str,
    lines: Sequence[LogLine],
    recorded: Sequence[tuple[str, str, str]] | None,
    model: Sequence[tuple[str, str]],
) -> Assignment:
    """The assignment that a log and a record tell.

    Args:
        provider: what was asked for.
        lines: onnxruntime's log of creating the session, at its most verbose.
        recorded: (provider, operator, name) per node from onnxruntime's record; None where it keeps none.
        model: (operator, name) per node of the model.
    """
    executed, listed = _placements(lines)
    causes = _causes(lines)
    source = "onnxruntime's record of the assignment, and its log"
    if recorded is None:
        source = "onnxruntime's log"
        recorded = listed or [(p, op, name) for p in executed for op, name in model]
    nodes = []
    for where, op, name in recorded:
        if op.startswith("Memcpy"):
            continue  # counted as copies
        cause: Cause = "" if where == provider else causes.get(name, "unknown")
        nodes.append(PlacedNode(name, op, where, cause, _WORDS[cause].format(op=op) if cause else ""))
    copies = tuple(
        f"{m[1]} {m[2]} {m[3]}" for line in lines if (m := _COPY.search(line.text)) and m[4] != CPU
    )
    counted = sum(int(m[1]) for line in lines if (m := _COPIES.search(line.text)))
    inserted = sum(op.startswith("Memcpy") for _, op, _ in listed)
    return Assignment(provider, tuple(nodes), executed, copies, max(len(copies), counted, inserted), source)


def _recorded(raw: Any) -> list[tuple[str, str, str]] | None:
    if not hasattr(raw, "get_provider_graph_assignment_info"):
        return None
    return [
        (part.ep_name, node.op_type, node.name)
        for part in raw.get_provider_graph_assignment_info()
        for node in part.get_nodes()
    ]


def _placements(lines: Sequence[LogLine]) -> tuple[dict[str, int], list[tuple[str, str, str]]]:
    """How many nodes are executed where, and which, as far as the log lists them."""
    executed: dict[str, int] = {}
    listed: list[tuple[str, str, str]] = []
    current = ""
    for line in lines:
        if match := _ALL.search(line.text):
            executed[match[1]] = executed.get(match[1], 0) + int(match[2])
            current = ""
        elif match := _SOME.search(line.text):
            current = match[1]
            executed[current] = executed.get(current, 0) + int(match[2])
        elif current and "VerifyEachNodeIsAssignedToAnEp" in line.place:
            if match := _NODE.match(line.text):
                listed.append((current, match[1], match[2] or match[1]))
        else:
            current = ""
    return executed, listed


def _causes(lines: Sequence[LogLine]) -> dict[str, Cause]:
    """Node name -> why a provider left it alone."""
    found: dict[str, Cause] = {}
    for line in lines:
        for pattern, cause in _REASONS:
            if match := pattern.search(line.text):
                found[match[3].strip()] = cause
    return found


def _all_nodes(graph: onnx.GraphProto) -> Iterator[tuple[str, str]]:
    for node in graph.node:
        yield node.op_type, node.name
        for body in _bodies(node):
            yield from _all_nodes(body)


def _name_all(graph: onnx.GraphProto) -> None:
    """Give nodes without a name one, so that what is said of them can be told apart."""
    for node in graph.node:
        if not node.name:
            node.name = f"{node.op_type}:{next((o for o in node.output if o), '')}"
        for body in _bodies(node):
            _name_all(body)


def _bodies(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs
