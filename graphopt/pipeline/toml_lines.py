"""In which line of a TOML file a key stands, which `tomllib` does not say."""

from __future__ import annotations

import re
from typing import Final

#: Keys and, in arrays, numbers: the way to a value.
Path = tuple[str | int, ...]

_TOKEN: Final = re.compile(
    r'(?P<skip>[ \t]+|\#[^\n]*|\r)|(?P<long>"""(?:\\.|[^\\])*?"{3,5}|\'\'\'.*?\'{3,5})'
    r'|(?P<text>"(?:\\.|[^"\\\n])*"|\'[^\'\n]*\')|(?P<word>[A-Za-z0-9_+-]+)|(?P<mark>.|\n)',
    re.DOTALL,
)


def key_lines(source: str) -> dict[Path, int]:
    """The line of every key and every array element of a TOML document, counted from 1.

    Args:
        source: a document that `tomllib` reads without an error; of others the answer may be nonsense.
    """
    return _Reader(source).lines


class _Reader:
    """Walks over the tokens of a document. What is right about it has been checked already."""

    def __init__(self, source: str) -> None:
        self.lines: dict[Path, int] = {}
        self.tokens: list[tuple[str, int]] = []
        line = 1
        for match in _TOKEN.finditer(source):
            if match.lastgroup != "skip":
                self.tokens.append((match.group(), line))
            line += match.group().count("\n")
        self.at = 0
        self.arrays: dict[Path, int] = {}  # arrays of tables -> number of the last one
        self.document()

    @property
    def token(self) -> str:
        return self.tokens[self.at][0] if self.at < len(self.tokens) else ""

    def document(self) -> None:
        table: Path = ()
        while self.token:
            if self.token == "\n":
                self.at += 1
            elif self.token == "[":
                table = self.header()
            else:
                self.pair(table)

    def header(self) -> Path:
        """`[table]` or `[[array of tables]]`; the way to what follows."""
        line = self.tokens[self.at][1]
        self.at += 1
        many = self.token == "["
        self.at += many
        path: Path = ()
        keys = self.keys()
        for n, key in enumerate(keys):
            path = (*path, key)
            if many and n == len(keys) - 1:
                self.arrays[path] = self.arrays.get(path, -1) + 1
            if path in self.arrays:
                self.lines.setdefault(path, line)
                path = (*path, self.arrays[path])
            self.lines.setdefault(path, line)
        while self.token and self.token != "\n":
            self.at += 1
        return path

    def pair(self, table: Path) -> None:
        """`key = value`."""
        line = self.tokens[self.at][1]
        path = table
        for key in self.keys():
            path = (*path, key)
            self.lines.setdefault(path, line)
        self.at += 1  # =
        self.value(path)

    def keys(self) -> list[str]:
        """A key, dotted or not."""
        found = []
        while self.token not in ("", "=", "]", "\n"):
            if self.token != ".":
                quoted = self.token[0] in "\"'"
                found.append(self.token[1:-1] if quoted else self.token)
            self.at += 1
        return found

    def value(self, path: Path) -> None:
        opening = self.token
        if opening not in ("{", "["):
            while self.token not in ("", ",", "]", "}", "\n"):
                self.at += 1
            return
        self.at += 1
        number = 0
        while self.token and self.token not in ("}", "]"):
            if self.token in (",", "\n"):
                self.at += 1
            elif opening == "{":
                self.pair(path)
            else:
                self.lines[*path, number] = self.tokens[self.at][1]
                self.value((*path, number))
                number += 1
        self.at += 1
