"""graphopt rewrites ONNX models to be smaller and faster, and proves that they still compute the same.

    import graphopt

    result = graphopt.run("model.onnx")
    print(result.report.verdict)
    result.save("model.opt.onnx")

The names below are loaded on first use: `import graphopt` alone costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOME = {
    "Budget": "graphopt.budget",
    "GraphOptError": "graphopt.errors",
    "Model": "graphopt.model",
    "PassError": "graphopt.errors",
    "Result": "graphopt.api",
    "RunReport": "graphopt.report.document",
    "UserError": "graphopt.errors",
    "ValidationReport": "graphopt.report.validated",
    "bisect": "graphopt.bisecting",
    "bench": "graphopt.benching",
    "distill": "graphopt.distilling",
    "explore": "graphopt.exploring",
    "extract": "graphopt.extracting",
    "gate": "graphopt.gating.running",
    "html": "graphopt.pages",
    "load": "graphopt.api",
    "merge": "graphopt.merging",
    "reduce": "graphopt.reducing.search",
    "run": "graphopt.api",
    "survey": "graphopt.surveying",
    "validate": "graphopt.validating",
}

__all__ = [
    "Budget",
    "GraphOptError",
    "Model",
    "PassError",
    "Result",
    "RunReport",
    "UserError",
    "ValidationReport",
    "__version__",
    "bench",
    "bisect",
    "distill",
    "explore",
    "extract",
    "gate",
    "html",
    "load",
    "merge",
    "reduce",
    "run",
    "survey",
    "validate",
]

if TYPE_CHECKING:
    from graphopt.api import Result, load, run
    from graphopt.benching import bench
    from graphopt.bisecting import bisect
    from graphopt.budget import Budget
    from graphopt.distilling import distill
    from graphopt.errors import GraphOptError, PassError, UserError
    from graphopt.exploring import explore
    from graphopt.extracting import extract
    from graphopt.gating.running import gate
    from graphopt.merging import merge
    from graphopt.model import Model
    from graphopt.pages import html
    from graphopt.reducing.search import reduce
    from graphopt.report.document import RunReport
    from graphopt.report.validated import ValidationReport
    from graphopt.surveying import survey
    from graphopt.validating import validate


def __getattr__(name: str) -> Any:
    if name in _HOME:
        value = globals()[name] = getattr(import_module(_HOME[name]), name)
        return value
    raise AttributeError(f"module 'graphopt' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
