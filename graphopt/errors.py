"""The errors graphopt raises on purpose.

`UserError` is a mistake in the input or in how graphopt was called: the command line prints it
without a traceback. `PassError` is a bug in a pass: the traceback is always kept.
"""

from __future__ import annotations

from typing import ClassVar


class GraphOptError(Exception):
    """Base of every error that graphopt raises on purpose."""

    exit_code: ClassVar[int] = 4


class UserError(GraphOptError):
    """What failed, where, and what to do about it.

    Args:
        what: one sentence saying what is wrong.
        where: the file, node or tensor concerned, if there is one.
        fix: what the user can do about it.
    """

    exit_code: ClassVar[int] = 2

    def __init__(self, what: str, *, where: str | None = None, fix: str | None = None) -> None:
        self.what, self.where, self.fix = what, where, fix
        super().__init__(what)

    def __str__(self) -> str:
        text = f"{self.where}: {self.what}" if self.where else self.what
        return f"{text}\n  {self.fix}" if self.fix else text


class ModelError(UserError):
    """The model file is missing, malformed, or refers to data that it must not."""


class ExternalDataError(ModelError):
    """A model's external data is not there, not what the model says, or nothing that it may refer to."""


class ProviderError(UserError):
    """An execution provider (or onnxruntime itself) that was asked for is not there."""


class PassError(GraphOptError):
    """A pass raised, or left the graph structurally broken: a bug in that pass."""

    def __init__(self, pass_name: str, message: str) -> None:
        self.pass_name = pass_name
        super().__init__(f"pass {pass_name!r}: {message}")


class RefusedRewrite(GraphOptError):
    """Raised inside a rewrite to decline it, before anything has changed.

    Args:
        reason: why, in words that make sense after "not rewritten: ".
    """

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(reason)
