"""strip-metadata: what says something about the model and computes nothing."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from graphopt.passkit import Annotations, Numerics, Pass, PassContext, PortRewriter, Rewriter


@dataclass(frozen=True)
class StripMetadata(Pass):
    """The same model without doc strings, metadata, and value info of intermediate tensors.

    Exporters write there where a node came from in the source (paths included), which is of no use to who
    runs the model, and can be large. Names of nodes go if asked for (`node_names=true`): profilers and error
    messages name nodes by them. Producer, domain and version of the model stay, as do names of tensors, and
    everything about weights. Which pass made a node is written on save, and stays.

    Leaves alone: nodes and tensors that are kept (`--keep`); metadata whose key `keep` matches; value info
    in a model that has operators of other domains, since runtimes may need it there; training information.
    """

    name: ClassVar[str] = "strip-metadata"
    numerics: ClassVar[Numerics] = Numerics.EXACT

    doc_strings: bool = field(default=True, metadata={"help": "take out doc strings"})
    metadata: bool = field(default=True, metadata={"help": "take out metadata_props"})
    value_info: bool = field(default=True, metadata={"help": "take out value info of intermediate tensors"})
    node_names: bool = field(default=False, metadata={"help": "take out names of nodes"})
    keep: tuple[str, ...] = field(default=(), metadata={"help": "globs over metadata keys that stay"})

    def __post_init__(self) -> None:
        if not (self.doc_strings or self.metadata or self.value_info or self.node_names):
            raise ValueError("it is told to take out nothing")

    def run(self, graph: Rewriter, ctx: PassContext) -> None:
        """Strip the whole model, from its main graph."""
        if not graph.is_main:
            return
        foreign = next((n for n in graph.nodes() if n.domain), None)
        if foreign is not None and self.value_info:
            graph.refuse(foreign, f"value info stays: shapes of {foreign.domain} may not be known otherwise")
        what = Annotations(
            self.doc_strings, self.metadata, self.value_info and foreign is None, self.node_names, self.keep
        )
        PortRewriter(graph).strip(what, "metadata taken out")
