"""Primitive edits of a model under rewriting, each with its undo.

An edit is made at once, and its inverse pushed on the undo log of the site that it belongs to.
"""

from __future__ import annotations

import fnmatch
import re
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

from graphopt.graph.facts import Facts, Saved
from graphopt.graph.index import Index
from graphopt.graph.journal import SiteKey
from graphopt.ir import Body, Constant, Node, Tensor, Variable
from graphopt.model import Model

# New nodes rank this far above their producers: 2**-20 leaves room for a million nodes in a chain
# between two neighbours of the input model before two ranks collide (which only costs a re-sort).
RANK_STEP = 2.0**-20


class Site:
    """One rewrite in progress.

    Attributes:
        key: where it is.
        op: operator type of its root.
        why: the rewrite in words.
        touched: how many nodes had been touched when it began.
        undo: inverses of its edits, to be called in reverse order.
        learned: facts that it replaced, for the same purpose.
        freed: tensors that lost a reader in it.
        added: nodes that it made.
        removed: operator types of the nodes that it took out.
        gone: what these computed first, by name.
        refused: it was undone.
    """

    __slots__ = (
        "added",
        "freed",
        "gone",
        "key",
        "learned",
        "op",
        "refused",
        "removed",
        "touched",
        "undo",
        "why",
    )

    def __init__(self, key: SiteKey, op: str, why: str, touched: int) -> None:
        self.key, self.op, self.why, self.touched = key, op, why, touched
        self.undo: list[tuple[Callable[..., None], tuple[Any, ...]]] = []
        self.learned: list[tuple[Tensor, Saved]] = []
        self.freed: list[Tensor] = []
        self.added: dict[Node, None] = {}
        self.removed: list[str] = []
        self.gone: list[str] = []
        self.refused = False


