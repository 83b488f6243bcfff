"""Write the policy reference of docs/gate.md from the models that check policies.

python docs/generate_gate.py            write it
python docs/generate_gate.py --check    write nothing; exit 1 if it is stale
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from graphopt.gating.reference import policy_schema, policy_tables

PAGE = Path(__file__).resolve().parent / "gate.md"
SCHEMA = PAGE.parent / "ci" / "policy.schema.json"
START, END = "<!-- policy: written by docs/generate_gate.py -->\n", "<!-- end of policy -->\n"


def refreshed(page: str) -> str:
    """The page with the reference as it should be."""
    before, start, rest = page.partition(START)
    _, end, after = rest.partition(END)
    if not start or not end:
        raise SystemExit(f"{PAGE} has no place for the reference")
    return f"{before}{start}\n{policy_tables()}\n{end}{after}"


def schema_text() -> str:
    """The schema's file as it should be."""
    return json.dumps(policy_schema(), indent=2, ensure_ascii=False) + "\n"


def main(argv: Sequence[str] | None = None) -> int:
    """Write or check the files; returns the exit code."""
    wanted = {PAGE: refreshed(PAGE.read_text(encoding="utf-8")), SCHEMA: schema_text()}
    stale = [f for f, text in wanted.items() if not f.is_file() or f.read_text(encoding="utf-8") != text]
    if "--check" in (sys.argv[1:] if argv is None else argv):
        for file in stale:
            print(f"docs/{file.relative_to(PAGE.parent)} is stale", file=sys.stderr)
        if stale:
            print("run: python docs/generate_gate.py", file=sys.stderr)
        return int(bool(stale))
    for file in stale:
        file.write_text(wanted[file], encoding="utf-8", newline="\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
