"""The JSON forms of reports, by name, and their JSON Schemas."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from graphopt.errors import UserError

# Name -> module, class, and the constant that names the form there.
_FORMS = {
    "run": ("graphopt.report.document", "RunReport", "SCHEMA"),
    "lint": ("graphopt.quantization.lint", "LintReport", "SCHEMA"),
    "validate": ("graphopt.report.validated", "ValidationReport", "SCHEMA"),
    "gate": ("graphopt.report.gated", "GateReport", "SCHEMA"),
    "bench": ("graphopt.report.timed", "BenchReport", "SCHEMA"),
    "bisect": ("graphopt.report.searched", "BisectReport", "BISECT_SCHEMA"),
    "reduce": ("graphopt.report.searched", "ReduceReport", "REDUCE_SCHEMA"),
    "sensitivity": ("graphopt.budget", "Exploration", ""),
    "sensitivity-layers": ("graphopt.budget", "Survey", ""),
    "distill": ("graphopt.report.distillation", "DistillReport", ""),
    "diff": ("graphopt.graph.diff", "ModelDiff", "SCHEMA"),
}
# Forms whose name is not written where their class is.
_NAMES = {
    "sensitivity": "graphopt.sensitivity/1",
    "sensitivity-layers": "graphopt.sensitivity.layers/1",
    "distill": "graphopt.distill/1",
}

NAMES = tuple(_FORMS)


def schema(name: str) -> dict[str, Any]:
    """The JSON Schema of a report: what `graphopt NAME --json` prints.

    Args:
        name: the verb; "sensitivity-layers" for the report of `graphopt sensitivity` about layers.

    Raises:
        UserError: there is no such report.
    """
    from graphopt.pipeline.options import suggestion
    from graphopt.report.schema import schema_of

    if name not in _FORMS:
        raise UserError(f"there is no schema {name!r}", fix=suggestion(name, NAMES, "schemas"))
    place, cls, constant = _FORMS[name]
    module = import_module(place)
    return schema_of(getattr(module, cls), getattr(module, constant) if constant else _NAMES[name])


def text(name: str) -> str:
    """The same as a file."""
    import json

    return json.dumps(schema(name), indent=2, ensure_ascii=False) + "\n"
