"""Run README's examples and put what they print into it.

    python docs/refresh_readme.py

Every block after a line `<!-- example -->` runs, in order, in a temporary folder that holds models/ and the
files that README shows. What follows the command in a console block is replaced by what it prints; a Python
example's output goes into the text block after it. `<!-- example: exit code 1, first 2 lines -->` expects
that code and keeps that many lines. Run it when the default pipeline does more than before.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
#: What stands for the folder in which the examples ran.
SHOWN = "/path/to/graphopt"
_BLOCK = re.compile(r"(?:^<!-- *(?P<mark>.*?) *-->\n)?^```(?P<info>[^\n]*)\n(?P<text>.*?)^```$", re.M | re.S)


def refreshed(readme: str, folder: Path) -> str:
    """README's text with the outputs that its examples have in `folder`.

    Raises:
        SystemExit: an example exits with another code than README says.
    """
    return "".join(_pieces(readme, folder))


def _pieces(readme: str, folder: Path) -> Iterator[str]:
    end, pending = 0, None
    for block in _BLOCK.finditer(readme):
        yield readme[end : block.start("text")]
        end = block.end("text")
        text, info = block["text"], block["info"]
        title = re.search(r'title="([^"]+)"', info)
        if title:
            (folder / title[1]).write_text(text, encoding="utf-8")
        is_example = (block["mark"] or "").startswith("example")
        if pending is not None and info == "text":
            yield pending
            pending = None
        elif is_example and info == "python":
            pending = _run([sys.executable, "-c", text], 0, folder)
            yield text
        elif is_example and info == "console":
            command = text.splitlines()[0].removeprefix("$ ")
            code = re.search(r"exit code (\d+)", block["mark"])
            words = command.replace("graphopt", f"{sys.executable} -m graphopt", 1)
            printed = _run(["sh", "-c", words], int(code[1]) if code else 0, folder)
            yield f"$ {command}\n" + _beginning(printed, block["mark"])
        else:
            yield text
    yield readme[end:]


def _beginning(printed: str, mark: str) -> str:
    """As many lines as the mark asks for, then dots; all of them where it does not ask."""
    asked = re.search(r"first (\d+) lines?", mark)
    lines = printed.splitlines(keepends=True)
    if asked is None or len(lines) <= int(asked[1]):
        return printed
    return "".join([*lines[: int(asked[1])], "...\n"])


def _run(command: list[str], code: int, folder: Path) -> str:
    """What a command prints, without trailing spaces and without the name of the folder."""
    env = os.environ | {"NO_COLOR": "1"}
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False)
    if done.returncode != code:
        raise SystemExit(f"{command[-1]}\nexits with {done.returncode}, not {code}\n{done.stderr}")
    text = done.stdout.replace(str(folder), SHOWN)
    return "".join(f"{line.rstrip()}\n" for line in text.rstrip().splitlines())


def main() -> int:
    """Refresh README; returns the exit code."""
    readme = ROOT / "README.md"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        shutil.copytree(ROOT / "models", folder / "models", ignore=shutil.ignore_patterns("__pycache__"))
        text = refreshed(readme.read_text(encoding="utf-8"), folder)
    readme.write_text(text, encoding="utf-8", newline="\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
