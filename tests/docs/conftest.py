"""Fenced code blocks of Markdown files, and a shell in which the documentation's commands run."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
_BLOCK = re.compile(r"(?:^<!-- *(?P<mark>.*?) *-->\n)?^```(?P<info>[^\n]*)\n(?P<text>.*?)^```$", re.M | re.S)


@dataclass(frozen=True)
class Block:
    """A fenced code block.

    Attributes:
        language: first word after the fence.
        title: file name in `title="..."`.
        mark: the HTML comment on the line before, without its brackets.
        text: what is inside.
    """

    language: str
    title: str
    mark: str
    text: str

    @property
    def commands(self) -> list[str]:
        """Of a console block, what follows the prompts; of any other, its lines."""
        lines = self.text.splitlines()
        if self.language == "console":
            return [line[2:] for line in lines if line.startswith("$ ")]
        return [line for line in lines if line and not line.startswith("#")]


def read_blocks(file: Path) -> list[Block]:
    """All fenced blocks of a Markdown file."""
    found = []
    for m in _BLOCK.finditer(file.read_text(encoding="utf-8")):
        language, _, rest = m["info"].partition(" ")
        title = re.search(r'title="([^"]+)"', rest)
        found.append(Block(language, title[1] if title else "", m["mark"] or "", m["text"]))
    return found


@dataclass
class Shell:
    """Runs commands in a folder, with `graphopt` and `python` being those under test."""

    folder: Path
    env: dict[str, str] = field(default_factory=dict)

    def __call__(
        self, command: str, code: int = 0, env: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run `command`, which must exit with `code`."""
        done = subprocess.run(
            command,
            shell=True,
            check=False,
            cwd=self.folder,
            env=self.env | dict(env or {}),
            capture_output=True,
            text=True,
        )
        assert done.returncode == code, f"$ {command}\n{done.stdout}\n{done.stderr}"
        return done


@pytest.fixture
def blocks() -> Callable[[str], list[Block]]:
    return lambda name: read_blocks(ROOT / name)


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    binaries = tmp_path / "bin"
    binaries.mkdir()
    write_command(binaries / "graphopt", [sys.executable, "-m", "graphopt"])
    write_command(binaries / "python", [sys.executable])
    folder = tmp_path / "work"
    folder.mkdir()
    return Shell(folder, environment(binaries))


def environment(binaries: Path) -> dict[str, str]:
    """This process's environment with `binaries` first on the path, and this checkout importable."""
    paths = [str(ROOT), str(ROOT / "passes"), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    return os.environ | {
        "PATH": os.pathsep.join([str(binaries), os.environ.get("PATH", "")]),
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "NO_COLOR": "1",
    }


def write_command(file: Path, words: list[str]) -> None:
    """A command on the path that stands for `words`."""
    file.write_text(f'#!/bin/sh\nexec {shlex.join(words)} "$@"\n')
    file.chmod(0o755)
