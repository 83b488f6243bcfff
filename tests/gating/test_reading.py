"""What is wrong with a policy is said with file, line, key, and what was meant."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from graphopt.errors import UserError
from graphopt.gating.policy import Figures, Policy, Table
from graphopt.gating.reading import load_policy, parse_policy
from graphopt.gating.starter import starter

FILE = Path("folder/gate.toml")


def refused(text: str) -> UserError:
    with pytest.raises(UserError) as caught:
        parse_policy(text, FILE)
    return caught.value


@pytest.mark.parametrize(
    ("text", "line", "what", "fix"),
    [
        (
            "[numerics]\nmin_snqr_db = 3",
            2,
            "[numerics] has no key 'min_snqr_db'",
            "did you mean 'min_sqnr_db'?",
        ),
        ("\n[latencyy]\nmax_ms = 1", 2, "a policy has no key 'latencyy'", "did you mean 'latency'?"),
        (
            '[numerics.outputs."a.b"]\nmax_abs = "x"',
            2,
            "`numerics.outputs.\"a.b\".max_abs` is a number, not the text 'x'",
            None,
        ),
        (
            "[numerics.outputs.y]\nmax_asb = 1",
            2,
            "[numerics.outputs.y] has no key 'max_asb'",
            "did you mean 'max_abs'",
        ),
        ("[latency]\nmax_ratio = 0", 2, "`latency.max_ratio` cannot be 0", "it is more than 0"),
        (
            "[latency]\nmax_ms = 1\npercentile = 101",
            3,
            "`latency.percentile` cannot be 101",
            "it is at most 100",
        ),
        ("[int8]\nmin_share = 1.5", 2, "`int8.min_share` cannot be 1.5", "it is at most 1"),
        ("[latency]\nmax_ms = 1\nthreads = true", 3, "`latency.threads` is a whole number, not true", None),
        ("[model]\nmax_nodes = 1.5", 2, "`model.max_nodes` is a whole number, not 1.5", None),
        ("[model]\nvalid = 1", 2, "`model.valid` is true or false, not 1", None),
        (
            '[latency]\nmax_ms = 1\nundecided = "maybe"',
            3,
            "`latency.undecided` cannot be 'maybe'",
            'one of: "fail", "pass"',
        ),
        (
            '[numerics]\nstandard = "lossy"',
            2,
            "`numerics.standard` cannot be 'lossy'",
            'one of: "exact", "close"',
        ),
        ("[file]\nmax_mb = inf", 2, "`file.max_mb` is a finite number, not inf", None),
        ("numerics = 3", 1, "`numerics` is a table, not 3", None),
        ("[metrics]\nmin = 3", 2, "`metrics.min` is a table, not 3", None),
        ('[ops]\nbanned = "Loop"', 2, "`ops.banned` is a list, not the text 'Loop'", None),
        ("[ops]\nbanned = [\n'Loop',\n3]", 4, "`ops.banned.1` is text, not 3", None),
        (
            '[interface]\ninputs = [\n  {name = "x"},\n  {dtype = "float"},\n]',
            4,
            "[interface.inputs.1] lacks `name`",
            None,
        ),
        (
            '[[interface.inputs]]\nname = "x"\ndtyp = "float"',
            3,
            "[interface.inputs.0] has no key 'dtyp'",
            "did you mean 'dtype'?",
        ),
        (
            '[[interface.inputs]]\nname = "x"\ndims = [1.5]',
            3,
            "`interface.inputs.0.dims.0` is a whole number",
            None,
        ),
        (
            '[external_data.sha256]\n"m.data" = "12"',
            2,
            '`external_data.sha256."m.data"` is no SHA-256',
            "64 hexadecimal",
        ),
        ("[measure]\nproviders = []\n[model]\nvalid = true", 2, "`measure.providers` is empty", None),
        ("[opset]\nmin = 18\nmax = 17", 3, "no version is at least 18 and at most 17", None),
        ('[opset.domains."ai.onnx.ml"]\nmin = 4\nmax = 3', 3, "no version is at least 4 and at most 3", None),
        ("[latency]\nthreads = 2", 1, "[latency] asks for nothing", "it can have: max_ratio, max_ms"),
        ("[model]\nvalid = false", 1, "[model] asks for nothing", "it can have: valid"),
        ("[external_data]\nallowed = true", 1, "[external_data] asks for nothing", None),
        (
            "[file]\nmax_mb = 1\n[metrics.accuracy]",
            3,
            "[metrics.accuracy] asks for nothing",
            "it can have: min, max_drop",
        ),
        ('[against]\nmodel = "a.onnx"', 1, "[against] asks for nothing", None),
        ("[ops]\nbanned = []", 1, "[ops] asks for nothing", None),
        ("x = [", 1, "this is not TOML", None),
        ("[model]\nvalid = true\nvalid = true", 3, "this is not TOML: Cannot overwrite a value", None),
    ],
)
def test_messages(text: str, line: int, what: str, fix: str | None) -> None:
    error = refused(text)
    assert error.what.startswith(what)
    assert error.where == f"{FILE}:{line}"
    if fix is not None:
        assert fix in str(error.fix)


def test_an_empty_policy() -> None:
    for text in ("", 'name = "x"\n[measure]\nproviders = ["cpu"]'):
        error = refused(text)
        assert error.what == "the policy asks for nothing"
        assert error.where == str(FILE)


def test_all_that_is_wrong_is_said_in_the_order_of_the_file() -> None:
    error = refused("[latency]\nmax_ms = -1\n[numerics]\nmax_abs = 'a'\n[file]\nmaxmb = 3\n")
    assert error.where == f"{FILE}:2"
    lines = str(error).splitlines()
    assert [line.strip().partition(":")[0] for line in lines[2:]] == ["line 4", "line 6"]
    many = "".join(f"a{i} = 1\n" for i in range(10))
    assert str(refused(many)).endswith("and 5 more")


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no such policy") as caught:
        load_policy(tmp_path / "gate.toml")
    assert "graphopt gate --init" in str(caught.value.fix)
    (tmp_path / "gate.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="not UTF-8"):
        load_policy(tmp_path / "gate.toml")
    with pytest.raises(UserError, match="cannot be read"):
        load_policy(tmp_path)


def test_an_empty_list_of_inputs_is_a_limit() -> None:
    assert parse_policy("[interface]\ninputs = []", FILE).policy.interface is not None
    assert parse_policy("[ops]\nallowed = []", FILE).policy.ops is not None


def test_names_and_places() -> None:
    read = parse_policy("\n[file]\nmax_mb = 1", FILE)
    assert read.name == "gate"
    assert read.line("file", "max_mb") == 3
    assert read.line("file", "max_ratio") == 2
    assert read.line("weights") is None
    assert parse_policy('name = "mine"\n[file]\nmax_mb = 1', FILE).name == "mine"
    assert read.beside("a.onnx") == str(Path("folder/a.onnx"))
    assert read.beside("m.py:f") == f"{Path('folder/m.py')}:f"
    assert read.beside("package.module:f") == "package.module:f"
    assert read.beside("synthetic:8") == "synthetic:8"
    assert read.beside("/abs/a.onnx") == "/abs/a.onnx"


@pytest.mark.parametrize("preset", ["minimal", "float", "int8", "cuda"])
def test_starters_are_policies(preset: str, folder: Path) -> None:
    for model in (None, folder / "model.onnx", folder / "external.onnx"):
        text = starter(preset, model)
        assert parse_policy(text, FILE).name == preset
        # What is commented out is right as well: people will uncomment it.
        lines = [
            line[2:] if (line.startswith("# ") and "=" in line) or line.startswith("# [") else line
            for line in text.splitlines()
        ]
        assert tomllib.loads("\n".join(lines)) != tomllib.loads(text)
        parse_policy("\n".join(lines), FILE)


def places(table: type[Table], key: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Every key that a policy can have, with a name where a table is by name."""
    for name, field in table.model_fields.items():
        text = str(field.annotation)
        inner = [t for t in Table.__subclasses__() + Figures.__subclasses__() if t.__name__ in text]
        if not inner or "list[" in text:
            yield (*key, name)
        else:
            yield from places(inner[0], (*key, name, "N") if "dict[" in text else (*key, name))


