"""The examples for CI servers have the form that those publish, and their commands are ours."""

from __future__ import annotations

import os
import re
import shlex
import shutil
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
            for line in script.replace("\\\n", " ").splitlines():
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


def test_the_workflow_does_what_it_says(tmp_path: Path) -> None:
    """Its steps on a repository: a pull request that changes a model, and one that adds it."""
    steps = {
        s["name"]: s["run"]
        for s in yaml.safe_load((CI / "github-actions.yml").read_text())["jobs"]["gate"]["steps"]
        if "run" in s
    }
    programs = tmp_path / "bin"
    programs.mkdir()
    # In place of git-lfs, which need not be here: files that it does not keep go through as they are.
    (programs / "git-lfs").write_text("#!/bin/sh\ncat\n")
    (programs / "graphopt").write_text(f'#!/bin/sh\nexec {sys.executable} -m graphopt "$@"\n')
    for file in programs.iterdir():
        file.chmod(0o755)
    repository = tmp_path / "repository"
    (repository / "models").mkdir(parents=True)
    env = {
        **os.environ,
        "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
        "MODEL": "models/digits_cnn.onnx",
        "POLICY": "models/gate.toml",
        "BASE": "main",
        "GITHUB_STEP_SUMMARY": str(tmp_path / "summary.md"),
    }

    def shell(script: str) -> int:
        return subprocess.run(
            ["bash", "-e", "-c", script], cwd=repository, env=env, capture_output=True, check=False
        ).returncode

    (repository / "models/gate.toml").write_text("[file]\nmax_mb = 1\n")
    git = "git -c user.name=x -c user.email=x@y.z"
    assert (
        shell(
            f"git init -q -b main && git add -A && {git} commit -qm a && git update-ref refs/remotes/origin/main HEAD"
        )
        == 0
    )
    shutil.copy(ROOT / "models/digits_cnn.onnx", repository / "models")
    assert shell(steps["Get the model of the target branch"]) == 0
    assert not (repository / "old.onnx").exists()
    assert shell(steps["Gate"]) == 0
    assert shell(steps["Summary"]) == 0
    assert (tmp_path / "summary.md").read_text().startswith("## ✅ Gate passed")
    assert shell(f"git add -A && {git} commit -qm b && git update-ref refs/remotes/origin/main HEAD") == 0
    shutil.copy(ROOT / "models/digits_lstm.onnx", repository / "models/digits_cnn.onnx")
    (repository / "models/gate.toml").write_text("[file]\nmax_mb = 0.01\n")
    assert shell(steps["Get the model of the target branch"]) == 0
    assert (repository / "old.onnx").read_bytes() == (ROOT / "models/digits_cnn.onnx").read_bytes()
    assert shell(steps["Gate"]) == 1
    assert "What changed" in (repository / "gate.md").read_text()
    for name in ("gate.xml", "gate.md", "gate.html"):
        assert (repository / name).stat().st_size
