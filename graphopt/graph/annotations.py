"""Taking out of a model what says something about it and computes nothing."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import onnx

from graphopt import ir
from graphopt.graph.ports import declare
from graphopt.graph.state import GraphState
from graphopt.io.declarations import value_info


@dataclass(frozen=True)
class Annotations:
    """What is taken out.

    Attributes:
        doc_strings: of the model, its bodies and functions, nodes, and declared tensors.
        metadata: metadata_props of the same, but for keys that `keep` matches.
        value_info: what is declared about intermediate tensors.
        node_names: names of nodes.
        keep: globs over metadata keys.
    """

    doc_strings: bool
    metadata: bool
    value_info: bool
    node_names: bool
    keep: Sequence[str] = ()

    def cleaned(self, proto: Any) -> Any | None:
        """A copy of a message without its own doc string and metadata; None where it has none of them."""
        drop_doc = self.doc_strings and bool(proto.doc_string)
        kept = [e for e in proto.metadata_props if not self.metadata or self.keeps(e.key)]
        if not drop_doc and len(kept) == len(proto.metadata_props):
            return None
        made = type(proto)()
        made.CopyFrom(proto)
        if drop_doc:
            made.ClearField("doc_string")
        del made.metadata_props[:]
        made.metadata_props.extend(kept)
        return made

    def keeps(self, key: str) -> bool:
        """Whether the metadata `key` stays."""
        return any(fnmatch.fnmatchcase(key, glob) for glob in self.keep)


def strip(state: GraphState, what: Annotations, why: str) -> bool:
    """Take annotations out of the whole model, as one site; False when nothing changed."""
    with state.open_bare_site(state.model.graph, "metadata", "model", why) as site:
        _Stripper(state, what).run()
    return bool(site.undo) and not site.refused


class _Stripper:
    def __init__(self, state: GraphState, what: Annotations) -> None:
        self.state, self.what = state, what

    def run(self) -> None:
        model = self.state.model
        self._set(model, "origin", self.what.cleaned(model.origin))
        for body in self.state.live_bodies():
            if body.origin is not None:
                self._body(body, body.origin)
            if self.what.doc_strings and body.doc_string:
                self._set(body, "doc_string", "")
            for node in self.state.index.nodes[body]:
                if not self.state.keeps(node):
                    self._node(node)
            for tensor in dict.fromkeys((*body.inputs, *body.outputs)):
                self._declared(tensor)
            outputs = set(body.outputs)
            for node in self.state.index.nodes[body]:
                for tensor in node.outputs:
                    if tensor.info is None or tensor in outputs or self.state.keeps(tensor):
                        continue
                    if self.what.value_info:
                        self._put(tensor, "info", None)
                    else:
                        self._declared(tensor)

    def _body(self, body: ir.Body, origin: Any) -> None:
        made = self.what.cleaned(origin)
        if self.what.value_info and len(origin.value_info):
            if made is None:
                made = type(origin)()
                made.CopyFrom(origin)
            made.ClearField("value_info")
        self._set(body, "origin", made)

    def _node(self, node: ir.Node) -> None:
        if node.origin is not None:
            made = self.what.cleaned(node.origin)
            if made is not None:
                self._put(node, "origin", made)
        if self.what.doc_strings and node.doc_string:
            self._put(node, "doc_string", "")
        if self.what.metadata and any(not self.what.keeps(key) for key in node.metadata):
            self._put(node, "metadata", {k: v for k, v in node.metadata.items() if self.what.keeps(k)})
        if self.what.node_names and node.name:
            self._put(node, "name", "")

    def _declared(self, tensor: ir.Tensor) -> None:
        if tensor.info is not None:
            made: onnx.ValueInfoProto | None = self.what.cleaned(value_info(tensor))
            if made is not None:
                declare(self.state, tensor, made)

    def _put(self, thing: ir.Node | ir.Tensor, name: str, value: Any) -> None:
        self.state._log(ir.put, thing, name, getattr(thing, name))
        ir.put(thing, name, value)

    def _set(self, thing: Any, name: str, value: Any) -> None:
        if value is not None:
            self.state._log(setattr, thing, name, getattr(thing, name))
            setattr(thing, name, value)
