"""Imports run one way. Read from the ASTs: also what a function or a TYPE_CHECKING block imports counts."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

GRAPH = {"errors", "budget", "collector", "interface", "ir", "io", "model", "graph", "report.document"}
PIPELINE = {*GRAPH, "pattern", "pipeline"}
# Room -> the rooms that it may import from, besides itself. The longest matching room counts.
ALLOWED: dict[str, set[str]] = {
    "errors": set(),
    "budget": set(),
    "collector": set(),
    "memory": {"errors"},
    "interface": {"errors"},
    "ir": {"errors"},
    "io": {"errors", "ir", "collector"},
    "model": {"errors", "interface", "ir", "io"},
    "report.measured": {"errors", "budget"},
    "report.validated": {"errors", "budget", "report.measured", "report.document"},
    "report.document": {"errors", "budget", "report.measured"},
    "report": {"errors", "budget"},
    "graph": GRAPH,
    "pattern": GRAPH,
    "pipeline.targets": {"errors"},
    "pipeline.spec": {"errors"},
    "pipeline.services": GRAPH,
    "pipeline.search": {"budget"},
    "pipeline.toml_lines": set(),
    "pipeline.teacher": GRAPH,
    "pipeline.base": {*GRAPH, "pattern", "pipeline.targets", "pipeline.services", "pipeline.teacher"},
    "pipeline": PIPELINE,
    "passkit": PIPELINE,
    "quantization": GRAPH,
    "calibration": {*GRAPH, "quantization"},
    "calibration.data": {*GRAPH, "runtime"},
    **{
        f"calibration.{name}": {*PIPELINE, "quantization", "runtime", "validation", "calibration"}
        for name in ("collect", "outputs", "taps", "score", "service", "ranges")
    },
    "quantkit": {*PIPELINE, "quantization", "calibration"},
    "runtime": {*GRAPH, "quantization"},
    "validation": {*GRAPH, "runtime", "calibration", "report.validated"},
    "judging": {*PIPELINE, "runtime", "validation", "calibration"},
    "summary": {*PIPELINE, "validation", "report"},
    "lossy": {*PIPELINE, "runtime", "validation", "report", "calibration", "quantization"},
    "staging": {*PIPELINE, "lossy", "report", "calibration"},
    "checking": {*PIPELINE, "judging"},
    "reproducing": {*PIPELINE, "checking", "judging", "summary"},
    "bisecting": {*PIPELINE, "api", "checking", "report", "summary"},
    "reducing": {
        *PIPELINE,
        "calibration",
        "checking",
        "extracting",
        "report",
        "runtime",
        "summary",
        "validation",
    },
    "api": {
        *PIPELINE,
        "checking",
        "reproducing",
        "staging",
        "judging",
        "lossy",
        "memory",
        "summary",
        "runtime",
        "validation",
        "report",
        "calibration",
        "quantization",
    },
    "benching": {*PIPELINE, "runtime", "calibration", "report", "summary"},
    "gating.policy": set(),
    "gating": {
        *PIPELINE,
        "benching",
        "validating",
        "summary",
        "runtime",
        "validation",
        "report",
        "calibration",
        "quantization",
    },
    "distillation": PIPELINE,
    "distilling": {*PIPELINE, "api", "lossy", "distillation", "report", "calibration"},
    "exploring": {*PIPELINE, "api", "lossy"},
    "extracting": {*PIPELINE, "validation"},
    "merging": {*PIPELINE, "extracting", "lossy", "validation"},
    "surveying": {*PIPELINE, "api", "lossy", "calibration"},
    "validating": {
        *PIPELINE,
        "api",
        "lossy",
        "summary",
        "runtime",
        "validation",
        "report",
        "calibration",
    },
    "viewing": {*GRAPH, "report"},
    "pages": {*GRAPH, "summary", "report", "viewing", "evidence", "calibration"},
    "schemas": {*GRAPH, "pipeline.options", "report"},
    "evidence": {*PIPELINE, "report", "calibration", "quantization", "runtime", "validation"},
    "testing": {*PIPELINE, "lossy", "runtime", "validation", "calibration", "quantization"},
    "cli": {
        *PIPELINE,
        "runtime",
        "validation",
        "report",
        "summary",
        "api",
        "bisecting",
        "benching",
        "exploring",
        "extracting",
        "gating",
        "merging",
        "reducing",
        "distillation",
        "surveying",
        "distilling",
        "validating",
        "viewing",
        "pages",
        "evidence",
        "schemas",
        "calibration",
        "quantization",
    },
    "__main__": {"cli"},
    "": {
        "errors",
        "budget",
        "model",
        "api",
        "bisecting",
        "benching",
        "distilling",
        "exploring",
        "extracting",
        "gating",
        "merging",
        "reducing",
        "pages",
        "report.document",
        "report.validated",
        "validation",
        "surveying",
        "validating",
    },
}


def modules(package: Path) -> Iterator[tuple[str, Path]]:
    for file in sorted(package.rglob("*.py")):
        name = file.relative_to(package).with_suffix("").as_posix().replace("/", ".")
        yield name.removesuffix("__init__").removesuffix("."), file


def imports(file: Path) -> Iterator[tuple[str, int, bool]]:
    """(module, line, at module level) of every import; for `from a import b`, `a.b` if that is a module."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    inside = {id(n) for f in ast.walk(tree) if isinstance(f, ast.FunctionDef) for n in ast.walk(f)}
    inside |= {
        id(n)
        for i in ast.walk(tree)
        if isinstance(i, ast.If) and "TYPE_CHECKING" in ast.dump(i.test)
        for n in ast.walk(i)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno, id(node) not in inside
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}:{node.lineno}: relative import"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield (inner if is_module(inner) else str(node.module)), node.lineno, id(node) not in inside


