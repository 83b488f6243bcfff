"""Reading recipes: what is wrong is said before any work, with the line where it stands."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path

import pytest

from graphopt.budget import Budget, Gate
from graphopt.errors import UserError
from graphopt.pipeline.manager import flatten
from graphopt.pipeline.recipe import RECIPE_GROUP, installed_recipes, load_recipe, parse_recipe
from graphopt.pipeline.registry import installed

WHOLE = """\
name = "whole"
description = "all keys"
target = "ort-cpu"
keep = "/head/*"

[data]
path = "calib.npz"
metric = "metrics.py:accuracy"

[[stage]]
name = "first"
passes = ["default", "prune-weights{sparsity=0.5}"]

[[stage]]
passes = "quantize-weights"
on_fail = "skip"
[stage.gate]
min_cosine = 0.99
min_sqnr_db = 15
max_size_ratio = 0.6
max_latency_ratio = 1.0
max_drop.accuracy = 0.5
"""


def test_everything_that_a_recipe_can_say(tmp_path: Path) -> None:
    file = tmp_path / "some.toml"
    file.write_text(WHOLE)
    recipe = load_recipe(file)
    assert (recipe.name, recipe.description, recipe.target) == ("whole", "all keys", "ort-cpu")
    assert recipe.keep == ("/head/*",)
    assert recipe.data == str(tmp_path / "calib.npz")
    assert recipe.metric == f"{tmp_path / 'metrics.py'}:accuracy"
    first, second = recipe.stages
    assert (first.name, first.gate, first.on_fail, first.where) == ("first", None, "stop", f"{file}:12")
    assert (second.name, second.on_fail, second.gate_where) == ("stage 2", "skip", f"{file}:17")
    assert second.gate == Gate(Budget(0.99, 15.0, {"accuracy": 0.5}, 1.0), 0.6)
    stages = recipe.resolve(installed(), "ort-cpu")
    names = [p.name for p in flatten(stages)]
    assert names[-2:] == ["prune-weights", "quantize-weights"]
    assert names[0] == "lift-constants"
    assert installed().format(stages).endswith(",prune-weights{sparsity=0.5},quantize-weights")


def test_a_name_is_the_file_s_unless_given() -> None:
    recipe = parse_recipe('[[stage]]\npasses = "none"', "folder/mine.toml")
    assert (recipe.name, recipe.target, recipe.data, recipe.metric) == ("mine", None, None, None)


def test_functions_of_modules_stay_as_they_are() -> None:
    text = '[data]\npath = "package.module:samples"\n[[stage]]\npasses = "none"'
    recipe = parse_recipe(text, "folder/r.toml")
    assert recipe.own_data() == "package.module:samples"


STAGE = '[[stage]]\npasses = "default"\n'


@pytest.mark.parametrize(
    ("text", "line", "says", "fix"),
    [
        ("a = [1,\n\n", 3, "this is not TOML: ", ""),
        ("name = 1 2", 1, "this is not TOML: ", ""),
        ("", None, "it has no stages", "[[stage]]"),
        ("stage = []", None, "it has no stages", "[[stage]]"),
        ("stage = [1]", 1, "`stage` is a table", ""),
        ('stage = "x"', 1, "`stage` is a list", ""),
        (f"{STAGE}[dta]\nx = 1", 3, "a recipe has no key 'dta'", "did you mean 'data'?"),
        (f"name = 3\n{STAGE}", 1, "`name` is text", ""),
        (f'target = "cpu"\n{STAGE}', 1, "unknown target 'cpu'", "ort-cpu"),
        (f"keep = [1]\n{STAGE}", 1, "`keep` is text, or a list of texts", ""),
        (f'data = "x.npz"\n{STAGE}', 1, "`data` is a table", ""),
        (f"{STAGE}[data]\nfile = 1", 4, "[data] has no key 'file'", "its keys: path, metric"),
        (f"{STAGE}[data]\npath = 1", 4, "`data.path` is text", ""),
        ('[[stage]]\nname = "a"\n', 1, "stage 'a' has no passes", "passes ="),
        ('[[stage]]\nname = "a"\npasses = " , "\n', 3, "stage 'a' has no passes", "none"),
        ("[[stage]]\npasses = []\n", 2, "stage 'stage 1' has no passes", ""),
        ("[[stage]]\npasses = 3\n", 2, "`stage.passes` is text, or a list of texts", ""),
        (f"{STAGE}pases = 1", 3, "[[stage]] has no key 'pases'", "did you mean 'passes'?"),
        (f'{STAGE}name = "a"\n{STAGE}name = "a"', 6, "two stages are called 'a'", ""),
        (f'{STAGE}on_fail = "warn"', 3, "says what to do when its gate fails, but has none", "min_sqnr_db"),
        (
            f'{STAGE}gate.min_cosine = 0.9\non_fail = "halt"',
            4,
            "on_fail cannot be 'halt'",
            "stop, skip, warn",
        ),
        (f"{STAGE}gate = 3", 3, "`stage.gate` is a table", ""),
        (f"{STAGE}gate = {{}}", 3, "the gate asks for nothing", "min_cosine"),
        (f"{STAGE}[stage.gate]\n\nmin_sqnr = 15", 5, "a gate has no key 'min_sqnr'", "'min_sqnr_db'"),
        (f"{STAGE}gate = {{ min_cosine = 1.5 }}", 3, "`stage.gate.min_cosine` cannot be 1.5", "at most 1"),
        (f'{STAGE}gate = {{ min_cosine = "1" }}', 3, "`stage.gate.min_cosine` is a number", ""),
        (f"{STAGE}gate = {{ min_cosine = true }}", 3, "`stage.gate.min_cosine` is a number", ""),
        (f"{STAGE}gate = {{ min_sqnr_db = nan }}", 3, "`stage.gate.min_sqnr_db` cannot be nan", "finite"),
        (f"{STAGE}gate = {{ max_size_ratio = -1 }}", 3, "cannot be -1", "at least 0"),
        (f"{STAGE}gate = {{ max_drop = 0.5 }}", 3, "`stage.gate.max_drop` is a table", ""),
        (f"{STAGE}gate.max_drop.acc = -1", 3, "`stage.gate.max_drop.acc` cannot be -1", "at least 0"),
    ],
)
def test_mistakes(text: str, line: int | None, says: str, fix: str) -> None:
    with pytest.raises(UserError) as raised:
        parse_recipe(text, "r.toml")
    assert says in raised.value.what
    assert raised.value.where == ("r.toml" if line is None else f"r.toml:{line}")
    assert fix in (raised.value.fix or "")


@pytest.mark.parametrize(
    ("passes", "says", "fix"),
    [
        ("default,prune-wieghts", "there is no pass 'prune-wieghts'", "did you mean 'prune-weights'"),
        ("prune-weights{sparsty=0.5}", "has no option 'sparsty'", "did you mean 'sparsity'"),
        ("prune-weights{sparsity=1.5}", "sparsity is the share of zeros", ""),
        ("prune-weights{sparsity=0.5", "'{' is never closed", "^"),
        ("./nowhere.py:Pass", "./nowhere.py: there is no such pass file", ""),
    ],
)
def test_passes_that_are_not_there(passes: str, says: str, fix: str) -> None:
    recipe = parse_recipe(f'name = "x"\n\n[[stage]]\npasses = "{passes}"', "r.toml")
    with pytest.raises(UserError) as raised:
        recipe.resolve(installed(), "portable")
    assert raised.value.where == "r.toml:4"
    assert says in raised.value.what
    assert fix in (raised.value.fix or "")


def test_data_that_is_not_there() -> None:
    recipe = parse_recipe(f'{STAGE}[data]\npath = "calib.npz"', "folder/r.toml")
    with pytest.raises(UserError, match=r"there is no 'folder.calib.npz'") as raised:
        recipe.own_data()
    assert raised.value.where == "folder/r.toml:4"


@pytest.mark.parametrize(
    ("name", "says", "fix"),
    [
        ("prune-distil-int8", "there is no recipe 'prune-distil-int8'", "did you mean 'prune-distill-int8'"),
        ("nowhere.toml", "the recipe cannot be read: No such file", ""),
    ],
)
def test_recipes_that_are_not_there(name: str, says: str, fix: str) -> None:
    with pytest.raises(UserError) as raised:
        load_recipe(name)
    assert says in raised.value.what
    assert fix in (raised.value.fix or "")


def test_a_file_that_is_no_text(tmp_path: Path) -> None:
    file = tmp_path / "r.toml"
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="not UTF-8"):
        load_recipe(file)


@pytest.mark.parametrize("target", ["portable", "ort-cpu", "ort-cuda", "tensorrt"])
def test_recipes_that_are_shipped_can_be_read(target: str) -> None:
    offers = installed_recipes()
    assert "prune-distill-int8" in offers
    for name in offers:
        recipe = load_recipe(name)
        assert recipe.name == name
        assert recipe.description
        assert recipe.resolve(installed(), target)


def test_two_packages_with_a_recipe_of_one_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for package, passes in (("one", "default"), ("two", "none")):
        folder = tmp_path / f"recipes_{package}"
        folder.mkdir()
        (folder / "__init__.py").write_text("")
        (folder / "same.toml").write_text(f'[[stage]]\npasses = "{passes}"\n')
    monkeypatch.syspath_prepend(str(tmp_path))
    entries = [
        importlib.metadata.EntryPoint(name, f"recipes_{name}", RECIPE_GROUP) for name in ("one", "two")
    ]
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda **_: entries)
    with pytest.raises(UserError, match="two packages offer a recipe 'same'"):
        installed_recipes.__wrapped__()
    del entries[1]
    assert list(installed_recipes.__wrapped__()) == ["same"]
    entries[:] = [importlib.metadata.EntryPoint("gone", "recipes_gone", RECIPE_GROUP)]
    with pytest.raises(UserError, match="cannot be read from recipes_gone"):
        installed_recipes.__wrapped__()
