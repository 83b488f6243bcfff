"""Print a script that completes graphopt's commands in a shell.

bash: graphopt completion bash > ~/.local/share/bash-completion/completions/graphopt
zsh:  graphopt completion zsh > "${fpath[1]}/_graphopt"
"""

from __future__ import annotations

import argparse
import sys

VERB = "completion"
_SHELLS = ("bash", "zsh", "tcsh")

# Pass names are asked for when Tab is pressed, so that passes installed later are offered too.
_PREAMBLE = {
    "bash": """
_graphopt_pass() {
  compgen -W "$(graphopt passes --names 2>/dev/null)" -- "$1"
}
_graphopt_passes() {
  local before=""
  [[ $1 == *,* ]] && before="${1%,*},"
  compgen -P "$before" -W "$(graphopt passes --names 2>/dev/null)" -- "${1##*,}"
}
""",
    "zsh": """
_graphopt_pass() {
  local -a names
  names=(${(f)"$(graphopt passes --names 2>/dev/null)"})
  _describe 'pass' names
}
_graphopt_passes() {
  local -a names
  names=(${(f)"$(graphopt passes --names 2>/dev/null)"})
  _values -s , 'pass' $names
}
""",
}

_OFFER = {"bash": 'compgen -W "{}" -- "$1"', "zsh": "_values value {}"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("shell", metavar="SHELL", choices=_SHELLS, help=", ".join(_SHELLS))


def execute(args: argparse.Namespace) -> int:
    """Run the verb; returns the exit code."""
    import shtab

    from graphopt.cli.main import build_parser

    script = shtab.complete(build_parser(), shell=args.shell, preamble=_preamble(args.shell))
    sys.stdout.write(script + "\n")
    return 0


def _preamble(shell: str) -> str:
    """The functions that offer values, by the names that cli/arguments.py gives them."""
    from graphopt.cli.gate import PRESETS
    from graphopt.cli.run import VERIFY
    from graphopt.pipeline.targets import TARGETS
    from graphopt.schemas import NAMES

    words = {
        "targets": TARGETS,
        "verify": VERIFY,
        "providers": ("cpu", "cuda", "tensorrt"),
        "presets": PRESETS,
        "schemas": NAMES,
    }
    text = _PREAMBLE.get(shell, "")
    if text:
        text += "".join(
            f"_graphopt_{what}() {{ {_OFFER[shell].format(' '.join(values))}; }}\n"
            for what, values in words.items()
        )
    return text
