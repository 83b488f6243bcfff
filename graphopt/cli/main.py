"""The command line: parses the arguments, runs one verb, and turns errors into messages and exit codes.

Exit codes: 0 done; 1 a validation, gate or budget failed and nothing was written; 2 usage, bad input, or a
provider that is not there; 3 passes were rolled back, the rest was proven and written; 4 internal error;
130 interrupted.
"""

from __future__ import annotations

import argparse
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from graphopt import __version__
from graphopt.cli import (
    arguments,
    bench,
    bisect,
    calibrate,
    completion,
    diff,
    distill,
    extract,
    gate,
    inspect,
    lint,
    merge,
    passes,
    reduce,
    run,
    schema,
    sensitivity,
    validate,
)
from graphopt.cli.terminal import mute_stdout
from graphopt.errors import GraphOptError, UserError
from graphopt.pipeline.options import suggestion

INTERNAL_ERROR = 4
INTERRUPTED = 130

_VERBS = (
    run,
    passes,
    inspect,
    lint,
    validate,
    gate,
    bisect,
    reduce,
    bench,
    calibrate,
    sensitivity,
    distill,
    diff,
    extract,
    merge,
    schema,
    completion,
)
_EPILOG = """\
examples:
  graphopt run model.onnx --passes                  the default pipeline
  graphopt run model.onnx --passes fold-constants,fold-conv-bn -o out.onnx
  graphopt passes fold-conv-bn                      what one pass does
  graphopt validate model.onnx out.onnx             do two models compute the same?

exit codes: 0 done, 1 a check failed and nothing was written, 2 usage or bad input,
3 wrong rewrites were rolled back and the rest was written, 4 internal error, 130 interrupted
"""


class _Help(argparse.RawDescriptionHelpFormatter):
    """argparse's help; it forgets the indentation of verbs when it measures them, this does not."""

    def add_argument(self, action: argparse.Action) -> None:
        super().add_argument(action)
        if isinstance(action, argparse._SubParsersAction):
            self._action_max_length += self._indent_increment


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are UserErrors and that never guesses at abbreviations."""

    def __init__(self, **kwargs: object) -> None:
        kwargs.setdefault("formatter_class", _Help)
        super().__init__(allow_abbrev=False, **kwargs)  # type: ignore[arg-type]

    def error(self, message: str) -> NoReturn:
        """Raise a UserError instead of printing the usage and leaving."""
        first = "MODEL comes first, as in: graphopt run model.onnx --passes\n  " if "MODEL" in message else ""
        raise UserError(message, fix=f"{first}see: {self.prog} --help")


def build_parser() -> Parser:
    """The whole command line."""
    parser = Parser(
        prog="graphopt",
        description="Rewrites ONNX models to be smaller and faster, and proves that they compute the same.",
        epilog=_EPILOG,
    )
    parser.add_argument("--version", action="version", version=f"graphopt {__version__}")
    parser.set_defaults(parser=parser)
    verbs = parser.add_subparsers(metavar="VERB", dest="verb", title="verbs")
    for module in _VERBS:
        doc = (module.__doc__ or "").strip()
        verb = verbs.add_parser(module.VERB, help=doc.partition("\n")[0].rstrip("."), description=doc)
        module.add_arguments(verb)
        verb.set_defaults(execute=module.execute, parser=verb)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    Args:
        argv: arguments after the program's name; None takes them from the process.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        return _execute(words)
    except GraphOptError as exc:
        if not isinstance(exc, UserError):
            return _internal_error(words)
        _say(f"error: {exc}")
        return exc.exit_code
    except KeyboardInterrupt:
        _say("interrupted; nothing was written")
        return INTERRUPTED
    except BrokenPipeError:
        # The reader of our output went away (`graphopt passes | head`): that is its right.
        mute_stdout()
        return 0
    except MemoryError:
        _say("error: out of memory\n  --verify off needs least; close other programs or use a larger machine")
        return 2
    except Exception:
        return _internal_error(words)


def _execute(words: list[str]) -> int:
    parser = build_parser()
    if not words:
        parser.print_help()
        return UserError.exit_code
    _check_verb(words[0])
    try:
        args, unknown = parser.parse_known_args(words)
    except SystemExit as done:  # --help and --version
        return int(done.code or 0)
    if unknown:
        _refuse_unknown(unknown, args.parser)
    with arguments.provider_options(args):
        code: int = args.execute(args)
    sys.stdout.flush()
    return code


def _check_verb(word: str) -> None:
    names = [module.VERB for module in _VERBS]
    if word.startswith("-") or word in names:
        return
    if word.endswith(".onnx") or Path(word).is_file():
        raise UserError(f"{word!r} is not a verb", fix=f"to optimize a model: graphopt run {word} --passes")
    raise UserError(f"there is no verb {word!r}", fix=suggestion(word, names, "verbs"))


def _refuse_unknown(unknown: list[str], parser: argparse.ArgumentParser) -> NoReturn:
    options = [word for word in unknown if word.startswith("-")]
    if not options:
        raise UserError(f"unexpected argument {unknown[0]!r}", fix=f"see: {parser.prog} --help")
    known = [name for action in parser._actions for name in action.option_strings if name.startswith("--")]
    word = options[0].partition("=")[0]
    fix = suggestion(word, known, "options") + f"\n  see: {parser.prog} --help"
    raise UserError(f"{parser.prog} has no option {word!r}", fix=fix)


def _internal_error(words: list[str]) -> int:
    traceback.print_exc()
    _say(
        "\ninternal error: this is a bug in graphopt or in a pass, not in your model or your command.\n"
        "  Nothing was written. Please report the lines above together with: graphopt " + " ".join(words)
    )
    return INTERNAL_ERROR


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)  # noqa: T201 the one place where errors are printed
