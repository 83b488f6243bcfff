"""The only door through which a graph changes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias, overload

import numpy as np

from graphopt.errors import RefusedRewrite
from graphopt.graph.dims import Dim
from graphopt.graph.inline import inline_branch
from graphopt.graph.opset import raised_opset
from graphopt.graph.prune import prune_function, prune_opset_import
from graphopt.graph.resize import resize
from graphopt.graph.view import Array, GraphView
from graphopt.io.weights import sparse_values
from graphopt.ir import Body, Constant, Function, Node, Tensor, Variable

#: Rewriters of bodies, each with the opset that was in force there.
Bodies: TypeAlias = "Iterator[list[tuple[Rewriter, int]]]"


class Rewriter(GraphView):
    """Reads and rewrites one body.

    Changes belong to a *site* (`with graph.site(root, why)`): one atomic, journaled rewrite. Raising
    RefusedRewrite in it undoes everything and notes the reason; any other exception undoes and
    propagates. A mutator called outside a site is a site of its own. What a site leaves without readers
    (nodes and initializers) is erased when the site ends.
    """

    # -- sites -----------------------------------------------------------------------------------

    @contextlib.contextmanager
    def site(self, root: Node, why: str) -> Iterator[None]:
        """One atomic rewrite around `root`, described by `why` in the journal."""
        with self._state.open_site(root, why):
            yield

    @contextlib.contextmanager
    def trial(self, root: Node) -> Iterator[None]:
        """Changes to be measured and then taken back: nothing done in here lasts, or is journaled.

        Must not stand inside a site.
        """
        with self._state.open_trial(root):
            yield

    def refuse(self, node: Node, reason: str) -> None:
        """Note that `node` was looked at and left alone, and why."""
        self._state.refuse(node, reason)

    # -- new things ------------------------------------------------------------------------------

    def fresh_name(self, hint: str) -> str:
        """A name that nothing in the model has, equal to `hint` if possible."""
        names, suffixes = self._state.index.names, self._state.index.suffixes
        name, count = hint, suffixes.get(hint, 0)
        while not name or name in names:
            count += 1
            name = f"{hint}_{count}"
        if count:
            suffixes[hint] = count
        names.add(name)
        return name

    def new_constant(self, hint: str, values: Array | np.generic) -> Constant:
        """A new initializer of this body. It joins the model when a node reads it."""
        stored = self._state.model.stow(np.asarray(values))
        made = Constant(self.fresh_name(hint), stored, made_by=self._state.pass_name)
        self._state.facts.set_constant(made)
        return made

    def new_sparse_constant(self, hint: str, values: Array) -> Constant:
        """Like `new_constant`, but stored as the elements that are not zero and their places."""
        name = self.fresh_name(hint)
        made = Constant(name, sparse_values(name, values), made_by=self._state.pass_name)
        self._state.facts.set_constant(made)
        return made

    @overload
    def op(
        self,
        op: str,
        inputs: Sequence[Tensor | None],
        *,
        attrs: Mapping[str, Any] | None = ...,
        hint: str | None = ...,
        domain: str = ...,
    ) -> Tensor: ...
    @overload
    def op(
        self,
        op: str,
        inputs: Sequence[Tensor | None],
        *,
        attrs: Mapping[str, Any] | None = ...,
        hint: str | None = ...,
        domain: str = ...,
        n_outputs: int,
    ) -> list[Tensor]: ...
    def op(
        self,
        op: str,
        inputs: Sequence[Tensor | None],
        *,
        attrs: Mapping[str, Any] | None = None,
        hint: str | None = None,
        domain: str = "",
        n_outputs: int | None = None,
    ) -> Tensor | list[Tensor]:
        """A new node with fresh outputs.

        Args:
            op: operator type.
            inputs: input tensors; None for an omitted optional input.
            attrs: attributes.
            hint: what to name the outputs after.
            domain: operator domain.
            n_outputs: number of outputs; by default one.

        Returns:
            The output, or the list of outputs if `n_outputs` was given.
        """
        node = self._make_node(op, inputs, attrs, domain, hint or op, n_outputs or 1)
        return list(node.outputs) if n_outputs is not None else node.outputs[0]

    def _make_node(
        self,
        op: str,
        inputs: Sequence[Tensor | None],
        attrs: Mapping[str, Any] | None,
        domain: str,
        hint: str,
        n_outputs: int,
    ) -> Node:
        state = self._state
        tensors = [Variable.empty() if t is None else t for t in inputs]
        while tensors and not tensors[-1].name:
            tensors.pop()
        outputs = [Variable(self.fresh_name(hint)) for _ in range(n_outputs)]
        node = Node(op, self.fresh_name(f"{hint}/{op}"), dict(attrs or {}), tensors, outputs, domain)
        node.made_by = state.pass_name
        state.add_node(self.body, node)
        state.facts.infer_node(node, self._opsets)
        return node

    # -- rewiring --------------------------------------------------------------------------------

    def replace(
        self,
        old: Tensor | Sequence[Tensor],
        op: str,
        inputs: Sequence[Tensor | None],
        *,
        attrs: Mapping[str, Any] | None = None,
        domain: str = "",
        why: str | None = None,
    ) -> Node:
        """A new node computes `old` itself: its name, its readers, its being an output stay.

        Args:
            old: the tensor (or tensors, for several outputs) to compute; produced in this body.
            op: operator type of the new node.
            inputs: its inputs; None for an omitted optional input.
            attrs: its attributes.
            domain: its operator domain.
            why: the rewrite in words, if this call is a site of its own.

        Returns:
            The new node. It takes the name of the node that used to compute `old`.
        """
        olds = [old] if isinstance(old, Variable | Constant) else list(old)
        root = self._index.producer.get(olds[0])
        if root is None or self._index.home[root] is not self.body:
            raise RefusedRewrite(f"{olds[0].name} is not computed in this body")
        with self._state.open_site(root, why or f"replaced by {op}"):
            if self.keeps(root):
                raise RefusedRewrite(f"{root.name or olds[0].name} is kept")
            node = self._make_node(op, inputs, attrs, domain, olds[0].name, len(olds))
            for slot, tensor in enumerate(olds):
                placeholder = node.outputs[slot]
                self._state.merge_facts(tensor, placeholder)
                self._state.set_output(node, slot, tensor)
                self._index.names.discard(placeholder.name)
            if root not in self._index.home and root.name:
                self._index.names.discard(node.name)
                node.name = root.name
                self._index.names.add(node.name)
            node.doc_string = node.doc_string or root.doc_string
            return node

    def insert_behind(
        self,
        tensor: Tensor,
        ops: Sequence[tuple[str, Sequence[Tensor], Mapping[str, Any]]],
        why: str | None = None,
    ) -> Variable:
        """Nodes between `tensor`'s producer and all that read or return it.

        The producer computes a new tensor, which goes through `ops` one after the other; the last of them
        computes `tensor` itself, so that its name and its being an output stay.

        Args:
            tensor: computed in this body.
            ops: operator type, further inputs, and attributes of each node.
            why: the rewrite in words, if this call is a site of its own.

        Returns:
            What the producer computes now, of the shape and dtype of `tensor`.
        """
        root = self._index.producer.get(tensor)
        if root is None or self._index.home[root] is not self.body:
            raise RefusedRewrite(f"{tensor.name} is not computed in this body")
        with self._state.open_site(root, why or f"{', '.join(op for op, _, _ in ops)} behind it"):
            if self.keeps(root) or self.keeps(tensor):
                raise RefusedRewrite(f"{tensor.name} is kept")
            raw = Variable(self.fresh_name(f"{tensor.name}_raw"))
            self._state.facts.set(raw, self.shape(tensor), self.dtype(tensor))
            self._state.set_output(root, root.outputs.index(tensor), raw)
            x: Tensor = raw
            for op, inputs, attrs in ops:
                node = self._make_node(op, [x, *inputs], attrs, "", tensor.name, 1)
                x = node.outputs[0]
            self._index.names.discard(x.name)
            self._state.set_output(node, 0, tensor)
        return raw

    def bypass(self, old: Tensor, new: Tensor, why: str | None = None) -> None:
        """Every reader of `old` reads `new` instead: the two have the same value.

        If `old` is an output of this body, its name must survive: the producer of `new` then computes
        `old` directly.

        Raises:
            RefusedRewrite: `old` is an output and `new` is an input, a constant, another output, or
                computed outside this body, so nothing can compute it under that name.
        """
        root = self._index.producer.get(old)
        if root is None:
            raise RefusedRewrite(f"{old.name} is not computed by a node")
        with self._state.open_site(root, why or f"{root.op} changes nothing"):
            if self.keeps(root):
                raise RefusedRewrite(f"{root.name or old.name} is kept")
            self._state.merge_facts(new, old)
            if self.is_output(old):
                self._take_over(old, new)
            else:
                self._redirect(old, new)

    def _take_over(self, old: Tensor, new: Tensor) -> None:
        source = self._index.producer.get(new)
        if source is None:
            kind = "a constant" if isinstance(new, Constant) else "an input"
            raise RefusedRewrite(f"it only passes {kind} on to the output {old.name}")
        if self._index.home[source] is not self.body:
            raise RefusedRewrite(f"the output {old.name} would be computed outside its body")
        if self.keeps(source):
            raise RefusedRewrite(f"{source.name or new.name} is kept")
        if self.is_output(new) or self.keeps(new):
            raise RefusedRewrite(f"{new.name} is an output itself, so {old.name} cannot take its place")
        self._state.merge_facts(old, new)
        root = self._index.producer[old]
        slot = next(i for i, t in enumerate(source.outputs) if t is new)
        # The node that computed `old` reads `new`; it must not end up reading its own output.
        self._redirect(new, old, but_not=root)
        self._state.set_output(source, slot, old)

    def _redirect(self, old: Tensor, new: Tensor, but_not: Node | None = None) -> None:
        uses = [use for use in self._index.uses(old) if use.node is not but_not]
        if not uses:
            return  # a touch without a change would have passes look at the producer again, for ever
        if isinstance(new, Constant):
            # Not left to the first reader: that may stand in a nested body, and others outside of it.
            self._state.adopt(new, self.body)
        for use in uses:
            self._state.set_slot(use.node, use.slot, new)
        self._state.touch_producer(new)

    def import_domain(self, domain: str, version: int) -> None:
        """Make operators of `domain` usable in this body; inside a site, before the first node of it.

        A version that the body imports already stays in force.
        """
        self._state.import_domain(self.body, domain, version)

    def redirect(self, old: Tensor, new: Tensor, root: Node | None = None, why: str | None = None) -> None:
        """Every node that reads `old` reads `new` instead; body outputs stay as they are."""
        anchor = root or self._index.producer.get(old) or next(iter(self._index.readers.get(old, ())), None)
        if anchor is None:
            return
        with self._state.open_site(anchor, why or f"{old.name} is {new.name}"):
            if self.keeps(old):
                raise RefusedRewrite(f"{old.name} is kept")
            self._redirect(old, new)

    def set_input(self, node: Node, slot: int, tensor: Tensor | None, why: str | None = None) -> None:
        """`node` reads `tensor` at `slot`; None omits the input."""
        with self._state.open_site(node, why or f"reads {tensor.name if tensor else 'nothing'}"):
            self._unless_kept(node)
            if slot >= len(node.inputs):
                self._state.resize_inputs(node, slot + 1)
            self._state.set_slot(node, slot, Variable.empty() if tensor is None else tensor)

    def set_inputs(self, node: Node, tensors: Sequence[Tensor | None], why: str | None = None) -> None:
        """`node` reads exactly `tensors`."""
        with self._state.open_site(node, why or "inputs changed"):
            self._unless_kept(node)
            self._state.resize_inputs(node, len(tensors))
            for slot, t in enumerate(tensors):
                self._state.set_slot(node, slot, Variable.empty() if t is None else t)

    def set_attr(self, node: Node, name: str, value: Any, why: str | None = None) -> None:
        """Set an attribute; None drops it."""
        with self._state.open_site(node, why or f"{name} changed"):
            self._unless_kept(node)
            self._state.set_attr(node, name, value)

    def _unless_kept(self, node: Node) -> None:
        if self.keeps(node):
            raise RefusedRewrite(f"{node.name or node.op} is kept")

    def omit_output(self, node: Node, slot: int, why: str | None = None) -> None:
        """Declare an output that nobody reads as omitted.

        Raises:
            RefusedRewrite: somebody reads it.
        """
        tensor = node.outputs[slot]
        with self._state.open_site(node, why or f"output {tensor.name} is not used"):
            if self.is_read(tensor) or self.keeps(tensor):
                raise RefusedRewrite(f"{tensor.name} is used")
            self._state.omit_output(node, slot)

    def erase(self, node: Node, why: str = "its result is not used") -> None:
        """Take `node` out of the graph, and whatever only it was reading.

        Nothing happens if it is gone already.

        Raises:
            RefusedRewrite: something still reads one of its outputs, or the user keeps it.
        """
        if node not in self._index.home:
            return
        with self._state.open_site(node, why):
            for t in node.outputs:
                if t.name and self.is_read(t):
                    raise RefusedRewrite(f"{t.name} is still read")
            if self.keeps(node):
                raise RefusedRewrite(f"{node.name} is kept")
            self._state.remove_node(node)

    def erase_constant(self, constant: Constant) -> bool:
        """Take an initializer that nobody reads out of the model; False when it is read or kept.

        Needs no site when nothing else changes: it is journaled under the initializer's name.
        """
        return self._state.prune_constant(self.body, constant)

    def erase_function(self, function: Function) -> bool:
        """Take a local function that nothing calls out of the model; False when bisection says no.

        Like `erase_constant` it is a site of its own.
        """
        return prune_function(self._state, function)

    def erase_opset_import(self, domain: str) -> bool:
        """Drop this body's import of `domain`, a site of its own; False when bisection says no.

        Only the main graph and functions have imports of their own.
        """
        return prune_opset_import(self._state, self.body, domain)

    @contextlib.contextmanager
    def raise_opset(self, version: int, why: str, *, lower: bool = False) -> Bodies:
        """The whole model imports ai.onnx `version` from here on; a site, in which its nodes are adapted.

        Args:
            version: newer than what this body imports; with `lower`, older.
            why: the rewrite in words.

        Yields:
            For every body whose version rose, innermost first: its rewriter and the version before. Raising
            anything inside undoes it all.
        """
        with raised_opset(self._state, version, why, lower=lower) as bodies:
            yield [(Rewriter(self._state, body), old) for body, old in bodies]

    def resize(self, shapes: Mapping[Tensor, tuple[Dim, ...]]) -> None:
        """State the shapes that tensors have since the edits of this site; stale facts follow.

        Raises:
            RefusedRewrite: inference does not confirm them, or the size of another tensor would change.
        """
        resize(self._state, self.body, shapes)

    def inline(self, node: Node, body: Body, why: str) -> None:
        """Put the nodes of `body`, a branch of `node`, in the place of `node`.

        The branch's outputs take the place of the node's outputs; the branch's own names are kept
        where they are free in the outer graph.
        """
        with self._state.open_site(node, why):
            inline_branch(self, node, body)
