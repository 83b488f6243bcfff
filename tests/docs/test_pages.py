"""Examples in the documentation run, and what its tables list is complete."""

from __future__ import annotations

import dataclasses
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from graphopt.cli.main import build_parser
from graphopt.pipeline.spec import parse_pipeline
from graphopt.report import document

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [f.name for f in sorted(DOCS.glob("*.md"))]
WITH_EXAMPLES = [name for name in PAGES if "<!-- example" in (DOCS / name).read_text(encoding="utf-8")]
Blocks = Callable[[str], list[Any]]


# Pages whose examples search or measure for long; CI runs them with the slow tests.
LONG = ("gate.md", "mixed-precision.md", "quantization.md", "recipes.md", "sensitivity.md")


@pytest.mark.parametrize(
    "page", [pytest.param(p, marks=pytest.mark.slow if p in LONG else ()) for p in WITH_EXAMPLES]
)
def test_examples_run(page: str, blocks: Blocks, shell: Any) -> None:
    """All marked blocks of a page in order, in one folder that has the models and the page's files."""
    shutil.copytree(
        ROOT / "models", shell.folder / "models", ignore=shutil.ignore_patterns("builders", "__*")
    )
    ran = 0
    for block in blocks(f"docs/{page}"):
        if block.title:
            (shell.folder / block.title).write_text(block.text)
        if not block.mark.startswith("example"):
            continue
        ran += 1
        if block.language == "python":
            (shell.folder / "example.py").write_text(block.text)
            shell("python example.py")
            continue
        code = int(m[1]) if (m := re.search(r"exit code (\d)", block.mark)) else 0
        for command in block.commands:
            shell(command, code)
    assert ran


def test_reproducer_can_be_looked_at(blocks: Blocks, shell: Any) -> None:
    """The reproducer has the files that the page lists, and its commands show what is wrong."""
    found = blocks("docs/rollback-and-reproducers.md")
    (wrong,) = (b for b in found if b.title == "wrong.py")
    (example,) = (b for b in found if b.mark.startswith("example"))
    (inside,) = (b for b in found if b.mark == "in the reproducer")
    (shell.folder / "models").symlink_to(ROOT / "models")
    (shell.folder / "wrong.py").write_text(wrong.text)
    shell(example.commands[0], 3)
    (folder,) = (shell.folder / "result.repro").iterdir()
    page = (DOCS / "rollback-and-reproducers.md").read_text()
    assert {f.name for f in folder.iterdir()} == set(re.findall(r"^\| `([\w.]+)` \|", page, re.M))
    run, diff, validate = inside.commands
    shell.folder = folder
    assert "NOT VERIFIED" in shell(run).stdout
    assert "Clip -> Relu" in shell(diff, 1).stdout
    assert "FAILED" in shell(validate, 1).stdout


def test_pages_with_examples_are_found() -> None:
    assert {"cli.md", "pipelines.md", "python-api.md", "rollback-and-reproducers.md"} <= set(WITH_EXAMPLES)


def test_options_of_run_are_all_documented() -> None:
    verbs = next(a for a in build_parser()._actions if a.dest == "verb").choices
    assert verbs is not None
    known = {s for a in verbs["run"]._actions for s in a.option_strings} - {"-h", "--help"}  # type: ignore[index]
    section = (DOCS / "cli.md").read_text().partition("## run\n")[2].partition("\n## ")[0]
    assert set(re.findall(r"`(--?[a-z][a-z0-9-]*)", section)) == known


def test_verbs_have_a_section() -> None:
    verbs = next(a for a in build_parser()._actions if a.dest == "verb").choices
    assert verbs is not None
    headings = re.findall(r"^## ([a-z]+)$", (DOCS / "cli.md").read_text(), re.M)
    assert headings == list(verbs)


@pytest.mark.parametrize(
    ("row", "cls"),
    [
        ("passes[]", document.PassReport),
        ("before`, `after", document.ModelStats),
        ("outputs[]", document.OutputRow),
        ("culprits[]", document.Culprit),
        ("input`, `output", document.FileInfo),
    ],
)
def test_json_fields(row: str, cls: type) -> None:
    line = next(x for x in (DOCS / "cli.md").read_text().splitlines() if x.startswith(f"| `{row}`"))
    named = set(re.findall(r"`([a-z_]+)", line.split("|")[2]))
    fields = {f.name for f in dataclasses.fields(cls)}
    assert fields <= named | {""}
    assert named - fields <= {"node", "reason", "count", "output", "why"}


def test_json_top_level_fields() -> None:
    table = (DOCS / "cli.md").read_text().partition("`graphopt.run/1`")[2].partition("The other verbs")[0]
    named = {
        n
        for line in table.splitlines()
        for n in re.findall(r"`(\w+)(?:\[\])?`", line.split("|")[1] if line.startswith("|") else "")
    }
    assert named == {f.name for f in dataclasses.fields(document.RunReport)}
    for schema in re.findall(r"graphopt\.\w+/\d", (DOCS / "cli.md").read_text()):
        assert any(f'"{schema}"' in f.read_text() for f in (ROOT / "graphopt").rglob("*.py")), schema


def test_pipeline_strings_parse() -> None:
    text = (DOCS / "pipelines.md").read_text()
    strings = re.findall(r"--passes (?:'([^']+)'|(\S+))", text)
    assert len(strings) >= 4
    for quoted, plain in strings:
        assert parse_pipeline(quoted or plain)


def test_every_page_is_in_the_index_and_in_the_site() -> None:
    index, site = (DOCS / "index.md").read_text(), (ROOT / "mkdocs.yml").read_text()
    for page in PAGES:
        assert page == "index.md" or index.count(f"]({page})") == 1, page
        assert len(re.findall(rf"[ :]{re.escape(page)}$", site, re.M)) == 1, page
