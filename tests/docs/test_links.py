"""Relative links in Markdown files lead to files and headings that exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
_FENCE = re.compile(r"^```.*?^```$", re.M | re.S)
_LINK = re.compile(r"(?<!\\)\[[^\]]*\]\(\s*<?([^)\s>]+)>?(?:\s+\"[^\"]*\")?\s*\)")


def files() -> list[Path]:
    """Markdown files of the project, generated pages included."""
    folders = ("docs", "models", "benchmarks")
    return [*ROOT.glob("*.md"), *(f for name in folders for f in (ROOT / name).rglob("*.md"))]


def anchors(file: Path) -> set[str]:
    """Anchors of the headings of a file, as GitHub and mkdocs make them."""
    found = set()
    for line in _FENCE.sub("", file.read_text(encoding="utf-8")).splitlines():
        if line.startswith("#"):
            title = re.sub(r"[`*]", "", line.lstrip("#").strip()).lower()
            found.add(re.sub(r"[^\w\- ]", "", title).replace(" ", "-"))
    return found


def broken(file: Path) -> list[str]:
    """Links of `file` that lead nowhere."""
    problems = []
    for link in _LINK.findall(_FENCE.sub("", file.read_text(encoding="utf-8"))):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (file.parent / path).resolve() if path else file
        if not target.exists() or (anchor and target.suffix == ".md" and anchor not in anchors(target)):
            problems.append(link)
    return problems


def test_there_is_something_to_check() -> None:
    assert ROOT / "README.md" in files()
    assert len(files()) > 20


@pytest.mark.parametrize("file", files(), ids=lambda f: str(f.relative_to(ROOT)))
def test_links_resolve(file: Path) -> None:
    assert broken(file) == []


def test_broken_links_are_found(tmp_path: Path) -> None:
    (tmp_path / "there.md").write_text("# A heading, with `code`\n")
    page = tmp_path / "page.md"
    page.write_text(
        "[a](there.md) [b](missing.md) [c](there.md#a-heading-with-code) [d](there.md#none) [e](#top)\n"
        "[f](https://example.org/x)\n```\n[g](in-code.md)\n```\n"
    )
    assert broken(page) == ["missing.md", "there.md#none", "#top"]