class Edits:
    """A model with its index and facts, and the edits that keep the three in step.

    Args:
        model: the model, which is changed in place.
        facts: what is known about its tensors.
        keep: globs over node and tensor names that must be left alone.
    """

    def __init__(self, model: Model, facts: Facts, keep: Iterable[str] = ()) -> None:
        self.model = model
        self.index = Index(model.graph)
        self.facts = facts
        self.site: Site | None = None
        self.touched: list[Node] = []  # nodes whose surroundings changed, in order
        patterns = [fnmatch.translate(glob) for glob in keep]
        self._keep = re.compile("|".join(patterns)) if patterns else None

    def keeps(self, thing: Node | Tensor) -> bool:
        """Whether the user asked that this node or tensor be left alone."""
        if self._keep is None:
            return False
        if isinstance(thing, Node):
            return bool(thing.name and self._keep.match(thing.name)) or any(
                t.name and self._keep.match(t.name) for t in thing.outputs
            )
        return self._keep.match(thing.name) is not None

    def opsets(self, body: Body) -> dict[str, int]:
        """Operator set versions in force in `body`, by domain ("" for ai.onnx)."""
        return body.opset_imports

    # -- the log -------------------------------------------------------------------------------------

    def _log(self, function: Callable[..., None], *arguments: Any) -> None:
        if self.site is not None:
            self.site.undo.append((function, arguments))

    def _free(self, tensor: Tensor) -> None:
        if self.site is not None:
            self.site.freed.append(tensor)

    def merge_facts(self, a: Tensor, b: Tensor) -> None:
        """State that `a` and `b` are the same value; undone with the site, which may be wrong about it.

        Where that tells more about one of them, what is computed from it is inferred again.
        """
        facts = self.facts
        before = [(t, facts.save(t)) for t in (a, b)]
        if self.site is not None:
            # Kept apart from the edits: a site that only learned something has changed nothing.
            self.site.learned.extend(before)
        facts.merge(a, b)
        self._spread(t for t, saved in before if facts.save(t) != saved)

    def _spread(self, learned: Iterable[Tensor]) -> None:
        """Infer again what is computed from `learned`, as far as more comes out.

        Linear over a whole run: a fact only ever gets more precise.
        """
        index = self.index
        queue = deque(learned)
        while queue:
            t = queue.popleft()
            readers = list(index.readers.get(t, ()))
            if t in index.output_slots:
                holder = self._holder_of_output(t)
                if holder is not None:
                    readers.append(holder)
            for node in readers:
                queue.extend(self._infer_again(node))

    def _holder_of_output(self, tensor: Tensor) -> Node | None:
        """The node whose body computes and returns `tensor`."""
        producer = self.index.producer.get(tensor)
        return None if producer is None else self.index.holder.get(self.index.home[producer])

    def _infer_again(self, node: Node) -> list[Tensor]:
        """The outputs of `node` about which its inputs now tell more than was known."""
        facts, body = self.facts, self.index.home.get(node)
        if body is None:
            return []
        before = [(t, facts.save(t)) for t in node.outputs if t.name]
        facts.infer_node(node, self.opsets(body))
        found = [(t, saved) for t, saved in before if facts.refine(t, saved)]
        if found:
            self.touched.append(node)
            if self.site is not None:
                self.site.learned.extend(found)
        return [t for t, _ in found]

    # -- primitive edits -----------------------------------------------------------------------------

    def import_domain(self, body: Body, domain: str, version: int) -> None:
        """`body` imports `domain`, and so does the model around a function; a version in force stays."""
        for imports in (self.opsets(body), self.model.opset_imports):
            if domain not in imports:
                imports[domain] = version
                self._log(imports.__delitem__, domain)

    def add_node(self, body: Body, node: Node) -> None:
        """Put `node`, whose outputs are new, into `body`."""
        index = self.index
        rank = 0.0
        for t in node.inputs:
            producer = index.producer.get(t)
            if producer is not None and index.home[producer] is body:
                rank = max(rank, index.rank[producer])
        index.add_node(body, node, rank + RANK_STEP)
        index.names.add(node.name)
        for t in node.inputs:
            self.adopt(t, body)
        self.touched.append(node)
        if self.site is not None:
            self.site.added[node] = None
            self.site.freed.extend(t for t in node.outputs if t.name)
        self._log(self._unadd_node, node)

    def _unadd_node(self, node: Node) -> None:
        self.index.remove_node(node)

    def remove_node(self, node: Node) -> None:
        """Take `node` and the bodies it holds out of the graph."""
        index = self.index
        for inner in node.bodies():
            for held in list(index.nodes[inner]):
                self.remove_node(held)
            for t in inner.outputs:
                self._drop_output(t)
            for t in list(inner.initializers):
                self.remove_constant(t)
        body, rank = index.home[node], index.rank[node]
        index.remove_node(node)
        for t in node.inputs:
            if t.name:
                self._free(t)
                self.touch_producer(t)
        if self.site is not None:
            if node in self.site.added:
                del self.site.added[node]
            else:
                self.site.removed.append(node.op)
                self.site.gone.append(node.outputs[0].name if node.outputs else node.name)
        self._log(self._unremove_node, body, node, rank)

    def _unremove_node(self, body: Body, node: Node, rank: float) -> None:
        self.index.add_node(body, node, rank)

    def _drop_output(self, tensor: Tensor) -> None:
        if tensor in self.index.output_slots:
            self._drop_output_quietly(tensor)
            self._free(tensor)
            self._log(self._add_output, tensor)

    def _add_output(self, tensor: Tensor) -> None:
        slots = self.index.output_slots
        slots[tensor] = slots.get(tensor, 0) + 1

    def set_slot(self, node: Node, slot: int, tensor: Tensor) -> None:
        """`node` reads `tensor` at `slot`."""
        old = node.inputs[slot]
        if old is tensor:
            return
        self._put_slot(node, slot, tensor)
        if old.name:
            self._free(old)
            self.touch_producer(old)
        self.adopt(tensor, self.index.home[node])
        self.touched.append(node)
        self._log(self._put_slot, node, slot, old)

    def _put_slot(self, node: Node, slot: int, tensor: Tensor) -> None:
        old = node.inputs[slot]
        list.__setitem__(node.inputs, slot, tensor)
        if old.name:
            self.index.unread(old, node)
        if tensor.name:
            self.index.read(tensor, node)

    def resize_inputs(self, node: Node, count: int) -> None:
        """Give `node` exactly `count` input slots: new ones are omitted inputs."""
        while len(node.inputs) > count:
            self.set_slot(node, len(node.inputs) - 1, Variable.empty())
            dropped = list.pop(node.inputs)
            self._log(list.append, node.inputs, dropped)
        while len(node.inputs) < count:
            list.append(node.inputs, Variable.empty())
            self._log(_pop, node.inputs)

    def set_output(self, node: Node, slot: int, tensor: Tensor) -> None:
        """`node` computes `tensor` at output `slot`; whoever computed it before no longer does."""
        previous = self.index.producer.get(tensor) if tensor.name else None
        if previous is not None and previous is not node:
            place = next(i for i, t in enumerate(previous.outputs) if t is tensor)
            self._put_output(previous, place, Variable.empty())
            self._log(self._put_output, previous, place, tensor)
            self.touched.append(previous)
            if not any(self.index.is_read(o) for o in previous.outputs if o.name):
                self._orphan(previous)
        old = node.outputs[slot]
        self._put_output(node, slot, tensor)
        self._log(self._put_output, node, slot, old)
        self.touched.append(node)
        self.touched.extend(self.index.readers.get(tensor, ()))

    def _orphan(self, node: Node) -> None:
        if not self.keeps(node):
            self.remove_node(node)

    def _put_output(self, node: Node, slot: int, tensor: Tensor) -> None:
        old = node.outputs[slot]
        list.__setitem__(node.outputs, slot, tensor)
        if self.index.producer.get(old) is node and not any(t is old for t in node.outputs):
            del self.index.producer[old]
        if tensor.name and node in self.index.home:
            self.index.producer[tensor] = node

    def omit_output(self, node: Node, slot: int) -> None:
        """Output `slot`, which nobody reads, becomes an omitted one."""
        old = node.outputs[slot]
        self._put_output(node, slot, Variable.empty())
        self._log(self._put_output, node, slot, old)
        while len(node.outputs) > 1 and not node.outputs[-1].name:
            dropped = list.pop(node.outputs)
            self._log(list.append, node.outputs, dropped)
        self.touched.append(node)

    def move_node(self, node: Node, body: Body, rank: float) -> None:
        """`node` stands in `body` from now on, with everything it reads and computes as before."""
        index = self.index
        before = (node, index.home[node], index.rank[node])
        self._rehome(node, body, rank)
        self.touched.append(node)
        self._log(self._rehome, *before)

    def _rehome(self, node: Node, body: Body, rank: float) -> None:
        self.index.remove_node(node)
        self.index.add_node(body, node, rank)

    def move_constant(self, constant: Constant, body: Body) -> None:
        """`body` owns `constant` from now on."""
        self.remove_constant(constant)
        self._readd_constant(constant, body)
        self._log(self._unadd_constant, constant)

    def rename(self, tensor: Tensor, name: str) -> None:
        """Rename a tensor that is no graph input or output."""
        old = tensor.name
        tensor.name = name
        self._log(setattr, tensor, "name", old)

    def set_body_output(self, body: Body, slot: int, tensor: Tensor) -> None:
        """`body` returns `tensor` at `slot`. Only for bodies whose output names nobody sees."""
        old = body.outputs[slot]
        body.outputs[slot] = tensor
        self._log(_put_body_output, body, slot, old)
        self._drop_output(old)
        if tensor.name:
            self._add_output(tensor)
            self._log(self._drop_output_quietly, tensor)
            self.adopt(tensor, body)

    def _drop_output_quietly(self, tensor: Tensor) -> None:
        slots = self.index.output_slots
        slots[tensor] -= 1
        if not slots[tensor]:
            del slots[tensor]

    def set_attr(self, node: Node, name: str, value: Any) -> None:
        """Set (or with None: drop) the attribute `name` of `node`."""
        old, changed = node.attrs.get(name), node.attrs_changed
        _put_attr(node, name, value, True)
        self.touched.append(node)
        self._log(_put_attr, node, name, old, changed)

    def add_constant(self, body: Body, constant: Constant) -> None:
        """Own `constant` in `body`."""
        body.initializers[constant] = None
        self.index.constant_home[constant] = body
        self.index.names.add(constant.name)
        self._log(self._unadd_constant, constant)

    def _unadd_constant(self, constant: Constant) -> None:
        home = self.index.constant_home.pop(constant, None)
        if home is not None:
            home.initializers.pop(constant, None)

    def remove_constant(self, constant: Constant) -> None:
        """Take an initializer that nobody reads out of its body."""
        home = self.index.constant_home.pop(constant)
        home.initializers.pop(constant, None)
        self._log(self._readd_constant, constant, home)

    def _readd_constant(self, constant: Constant, home: Body) -> None:
        home.initializers[constant] = None
        self.index.constant_home[constant] = home

    def adopt(self, tensor: Tensor, body: Body) -> None:
        """A constant that nobody owns yet (or that an undone site disowned) belongs to `body`."""
        if isinstance(tensor, Constant) and tensor not in self.index.constant_home:
            self.add_constant(body, tensor)

    def touch_producer(self, tensor: Tensor) -> None:
        """The readers of `tensor` changed: its producer may match now."""
        producer = self.index.producer.get(tensor)
        if producer is not None:
            self.touched.append(producer)


def _pop(items: list[Any]) -> None:
    list.pop(items)


def _put_attr(node: Node, name: str, value: Any, changed: bool) -> None:
    if value is None:
        node.attrs.pop(name, None)
    else:
        node.attrs[name] = value
    node.attrs_changed = changed


def _put_body_output(body: Body, slot: int, tensor: Tensor) -> None:
    body.outputs[slot] = tensor
