"""What a pass is.

A pass is a frozen dataclass: its fields are its options, its docstring is its documentation, `name` and
`numerics` are its contract. Three kinds, from the most general:

* `Pass`: `run(graph, ctx)` once per body.
* `NodePass`: `visit(node, graph, ctx)` at every node of the types `ops`, again wherever something changed
  nearby, until nothing does.
* `PatternPass`: `rewrite(match, graph, ctx)` wherever `pattern` matches, likewise.
"""

from __future__ import annotations

import abc
import enum
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from graphopt.budget import Budget, Score
from graphopt.errors import PassError, RefusedRewrite, UserError
from graphopt.graph.rewriter import Rewriter
from graphopt.graph.view import Array, GraphView
from graphopt.ir import Node, Tensor
from graphopt.pattern.build import OpPattern, PatternBuilder, depth
from graphopt.pattern.match import Failure, Match, find
from graphopt.pipeline.services import Request, Services, Statistic
from graphopt.pipeline.targets import Target

if TYPE_CHECKING:
    from graphopt.pipeline.teacher import Teacher

# A worklist that visits more than this many times the nodes it started with is not converging.
FUEL = 64


class Numerics(enum.Enum):
    """How far a pass may move the numbers; the pipeline enforces it."""

    EXACT = "EXACT"  # bit for bit
    CLOSE = "CLOSE"  # within the model's own noise floor
    LOSSY = "LOSSY"  # within an accuracy budget


@dataclass(frozen=True)
class Limits:
    """Bounds on what passes may produce.

    Attributes:
        folded_bytes: largest constant that folding may create, in bytes.
        growth_bytes: how much the constants that one fold creates may outweigh those it removes.
    """

    folded_bytes: int = 1 << 28
    growth_bytes: int = 1 << 16


class Evaluator(Protocol):
    """Runs nodes whose inputs are all known."""

    def __call__(
        self,
        nodes: Sequence[Node],
        feeds: Mapping[Tensor, Array],
        opsets: Mapping[str, int],
        *,
        wanted: Iterable[Tensor] | None = None,
    ) -> tuple[dict[Tensor, Array], dict[Node, str]]:
        """Values of the wanted outputs, and for each node that could not be run the reason."""
        ...


@dataclass(frozen=True)
class Watch:
    """A statistic that a pass wants, and of what.

    Attributes:
        statistic: an empty one, which says what to accumulate.
        student: tensors whose values in the model as it now stands are meant.
        teacher: tensors whose values in the teacher are meant; `statistic.update` gets them last.
    """

    statistic: Statistic
    student: tuple[Tensor, ...] = ()
    teacher: tuple[Tensor, ...] = ()


