"""Which nodes stand near recent changes: where a pass that ran before has to look again."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

from graphopt.ir import Body, Node

if TYPE_CHECKING:
    from graphopt.graph.state import GraphState

# Body -> (domain, op) -> nodes.
Groups: TypeAlias = "dict[Body, dict[tuple[str, str], list[Node]]]"


class Nearby:
    """Nodes at most some steps downstream of those touched since some moment, by body and operator.

    Many passes ask the same question one after the other, because most change nothing, so the answers
    are kept until the next change. Nodes erased since may be among them.
    """

    def __init__(self, state: GraphState) -> None:
        self._state = state
        self._now = -1
        self._answers: dict[tuple[int, int], Groups] = {}

    def since(self, mark: int, reach: int) -> Groups:
        """What is near.

        Args:
            mark: length of `state.touched` at that moment.
            reach: how many steps to go, from a node to those that read its outputs, in any body.
        """
        now = len(self._state.touched)
        if now != self._now:
            self._now = now
            self._answers.clear()
        found = self._answers.get((mark, reach))
        if found is None:
            found = self._answers[mark, reach] = self._walk(mark, reach)
        return found

    def _walk(self, mark: int, reach: int) -> Groups:
        home, readers = self._state.index.home, self._state.index.readers
        level = [n for n in dict.fromkeys(self._state.touched[mark:]) if n in home]
        seen = dict.fromkeys(level)
        for _ in range(reach):
            fresh: dict[Node, None] = {}
            for node in level:
                for t in node.outputs:
                    # Omitted outputs have no readers.
                    for reader in readers.get(t, ()):
                        if reader not in seen:
                            fresh[reader] = None
            if not fresh:
                break
            seen.update(fresh)
            level = list(fresh)
        groups: Groups = {}
        for node in seen:
            groups.setdefault(home[node], {}).setdefault((node.domain or "", node.op), []).append(node)
        return groups
