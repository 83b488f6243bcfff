"""docs/gate.md says what policies can say, and what its example prints."""

from __future__ import annotations

import importlib.util
import json
import re
import tomllib
from pathlib import Path
from types import ModuleType

import pytest
from jsonschema import Draft202012Validator, ValidationError

from graphopt.cli.gate import PRESETS
from graphopt.errors import UserError
from graphopt.gating.policy import Policy, Table
from graphopt.gating.reading import parse_policy
from graphopt.gating.starter import starter

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/gate.md"


@pytest.fixture
def generate() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_generate_gate", ROOT / "docs/generate_gate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_reference_is_current(generate: ModuleType) -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert generate.refreshed(page) == page, "run: python docs/generate_gate.py"
    assert generate.main(["--check"]) == 0
    assert generate.refreshed(page.replace("| most megabytes |", "| megabytes |")) == page


def test_the_reference_is_complete() -> None:
    reference = PAGE.read_text(encoding="utf-8").partition("## Policy reference")[2]
    for table in Table.__subclasses__():
        for key, field in table.model_fields.items():
            assert field.description, f"{table.__name__}.{key}"
            row = f"| `{key}` |" in reference or f"[{key}" in reference or f".{key}" in reference
            assert row, f"{table.__name__}.{key}"
    assert set(Policy.model_fields) >= set(re.findall(r"^### `\[(\w+)\]`$", reference, re.M))


def test_the_worked_example() -> None:
    """What is printed stands there as the commands print it; the commands themselves run in test_pages."""
    page = PAGE.read_text(encoding="utf-8")
    (policy,) = re.findall(r'```toml title="gate.toml"\n(.*?)```', page, re.S)
    read = parse_policy(policy, Path("gate.toml"))
    assert read.line("numerics", "min_sqnr_db") == 19
    assert read.line("file", "max_ratio") == 13
    limits = [
        key for key, value in tomllib.loads(policy).items() if isinstance(value, dict) and key != "measure"
    ]
    shown = page.partition("PASSED: all 8 checks of digits")[2].partition("```")[0]
    assert list(dict.fromkeys(re.findall(r"^  (\w+)\.", shown, re.M))) == limits


def test_the_schema_takes_what_the_gate_takes(generate: ModuleType) -> None:
    schema = json.loads((ROOT / "docs/ci/policy.schema.json").read_text(encoding="utf-8"))
    assert (ROOT / "docs/ci/policy.schema.json").read_text(encoding="utf-8") == generate.schema_text()
    Draft202012Validator.check_schema(schema)
    check = Draft202012Validator(schema)
    good = [(ROOT / "models/gate.toml").read_text(), *(starter(preset) for preset in PRESETS)]
    for text in good:
        parse_policy(text, Path("gate.toml"))
        check.validate(tomllib.loads(text))
    for text in (
        "[numerics]\nmin_snqr_db = 1",
        "[latency]\nmax_ratio = -1",
        '[latency]\nundecided = "maybe"',
        '[file]\nmax_mb = "1"',
        '[[interface.inputs]]\ndtype = "float"',
        "[metrics]\nmin = 3",
    ):
        with pytest.raises(UserError):
            parse_policy(text, Path("gate.toml"))
        with pytest.raises(ValidationError):
            check.validate(tomllib.loads(text))


def test_the_ready_policy_names_the_schema() -> None:
    directive, _, place = (ROOT / "models/gate.toml").read_text().partition("\n")[0].partition(" ")
    assert directive == "#:schema"
    assert (ROOT / "models" / place).resolve() == ROOT / "docs/ci/policy.schema.json"
