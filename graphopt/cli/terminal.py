"""Where output goes: the report to stdout; progress, warnings and errors to stderr."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Self, TextIO

from graphopt.report.text import clean

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID

_PIPE_WIDTH = 100
_MAX_WIDTH = 120


def console(stream: TextIO | None = None) -> Console:
    """A console on `stream` (stdout by default) that shows model names as they are.

    Colours only on a terminal, and never with NO_COLOR (rich sees to both).
    """
    from rich.console import Console

    class PlainConsole(Console):
        def on_broken_pipe(self) -> None:
            """Leave it to `main`, instead of exiting with 1."""
            raise BrokenPipeError

    stream = sys.stdout if stream is None else stream
    result = PlainConsole(file=stream, markup=False, highlight=False, emoji=False)
    if not result.is_terminal:
        result.width = _PIPE_WIDTH
    else:
        result.width = min(result.width, _MAX_WIDTH)
    return result


@contextlib.contextmanager
def reader_may_leave() -> Iterator[None]:
    """Print inside of this what comes after the work: if the reader of stdout goes away, that is no failure.

    (`graphopt run model.onnx | head -1` has the exit code of the run.)
    """
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        mute_stdout()


def mute_stdout() -> None:
    """Let nothing be flushed into a pipe that its reader has closed, at exit at the latest."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


# What people read for the stages of a run; "changed" is a detail of "pass".
_STAGES = {
    "load": "loading the model",
    "reference": "running the original",
    "pass": "running the passes",
    "changed": "",
    "calibrate": "running the calibration data",
    "gate": "measuring a stage",
    "layer": "measuring each layer",
    "score": "measuring accuracy",
    "prove": "comparing with the original",
    "measure": "measuring latency",
    "latency": "measuring latency",
    "inputs": "looking for inputs",
    "profile": "measuring time by operator",
    "memory": "measuring memory",
    "validate": "comparing",
    "assignment": "asking who runs the nodes",
    "kernels": "looking for integer kernels",
    "session": "opening sessions",
    "against": "comparing with the older version",
    "match": "matching tensors",
    "compare": "comparing intermediate tensors",
    "localize": "looking for the first tensor that differs",
    "bisect": "looking for the rewrite that is wrong",
    "check": "running the check",
    "reduce": "making the model smaller",
    "reproduce": "writing a reproducer",
    "draw": "drawing the models",
    "save": "writing the result",
}


class Progress:
    """Says on stderr what is going on: one live line on a terminal, otherwise a line per kind of stage.

    Called as `progress(stage, detail)`.

    Args:
        out: where to, a console on stderr.
        verbose: without a terminal, a line for everything.
    """

    def __init__(self, out: Console, *, verbose: bool = False) -> None:
        self._out = out
        self._verbose = verbose
        self._said: set[str] = set()
        self._live: RichProgress | None = None
        self._task: TaskID | None = None

    def __enter__(self) -> Self:
        if self._out.is_terminal:
            from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

            text = TextColumn("{task.description}", markup=False)
            self._live = Progress(
                SpinnerColumn(), TimeElapsedColumn(), text, console=self._out, transient=True
            )
            self._live.start()
            self._task = self._live.add_task("starting", total=None)
        return self

    def __exit__(self, *exc: object) -> None:
        if self._live is not None:
            self._live.stop()

    def __call__(self, stage: str, detail: str = "") -> None:
        """Report that `stage` is being worked on, at `detail`."""
        text = f"{stage}: {detail}" if detail else stage
        if self._live is not None and self._task is not None:
            self._live.update(self._task, description=clean(text))
            return
        shown = text if self._verbose else _STAGES.get(stage, stage)
        if shown and (self._verbose or shown not in self._said):
            self._out.print(clean(shown), soft_wrap=True)
        self._said.add(shown)


class Silence:
    """A progress that says nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        pass

    def __call__(self, stage: str, detail: str = "") -> None:
        """Ignore it."""


def progress(*, quiet: bool, verbose: bool = False) -> Progress | Silence:
    """The progress display for this process."""
    return Silence() if quiet else Progress(console(sys.stderr), verbose=verbose)
