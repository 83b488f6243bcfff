from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from graphopt.errors import UserError
from graphopt.pipeline import registry
from graphopt.pipeline.registry import Entry, Registry, installed

MINE = '''
from __future__ import annotations
from dataclasses import dataclass, field
from typing import ClassVar
from graphopt.passkit import Node, NodePass, Numerics, PassContext, Rewriter

@dataclass(frozen=True)
class Mine(NodePass):
    """Relu(Relu(x)) = Relu(x).

    Refuses when: it must not.
    """
    name: ClassVar[str] = "mine"
    numerics: ClassVar[Numerics] = Numerics.EXACT
    ops: ClassVar[tuple[str, ...]] = ("Relu",)
    times: int = field(default=2, metadata={"help": "how often"})
    def visit(self, node: Node, graph: Rewriter, ctx: PassContext) -> None: pass
'''


def test_lists_every_pass_with_its_numerics(cli: Any) -> None:
    code, out, _ = cli("passes")
    assert code == 0
    for name in installed().pass_names():
        assert name in out
    assert "EXACT" in out
    assert "CLOSE" in out
    assert "default" in out


def test_names_alone(cli: Any) -> None:
    names = cli("passes", "--names")[1].split()
    assert set(installed().pass_names()) < set(names)
    assert {"default", "none"} <= set(names)


def test_one_pass_in_full(cli: Any, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(MINE)
    code, out, _ = cli("passes", f"{tmp_path}/mine.py:Mine")
    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert code == 0
    assert lines[0] == "mine"
    assert "Refuses when: it must not." in lines
    assert "numbers EXACT: the result is the same bit for bit" in lines
    assert "looks at Relu" in lines
    assert "times an integer 2 how often" in lines
    assert any("mine.py:" in line for line in lines)
    found = json.loads(cli("passes", f"{tmp_path}/mine.py:Mine", "--json")[1])
    assert found["options"] == [{"name": "times", "type": "an integer", "default": "2", "help": "how often"}]


def test_json(cli: Any) -> None:
    found = json.loads(cli("passes", "--json")[1])
    assert [p["name"] for p in found["passes"]] == installed().pass_names()
    assert all(p["summary"] and p["numerics"] for p in found["passes"])


def test_a_preset_is_its_pipeline(cli: Any) -> None:
    assert cli("passes", "cleanup")[1].strip() == installed().preset("cleanup")
    assert cli("passes", "default")[1].strip() == installed().preset("default-portable")


def test_an_unknown_pass(cli: Any) -> None:
    name = installed().pass_names()[0]
    code, _, err = cli("passes", name + "x")
    assert code == 2
    assert f"did you mean '{name}'" in err


def test_a_broken_package_does_not_hide_the_others(cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def load() -> object:
        raise ImportError("no zz")

    good = installed()
    entries = [e for name in good.pass_names() for e in good._passes[name]]
    broken = Registry([*entries, Entry("bad", "m:Bad", "lib 1.0", load)])
    with pytest.raises(UserError):
        broken.pass_class("bad")
    monkeypatch.setattr(registry, "installed", lambda: broken)
    code, out, _ = cli("passes")
    assert code == 0
    assert "broken: 'bad' of lib 1.0 cannot be imported" in " ".join(out.split())
    assert good.pass_names()[0] in out


def test_an_installed_package_plugs_in_by_its_entry_points(tmp_path: Path, model: Path) -> None:
    """As pip leaves it: a module and a .dist-info folder on the path."""
    (tmp_path / "plugin_module.py").write_text(MINE)
    info = tmp_path / "plugin-2.5.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: plugin\nVersion: 2.5\n")
    (info / "entry_points.txt").write_text(
        "[graphopt.passes]\nmine = plugin_module:Mine\n[graphopt.presets]\nours = plugin_module:PRESET\n"
    )
    with (tmp_path / "plugin_module.py").open("a") as file:
        file.write("\nPRESET = 'mine{times=3},remove-identity'\n")
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}

    def graphopt(*words: str) -> str:
        command = [sys.executable, "-m", "graphopt", *words]
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert "plugin 2.5" in graphopt("passes", "mine")
    report = json.loads(graphopt("run", str(model), "--passes=ours", "--json"))
    assert report["pipeline"] == "mine{times=3},remove-identity"
    assert report["verdict"] == "proven"


def test_paragraphs_fit_the_width_and_paths_are_not_broken(cli: Any, tmp_path: Path) -> None:
    folder = tmp_path / ("long" * 30)
    folder.mkdir()
    text = "a first sentence that is long enough to be wrapped by its author at one hundred and ten columns,"
    (folder / "mine.py").write_text(MINE.replace("it must not.", f"{text}\n    and a second\n    line."))
    lines = cli("passes", f"{folder}/mine.py:Mine")[1].splitlines()
    assert f"  source    {folder}/mine.py:7" in lines
    (start,) = (i for i, line in enumerate(lines) if line.startswith("Refuses"))
    paragraph = lines[start : lines.index("", start)]
    assert paragraph[-1].endswith("and a second line.")
    assert len(paragraph) == 2
