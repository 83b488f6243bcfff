"""The pipeline's judge, made of the validation's prover. Neither of the two rooms knows the other."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import ml_dtypes
import numpy as np
import onnx

from graphopt.budget import Budget, Score
from graphopt.graph.view import Array
from graphopt.interface import edits_of
from graphopt.model import Model
from graphopt.pipeline.base import Numerics
from graphopt.pipeline.transaction import Judgement
from graphopt.runtime.inputs import ProbeSet
from graphopt.runtime.session import CPU, open_session
from graphopt.validation.indices import tap
from graphopt.validation.proof import Options, Proof, Prover, Reference, feeds_as_arrays

_HALF = (np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16))
_HALF_TYPES = (onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16)


class ProverJudge:
    """Compares candidates with one original; what is known about the original is computed once.

    Args:
        reference: the original.
        data: the user's inputs, None to synthesize them.
        options: providers, shapes, how many probes.
        budget: what a LOSSY result must keep.
        probes: inputs to use, from the judge of another reference.
        scorer: measures how close a LOSSY candidate is to the original; by default on the probes.
    """

    def __init__(
        self,
        reference: Model,
        data: Any = None,
        options: Options | None = None,
        budget: Budget | None = None,
        probes: Sequence[ProbeSet] | None = None,
        scorer: Callable[[Model], Score] | None = None,
    ) -> None:
        self.options, self.budget, self.scorer = options or Options(), budget, scorer
        self.reference = Reference(reference, data, self.options, probes)
        self._prover = Prover(self.reference)
        self._half = computes_in_half(reference)

    def judge(self, candidate: Model, numerics: Numerics) -> Judgement:
        """Compare `candidate` with the reference under every runtime that was asked for.

        EXACT is not held against models that compute in half precision. Where onnxruntime's CPU provider
        has no kernel for an operator it computes in float32 and leaves out casts between neighbours, so
        that removing even an Identity changes where the result is rounded.
        """
        if numerics is Numerics.LOSSY:
            return self._weigh(candidate)
        proof = self._prover.check(candidate, numerics.name)
        if not proof.ok and numerics is Numerics.EXACT and self._half:
            proof = self._prover.check(candidate, Numerics.CLOSE.name)
        return Judgement(proof.verdict, proof.reason, proof)

    def _weigh(self, candidate: Model) -> Judgement:
        """Whether a LOSSY candidate runs with the same interface, and what it keeps of the budget."""
        proof = self._prover.check(candidate, Numerics.LOSSY.name)
        if proof.verdict != "proven":
            return Judgement(proof.verdict, proof.reason, proof)
        score = self.scorer(candidate) if self.scorer is not None else score_of(proof)
        misses = self.budget.misses(score) if self.budget is not None else []
        if misses:
            return Judgement("over budget", "; ".join(misses), proof, score, tuple(misses))
        return Judgement(proof.verdict, proof.reason, proof, score)

    def against(self, reference: Model) -> ProverJudge:
        """A judge that compares with another reference on the same inputs."""
        edits = edits_of(reference).since(self.reference.all_edits)
        if not edits:
            return ProverJudge(reference, None, self.options, self.budget, self.reference.probes.sets)
        options = replace(self.options, input_shapes={})  # they are about the original's inputs
        return ProverJudge(reference, None, options, self.budget, self.reference.through(edits).probes.sets)

    def feeds(self) -> list[Mapping[str, Any]]:
        """The inputs that are compared on."""
        return [s.feeds for s in self.reference.probes.sets]

    def failing_feeds(self, proof: object) -> dict[str, Array]:
        """The inputs that show a failure (the first ones where none does), as far as they are arrays."""
        if not self.reference.probes.sets:
            return {}
        if not isinstance(proof, Proof) or proof.failing_probe is None:
            return feeds_as_arrays(self.reference.feeds(0))
        return feeds_as_arrays(self.reference.feeds(proof.failing_probe))


def score_of(proof: Proof) -> Score:
    """The worst float output of a proof, over its probes and runtimes; perfect where there is none."""
    sqnr, cosine = math.inf, 1.0
    for output in proof.outputs:
        metrics = output.metrics
        if metrics is None or metrics.sqnr_db is None:
            continue
        if not metrics.same_pattern:  # NaN or infinity where there was none
            return Score(math.nan, math.nan)
        sqnr = min(sqnr, metrics.sqnr_db)
        cosine = min(cosine, metrics.cosine if metrics.cosine is not None else 1.0)
    return Score(sqnr, cosine)


def computes_in_half(model: Model) -> bool:
    """Whether float16 or bfloat16 occurs among the model's inputs, weights, or casts."""
    for body in model.bodies():
        if any(t.dtype is not None and np.dtype(t.dtype) in _HALF for t in body.inputs):
            return True
        if any(c.dtype in _HALF for c in body.initializers):
            return True
        if any(n.op == "Cast" and n.attrs.get("to") in _HALF_TYPES for n in body.nodes):
            return True
    return False


def judge_on_feeds(
    reference: Model, feeds: Mapping[str, Array], providers: Sequence[str] = (CPU,)
) -> ProverJudge:
    """A judge for a cut-out model on given inputs, on the providers that showed the fault."""
    probes = [ProbeSet(dict(feeds), source="the reproducer")]
    return ProverJudge(reference, options=Options(tuple(providers)), probes=probes)


class IntermediateTap:
    """Values of intermediate tensors of a model on one set of inputs, computed by the reference runtime."""

    def __init__(self, feeds: Mapping[str, Array]) -> None:
        self.feeds = dict(feeds)

    def __call__(self, model: onnx.ModelProto, names: Sequence[str]) -> dict[str, Array]:
        """Arrays by name; tensors that are not arrays are left out."""
        found = {name: self.feeds[name] for name in names if name in self.feeds}
        have = {v.name for v in model.graph.output}
        wanted = [name for name in names if name not in found]
        if not wanted:
            return found
        source = tap(model, [name for name in wanted if name not in have])
        with open_session(source, optimize="none", prepack=False, arena=False) as session:
            return found | feeds_as_arrays(session.run(self.feeds, wanted))
