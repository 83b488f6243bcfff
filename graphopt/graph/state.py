"""The state of a model under rewriting: sites, the order of nodes, and the journal.

`Rewriter` is what passes see; this is what stands behind it, one per model. When a site commits, everything
that it left without readers is erased; when it is refused or raises, its edits are undone.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator

from graphopt.errors import RefusedRewrite
from graphopt.graph.edits import Edits, Site
from graphopt.graph.facts import Facts
from graphopt.graph.index import body_label
from graphopt.graph.journal import Change, Journal, Refusal, SiteKey
from graphopt.graph.mentions import mentioned_names
from graphopt.graph.nearby import Nearby
from graphopt.graph.order import sort_body
from graphopt.ir import Body, Constant, Node, Tensor
from graphopt.model import Model


class GraphState(Edits):
    """A model, its index and facts, and the journal of what is done to it."""

    def __init__(
        self, model: Model, facts: Facts, journal: Journal | None = None, keep: Iterable[str] = ()
    ) -> None:
        super().__init__(model, facts, keep)
        self.journal = journal if journal is not None else Journal()
        self.pass_name = ""
        self.nearby = Nearby(self)
        self._settled = 0
        self._trial: Site | None = None
        self._unsorted: set[Body] = set()
        self._labels: dict[Body, str] = {}
        self._mentions: dict[Body, frozenset[str]] = {}

    # -- questions ---------------------------------------------------------------------------------

    def label(self, body: Body) -> str:
        """A stable name of `body`, for messages and site keys."""
        if body not in self._labels:
            self._labels[body] = body_label(self.index, body)
        return self._labels[body]

    def live_bodies(self) -> list[Body]:
        """Every body that is still part of the model, each before the body that holds it."""
        return [body for body in self.index.nodes if self.is_attached(body)]

    def is_attached(self, body: Body) -> bool:
        """Whether every node around `body` still stands."""
        home, holder_of = self.index.home, self.index.holder
        while (holder := holder_of.get(body)) is not None:
            if holder not in home:
                return False
            body = home[holder]
        return True

    def finish(self, *, swept: bool = False) -> Model:
        """Write order and links back into the model's own lists, and return it.

        Args:
            swept: during a trial, erase what it left without readers so far, as the end of a site would.
        """
        if swept and self._trial is not None:
            self._collect(self._trial)
        self.settle_order()
        self.index.relink()
        return self.model

    # -- order ---------------------------------------------------------------------------------------

    def settle_order(self) -> None:
        """Re-rank the bodies in which an edit put a reader below its producer.

        Raises:
            PassError: the edits made a cycle.
        """
        index = self.index
        rank, home, producer_of = index.rank, index.home, index.producer
        fresh = dict.fromkeys(self.touched[self._settled :])
        self._settled = len(self.touched)
        for node in fresh:
            body = home.get(node)
            if body is None or body in self._unsorted:
                continue
            reads: Iterable[Tensor] = node.inputs
            if any(True for _ in node.bodies()):
                reads = [*node.inputs, *index.captured(node)]
            for t in reads:
                producer = producer_of.get(t)
                if producer is None:
                    continue
                reader, where = node, body
                while where is not home[producer]:
                    holder = index.holder.get(where)
                    if holder is None:
                        break  # not visible from here: the verifier reports it
                    reader, where = holder, home[holder]
                else:
                    if rank[producer] >= rank[reader]:
                        self._unsorted.add(where)
        for body in self._unsorted:
            for place, node in enumerate(sort_body(index, body, self.pass_name)):
                rank[node] = float(place)
        self._unsorted.clear()

    def ordered(self, body: Body) -> list[Node]:
        """The nodes of `body` in topological order."""
        self.settle_order()
        return sorted(self.index.nodes[body], key=self.index.rank.__getitem__)

    # -- sites ---------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def open_site(self, root: Node, why: str) -> Iterator[Site]:
        """Everything done inside is one rewrite; a site inside a site is part of the outer one."""
        if self.site is not None:
            yield self.site
            return
        body = self.index.home.get(root)
        if body is None:
            raise RefusedRewrite(f"{root.op} is gone already")
        anchor = next((t.name for t in root.outputs if t.name), root.name or root.op)
        self.site = site = Site(
            SiteKey(self.pass_name, self.label(body), anchor), root.op, why, len(self.touched)
        )
        try:
            yield site
            self._collect(site)
        except RefusedRewrite as refused:
            self._roll_back(site)
            site.refused = True
            self.refuse(root, refused.reason)
            return
        except BaseException:
            self._roll_back(site)
            raise
        finally:
            self.site = None
        self._commit(site)

    @contextlib.contextmanager
    def open_trial(self, root: Node) -> Iterator[Site]:
        """A site that is undone at its end."""
        assert self.site is None, "a trial inside a site"
        self.site = site = Site(SiteKey(self.pass_name, "", "trial"), root.op, "", len(self.touched))
        self._trial = site
        try:
            yield site
        finally:
            self._roll_back(site)
            self.site = self._trial = None

    def _commit(self, site: Site) -> None:
        if not site.undo:
            return
        if not self.journal.allows(site.key):
            self.journal.withheld += 1
            self._roll_back(site)
            site.refused = True
            return
        added = [n.op for n in site.added if n in self.index.home]
        self.journal.changes.append(
            Change(len(self.journal.changes), site.key, site.op, site.why, added, site.removed, site.gone)
        )

    @contextlib.contextmanager
    def open_bare_site(self, body: Body, anchor: str, what: str, why: str) -> Iterator[Site]:
        """A site around something that is no node; what loses its readers in it is not collected."""
        site = Site(SiteKey(self.pass_name, self.label(body), anchor), what, why, len(self.touched))
        outer, self.site = self.site, site
        try:
            yield site
            self._commit(site)
        except BaseException:
            self._roll_back(site)
            raise
        finally:
            self.site = outer

    def prune_constant(self, body: Body, constant: Constant) -> bool:
        """Erase an initializer that nobody reads, as a site of its own; False when it stays."""
        if self.index.is_read(constant) or self.keeps(constant) or constant.name in self._mentioned(body):
            return False
        with self.open_bare_site(body, constant.name, "initializer", "nobody reads it") as site:
            self.remove_constant(constant)
        return not site.refused

    def _mentioned(self, body: Body) -> frozenset[str]:
        found = self._mentions.get(body)
        if found is None:
            found = self._mentions[body] = mentioned_names(self, body)
        return found

    def refuse(self, node: Node, reason: str) -> None:
        """Note that the running pass declined `node`."""
        label = node.name or next((t.name for t in node.outputs if t.name), node.op)
        self.journal.refuse(Refusal(self.pass_name, label, node.op, reason))

    def _roll_back(self, site: Site) -> None:
        undo, site.undo = site.undo, []
        site.freed.clear()
        while undo:
            function, arguments = undo.pop()
            function(*arguments)
        while site.learned:
            self.facts.restore(*site.learned.pop())
        # Nothing happened, so nothing is worth another look.
        del self.touched[site.touched :]
        self._settled = min(self._settled, site.touched)

    def _collect(self, site: Site) -> None:
        """Erase what this site left without readers."""
        index = self.index
        while site.freed:
            t = site.freed.pop()
            if index.is_read(t) or self.keeps(t):
                continue
            if isinstance(t, Constant):
                home = index.constant_home.get(t)
                if home is not None and t.name not in self._mentioned(home):
                    self.remove_constant(t)
                continue
            producer = index.producer.get(t)
            if (
                producer is not None
                and not any(index.is_read(o) for o in producer.outputs if o.name)
                and not self.keeps(producer)
            ):
                self.remove_node(producer)
