"""What a result that moves the numbers has to keep, and how close one came."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Score:
    """How close the model at hand is to the teacher, over the calibration data.

    Attributes:
        sqnr_db: signal-to-quantization-noise ratio of the worst float output, in dB.
        cosine: cosine similarity of the worst float output, over all samples.
        metrics: the user's task metrics, by name; higher is better.
        drops: by how much each metric is below the teacher's.
    """

    sqnr_db: float
    cosine: float
    metrics: Mapping[str, float] = field(default_factory=dict)
    drops: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Budget:
    """What a LOSSY result must keep; None: not asked for.

    Attributes:
        min_cosine: least cosine similarity with the original of every float output.
        min_sqnr_db: least signal-to-noise ratio of every float output, in dB.
        max_drop: how far each task metric may fall, by its name.
        max_latency_ratio: largest latency in units of the original's.
    """

    min_cosine: float | None = 0.99
    min_sqnr_db: float | None = 15.0
    max_drop: Mapping[str, float] = field(default_factory=dict)
    max_latency_ratio: float | None = None

    def misses(self, score: Score, latency: float | None = None) -> list[str]:
        """In words, what of this budget `score` does not keep; empty when it keeps everything."""
        found = []
        # A score that is NaN keeps nothing: hence the negations.
        if self.min_cosine is not None and not score.cosine >= self.min_cosine:
            found.append(f"cosine {score.cosine:.5g} is below {self.min_cosine:g}")
        if self.min_sqnr_db is not None and not score.sqnr_db >= self.min_sqnr_db:
            found.append(f"SQNR {score.sqnr_db:.4g} dB is below {self.min_sqnr_db:g} dB")
        for name, limit in self.max_drop.items():
            drop = score.drops.get(name)
            if drop is None:
                found.append(f"the metric {name!r} was not measured")
            elif not drop <= limit:
                found.append(f"{name} falls by {drop:.4g}, more than {limit:g}")
        if self.max_latency_ratio is not None and latency is not None and latency > self.max_latency_ratio:
            found.append(f"latency ratio {latency:.3f} is above {self.max_latency_ratio:g}")
        return found


@dataclass(frozen=True)
class Gate:
    """What the model has to keep once a stage of a recipe is done; None: not asked for.

    Attributes:
        budget: how close it is to the original, and how fast.
        max_size_ratio: largest size of the file in units of the original's.
    """

    budget: Budget
    max_size_ratio: float | None = None

    @property
    def asks_for_score(self) -> bool:
        """A limit of it is on how close the outputs are."""
        asked = self.budget.min_cosine, self.budget.min_sqnr_db
        return asked != (None, None) or bool(self.budget.max_drop)

    @property
    def needs_data(self) -> bool:
        """It cannot be measured without the user's data."""
        return self.asks_for_score or self.budget.max_latency_ratio is not None

    def misses(self, score: Score | None, size: float, latency: float | None) -> list[str]:
        """In words, what the model at hand does not keep; empty when it keeps everything."""
        found = []
        if score is not None:
            found = self.budget.misses(score, latency)
        if self.max_size_ratio is not None and not size <= self.max_size_ratio:
            found.append(f"size ratio {size:.3f} is above {self.max_size_ratio:g}")
        return found


@dataclass(frozen=True)
class Sensitivity:
    """What changing one unit (quantizing a node, pruning a layer) costs the outputs.

    Attributes:
        node, op: the unit.
        weights: elements of its weights.
        spared: the score when it alone is left as it was, and all others are changed.
        alone: the score when it alone is changed; None when that was not measured.
    """

    node: str
    op: str
    weights: int
    spared: Score
    alone: Score | None = None


@dataclass(frozen=True)
class Tradeoff:
    """One point between changing everything and changing nothing.

    Attributes:
        spared: the units left as they were.
        of: how many units there are.
        score: how close the outputs are.
        bytes: size of the weights.
        latency: time over the teacher's; None when it was not measured.
    """

    spared: tuple[str, ...]
    of: int
    score: Score
    bytes: int
    latency: float | None = None


@dataclass(frozen=True)
class Exploration:
    """What a closed-loop search measured.

    Attributes:
        base: the score when every unit is changed.
        units: the units, the most harmful first.
        tradeoffs: from sparing nothing to sparing everything.
    """

    base: Score
    units: tuple[Sensitivity, ...] = ()
    tradeoffs: tuple[Tradeoff, ...] = ()


@dataclass(frozen=True)
class Effect:
    """What a pass does to one layer, or to all of them: what that costs the outputs, and what it saves.

    Attributes:
        node, op: the layer; for a group of layers that change together, the first of them. "" for all.
        body: the nested body that it is in, "" for the main graph.
        score: how close the outputs are when only this is changed.
        bytes: of the weights that it saves, as they are stored.
        packed_bytes: the same if zeros were not stored: what compression would gain at least.
        parameters: weights that are gone, or zero.
        flops: arithmetic operations saved, of one sample.
        latency: time over that of the model before; None where no arithmetic was saved.
    """

    node: str
    op: str
    body: str
    score: Score
    bytes: int
    packed_bytes: int
    parameters: int
    flops: int
    latency: float | None = None

    @property
    def noise(self) -> float:
        """Power of the error over that of the outputs."""
        return float(10.0 ** (-self.score.sqnr_db / 10))

    @property
    def cost_per_byte(self) -> float:
        """Noise per byte saved, zeros not counted as stored; infinite where nothing is saved."""
        return self.noise / self.packed_bytes if self.packed_bytes > 0 else math.inf


@dataclass(frozen=True)
class Swept:
    """The effects with one value of an option."""

    value: str
    layers: tuple[Effect, ...]
    together: Effect


@dataclass(frozen=True)
class Survey:
    """What one pass does to each layer of a model by itself.

    Attributes:
        measured: the pass.
        before: the pipeline that ran before it.
        left_out: passes of the pipeline that come after it.
        measured_on: in words, the samples.
        bytes, parameters, flops: of the model before the pass.
        metrics: the user's task metrics of that model.
        layers: the effects, the cheapest per byte saved first.
        together: the effect of the whole pass.
        option: the option that was swept, "" for none.
        sweep: the effects by its values.
    """

    measured: str
    before: str
    left_out: str
    measured_on: str
    bytes: int
    parameters: int
    flops: int
    metrics: Mapping[str, float]
    layers: tuple[Effect, ...]
    together: Effect
    option: str = ""
    sweep: tuple[Swept, ...] = ()