def is_module(name: str) -> bool:
    place = ROOT.joinpath(*name.split("."))
    return place.with_suffix(".py").exists() or (place / "__init__.py").exists()


def room_of(module: str, rooms: dict[str, set[str]]) -> str:
    """The longest room that `module` (without the package's name) lies in."""
    parts = module.split(".") if module else []
    for n in range(len(parts), 0, -1):
        if ".".join(parts[:n]) in rooms:
            return ".".join(parts[:n])
    return ""


def covers(allowed: set[str], module: str) -> bool:
    return any(module == room or module.startswith(f"{room}.") for room in allowed)


def violations(name: str, file: Path) -> Iterator[str]:
    room = room_of(name, ALLOWED)
    if not room and name:
        yield f"{file}: no room is declared for graphopt.{name}"
        return
    for module, line, _ in imports(file):
        if module.partition(".")[0] == "graphopt_passes":
            yield f"{file}:{line}: the engine imports the pass library"
        if module.partition(".")[0] != "graphopt" or module == "graphopt":
            continue
        target = module.removeprefix("graphopt.")
        if not covers({*ALLOWED[room], room} - {""}, target):
            yield f"{file}:{line}: {room or 'graphopt'} may not import graphopt.{target}"


def test_engine_imports_run_one_way() -> None:
    found = [v for name, file in modules(ROOT / "graphopt") for v in violations(name, file)]
    assert not found, "\n".join(found)


def test_a_wrong_import_is_seen(tmp_path: Path) -> None:
    file = tmp_path / "x.py"
    file.write_text(
        "def f():\n    from graphopt.cli import main\n    from graphopt.pipeline import manager\n"
    )
    found = list(violations("graph.x", file))
    assert len(found) == 2
    assert "graph may not import graphopt.cli.main" in found[0]
    assert not list(violations("cli.x", file))


def test_only_the_runtime_imports_onnxruntime_and_only_when_called() -> None:
    found = []
    for package in (ROOT / "graphopt", ROOT / "passes" / "graphopt_passes"):
        for name, file in modules(package):
            for module, line, at_top in imports(file):
                is_room = package.name == "graphopt" and name.startswith("runtime")
                if module.partition(".")[0] == "onnxruntime" and (at_top or not is_room):
                    found.append(f"{file}:{line}")
    assert not found, "\n".join(found)


def test_passes_import_public_names_only() -> None:
    found = []
    for name, file in modules(ROOT / "passes" / "graphopt_passes"):
        for module, line, _ in imports(file):
            if module.partition(".")[0] == "graphopt" and module not in (
                "graphopt",
                "graphopt.passkit",
                "graphopt.quantkit",
            ):
                found.append(f"{name} ({file}:{line}) imports {module}")
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    "code",
    ["import graphopt", "from graphopt.cli.main import build_parser; build_parser().format_help()"],
)
def test_importing_and_helping_load_nothing_heavy(code: str) -> None:
    heavy = "numpy onnx onnxruntime onnx_graphsurgeon networkx rich jinja2 pydantic".split()
    code += f"\nimport sys; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "[]"
