"""Measuring what a pass does to each layer by itself: what that costs the outputs, and what it saves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from graphopt import api, collector, lossy
from graphopt.budget import Effect, Survey, Swept
from graphopt.errors import UserError
from graphopt.graph.cost import CostModel
from graphopt.graph.journal import Journal, SiteKey
from graphopt.graph.rewriter import Rewriter
from graphopt.graph.shapes import infer
from graphopt.graph.state import GraphState
from graphopt.graph.stats import constants, is_float
from graphopt.ir import Constant
from graphopt.model import Model
from graphopt.pipeline.base import Numerics, Pass
from graphopt.pipeline.manager import Execution, Settings, execute, flatten
from graphopt.pipeline.options import build, options_of
from graphopt.pipeline.registry import Fixpoint, Step, installed
from graphopt.pipeline.requests import check_requests
from graphopt.pipeline.spec import PassSpec, RawValue, parse_pipeline
from graphopt.pipeline.targets import get_target

if TYPE_CHECKING:
    from graphopt.calibration.service import CalibrationService


@collector.relaxed()
def survey(
    source: api.Source,
    passes: api.Passes,
    *,
    target: str = "portable",
    data: Any,
    metric: lossy.Metric = None,
    keep: str | Sequence[str] = (),
    sweep: str | None = None,
    trust_external_paths: bool = False,
    progress: api.Tell | None = None,
) -> Survey:
    """Run the first pass of a pipeline that moves the numbers on one layer at a time, and measure that.

    Args:
        source: as for `run`.
        passes: a pipeline; what follows the pass is left out.
        target, data, metric, keep, trust_external_paths, progress: as for `run`; data is needed.
        sweep: an option of the pass and values for it, "sparsity=0.3,0.5": all is measured with each.

    Raises:
        UserError: no pass moves the numbers, it finds nothing to change, or a value makes no sense.
    """
    tell = progress or (lambda stage, detail: None)
    registry = installed()
    profile = get_target(target)
    if isinstance(passes, Pass | Fixpoint):
        passes = [passes]
    steps = registry.resolve(passes, default=registry.preset(f"default-{target}"), target=target)
    before, item, after = _divided(steps)
    versions = _versions(item, sweep)
    if data is None:
        raise UserError("this needs data to measure on", fix="hand in typical inputs: --data calib.npz")
    tell("load", str(source) if isinstance(source, str) else "the model")
    original = api.load(source, trust_external_paths=trust_external_paths).copy()
    services = lossy.open_services(data, original, metric=metric, tell=tell)
    assert services is not None
    names = (keep,) if isinstance(keep, str) else tuple(keep)
    settings = Settings(profile, keep=names, evaluator=api.evaluator(), services=services)
    before = list(lossy.with_room([*before, item], original, registry)[:-1])
    check_requests([*before, item, *versions.values()], original, settings)
    base = execute(original, before, settings).model
    bench = _Bench(base, settings, services, tell)
    found = {given: bench.effects(given) for given in dict.fromkeys((item, *versions.values()))}
    layers, together = found[item]
    unchanged = services.held_back_score(base, base)
    return Survey(
        measured=registry.format([item]),
        before=registry.format(before),
        left_out=registry.format(after) if after else "",
        measured_on=services.held_back_words(),
        bytes=bench.weight.bytes,
        parameters=bench.weight.parameters,
        flops=bench.weight.flops,
        metrics=dict(unchanged.metrics),
        layers=layers,
        together=together,
        option=sweep.partition("=")[0] if sweep else "",
        sweep=tuple(Swept(value, *found[given]) for value, given in versions.items()),
    )


def _divided(steps: Sequence[Step]) -> tuple[list[Step], Pass, list[Step]]:
    """The first pass that moves the numbers, with what comes before and after it."""
    for n, step in enumerate(steps):
        for item in flatten([step]):
            if item.numerics is Numerics.LOSSY:
                return list(steps[:n]), item, list(steps[n + 1 :])
    raise UserError(
        "no pass of this pipeline moves the numbers",
        fix="as in: --passes default,prune-weights{sparsity=0.5}, or the preset int8",
    )


def _versions(item: Pass, sweep: str | None) -> dict[str, Pass]:
    """The pass with each value of the option that is swept, by the value as written."""
    if sweep is None:
        return {}
    option, equals, text = sweep.partition("=")
    values = [value for value in text.split(",") if value.strip()]
    if not equals or not values:
        raise UserError(f"--sweep {sweep!r} is not OPTION=VALUE,VALUE", fix="as in: sparsity=0.3,0.5,0.7")
    owner = f"pass {item.name!r}"
    found = {}
    for value in values:
        read = parse_pipeline(f"{item.name}{{{option}={value}}}")[0]
        assert isinstance(read, PassSpec)
        raw: dict[str, RawValue] = {**options_of(item), **read.options}
        found[value.strip()] = build(type(item), raw, owner=owner)
    return found


@dataclass(frozen=True)
class _Weight:
    """How heavy a model is, see `Effect`."""

    bytes: int
    packed_bytes: int
    parameters: int
    flops: int


class _Bench:
    """One model, on which variants of passes are tried.

    Args:
        base: the model before the pass; the teacher of what follows.
        settings: of every run.
        services: the data.
        tell: told what is going on.
    """

    def __init__(self, base: Model, settings: Settings, services: CalibrationService, tell: api.Tell) -> None:
        self.base, self.settings, self.services, self.tell = base, settings, services, tell
        self._packed: dict[int, tuple[object, int, int]] = {}
        services.held_back_score(base, base)  # now there is a sample to take sizes from
        self.sizes = _sizes(base, services.latency_feeds())
        self.weight = self.weigh(base)

    def effects(self, item: Pass) -> tuple[tuple[Effect, ...], Effect]:
        """What `item` does to each layer by itself, and to all of them.

        Raises:
            UserError: it changes nothing.
        """
        everything = self.run(item)
        if not everything.journal.changes:
            reasons = "; ".join(dict.fromkeys(r.reason for r in everything.journal.refusals))
            raise UserError(f"{item.name} finds nothing to change in this model", fix=reasons or None)
        together = self.effect(everything.model, None, "", "")
        layers = []
        variants = self.parts(item) or self.sites(item, everything)
        for n, (key, name, op, part, only) in enumerate(variants, 1):
            self.tell("layer", f"{n} of {len(variants)}: {name}")
            done = self.run(part, only)
            if done.journal.changes:
                layers.append(self.effect(done.model, key, name, op))
        return tuple(sorted(layers, key=lambda e: (e.cost_per_byte, e.noise))), together

    def run(self, item: Pass, only: frozenset[SiteKey] | None = None) -> Execution:
        return execute(self.base.copy(), [item], self.settings, only=only)

    def parts(self, item: Pass) -> list[tuple[SiteKey, str, str, Pass, None]]:
        """What the pass says its parts are."""
        if type(item).parts is Pass.parts:
            return []
        scratch = self.base.copy()
        state = GraphState(scratch, infer(scratch), Journal(), self.settings.keep)
        ctx, found = self.settings.context(), []
        for body in state.live_bodies():
            for part in item.parts(Rewriter(state, body), ctx):
                key = SiteKey(item.name, state.label(body), part.node.name)
                found.append((key, _name(part.node), part.node.op, part.item, None))
        return found

    def sites(
        self, item: Pass, everything: Execution
    ) -> list[tuple[SiteKey, str, str, Pass, frozenset[SiteKey]]]:
        """The places that it rewrites, each with all others withheld."""
        state = GraphState(self.base, infer(self.base))
        names = {
            (state.label(body), next((t.name for t in node.outputs if t.name), "")): node
            for body in state.live_bodies()
            for node in body.nodes
        }
        found = []
        for key, op in {c.key: c.op for c in everything.journal.changes}.items():
            node = names.get((key.body, key.anchor))
            shown = (_name(node), node.op) if node is not None else (key.anchor, op)
            found.append((key, *shown, item, frozenset({key})))
        return found

    def effect(self, model: Model, key: SiteKey | None, name: str, op: str) -> Effect:
        """What has become of the model."""
        now, was = self.weigh(model), self.weight
        flops = was.flops - now.flops
        return Effect(
            node=name,
            op=op,
            body=key.body if key is not None and key.body != "main" else "",
            score=self.services.held_back_score(model, self.base),
            bytes=was.bytes - now.bytes,
            packed_bytes=was.packed_bytes - now.packed_bytes,
            parameters=was.parameters - now.parameters,
            flops=flops,
            latency=self.services.latency(model, self.base) if flops or key is None else None,
        )

    def weigh(self, model: Model) -> _Weight:
        """Bytes, parameters and arithmetic of a model; weights that it shares with others are read once."""
        nbytes = packed = parameters = 0
        for body in model.bodies():
            for constant in constants(body):
                nbytes += constant.nbytes
                _, small, nonzero = self._pack(constant)
                packed += small
                parameters += nonzero
        model.release()
        counter = CostModel(infer(model), self.sizes)
        flops = sum(counter.body(body).flops for body in model.bodies())
        return _Weight(nbytes, packed, parameters, flops)

    def _pack(self, constant: Constant) -> tuple[object, int, int]:
        """Bytes of a weight whose zeros are a bit each, and how many elements are not zero."""
        stored = constant._values
        if id(stored) not in self._packed:
            size = int(np.prod(constant.shape, dtype=np.int64))
            small, nonzero = constant.nbytes, size if is_float(constant) else 0
            if is_float(constant):
                nonzero = int(np.count_nonzero(constant.values != 0))
                small = min(small, -(-size // 8) + constant.nbytes * nonzero // max(size, 1))
            self._packed[id(stored)] = stored, small, nonzero
        return self._packed[id(stored)]


def _name(node: Any) -> str:
    return str(node.name or next((t.name for t in node.outputs if t.name), node.op))


def _sizes(model: Model, feeds: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """Sizes of the model's symbolic dims in the first sample."""
    sizes: dict[str, int] = {}
    for tensor in model.graph.inputs:
        values = feeds[0].get(tensor.name) if feeds else None
        if isinstance(values, np.ndarray) and tensor.shape is not None:
            named = zip(tensor.shape, values.shape, strict=False)
            sizes.update({dim: size for dim, size in named if isinstance(dim, str)})
    return sizes
