"""JSON Schemas: they are valid, current, and what the command line prints fits them."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import made_reports as made
import pytest
from jsonschema import Draft202012Validator, ValidationError

import graphopt
from graphopt import schemas
from graphopt.cli.main import main
from graphopt.report.document import to_json
from graphopt.report.schema import documentation

ROOT = Path(__file__).parents[1]
MODELS = ROOT / "models"
Cli = Callable[..., tuple[int, str, str]]

MADE = {
    "run": made.run,
    "validate": made.validation,
    "bench": made.bench,
    "gate": made.gate,
    "sensitivity": made.exploration,
    "sensitivity-layers": made.survey,
}


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Cli:
    def run(*words: object) -> tuple[int, str, str]:
        code = main([str(word) for word in words])
        return code, *capsys.readouterr()

    return run


def validator(name: str) -> Draft202012Validator:
    return Draft202012Validator(schemas.schema(name))


def constant(name: str) -> str:
    return str(schemas.schema(name)["properties"]["schema"]["const"])


@pytest.mark.parametrize("name", schemas.NAMES)
def test_schemas_are_schemas_and_describe_every_field(name: str) -> None:
    schema = schemas.schema(name)
    Draft202012Validator.check_schema(schema)
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert schema["title"] == constant(name)
    undescribed = [
        f"{place.get('title', key)}.{field}"
        for key, place in {name: schema, **schema.get("$defs", {})}.items()
        for field, value in place["properties"].items()
        if "description" not in value
    ]
    # Classes that explain themselves in one sentence have no list of fields.
    assert {entry.partition(".")[0] for entry in undescribed} <= {
        "MetricRow",
        "FloatNode",
        "ValueChange",
        "Swept",
        *_SHORT,
    }


_SHORT = ("LintRow", "LeftConversion", "lint")


@pytest.mark.parametrize("name", MADE)
def test_reports_fit_and_harmed_ones_do_not(name: str) -> None:
    report = MADE[name]()
    text = to_json(report, constant(name))
    check = validator(name)
    check.validate(json.loads(text))
    for field in dataclasses.fields(report):
        harmed = json.loads(text)
        del harmed[field.name]
        with pytest.raises(ValidationError):
            check.validate(harmed)
    wrong = json.loads(text) | {"schema": "graphopt.other/1"}
    with pytest.raises(ValidationError):
        check.validate(wrong)
    check.validate(json.loads(text) | {"a field of the future": 1})


def test_floats_may_be_words_and_nothing_else() -> None:
    check = validator("run")
    report = json.loads(made.run().to_json())
    row = report["outputs"][3]
    assert row["sqnr_db"] == "Infinity"
    check.validate(report)
    for value in ("infinite", True, [1.0]):
        row["sqnr_db"] = value
        with pytest.raises(ValidationError):
            check.validate(report)


def test_verdicts_are_listed() -> None:
    report = json.loads(made.run().to_json()) | {"verdict": "fine"}
    with pytest.raises(ValidationError, match="fine"):
        validator("run").validate(report)


def test_what_the_command_line_prints_fits(cli: Cli, tmp_path: Path) -> None:
    model, data, out = MODELS / "digits_cnn.onnx", MODELS / "digits.npz", tmp_path / "out.onnx"
    printed: dict[str, str] = {}
    printed["run"] = cli("run", model, "--passes", "int8-weights", "-o", out, "--json", "-q")[1]
    printed["validate"] = cli(
        "validate", model, out, "--layers", "--localize", "--data", data, "--json", "-q"
    )[1]
    printed["diff"] = cli("diff", model, out, "--json")[1]
    printed["lint"] = cli("lint", out, "--json")[1]
    bench = ("bench", model, out, "--runs", 20, "--sessions", 2, "--no-memory", "--json", "-q")
    printed["bench"] = cli(*bench)[1]
    policy = tmp_path / "gate.toml"
    policy.write_text("[weights]\nfinite = true\n[file]\nmax_mb = 0.001\n")
    code, printed["gate"], _ = cli("gate", out, "--policy", policy, "--reference", model, "--json", "-q")
    assert code == 1
    for name, text in printed.items():
        found = json.loads(text)
        validator(name).validate(found)
        # Nothing is printed that the schema does not know.
        assert set(found) == set(schemas.schema(name)["properties"]), name


def test_the_verb_prints_them(cli: Cli) -> None:
    code, out, _ = cli("schema")
    assert code == 0
    assert tuple(out.split()) == schemas.NAMES
    code, out, _ = cli("schema", "run")
    assert code == 0
    assert json.loads(out) == schemas.schema("run")
    code, _, err = cli("schema", "rum")
    assert code == 2
    assert "run" in err


def test_documentation_is_read_from_docstrings() -> None:
    what, fields = documentation(graphopt.RunReport)
    assert what == "Everything that one run has to say."
    assert fields["input"] == "the model that came in."
    assert fields["verdict"].startswith('"proven" within the declared allowances')
    assert fields["verdict"].endswith('"not verified" when nobody asked.')  # all its lines
    assert set(fields) == {f.name for f in dataclasses.fields(graphopt.RunReport)}


@pytest.fixture(scope="module")
def generate() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_generate_schemas", ROOT / "docs" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_published_files_are_current(generate: ModuleType) -> None:
    problems = generate.differences(generate.schema_files(), ROOT / "docs" / "schemas", "*.json")
    assert not problems, f"{problems}; run: python docs/generate.py"


def test_stale_files_are_found(generate: ModuleType, tmp_path: Path) -> None:
    folder = tmp_path / "schemas"
    shutil.copytree(ROOT / "docs" / "schemas", folder)
    (folder / "run.json").write_text("{}\n")
    (folder / "gate.json").unlink()
    (folder / "other.json").write_text("{}\n")
    command = [sys.executable, ROOT / "docs" / "generate.py", "--check", "--schemas", folder]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    for words in ("run.json is stale", "gate.json is missing", "other.json belongs to no report"):
        assert words in done.stderr
