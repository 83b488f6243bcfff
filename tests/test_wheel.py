"""The built wheel: what is in it, and that it works in a fresh environment outside the checkout."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import venv
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[1]


def run(*command: object, cwd: Path, code: int = 0) -> subprocess.CompletedProcess[str]:
    env = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run(
        [str(c) for c in command], cwd=cwd, env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == code, f"{done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built by way of the source distribution, so that this is complete as well."""
    out = tmp_path_factory.mktemp("dist")
    source = tmp_path_factory.mktemp("source") / "graphopt"
    ignore = shutil.ignore_patterns(
        ".git", ".venv*", "build", "dist", "*.egg-info", "__pycache__", ".*_cache"
    )
    shutil.copytree(ROOT, source, ignore=ignore)
    run(sys.executable, "-m", "build", "--outdir", out, source, cwd=out)
    assert len(list(out.glob("*.tar.gz"))) == 1
    (built,) = out.glob("*.whl")
    return built


def install(folder: Path, *what: str) -> Path:
    """A new environment with `what` in it; returns its scripts' folder."""
    venv.create(folder, with_pip=True)
    scripts = folder / ("Scripts" if os.name == "nt" else "bin")
    run(scripts / "python", "-m", "pip", "install", "-q", *what, cwd=folder)
    return scripts


def test_contents(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        (meta,) = [name for name in names if name.endswith(".dist-info/METADATA")]
        metadata = Parser().parsestr(archive.read(meta).decode())
        entry_points = archive.read(meta.replace("METADATA", "entry_points.txt")).decode()
    sources = {
        file.relative_to(top).as_posix()
        for top, package in ((ROOT, "graphopt"), (ROOT / "passes", "graphopt_passes"))
        for file in (top / package).rglob("*.py")
    }
    assert {name for name in names if name.endswith(".py")} == sources
    assert {"graphopt/py.typed", "graphopt_passes/py.typed"} <= names
    pages = ROOT / "graphopt" / "report" / "html"
    parts = {
        f"graphopt/report/html/{file.relative_to(pages).as_posix()}"
        for folder in ("templates", "assets")
        for file in (pages / folder).iterdir()
    }
    assert len(parts) > 20
    assert parts <= names
    assert {name.partition("/")[0] for name in names if ".dist-info/" not in name} == {
        "graphopt",
        "graphopt_passes",
    }
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Requires-Python"] == ">=3.11"
    assert {"cpu", "gpu", "test", "lint", "docs", "dev"} <= set(metadata.get_all("Provides-Extra", []))
    # One of onnxruntime and onnxruntime-gpu, never both, and neither unasked.
    unconditional = [r for r in metadata.get_all("Requires-Dist", []) if "extra ==" not in r]
    assert not any(r.startswith("onnxruntime") for r in unconditional)
    assert "graphopt = graphopt.cli.main:main" in entry_points
    assert "[graphopt.passes]" in entry_points
    assert "[graphopt.presets]" in entry_points


def test_the_installed_wheel_does_the_main_job(wheel: Path, tmp_path: Path) -> None:
    scripts = install(tmp_path / "env", f"{wheel}[cpu]")
    work = tmp_path / "work"
    work.mkdir()
    shutil.copy(ROOT / "models" / "digits_cnn.onnx", work / "model.onnx")
    version = run(scripts / "graphopt", "--version", cwd=work).stdout
    assert run(scripts / "python", "-m", "graphopt", "--version", cwd=work).stdout == version
    assert "fold-conv-bn" in run(scripts / "graphopt", "passes", "--names", cwd=work).stdout
    done = run(scripts / "graphopt", "run", "model.onnx", "--passes", "--html", "report.html", cwd=work)
    assert done.stdout.startswith("PROVEN")
    assert "model.opt.onnx" in done.stdout
    assert sorted(file.name for file in work.iterdir()) == ["model.onnx", "model.opt.onnx", "report.html"]
    assert "</html>" in (work / "report.html").read_text(encoding="utf-8")
    run(scripts / "graphopt", "validate", "model.onnx", "model.opt.onnx", cwd=work)


def test_without_a_runtime_it_says_which_to_install(wheel: Path, tmp_path: Path) -> None:
    scripts = install(tmp_path / "env", str(wheel))
    shutil.copy(ROOT / "models" / "digits_cnn.onnx", tmp_path / "model.onnx")
    done = run(scripts / "graphopt", "run", "model.onnx", "--passes", cwd=tmp_path, code=2)
    assert "graphopt[cpu]" in done.stderr
    assert "graphopt[gpu]" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "model.opt.onnx").exists()
    done = run(scripts / "graphopt", "inspect", "model.onnx", cwd=tmp_path)
    assert "BatchNormalization" in done.stdout
