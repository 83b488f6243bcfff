"""Data that a Python function makes. It is code, and runs because the user named it."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import inspect
import re
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from graphopt.calibration.data.source import Record, Source, record_of
from graphopt.errors import UserError

_NAMED = re.compile(r"(?P<module>.+\.py|[A-Za-z_][\w.]*):(?P<function>[A-Za-z_][\w.]*)")
#: How many samples a function is asked for that wants to know.
WANTED = 256

_HIDDEN = re.compile(rf"{re.escape(__file__)}|importlib")
_LIBRARY = re.compile(r"site-packages|[/\\]lib[/\\]python|<frozen")


class Function(Source):
    """A function that returns, or yields, mappings.

    It takes no arguments, or one: how many samples are wanted.

    Args:
        name: for messages.
        function: called for every reading.
    """

    def __init__(self, name: str, function: Callable[..., Any]) -> None:
        self.name, self._function = name, function

    def records(self) -> Iterator[Record]:
        """What the function returns, one by one."""
        arguments = with_theirs(self.name, _arguments, self._function)
        result = with_theirs(self.name, self._function, *arguments)
        if isinstance(result, Mapping):
            yield Record(self.name, result)
            return
        if not isinstance(result, Iterable):
            raise UserError(
                f"it returned {type(result).__name__}, not mappings of input names to arrays", where=self.name
            )
        items, i = iter(result), 0
        while True:
            item = with_theirs(self.name, next, items, _END)
            if item is _END:
                return
            yield record_of(f"{self.name} #{i}", item)
            i += 1


_END = object()


def _arguments(function: Callable[..., Any]) -> tuple[int, ...]:
    """What to call it with: nothing, or how many samples are wanted, if it needs one argument."""
    try:
        signature = inspect.signature(function)
    except ValueError:  # built-ins may have no signature
        return ()
    try:
        signature.bind()
    except TypeError:
        signature.bind(WANTED)
        return (WANTED,)
    return ()


def is_function(text: str) -> bool:
    """Whether `text` has the form `module:function` or `file.py:function`."""
    return _NAMED.fullmatch(text) is not None


def load_callable(text: str, option: str = "--data") -> Callable[..., Any]:
    """The function at `module:function` or `file.py:function`; modules of the current directory count.

    Args:
        text: what the user named.
        option: where, for messages.

    Raises:
        UserError: there is no such module or function, or importing it failed.
    """
    match = _NAMED.fullmatch(text)
    if match is None:
        raise UserError(f"{option} {text!r} is no function", fix="as in: module:function, file.py:function")
    name = match["module"]
    found: Any = _from_file(Path(name)) if name.endswith(".py") else _module(name)
    for word in match["function"].split("."):
        if not hasattr(found, word):
            there = [n for n, v in vars(found).items() if callable(v) and not n.startswith("_")]
            raise UserError(
                f"there is no {match['function']!r} in it", where=name, fix=f"there are: {', '.join(there)}"
            )
        found = getattr(found, word)
    if not callable(found):
        raise UserError(f"{match['function']!r} is {type(found).__name__}, no function", where=name)
    function: Callable[..., Any] = found
    return function


@contextlib.contextmanager
def _importable(folder: Path) -> Iterator[None]:
    """The folder's modules come first now, and last later: what is imported late is found, nothing hidden."""
    path = str(folder.resolve())
    sys.path.insert(0, path)
    try:
        yield
    finally:
        sys.path.remove(path)
        if path not in sys.path:
            sys.path.append(path)


def _module(name: str) -> ModuleType:
    with _importable(Path.cwd()):
        try:
            module: ModuleType = with_theirs(name, importlib.import_module, name)
        except ModuleNotFoundError as e:
            raise UserError(
                f"there is no module {e.name!r}", where=name, fix="install it, or run where it lies"
            ) from None
    return module


def _from_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise UserError("no such file", where=str(path))
    name = f"graphopt_data_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    with _importable(path.parent):
        with_theirs(str(path), spec.loader.exec_module, module)
    return module


def with_theirs(name: str, function: Callable[..., Any], *args: Any) -> Any:
    """Call the user's code; what it raises becomes an error that names their file and line.

    Raises:
        UserError: it raised something.
    """
    try:
        return function(*args)
    except (UserError, MemoryError):
        raise
    except ModuleNotFoundError as e:
        if e.name == name or name.startswith(f"{e.name}."):
            raise
        raise _theirs(name, e) from None
    except Exception as e:
        raise _theirs(name, e) from None


def _theirs(name: str, e: Exception) -> UserError:
    frames = [f for f in traceback.extract_tb(e.__traceback__) if not _HIDDEN.search(f.filename)]
    # The innermost line of the user's own code rather than of a library that it called.
    own = [f for f in frames if not _LIBRARY.search(f.filename)] or frames
    where = f"{own[-1].filename}:{own[-1].lineno}" if own else name
    if isinstance(e, SyntaxError) and e.filename:
        where = f"{e.filename}:{e.lineno}"
    return UserError(f"{type(e).__name__}: {e}", where=where, fix=f"raised by what was asked for as {name!r}")