@dataclass
class PassContext:
    """What a pass may ask for beyond the graph.

    Attributes:
        target: who will execute the model.
        limits: bounds on what passes may produce.
        evaluator: runs nodes; None where no runtime is installed.
        marks: where each pass stands in the list of touched nodes, per body.
        notes: what passes keep from body to body and from run to run, under keys of their own.
        services: runs the model on the user's data; None where there is none.
        budget: what the result has to keep; None: only measured.
        ranges: activation ranges that the user handed in; None: they are measured.
    """

    target: Target
    limits: Limits = field(default_factory=Limits)
    evaluator: Evaluator | None = None
    marks: dict[tuple[Any, ...], int] = field(default_factory=dict)
    notes: dict[Hashable, Any] = field(default_factory=dict)
    services: Services | None = None
    budget: Budget | None = None
    ranges: Any = None
    snapshot: Teacher | None = None
    float_snapshot: Teacher | None = None

    @property
    def has_data(self) -> bool:
        """Whether there is data to measure on."""
        return self.services is not None

    @property
    def teacher(self) -> Teacher:
        """The model just before the first LOSSY pass; only LOSSY passes may ask for it."""
        assert self.snapshot is not None, "a pass that is not LOSSY asked for the teacher"
        return self.snapshot

    @property
    def reference(self) -> Teacher:
        """The float model that is quantized: the teacher, or what pruning and the like have made of it."""
        return self.float_snapshot or self.teacher

    def remark(self, owner: Pass, text: str) -> None:
        """Have the report say `text` of all that the pass `owner` did; a later remark takes its place."""
        self.notes["remark", owner] = text

    def observe(
        self, graph: GraphView, watches: Sequence[Watch], teacher: Teacher | None = None
    ) -> list[Any]:
        """Accumulate statistics of tensors over the calibration data.

        Args:
            graph: a body of the model, which is run as it now stands: an open site is part of it.
            watches: what to accumulate, of which tensors.
            teacher: whose tensors `Watch.teacher` are; `self.teacher` by default.

        Returns:
            For each watch its statistic, filled; objects of the class of `watch.statistic`.

        Raises:
            UserError: there is no data.
        """
        names: list[Request] = []
        source = teacher or self.snapshot
        for watch in watches:
            teachers = ((source.tensor(t) if source else None) or t for t in watch.teacher)
            names.append(
                Request(
                    watch.statistic, tuple(t.name for t in watch.student), tuple(t.name for t in teachers)
                )
            )
        model = source.model if any(r.teacher for r in names) and source else None
        return self._services().observe(graph.snapshot(), model, names)

    def score(self, graph: GraphView, samples: int | None = None) -> Score:
        """How close the model as it now stands is to the teacher, on calibration data.

        Args:
            graph: a body of the model; an open site is part of it.
            samples: how many samples at most; by default as many as are sensible.
        """
        return self._services().score(graph.snapshot(), self.teacher.model, samples)

    def latency(self, graph: GraphView) -> float:
        """Time of the model as it now stands over the teacher's; one figure per model and run."""
        return self._services().latency(graph.snapshot(swept=True), self.teacher.model)

    def _services(self) -> Services:
        if self.services is None:
            raise UserError(
                "this needs data to measure on",
                fix="hand in typical inputs: --data calib.npz (see `graphopt run --help`)",
            )
        return self.services

    def evaluate(
        self,
        nodes: Sequence[Node],
        feeds: Mapping[Tensor, Array],
        opsets: Mapping[str, int],
        *,
        wanted: Iterable[Tensor] | None = None,
    ) -> tuple[dict[Tensor, Array], dict[Node, str]]:
        """Run `nodes`, whose outer inputs are all in `feeds`, on the reference runtime.

        Args:
            nodes: in topological order.
            feeds: values of every tensor that the nodes read and none of them computes.
            opsets: operator set versions in force, by domain.
            wanted: the outputs to return; by default all of them, which holds every intermediate.

        Returns:
            Values by output tensor, and the reason for every node that could not be evaluated.
        """
        if self.evaluator is None:
            return {}, dict.fromkeys(nodes, "no runtime is installed")
        return self.evaluator(nodes, feeds, opsets, wanted=wanted)


@dataclass(frozen=True)
class Part:
    """A part of what a pass does.

    Attributes:
        node: the node that it is called after.
        item: the pass, restricted to that part.
    """

    node: Node
    item: Pass


@dataclass(frozen=True)
class Pass(abc.ABC):
    """A rewrite of one body.

    Class attributes:
        name: what users call it.
        numerics: how far it may move the numbers.
        uses_data: it may ask for statistics of the user's data although it is not LOSSY.
        quantizes: it turns a float model into one of integers, or works on such a model: it may ask for the
            model as it was before the first of these passes (`PassContext.reference`).
    """

    name: ClassVar[str]
    numerics: ClassVar[Numerics]
    uses_data: ClassVar[bool] = False
    quantizes: ClassVar[bool] = False

    @abc.abstractmethod
    def run(self, graph: Rewriter, ctx: PassContext) -> None:
        """Rewrite `graph`, one body of the model. Called for every body, innermost first."""

    def least_opset(self) -> int:
        """The oldest version of the standard operators with which this can be expressed; 0: any.

        A pipeline raises a model that is older before the first pass runs.
        """
        return 0

    def needs_data(self) -> bool:
        """Whether it can do nothing without the user's data; then a run without it is refused at once."""
        return False

    def globs(self) -> tuple[str, ...]:
        """Globs over names of nodes in its options. One that matches no name in the model is refused."""
        return ()

    def check(self, bodies: Sequence[GraphView], ctx: PassContext) -> None:  # noqa: B027 most have none
        """Refuse, by a UserError, what cannot be done to this model. Called once, before any pass runs.

        For what the options alone do not show to be impossible. Passes before may still change the model.

        Args:
            bodies: views of all bodies of the model that came in; the main graph is last.
            ctx: target, limits, budget, and whether there is data.
        """

    def parts(self, graph: Rewriter, ctx: PassContext) -> Sequence[Part]:
        """What this pass does to one body, taken apart: `graphopt sensitivity` runs each part by itself.

        By default every rewrite site is a part. A pass says more where several sites belong together, or
        where it would do the work for all of them each time.

        Args:
            graph: a body of the model as it is before this pass; nothing is to be changed.
            ctx: as for `run`.
        """
        return ()

    @classmethod
    def summary(cls) -> str:
        """The first line of the docstring."""
        return (cls.__doc__ or "").strip().partition("\n")[0]


