"""CONTRIBUTING.md, followed to the letter, makes a package outside this repository that works.

Its files are written as shown, the package is installed into a fresh environment, and its commands run in
a shell. Only the download of what is installed here already is left out.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import site
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
PASSES = ["fuse-add-neg", "pow-to-mul"]


@pytest.fixture(scope="module")
def support() -> Any:
    """The helpers in conftest.py, for fixtures of a wider scope than its own."""
    spec = importlib.util.spec_from_file_location("docs_conftest", Path(__file__).with_name("conftest.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def package(support: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A shell inside the package, which is written and installed as CONTRIBUTING.md says."""
    base = tmp_path_factory.mktemp("contributing")
    (base / "graphopt").symlink_to(ROOT, target_is_directory=True)
    folder = base / "graphopt-extras"
    blocks = support.read_blocks(ROOT / "CONTRIBUTING.md")
    for block in blocks:
        if block.title:
            file = folder / block.title
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(block.text)
    shell = support.Shell(folder, fresh_environment(base / "venv", support))
    for block in blocks:
        if block.mark == "outside package: install":
            for command in block.commands:
                shell(command)
    return shell


def fresh_environment(folder: Path, support: Any) -> dict[str, str]:
    """A virtual environment that sees the packages of this one, and nothing else."""
    venv.create(folder, with_pip=False, symlinks=True)
    python = folder / "bin" / "python"
    paths = {"base": str(folder), "platbase": str(folder)}
    own = Path(sysconfig.get_path("purelib", "venv", paths))
    seen = [p for p in (sysconfig.get_path("purelib"), *site.getsitepackages()) if Path(p).is_dir()]
    lines = [f"import site; site.addsitedir({p!r})" for p in dict.fromkeys(seen)]
    (own / "parent.pth").write_text("\n".join(lines) + "\n")
    support.write_command(folder / "bin" / "graphopt", [str(python), "-m", "graphopt"])
    options = ["--quiet", "--disable-pip-version-check"]
    support.write_command(
        folder / "bin" / "pip", [sys.executable, "-m", "pip", "--python", str(python), *options]
    )
    env: dict[str, str] = support.environment(folder / "bin") | {"PIP_NO_DEPS": "1"}
    if can_build_wheels():
        env["PIP_NO_BUILD_ISOLATION"] = "0"  # pip reads this as "no isolation": nothing is downloaded
    return env


def can_build_wheels() -> bool:
    """Whether setuptools is here and has all that it needs to build a wheel (from 70.1 on, or with wheel)."""
    try:
        major, minor = map(int, importlib.metadata.version("setuptools").split(".")[:2])
    except importlib.metadata.PackageNotFoundError:
        return False
    return (major, minor) >= (70, 1) or importlib.util.find_spec("wheel") is not None


def test_layout_is_the_one_shown(package: Any) -> None:
    shown = (ROOT / "CONTRIBUTING.md").read_text().partition("\n```\ngraphopt/ ")[2].partition("```")[0]
    files = {f.name for f in package.folder.rglob("*") if f.suffix in (".py", ".toml")}
    assert files == {line.split()[-1] for line in shown.splitlines() if line.endswith((".py", ".toml"))}


def test_commands(package: Any, support: Any) -> None:
    """Every command exits with 0; the runs say PROVEN and that the pass did something."""
    (block,) = (b for b in support.read_blocks(ROOT / "CONTRIBUTING.md") if b.mark == "outside package: run")
    assert len(block.commands) >= 5
    for command in block.commands:
        printed = package(command).stdout
        if "pytest" in command:
            assert " passed" in printed
            assert "failed" not in printed
        if command.startswith("graphopt run"):
            assert printed.startswith("PROVEN")
            assert "pow-to-mul" in printed


def test_passes_are_listed_as_those_of_the_package(package: Any) -> None:
    listed = json.loads(package("graphopt passes --json").stdout)
    found = {p["name"]: p for p in listed["passes"] if p["source"].startswith("graphopt-extras")}
    assert sorted(found) == PASSES
    assert found["fuse-add-neg"]["numerics"] == "EXACT"
    (option,) = found["pow-to-mul"]["options"]
    assert (option["name"], option["default"]) == ("cubes", "false")
    assert option["help"]
    assert not listed["broken"]
    assert [p["name"] for p in listed["presets"] if p["source"].startswith("graphopt-extras")] == ["extras"]


def test_its_tests_can_fail(package: Any) -> None:
    """A pass that forgets to look at the operand order of Sub is caught by the tests as shown."""
    file = package.folder / "graphopt_extras" / "fuse_add_neg.py"
    right = file.read_text()
    try:
        file.write_text(right.replace('[m["x"], m["y"]]', '[m["y"], m["x"]]'))
        assert file.read_text() != right
        package("python -m pytest -q tests/test_fuse_add_neg.py", code=1)
    finally:
        file.write_text(right)


@pytest.mark.slow  # not for its time: the linters are there only where the slow tests run
def test_shown_code_is_clean(package: Any) -> None:
    for command in ("check --select E,F,I,UP,B", "format --check"):
        done = subprocess.run(
            [sys.executable, "-m", "ruff", *command.split(), "--isolated", "--line-length", "110",
             "--target-version", "py311", "graphopt_extras"],
            cwd=package.folder, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout


def test_repository_commands_exist() -> None:
    """Files that the section about this repository names are there."""
    for name in (
        "docs/generate.py",
        ".ci/run",
        "tests/test_layering.py",
        "passes/graphopt_passes/presets.py",
    ):
        assert (ROOT / name).exists(), name


def test_file_pass_without_a_package(shell: Any, blocks: Callable[[str], list[Any]]) -> None:
    (block,) = (b for b in blocks("CONTRIBUTING.md") if b.title == "graphopt_extras/pow_to_mul.py")
    (shell.folder / "my_pass.py").write_text(block.text)
    model = ROOT / "models" / "digits_transformer.onnx"
    printed = shell(f"graphopt run {model} --passes ./my_pass.py:PowToMul -o out.onnx").stdout
    assert printed.startswith("PROVEN")
