"""The model at hand, its inputs, and the check that decides whether a smaller one takes its place."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from graphopt.checking import Answer, CheckCommand, write_data
from graphopt.errors import GraphOptError, UserError
from graphopt.graph.view import Array
from graphopt.model import Model
from graphopt.reducing.candidate import Plan
from graphopt.report.searched import Reduction

# Recorded values above this many bytes are not put into a model.
_MAX_VALUE = 64 << 20

_SURVIVES = """
import sys, numpy as np
from pathlib import Path
from graphopt.model import Model
from graphopt.reducing.specimen import probe
probe(Model.load(Path(sys.argv[1]), trust_external_paths=True), None, {})
"""


class StopSearch(Exception):
    """Checks or time are used up. Its message says which."""


def probe(model: Model, data: Any, input_shapes: Mapping[str, Sequence[int]]) -> dict[str, Array]:
    """Inputs that a model runs on, from `data` or synthesized; empty where there are none.

    Raises:
        UserError: the data does not fit the model.
    """
    from graphopt.calibration.data import probe_sets
    from graphopt.runtime.inputs import Synthesizer
    from graphopt.runtime.probe import find_probes
    from graphopt.runtime.session import RuntimeFailure, open_session

    maker = Synthesizer(model.skeleton(), input_shapes, 0)
    given = probe_sets(data, maker.structure) if data is not None else ()
    try:
        with open_session(model.session_source(), optimize="none", prepack=False, arena=False) as session:
            found = find_probes(session, maker, count=1, data=given[:1])
    except RuntimeFailure:
        return {}
    if not found.sets:
        return {}
    return {n: v for n, v in found.sets[0].feeds.items() if isinstance(v, np.ndarray)}


class Specimen:
    """See the module. Every accepted candidate becomes the `model`.

    Attributes:
        model: the smallest one so far.
        feeds: inputs for it; empty where none are known.
        failure: what the check says of the model that came in.
        ways: how tensors that are no longer computed are replaced, the preferred way first.
        steps: what made it smaller.
        runs: onnxruntime can load the model, so that no smaller one may fail to.
    """

    def __init__(
        self, model: Model, command: CheckCommand, folder: Path, feeds: dict[str, Array], expect: str | None
    ) -> None:
        self.model, self.command, self.folder, self.feeds = model, command, folder, feeds
        self.expect = _pattern(expect)
        self.steps: list[Reduction] = []
        self.ways: list[Literal["constant", "input"]] = ["input", "constant"]
        self.runs = False
        self.failure = Answer(0)
        self._plan: Plan | None = None
        self._values: dict[str, Array] = {}
        self._tried: set[bytes] = set()
        self._most: int | None = None
        self._deadline: float | None = None
        self._tell: Callable[[str, str], None] = lambda stage, detail: None

    @classmethod
    def open(
        cls,
        model: Model,
        command: CheckCommand,
        folder: Path,
        data: Any,
        input_shapes: Mapping[str, Sequence[int]],
        expect: str | None,
        inputs: bool,
    ) -> Specimen:
        """Run the check on the model itself.

        Args:
            model: on which the check must fail.
            command: the check.
            folder: for temporary files.
            data, input_shapes: inputs to record values on.
            expect: what the check's output must match.
            inputs: new inputs may take the place of tensors.

        Raises:
            UserError: it does not fail, or not as expected; it wants inputs, and there are none.
        """
        # A model that brings the runtime down must not take the search with it.
        runs = _survives(model, folder)
        feeds = probe(model, data, input_shapes) if runs else {}
        if command.wants_data and not feeds:
            raise UserError(
                "the check wants inputs, and none were found that the model runs on",
                fix="hand them in with --data, or leave {data} out of --check",
            )
        self = cls(model, command, folder, feeds, expect)
        self.runs = runs
        if not inputs:
            self.ways = ["constant"]
        answer = self._ask(model, feeds)
        if not answer.wrong:
            said = "passes" if answer.right else "cannot judge the model (exit code 125)"
            raise UserError(f"the check {said}", fix="it has to fail on the model that is to be reduced")
        if self.expect is not None and not self.expect.search(answer.output):
            raise UserError(
                f"the output of the check does not match {expect!r}: {answer.words()}",
                fix="--expect says how the check fails on the model that comes in",
            )
        self.failure = answer
        return self

    def limit(self, checks: int | None, deadline: float | None, tell: Callable[[str, str], None]) -> None:
        """Bounds on the search, and who is told how it goes."""
        self._most, self._deadline, self._tell = checks, deadline, tell

    @property
    def plan(self) -> Plan:
        """The model at hand, to make smaller ones of."""
        if self._plan is None:
            self._plan = Plan(self.model)
        return self._plan

    @property
    def weight(self) -> tuple[int, int, int]:
        """What is to be made small: nodes, then outputs and inputs, then initializers."""
        graph = self.model.graph
        nodes = sum(len(body.nodes) for body in self.model.bodies())
        return nodes, len(graph.outputs) + len(graph.inputs), len(graph.initializers)

    def prefer(self, way: Literal["constant", "input"]) -> None:
        """Try this way first from now on."""
        self.ways.sort(key=lambda w: w != way)

    def attempt(self, model: Model | None, what: str, feeds: Mapping[str, Array] | None = None) -> bool:
        """Whether a smaller model fails in the same way; if so, it is the model at hand from now on.

        Args:
            model: the candidate; None: there is none.
            what: the reduction in words.
            feeds: values of the inputs that it has and the present one has not.

        Raises:
            StopSearch: checks or time are used up.
        """
        if model is None:
            return False
        names = {t.name for t in model.graph.inputs}
        given = {n: v for n, v in (self.feeds | dict(feeds or {})).items() if n in names}
        if self.command.wants_data and any(
            t.name not in given for t in model.graph.inputs if t not in model.graph.defaults
        ):
            return False
        key = model.skeleton().SerializeToString(deterministic=True)
        if key in self._tried:
            return False
        self._tried.add(key)
        if self._most is not None and self.command.runs >= self._most:
            raise StopSearch(f"the check was run {self.command.runs} times")
        if self._deadline is not None and time.monotonic() > self._deadline:
            raise StopSearch("the time is up")
        if self.runs and not _loads(model):
            return False
        self._tell("reduce", f"{self.weight[0]} nodes left; {what}")
        if not self._same(self._ask(model, given)):
            return False
        self.model, self.feeds, self._values, self._plan = model, given, {}, None
        self.steps.append(Reduction(what, self.weight[0], self.command.runs))
        return True

    def values(self, names: Sequence[str]) -> dict[str, Array]:
        """What the model at hand computes for these tensors of its main graph, as far as it can be told."""
        from graphopt.runtime.session import RuntimeFailure
        from graphopt.validation.pieces import run_once

        missing = [n for n in names if n not in self._values]
        if missing and self.feeds:
            try:
                found = run_once(self.model, self.feeds, missing)
            except (RuntimeFailure, GraphOptError):
                found = {}
            for name, value in found.items():
                if isinstance(value, np.ndarray) and value.nbytes <= _MAX_VALUE:
                    self._values[name] = value
        return {n: self._values[n] for n in names if n in self._values}

    def write_feeds(self, path: Path) -> None:
        """Write the inputs of the model at hand to an .npz file."""
        write_data(path, self.feeds)

    def _ask(self, model: Model, feeds: Mapping[str, Array]) -> Answer:
        path = self.folder / "model.onnx"
        for old in self.folder.iterdir():
            old.unlink()
        model.save(path)
        data = write_data(self.folder / "inputs.npz", feeds) if self.command.wants_data else None
        return self.command.on_file(path, data)

    def _same(self, answer: Answer) -> bool:
        """It fails, and in the way that the model fails which came in."""
        if not answer.wrong:
            return False
        if self.expect is not None:
            return bool(self.expect.search(answer.output))
        return answer.code == self.failure.code and answer.kind == self.failure.kind


def _pattern(expect: str | None) -> re.Pattern[str] | None:
    if expect is None:
        return None
    try:
        return re.compile(expect)
    except re.error as e:
        raise UserError(f"--expect {expect!r} is not a regular expression: {e}") from e


def _loads(model: Model) -> bool:
    from graphopt.runtime.session import RuntimeFailure, open_session

    try:
        open_session(model.session_source(), optimize="none", prepack=False, arena=False).close()
    except RuntimeFailure:
        return False
    return True


def _survives(model: Model, folder: Path) -> bool:
    """Whether onnxruntime loads and runs the model and its process lives on: another process finds out."""
    path = folder / "survives.onnx"
    model.save(path)
    done = subprocess.run(
        [sys.executable, "-c", _SURVIVES, str(path)],
        capture_output=True,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    return done.returncode == 0 and _loads(model)
