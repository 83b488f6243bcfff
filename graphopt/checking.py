"""A check of the user's own: a command that says of a model file whether it is right.

The conventions are those of `git bisect run`: exit code 0 means right, 125 that this model cannot be
judged, everything else that it is wrong.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shlex
import signal
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from graphopt.errors import UserError
from graphopt.pipeline.base import Numerics
from graphopt.pipeline.transaction import Judgement

if TYPE_CHECKING:
    from graphopt.graph.view import Array
    from graphopt.judging import ProverJudge
    from graphopt.model import Model

#: The exit code of a check that cannot tell.
UNDECIDED = 125
_NOT_EXECUTABLE, _NOT_FOUND = 126, 127
_SIGNALS = 128
# The last line of a Python traceback, or of what many tools print: a kind, a colon, a message.
_KIND = re.compile(r"^([A-Za-z_][\w.]*(?:Error|Exception|Fault|Failure|Fail|Warning|Exit))\b", re.MULTILINE)
# Characters of a check's last words that are repeated.
_SHORT = 200


@dataclass(frozen=True)
class Answer:
    """What a check said of one model.

    Attributes:
        code: exit code; negative for a signal, None when it was stopped because it took too long.
        output: what it printed, stdout and stderr together.
    """

    code: int | None
    output: str = ""

    @property
    def right(self) -> bool:
        """The model is right."""
        return self.code == 0

    @property
    def wrong(self) -> bool:
        """The model is wrong: neither right nor undecided."""
        return self.code not in (0, UNDECIDED)

    @property
    def kind(self) -> str:
        """The kind of error that the output ends with, as in "AssertionError"; "" where it names none."""
        found = _KIND.findall(self.output)
        return found[-1] if found else ""

    def words(self) -> str:
        """The answer in words: the exit code, and the last line that it printed."""
        if self.code is None:
            said = "it did not end in time"
        elif self.code < 0 or self.code > _SIGNALS:
            number = -self.code if self.code < 0 else self.code - _SIGNALS
            with contextlib.suppress(ValueError):
                return f"killed by {signal.Signals(number).name}{self._last()}"
            said = f"exit code {self.code}"
        else:
            said = f"exit code {self.code}"
        return said + self._last()

    def _last(self) -> str:
        lines = [line.strip() for line in self.output.splitlines() if line.strip()]
        if not lines:
            return ""
        return f": {lines[-1]}" if len(lines[-1]) <= _SHORT else f": {lines[-1][: _SHORT - 3]}..."


class CheckCommand:
    """A shell command with places for files: `{model}`, and, if the command has them, `{original}`, `{data}`.

    Args:
        command: as typed. `{model}` becomes the path of a model file.
        original: what `{original}` becomes.
        timeout: seconds after which a check is stopped; that counts as wrong.

    Attributes:
        runs: how often it was run.

    Raises:
        UserError: the command has no `{model}`.
    """

    def __init__(self, command: str, *, original: str | Path = "", timeout: float | None = None) -> None:
        if "{model}" not in command:
            raise UserError(
                f"the check {command!r} does not say where the model goes",
                fix="write {model} there, as in: --check 'python check.py {model}'",
            )
        self.command, self.original, self.timeout = command, original, timeout
        self.runs = 0

    @property
    def wants_data(self) -> bool:
        """It reads inputs for the model from a file."""
        return "{data}" in self.command

    def on_file(self, model: Path, data: Path | None = None) -> Answer:
        """Run it on a model file.

        Raises:
            UserError: the command itself cannot be run.
        """
        line = self.command.replace("{model}", shlex.quote(str(model)))
        line = line.replace("{original}", shlex.quote(str(self.original)))
        line = line.replace("{data}", shlex.quote(str(data or "")))
        self.runs += 1
        process = subprocess.Popen(
            line,
            shell=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # so that a check which hangs is stopped with all that it started
        )
        try:
            output, _ = process.communicate(timeout=self.timeout)
        except subprocess.TimeoutExpired:
            _stop(process)
            return Answer(None, process.communicate()[0].decode(errors="replace"))
        except BaseException:
            _stop(process)
            raise
        answer = Answer(process.returncode, output.decode(errors="replace"))
        if answer.code in (_NOT_EXECUTABLE, _NOT_FOUND):
            raise UserError(f"the check cannot be run: {answer.words()}", where=self.command)
        return answer

    def on_model(self, model: Model, feeds: Mapping[str, Array] | None = None) -> Answer:
        """Run it on a model, written to a temporary file, and on inputs, if it wants some."""
        with tempfile.TemporaryDirectory(prefix="graphopt-check-") as folder:
            path = Path(folder) / "model.onnx"
            model.save(path)
            return self.on_file(path, write_data(Path(folder) / "inputs.npz", feeds))


def write_data(path: Path, feeds: Mapping[str, Array] | None) -> Path | None:
    """Write inputs to an .npz file; None when there are none."""
    if not feeds:
        return None
    np.savez(path, **dict(feeds))  # type: ignore[arg-type]
    return path


def _stop(process: subprocess.Popen[bytes]) -> None:
    if hasattr(os, "killpg"):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    else:
        process.kill()


@dataclass
class CheckedJudge:
    """A judge that asks the user's command, after our own proof if there is one.

    Attributes:
        check: the command.
        prover: our own judge; None: the command alone decides.
    """

    check: CheckCommand
    prover: ProverJudge | None = None
    _known: dict[bytes, Answer] = field(default_factory=dict)

    def judge(self, candidate: Model, numerics: Numerics) -> Judgement:
        """Compare, then run the command. A model that was judged before is not judged again."""
        proof: object = None
        if self.prover is not None:
            judged = self.prover.judge(candidate, numerics)
            if judged.verdict not in ("proven", "unproven"):
                return judged
            proof = judged.proof
        answer = self._ask(candidate)
        if answer.wrong:
            return Judgement("failed", f"the check fails: {answer.words()}", proof)
        if self.prover is not None:
            return judged
        if not answer.right:
            return Judgement("unproven", "the check cannot judge the result (exit code 125)")
        return Judgement("proven", "the check passes")

    def against(self, reference: Model) -> CheckedJudge:
        """The command knows no reference; our own judge gets another one."""
        prover = self.prover.against(reference) if self.prover is not None else None
        return CheckedJudge(self.check, prover, self._known)

    def feeds(self) -> Sequence[Mapping[str, Any]]:
        """The inputs that our own judge compares on."""
        return self.prover.feeds() if self.prover is not None else []

    def failing_feeds(self, proof: object) -> dict[str, Array]:
        """The inputs that show a failure of our own proof."""
        return self.prover.failing_feeds(proof) if self.prover is not None else {}

    def _ask(self, candidate: Model) -> Answer:
        with tempfile.TemporaryDirectory(prefix="graphopt-check-") as folder:
            path = Path(folder) / "model.onnx"
            saved = candidate.save(path)
            digest = hashlib.blake2b()
            for file in (saved.model, *saved.data):
                with file.open("rb") as stream:
                    while block := stream.read(1 << 20):
                        digest.update(block)
            key = digest.digest()
            if key not in self._known:
                self._known[key] = self.check.on_file(path)
            return self._known[key]