WRONG = (
    '"text"',
    "true",
    "-1",
    "1.5",
    "nan",
    "[]",
    "[{}]",
    "{}",
    "{x = 1}",
    "1979-05-27",
    '["a", 1]',
    "[[1]]",
    "0",
)


@pytest.mark.parametrize("key", list(places(Policy)), ids=".".join)
def test_any_value_is_taken_or_refused_with_its_line(key: tuple[str, ...]) -> None:
    """Whatever stands there: a policy, or a message that names the line. Never a crash."""
    refusals: list[UserError] = []
    for value in WRONG:
        header = f"[{'.'.join(key[:-1])}]\n" if key[:-1] else "\n"
        text = f"{header}{key[-1]} = {value}\n[file]\nmax_mb = 1\n"
        if key[0] == "file":
            text = f"{header}{key[-1]} = {value}\n"
        try:
            parse_policy(text, FILE)
        except UserError as error:
            refusals.append(error)
    assert len(refusals) >= 4  # no key takes everything
    for error in refusals:
        assert re.fullmatch(rf"{FILE}:[12]", str(error.where)), str(error)
        assert error.what


def test_nested_nonsense() -> None:
    for text in (
        "[a.b.c]\nd = 1",
        "[[file]]\nmax_mb = 1",
        "[interface]\ninputs = [[1]]",
        "[[metrics]]\nx = 1",
        "a.b = 1",
    ):
        assert str(refused(text).where).startswith(f"{FILE}:")
