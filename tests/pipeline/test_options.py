from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

from graphopt.errors import UserError
from graphopt.pipeline.options import build, coerce, describe_options, options_of
from graphopt.pipeline.spec import PassSpec, Quoted, format_pipeline, parse_pipeline


class Mode(enum.Enum):
    FAST = "quick"
    VERY_SLOW = "slow"


@dataclass(frozen=True)
class Everything:
    flag: bool = False
    n: int = 8
    rate: float = 0.5
    word: str = "x"
    file: Path = Path("a")
    mode: Mode = Mode.FAST
    kind: Literal["a", "b", 3] = "a"
    maybe: str | None = None
    either: int | str = "auto"
    ops: tuple[str, ...] = ("Conv",)
    pair: tuple[int, float] = (1, 2.0)
    names: frozenset[str] = frozenset()
    table: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Needs:
    sparsity: float = field(metadata={"help": "share of zeros"})

    def __post_init__(self) -> None:
        if not 0 <= self.sparsity <= 1:
            raise ValueError("sparsity lies between 0 and 1")


def parse(options: str) -> Everything:
    (spec,) = parse_pipeline(f"x{{{options}}}")
    assert isinstance(spec, PassSpec)
    return build(Everything, spec.options, owner="pass 'x'")


@pytest.mark.parametrize(
    ("text", "name", "value"),
    [
        ("flag=true", "flag", True),
        ("flag=False", "flag", False),
        ("n=-3", "n", -3),
        ("n=0x10", "n", 16),
        ("rate=1", "rate", 1.0),
        ("rate=1e-3", "rate", 1e-3),
        ("word=true", "word", "true"),
        ("word=3", "word", "3"),
        ('word="a b"', "word", "a b"),
        ("file=b/c", "file", Path("b/c")),
        ("mode=very-slow", "mode", Mode.VERY_SLOW),
        ("mode=very_slow", "mode", Mode.VERY_SLOW),
        ("mode=slow", "mode", Mode.VERY_SLOW),
        ("kind=b", "kind", "b"),
        ("kind=3", "kind", 3),
        ("maybe=none", "maybe", None),
        ('maybe="none"', "maybe", "none"),
        ("maybe=y", "maybe", "y"),
        ("either=3", "either", 3),
        ('either="3"', "either", "3"),
        ("either=auto", "either", "auto"),
        ("ops=[A,B]", "ops", ("A", "B")),
        ("ops=A", "ops", ("A",)),
        ("ops=[]", "ops", ()),
        ("pair=[3 4]", "pair", (3, 4.0)),
        ("names=[b,a]", "names", frozenset("ab")),
        ("table={a=1 b=2}", "table", {"a": 1, "b": 2}),
    ],
)
def test_types_come_from_the_field_and_survive_writing(text: str, name: str, value: object) -> None:
    built = parse(text)
    assert getattr(built, name) == value
    assert type(getattr(built, name)) is type(value)
    assert built == parse(format_pipeline([PassSpec("x", options_of(built))])[2:-1])


def test_only_what_differs_from_the_defaults_is_written() -> None:
    assert options_of(Everything()) == {}
    assert options_of(Everything(n=9, ops=("A",))) == {"n": 9, "ops": ("A",)}
    assert options_of(Needs(0.5)) == {"sparsity": 0.5}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("flag=1", "'flag' of pass 'x' wants true or false, not 1"),
        ("n=many", "'n' of pass 'x' wants an integer, not many"),
        ('n="3"', "wants an integer"),
        ("n=1.5", "wants an integer"),
        ("n=[1]", "wants an integer"),
        ("rate=x", "wants a number"),
        ("word=[a]", "wants text"),
        ("mode=slowest", "wants one of fast, very_slow"),
        ("kind=c", "wants one of a, b, 3"),
        ("pair=[1]", r"wants \[an integer, a number\]"),
        ("table=3", "wants a table, each an integer"),
        ("table={a=x}", "wants a table"),
    ],
)
def test_a_wrong_value_is_named(text: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        parse(text)


def test_an_unknown_option_gets_a_suggestion() -> None:
    with pytest.raises(UserError, match="pass 'x' has no option 'ratio'") as caught:
        parse("ratio=1")
    assert caught.value.fix is not None
    assert "did you mean 'rate'?" in caught.value.fix
    with pytest.raises(UserError, match="has no option 'x'") as caught:
        build(Needs, {"x": "1"}, owner="pass 'p'")
    assert caught.value.fix == "its options: sparsity"


def test_a_missing_option_and_a_bad_range_are_user_errors() -> None:
    with pytest.raises(UserError, match="needs the option 'sparsity'"):
        build(Needs, {}, owner="pass 'p'")
    with pytest.raises(UserError, match="pass 'p': sparsity lies between 0 and 1"):
        build(Needs, {"sparsity": "7"}, owner="pass 'p'")


def test_toml_values_are_typed_already() -> None:
    raw: dict[str, Any] = {"n": 3, "flag": True, "rate": 1, "ops": (Quoted("A"),), "word": Quoted("true")}
    assert build(Everything, raw, owner="x") == Everything(True, 3, 1.0, "true", ops=("A",))
    with pytest.raises(UserError):
        build(Everything, {"n": True}, owner="x")


def test_options_are_described() -> None:
    (option,) = describe_options(Needs)
    assert (option.name, option.type, option.default, option.help) == (
        "sparsity",
        "a number",
        None,
        "share of zeros",
    )
    described = {o.name: o for o in describe_options(Everything)}
    assert described["ops"].default == "[Conv]"
    assert described["maybe"].type == "text or none"
    assert described["mode"].default == "fast"


def test_a_type_that_is_not_supported_is_the_authors_error() -> None:
    with pytest.raises(TypeError, match="not supported"):
        coerce("x", bytes)
