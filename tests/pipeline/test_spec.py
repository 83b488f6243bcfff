from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from graphopt.errors import UserError
from graphopt.pipeline.spec import (
    FixpointSpec,
    PassSpec,
    Quoted,
    format_pipeline,
    parse_pipeline,
    read_pipeline_file,
)


@pytest.mark.parametrize(
    ("text", "steps"),
    [
        ("", ()),
        ("a", (PassSpec("a"),)),
        ("a,b", (PassSpec("a"), PassSpec("b"))),
        (" a ,\n b c", (PassSpec("a"), PassSpec("b"), PassSpec("c"))),
        ("a{x=1}", (PassSpec("a", {"x": "1"}),)),
        ("a{x=1,y=2}", (PassSpec("a", {"x": "1", "y": "2"}),)),
        ("a{x=1 y=2}", (PassSpec("a", {"x": "1", "y": "2"}),)),
        ("a{}", (PassSpec("a"),)),
        ("a{ops=[Conv,Gemm] n=[]}", (PassSpec("a", {"ops": ("Conv", "Gemm"), "n": ()}),)),
        ("a{t={x=1 y=[2]}}", (PassSpec("a", {"t": {"x": "1", "y": ("2",)}}),)),
        ('a{x="b c, {"}', (PassSpec("a", {"x": Quoted("b c, {")}),)),
        ("./my.py:P{x=1}", (PassSpec("./my.py:P", {"x": "1"}),)),
        ('"my dir/p.py:P"', (PassSpec("my dir/p.py:P"),)),
        ("fixpoint(a,b)", (FixpointSpec((PassSpec("a"), PassSpec("b"))),)),
        (
            "fixpoint(a, fixpoint(b)){limit=3}",
            (FixpointSpec((PassSpec("a"), FixpointSpec((PassSpec("b"),))), 3),),
        ),
        ("fixpoint", (PassSpec("fixpoint"),)),
    ],
)
def test_reads(text: str, steps: object) -> None:
    assert parse_pipeline(text) == steps
    assert parse_pipeline(format_pipeline(parse_pipeline(text))) == steps


@pytest.mark.parametrize(
    ("text", "says", "caret_at"),
    [
        ("a{x", "expected '='", 3),
        ("a{x=1", "'{' is never closed", 5),
        ("a{x=[1}", "expected a name or a value", 6),
        ("a{x=[1", "'[' is never closed", 6),
        ("a)", "')' closes nothing", 1),
        ("a,}", "'}' closes nothing", 2),
        ("fixpoint(a", "expected ')'", 10),
        ("a{x=1 x=2}", "given twice", 7),
        ('a{x="\\q"}', "not a valid quoted string", 4),
        ("a {x=1}", "closes nothing", 2),
    ],
)
def test_points_at_what_is_wrong(text: str, says: str, caret_at: int) -> None:
    with pytest.raises(UserError) as caught:
        parse_pipeline(text)
    assert says in caught.value.what
    assert caught.value.fix is not None
    shown, caret = caught.value.fix.split("\n")
    assert shown == text
    assert caret.index("^") - 2 == caret_at  # error texts are indented by two


@pytest.mark.parametrize("text", ["fixpoint(a){limit=0}", "fixpoint(a){limit=x}", "fixpoint(a){rounds=3}"])
def test_fixpoint_options_are_checked(text: str) -> None:
    with pytest.raises(UserError, match="fixpoint group"):
        parse_pipeline(text)


words = st.text(min_size=1, max_size=8)
values = st.recursive(
    words.map(Quoted),
    lambda inner: st.lists(inner, max_size=3).map(tuple) | st.dictionaries(words.map(str), inner, max_size=2),
    max_leaves=4,
)
names = words.filter(lambda word: word != "fixpoint")
passes = st.builds(
    PassSpec, names, st.dictionaries(st.from_regex(r"[a-z_]+", fullmatch=True), values, max_size=3)
)


@given(st.lists(passes, max_size=3))
def test_any_pipeline_survives_writing_and_reading(steps: list[PassSpec]) -> None:
    assert parse_pipeline(format_pipeline(steps)) == tuple(steps)


# ------------------------------------------------------------------------------------ pipeline files


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_reads_pass_tables(tmp_path: Path) -> None:
    file = write(
        tmp_path / "p.toml",
        """
        target = "ort-cpu"
        [[pass]]
        name = "a"
        [[pass]]
        name = "b"
        options = { n = 3, on = true, rate = 0.5, ops = ["Conv", "Gemm"], word = "true" }
        [[pass]]
        fixpoint = ["c,d", { name = "e", options = { x = "1" } }]
        limit = 4
        """,
    )
    read = read_pipeline_file(file, settings=["target"])
    assert read.settings == {"target": "ort-cpu"}
    assert read.steps == (
        PassSpec("a"),
        PassSpec("b", {"n": 3, "on": True, "rate": 0.5, "ops": ("Conv", "Gemm"), "word": "true"}),
        FixpointSpec((PassSpec("c"), PassSpec("d"), PassSpec("e", {"x": "1"})), 4),
    )
    assert isinstance(read.steps[1], PassSpec)
    assert isinstance(read.steps[1].options["word"], Quoted)  # text in TOML stays text


def test_reads_a_pipeline_string(tmp_path: Path) -> None:
    file = write(tmp_path / "p.toml", 'pipeline = "a,b{x=1}"')
    assert read_pipeline_file(file).steps == (PassSpec("a"), PassSpec("b", {"x": "1"}))
    assert read_pipeline_file(write(tmp_path / "q.toml", "")).steps is None


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[[pass]", "not a TOML file"),
        ("pases = 3", "unknown key 'pases'"),
        ('[[pass]]\nnam = "a"', "either a name or a fixpoint"),
        ('[[pass]]\nname = "a"\nbits = 8', "unknown key 'bits'"),
        ('[[pass]]\nname = "a"\nfixpoint = []', "either a name or a fixpoint"),
        ('[[pass]]\nname = "a"\noptions = { x = 2020-01-01 }', "cannot be a date"),
        ('pipeline = "a"\n[[pass]]\nname = "a"', "both"),
        ("pipeline = 3", "is a string"),
        ('pipeline = "a{"', "never closed"),
        ("pass = 3", "list of tables"),
    ],
)
def test_says_what_is_wrong_with_a_file(tmp_path: Path, text: str, says: str) -> None:
    file = write(tmp_path / "p.toml", text)
    with pytest.raises(UserError, match=says) as caught:
        read_pipeline_file(file)
    assert caught.value.where == str(file)


def test_a_missing_file_is_a_user_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        read_pipeline_file(tmp_path / "none.toml")
