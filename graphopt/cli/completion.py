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
_graphopt_passes() {
  compgen -W "$(graphopt passes --names 2>/dev/null)" -- "$1"
}
""",
    "zsh": """
_graphopt_passes() {
  local -a names
  names=(${(f)"$(graphopt passes --names 2>/dev/null)"})
  _describe 'pass' names
}
""",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("shell", metavar="SHELL", choices=_SHELLS, help=", ".join(_SHELLS))


def execute(args: argparse.Namespace) -> int:
    """Run the verb; returns the exit code."""
    import shtab

    from graphopt.cli.main import build_parser

    script = shtab.complete(build_parser(), shell=args.shell, preamble=_PREAMBLE.get(args.shell, ""))
    sys.stdout.write(script + "\n")
    return 0
