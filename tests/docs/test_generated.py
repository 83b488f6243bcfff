"""The pages about passes say what the passes say."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from graphopt.pipeline.registry import installed

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "docs" / "generate.py"


@pytest.fixture(scope="module")
def generate() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_generate", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_pages_are_current(generate: ModuleType) -> None:
    wanted = generate.pages(generate.collect(installed()))
    problems = generate.differences(wanted, ROOT / "docs" / "passes")
    assert not problems, f"{problems}; run: python docs/generate.py"


def test_every_pass_has_a_page(generate: ModuleType) -> None:
    wanted = generate.pages(generate.collect(installed()))
    registry = installed()
    ours = {n for n in registry.pass_names() if registry.source(n).startswith("graphopt ")}
    assert {name.removesuffix(".md") for name in wanted} == ours | {"index"}
    assert all(f"]({name}.md)" in wanted["index.md"] for name in ours)


def test_page_says_what_the_pass_declares(generate: ModuleType) -> None:
    text = generate.pages(generate.collect(installed()))["fold-conv-bn.md"]
    assert "numerics | CLOSE" in text
    assert "Refuses when" in text
    assert "all targets: after" in text


def test_options_are_explained_by_the_docstring_too(generate: ModuleType) -> None:
    text = generate.pages(generate.collect(installed()))["remove-softmax-guard.md"]
    row = next(line for line in text.splitlines() if line.startswith("| `assume_unmasked`"))
    assert "no row of scores is masked" in row
    assert "Options:" not in text


@pytest.mark.parametrize("harm", ["stale", "missing", "left over"])
def test_check_fails_on_anything_that_is_not_current(generate: ModuleType, harm: str, tmp_path: Path) -> None:
    folder = tmp_path / "passes"
    shutil.copytree(ROOT / "docs" / "passes", folder)
    generate.write(generate.pages(generate.collect(installed())), folder)
    assert generate.main(["--check", "--folder", str(folder)]) == 0
    page = folder / "cse.md"
    if harm == "stale":
        page.write_text(page.read_text() + "more\n")
    elif harm == "missing":
        page.unlink()
    else:
        (folder / "no-such-pass.md").write_text("# no-such-pass\n")
    assert generate.main(["--check", "--folder", str(folder)]) == 1
    assert generate.main(["--folder", str(folder)]) == 0
    assert generate.main(["--check", "--folder", str(folder)]) == 0


def test_runs_as_a_script() -> None:
    command = [sys.executable, SCRIPT, "--check"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