@dataclass(frozen=True)
class NodePass(Pass):
    """A pass that looks at single nodes and their surroundings.

    Class attributes:
        ops: operator types of the standard domain to visit; empty visits every node.
        reach: how far downstream of a change a node may still be affected by it, in nodes.
    """

    ops: ClassVar[tuple[str, ...]] = ()
    reach: ClassVar[int] = 2

    @abc.abstractmethod
    def visit(self, node: Node, graph: Rewriter, ctx: PassContext) -> None:
        """Rewrite at `node`, or return; raise RefusedRewrite to decline with a reason."""

    def candidates(self, graph: Rewriter, ctx: PassContext) -> list[Node]:
        """Nodes to visit: all at first, later those near a change since the last visit."""
        kinds = [("", op) for op in self.ops] or None
        return self._candidates(graph, ctx, kinds, self.reach)

    def _candidates(
        self, graph: Rewriter, ctx: PassContext, kinds: Iterable[tuple[str, str]] | None, reach: int
    ) -> list[Node]:
        """Nodes to visit of the operators `kinds` (domain, op); of all, and of calls, for None."""
        state, body = graph._state, graph.body
        calls = state.index.function_ops
        key = (self.name, self, body)  # the name: passes without options all have the same hash
        mark = ctx.marks.get(key)
        ctx.marks[key] = len(state.touched)
        present = state.index.by_op[body]
        wanted = present if kinds is None else [k for k in kinds if present.get(k) and k not in calls]
        if mark is None:
            return [n for kind in wanted for n in present[kind]]
        if not wanted or mark == len(state.touched):
            return []
        near = state.nearby.since(mark, reach).get(body, {})
        return [n for kind in wanted for n in near.get(kind, ())]

    def run(self, graph: Rewriter, ctx: PassContext) -> None:
        """Visit candidates until nothing changes."""
        state = graph._state
        work = self.candidates(graph, ctx)
        fuel = FUEL * (len(work) + 64)
        while work and not state.journal.exhausted:
            for node in work:
                if node not in state.index.home:
                    continue
                fuel -= 1
                if fuel < 0:
                    raise PassError(self.name, f"does not come to an end in {graph.label} (at {node!r})")
                try:
                    self.visit(node, graph, ctx)
                except RefusedRewrite as refused:
                    if node in state.index.home:
                        graph.refuse(node, refused.reason)
            work = self.candidates(graph, ctx)


@dataclass(frozen=True)
class PatternPass(NodePass):
    """A pass that rewrites every region matching a pattern."""

    @abc.abstractmethod
    def pattern(self, p: PatternBuilder) -> OpPattern | Sequence[OpPattern]:
        """What to look for; of several alternatives the first that matches is taken."""

    @abc.abstractmethod
    def rewrite(self, m: Match, graph: Rewriter, ctx: PassContext) -> None:
        """Replace the matched region; raise RefusedRewrite to decline. Runs inside one site."""

    def alternatives(self) -> tuple[OpPattern, ...]:
        """The patterns, built once per pass object."""
        cached = self.__dict__.get("_alternatives")
        if cached is None:
            built = self.pattern(PatternBuilder())
            cached = (built,) if isinstance(built, OpPattern) else tuple(built)
            object.__setattr__(self, "_alternatives", cached)
        result: tuple[OpPattern, ...] = cached
        return result

    def candidates(self, graph: Rewriter, ctx: PassContext) -> list[Node]:
        """Nodes at which an alternative can start."""
        alternatives = self.alternatives()
        roots = dict.fromkeys((p.domain, op) for p in alternatives for op in p.ops)
        return self._candidates(graph, ctx, roots, max(depth(p) for p in alternatives))

    def visit(self, node: Node, graph: Rewriter, ctx: PassContext) -> None:
        """Match at `node` and rewrite."""
        nearest = Failure()
        for pattern in self.alternatives():
            if node.op not in pattern.ops:
                continue
            match = find(pattern, node, graph, nearest)
            if match is not None:
                with graph.site(node, self.why(match)):
                    self.rewrite(match, graph, ctx)
                return
        # Only a miss that came most of the way is worth telling a person about.
        smallest = min(_operators(p) for p in self.alternatives())
        if nearest.blocked or (smallest > 2 and nearest.depth >= smallest - 1):
            graph.refuse(node, nearest.reason)

    def why(self, m: Match) -> str:
        """The rewrite in words, for the journal."""
        return self.summary()


def _operators(pattern: OpPattern) -> int:
    """How many operators the pattern has, at least."""
    from graphopt.pattern.build import EitherPattern

    total = 1
    for p in pattern.inputs:
        if isinstance(p, OpPattern):
            total += _operators(p)
        elif isinstance(p, EitherPattern):
            total += min(_operators(o) if isinstance(o, OpPattern) else 0 for o in p.options)
    return total
