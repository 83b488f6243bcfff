"""Write the policy reference of docs/gate.md from the models that check policies.

python docs/generate_gate.py            write it
python docs/generate_gate.py --check    write nothing; exit 1 if it is stale
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from graphopt.gating.reference import policy_tables

PAGE = Path(__file__).resolve().parent / "gate.md"
START, END = "<!-- policy: written by docs/generate_gate.py -->\n", "<!-- end of policy -->\n"


def refreshed(page: str) -> str:
    """The page with the reference as it should be."""
    before, start, rest = page.partition(START)
    _, end, after = rest.partition(END)
    if not start or not end:
        raise SystemExit(f"{PAGE} has no place for the reference")
    return f"{before}{start}\n{policy_tables()}\n{end}{after}"


def main(argv: Sequence[str] | None = None) -> int:
    """Write or check the page; returns the exit code."""
    page = PAGE.read_text(encoding="utf-8")
    wanted = refreshed(page)
    if "--check" in (sys.argv[1:] if argv is None else argv):
        if page != wanted:
            print("docs/gate.md is stale; run: python docs/generate_gate.py", file=sys.stderr)
        return int(page != wanted)
    PAGE.write_text(wanted, encoding="utf-8", newline="\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
