from __future__ import annotations

import ast
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest

from graphopt.errors import PassError, UserError
from graphopt.passkit import Numerics, Pass, PassContext, Rewriter
from graphopt.pipeline.registry import Entry, Fixpoint, Registry, installed

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Alpha(Pass):
    """Do alpha."""

    name: ClassVar[str] = "alpha"
    numerics: ClassVar[Numerics] = Numerics.EXACT
    n: int = 1

    def run(self, graph: Rewriter, ctx: PassContext) -> None:
        pass


@dataclass(frozen=True)
class Beta(Alpha):
    name: ClassVar[str] = "beta"


class Abstract(Pass):
    name: ClassVar[str] = "abstract"
    numerics: ClassVar[Numerics] = Numerics.EXACT


def entry(name: str, value: object, source: str = "lib 1.0") -> Entry:
    where = f"{value.__module__}:{value.__qualname__}" if isinstance(value, type) else f"m:{value}"
    return Entry(name, where, source, lambda: value)


def failing(error: Exception) -> Callable[[], object]:
    def load() -> object:
        raise error

    return load


PRESETS = [
    entry("default", "alpha,beta"),
    entry("twice", "alpha,fixpoint(default)"),
    entry("made", lambda: "beta{n=3}"),
    entry("loop", "alpha,pool"),
    entry("pool", "loop"),
]
REGISTRY = Registry([entry("alpha", Alpha), entry("beta", Beta)], PRESETS)


@pytest.mark.parametrize(
    ("passes", "steps"),
    [
        (None, (Alpha(), Beta())),
        ("default", (Alpha(), Beta())),
        ("none", ()),
        ([], ()),
        ("alpha{n=2}", (Alpha(2),)),
        (["default", "alpha"], (Alpha(), Beta(), Alpha())),
        ([Alpha(7), "beta"], (Alpha(7), Beta())),
        ("twice", (Alpha(), Fixpoint((Alpha(), Beta())))),
        ("made", (Beta(3),)),
        ("fixpoint(alpha){limit=2}", (Fixpoint((Alpha(),), 2),)),
    ],
)
def test_resolves(passes: object, steps: object) -> None:
    assert REGISTRY.resolve(passes) == steps  # type: ignore[arg-type]


def test_a_target_can_have_a_default_of_its_own() -> None:
    assert REGISTRY.resolve(None, default="beta") == (Beta(),)
    assert REGISTRY.resolve("alpha,default", default="beta") == (Alpha(), Beta())


def test_steps_are_written_so_that_they_resolve_again() -> None:
    steps = REGISTRY.resolve("alpha{n=2},fixpoint(beta,alpha){limit=3}")
    assert REGISTRY.format(steps) == "alpha{n=2},fixpoint(beta,alpha){limit=3}"
    assert REGISTRY.format(()) == "none"


@pytest.mark.parametrize(
    ("passes", "says", "fix"),
    [
        ("alpa", "there is no pass 'alpa'", "did you mean 'alpha'?"),
        ("fixpoint(bta)", "there is no pass 'bta'", "'beta'"),
        ("alpha{m=1}", "pass 'alpha' has no option 'm'", "its options: n"),
        ("default{n=1}", "preset 'default' takes no options", "in it"),
        ("loop", "contains itself: loop -> pool -> loop", ""),
    ],
)
def test_says_what_is_not_known(passes: str, says: str, fix: str) -> None:
    with pytest.raises(UserError) as caught:
        REGISTRY.resolve(passes)
    assert says in caught.value.what
    assert fix in (caught.value.fix or "")


def test_two_packages_with_one_name_are_both_named() -> None:
    registry = Registry([entry("alpha", Alpha, "one 1.0"), entry("alpha", Beta, "two 2.0")])
    with pytest.raises(UserError, match=r"one 1\.0 .*two 2\.0") as caught:
        registry.resolve("alpha")
    assert "alpha" in caught.value.what
    assert registry.pass_names() == ["alpha"]  # it is still listed


def test_the_same_object_offered_twice_is_one() -> None:
    registry = Registry([entry("alpha", Alpha, "lib 1.0"), entry("alpha", Alpha, "lib 1.0 (editable)")])
    assert registry.resolve("alpha") == (Alpha(),)


def test_names_with_a_meaning_cannot_be_taken() -> None:
    with pytest.raises(UserError, match="'none', which has a meaning of its own"):
        Registry([entry("none", Alpha)])


def test_what_cannot_be_imported_is_named_and_nothing_else_suffers() -> None:
    broken = Entry("bad", "m:Bad", "lib 1.0", failing(ImportError("no module named 'zz'")))
    registry = Registry([broken, entry("alpha", Alpha)])
    assert registry.resolve("alpha") == (Alpha(),)
    with pytest.raises(
        UserError, match=r"'bad' of lib 1\.0 cannot be imported from m:Bad: no module named 'zz'"
    ):
        registry.resolve("bad")


