"""The examples for CI servers have the form that those publish, and their commands are ours."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from pre_commit import clientlib

from graphopt.cli.main import build_parser

ROOT = Path(__file__).parents[2]
CI = ROOT / "docs/ci"
HOOKS = ROOT / ".pre-commit-hooks.yaml"


@pytest.mark.parametrize(
    ("file", "schema"),
    [("github-actions.yml", "vendor.github-workflows"), ("gitlab-ci.yml", "vendor.gitlab-ci")],
)
def test_examples_keep_to_the_published_schemas(file: str, schema: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", schema]
    if "gitlab" in schema:
        command += ["--data-transform", "gitlab-ci"]
    done = subprocess.run([*command, str(CI / file)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    wrong = tmp_path / file  # the schema would notice
    wrong.write_text(
        re.sub(r"^( +)(timeout-minutes|stage):", r"\1no-\2:", (CI / file).read_text(), count=1, flags=re.M)
    )
    assert subprocess.run([*command, str(wrong)], capture_output=True, check=False).returncode == 1


def test_the_hook_and_its_use_are_what_pre_commit_takes() -> None:
    (hook,) = clientlib.load_manifest(str(HOOKS))
    config = clientlib.load_config(str(CI / "pre-commit-config.yaml"))
    (used,) = config["repos"][0]["hooks"]
    assert used["id"] == hook["id"]
    assert not hook["pass_filenames"]
    extra = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]["cpu"]
    assert hook["additional_dependencies"] == extra
    pattern = re.compile(used["files"])
    for file in (used["args"][0], used["args"][2]):
        assert pattern.search(file)


def commands() -> Iterator[tuple[str, list[str]]]:
    """(file, words) of every graphopt command in the examples."""
    for file in sorted(CI.glob("*.yml")):
        for script in scripts(yaml.safe_load(file.read_text())):
            for line in script.splitlines():
                words = shlex.split(line.strip())
                if words[:1] == ["graphopt"]:
                    yield file.name, words[1:]
    (hook,) = yaml.safe_load(HOOKS.read_text())
    config = yaml.safe_load((CI / "pre-commit-config.yaml").read_text())
    yield "pre-commit-config.yaml", [*hook["entry"].split()[1:], *config["repos"][0]["hooks"][0]["args"]]


def scripts(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for key, inner in value.items():
            if key in ("run", "script"):
                yield from [inner] if isinstance(inner, str) else inner
            else:
                yield from scripts(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from scripts(inner)


def test_their_commands_are_ours() -> None:
    found = list(commands())
    assert {file for file, _ in found} == {"github-actions.yml", "gitlab-ci.yml", "pre-commit-config.yaml"}
    for _, words in found:
        args = build_parser().parse_args(words)
        assert args.verb == "gate"
        assert args.model
        assert args.policy


def test_scripts_are_shell() -> None:
    for file in CI.glob("*.yml"):
        for script in scripts(yaml.safe_load(file.read_text())):
            plain = re.sub(r"\$\{\{.*?\}\}", "x", script)
            subprocess.run(["bash", "-n"], input=plain, text=True, check=True)


def test_what_the_examples_name_is_there() -> None:
    for _, words in commands():
        policy = words[words.index("--policy") + 1]
        if not policy.startswith("$"):
            assert (ROOT / policy).is_file()
    for file in CI.glob("*.yml"):
        assert "POLICY: models/gate.toml" in file.read_text()