@pytest.mark.parametrize(
    ("value", "says"),
    [("text", "not a subclass"), (Beta, "calls itself 'beta'"), (Abstract, "does not implement run")],
)
def test_what_is_no_pass_is_its_authors_error(value: object, says: str) -> None:
    with pytest.raises(PassError, match=says):
        Registry([entry("alpha", value)]).resolve("alpha")


def test_a_preset_that_is_no_text_is_its_authors_error() -> None:
    with pytest.raises(PassError, match="not a pipeline string"):
        Registry(presets=[entry("p", 3)]).resolve("p")


# -------------------------------------------------------------------------------------- named by file

PASS_FILE = '''
from __future__ import annotations
from dataclasses import dataclass
from typing import ClassVar
from graphopt.passkit import Numerics, Pass

@dataclass(frozen=True)
class Mine(Pass):
    """Mine."""
    name: ClassVar[str] = "mine"
    numerics: ClassVar[Numerics] = Numerics.EXACT
    n: int = 1
    def run(self, graph, ctx): pass
'''


def test_a_file_names_a_pass_and_the_string_reproduces_it(tmp_path: Path) -> None:
    file = tmp_path / "my pass.py"
    file.write_text(PASS_FILE)
    steps = REGISTRY.resolve(f'"{file}:Mine"{{n=4}}')
    assert (type(steps[0]).__name__, steps[0].n) == ("Mine", 4)  # type: ignore[union-attr]
    assert REGISTRY.format(steps) == f'"{file}:Mine"{{n=4}}'
    again = REGISTRY.resolve(REGISTRY.format(steps))
    assert again == steps  # one class, however often it is named
    assert REGISTRY.resolve(f'"{file}"') == (type(steps[0])(),)  # its only pass needs no name


def test_a_module_names_a_pass() -> None:
    cls = REGISTRY.pass_class(f"{__name__}:Alpha")
    assert (cls.__name__, cls.name) == ("Alpha", "alpha")


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("{}/none.py:X", None, "no such pass file"),
        ("{}/p.py:Nine", PASS_FILE, "no 'Nine' in it"),
        ("{}/p.py:X", "def f(:\n", "line 1: invalid syntax"),
        ("{}/p.py", "x = 1", "one pass is wanted, it defines: none"),
        ("no_such_module_at_all:X", None, "cannot be imported"),
    ],
)
def test_a_wrong_reference_is_explained(tmp_path: Path, name: str, content: str | None, says: str) -> None:
    if content is not None:
        (tmp_path / "p.py").write_text(content)
    with pytest.raises(UserError, match=says):
        REGISTRY.pass_class(name.format(tmp_path))


def test_an_object_in_a_file_that_is_no_pass(tmp_path: Path) -> None:
    (tmp_path / "p.py").write_text("X = 3\n")
    with pytest.raises(UserError, match=r"'X' in it is no pass: passes derive from passkit.NodePass"):
        REGISTRY.pass_class(f"{tmp_path}/p.py:X")


def test_a_file_that_raises_shows_its_own_error(tmp_path: Path) -> None:
    (tmp_path / "p.py").write_text("1 / 0\n")
    with pytest.raises(ZeroDivisionError):
        REGISTRY.pass_class(f"{tmp_path}/p.py:X")


# ------------------------------------------------------------------------------------------ our own


def declared() -> dict[str, str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    passes: dict[str, str] = project["entry-points"]["graphopt.passes"]
    return passes


def defined() -> dict[str, str]:
    """name -> module:Class of every class in the pass library that says `name: ClassVar[str] = "..."`."""
    found = {}
    library = ROOT / "passes"
    for file in sorted(library.rglob("*.py")):
        module = ".".join(file.relative_to(library).with_suffix("").parts)
        for cls in ast.walk(ast.parse(file.read_text())):
            if isinstance(cls, ast.ClassDef):
                for line in cls.body:
                    if isinstance(line, ast.AnnAssign) and ast.unparse(line.target) == "name" and line.value:
                        found[ast.literal_eval(line.value)] = f"{module}:{cls.name}"
    return found


def test_every_pass_of_the_library_is_declared_and_the_other_way_round() -> None:
    ours, theirs = declared(), defined()
    missing = "\n".join(f'{name} = "{place}"' for name, place in theirs.items() if name not in ours)
    assert not missing, f'add to [project.entry-points."graphopt.passes"]:\n{missing}'
    assert ours == theirs
    assert list(ours.values()) == sorted(ours.values())  # as the folders list them


def test_everything_installed_loads_and_its_pipelines_resolve() -> None:
    registry = installed()
    if not registry.pass_names():
        pytest.skip("graphopt is not installed, its entry points are not known")
    for name in registry.pass_names():
        cls = registry.pass_class(name)
        assert cls.summary(), f"{name} has no docstring"
        assert cls.numerics in Numerics
    for name in registry.preset_names():
        steps = registry.resolve(name, default=registry.preset("default-portable"), target="portable")
        assert registry.resolve(registry.format(steps)) == steps
