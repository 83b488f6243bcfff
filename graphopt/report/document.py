"""The report of one run, as plain data: filled by the pipeline and the validation, read by the renderers.

Everything here is a frozen dataclass of plain values, so the JSON form is the field names as they stand.
`SCHEMA` names that form: its number grows when a field is renamed, removed or changes its meaning; new
fields may appear under the same number.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from enum import Enum
from pathlib import PurePath
from typing import Any, Literal

from graphopt.budget import Exploration
from graphopt.report.measured import (
    AccuracyReport,
    FloatNode,
    LatencyReport,
    MetricRow,
    SparseTensor,
    SparsityReport,
    StageReport,
)

__all__ = [
    "SCHEMA",
    "AccuracyReport",
    "Culprit",
    "FileInfo",
    "FloatNode",
    "LatencyReport",
    "MetricRow",
    "ModelStats",
    "NumericsName",
    "OutputRow",
    "PassReport",
    "PortChange",
    "Refusal",
    "Rewrite",
    "RunReport",
    "SparseTensor",
    "SparsityReport",
    "StageReport",
    "Verdict",
    "to_json",
]

SCHEMA = "graphopt.run/1"

Verdict = Literal["proven", "unproven", "rolled back", "over budget", "failed", "not verified"]
NumericsName = Literal["EXACT", "CLOSE", "LOSSY"]


@dataclass(frozen=True)
class FileInfo:
    """A model file.

    Attributes:
        path: where it is, "" for a model that never was a file.
        bytes: size of the model together with its external data.
        data_files: external data files, as paths.
    """

    path: str = ""
    bytes: int = 0
    data_files: tuple[str, ...] = ()


@dataclass(frozen=True)
class ModelStats:
    """What a model consists of, nested bodies and local functions included.

    Attributes:
        nodes: all nodes.
        nodes_without_constants: nodes other than Constant.
        initializers: number of initializers.
        parameters: elements in floating-point initializers and Constant nodes.
        bytes: bytes of all initializers and of the values of Constant nodes.
        ops: op type (`domain::op` outside the standard domain) -> how many.
        opsets: domain ("" is ai.onnx) -> version.
        ir_version: the file format's version.
    """

    nodes: int = 0
    nodes_without_constants: int = 0
    initializers: int = 0
    parameters: int = 0
    bytes: int = 0
    ops: Mapping[str, int] = field(default_factory=dict)
    opsets: Mapping[str, int] = field(default_factory=dict)
    ir_version: int = 0


@dataclass(frozen=True)
class Refusal:
    """A rewrite that nearly happened.

    Attributes:
        node: name of the node that it was refused at, or of the first of several.
        reason: why, in words that make sense after "not rewritten: ".
        count: how many times this pass gave this reason.
    """

    node: str
    reason: str
    count: int = 1


@dataclass(frozen=True)
class Rewrite:
    """A rewrite of a pass.

    Attributes:
        node: name of the node that it was made at.
        why: the rewrite in words, with figures where the pass knows some.
    """

    node: str
    why: str


@dataclass(frozen=True)
class PassReport:
    """What one pass did, all its runs in a fixpoint group taken together.

    Attributes:
        name: the pass's name.
        options: options that differ from their defaults, as a pipeline string writes them.
        numerics: how far the pass declares that it may move the numbers.
        rewrites: sites rewritten and kept.
        refusals: near misses, grouped by reason.
        nodes_removed: nodes gone at the end of its sites.
        nodes_added: nodes made by its sites.
        seconds: wall time.
        rolled_back_sites: sites undone because the result was wrong with them.
        skipped: why the pass did not run at all, "" if it ran.
        changes: its rewrites one by one, if it is LOSSY.
        remark: what the pass says of its rewrites together, or "".
        sites: the first 200 of its rewrites, whatever it declares.
    """

    name: str
    options: Mapping[str, str] = field(default_factory=dict)
    numerics: NumericsName = "EXACT"
    rewrites: int = 0
    refusals: tuple[Refusal, ...] = ()
    nodes_removed: int = 0
    nodes_added: int = 0
    seconds: float = 0.0
    rolled_back_sites: int = 0
    skipped: str = ""
    changes: tuple[Rewrite, ...] = ()
    remark: str = ""
    sites: tuple[Rewrite, ...] = ()


@dataclass(frozen=True)
class OutputRow:
    """How far one output moved, over all probes and runtimes; the worst of each figure.

    Attributes:
        name: output name.
        dtype: element type, as ONNX spells it in lower case ("float", "int64").
        shape: shape as the model declares it, dims as text.
        numerics: the allowance that was held against it; TOLERANCE for limits of the user's.
        max_abs: largest absolute difference; None where differences make no sense (strings).
        max_rel: largest difference over the RMS of the reference.
        cosine: cosine similarity, for float outputs.
        sqnr_db: signal to quantization-noise ratio in dB; infinite for identical values.
        allowed: what max_abs was allowed to be.
        verdict: "ok", "failed", or "unproven".
        note: what else there is to know: where the difference comes from, which provider, ...
    """

    name: str
    dtype: str
    shape: tuple[str, ...] | None
    numerics: NumericsName | Literal["TOLERANCE"]
    max_abs: float | None = None
    max_rel: float | None = None
    cosine: float | None = None
    sqnr_db: float | None = None
    allowed: float | None = None
    verdict: Literal["ok", "failed", "unproven"] = "ok"
    note: str = ""


@dataclass(frozen=True)
class Culprit:
    """A pass, or one of its rewrite sites, that made the result wrong and was rolled back.

    Attributes:
        pass_name: the pass.
        site: the node its rewrite started from, "" when the whole pass was rolled back.
        why: what went wrong, with figures.
        reproducer: folder with the smallest model that shows it, "" if none was written.
        command: what to type, in that folder, to see it again.
        with_passes: the other passes without which it does not happen.
        trace: the traceback, if the pass raised.
        rewrite: what it did there, in words; "" where no single rewrite is meant.
        removed, added: operator types of the nodes that it took away and put there.
    """

    pass_name: str
    site: str
    why: str
    reproducer: str = ""
    command: str = ""
    with_passes: tuple[str, ...] = ()
    trace: str = ""
    rewrite: str = ""
    removed: tuple[str, ...] = ()
    added: tuple[str, ...] = ()


@dataclass(frozen=True)
class PortChange:
    """An input or output that a pass was asked to change.

    Attributes:
        kind: "input" or "output".
        name: its name.
        before, after: element type and dims.
        why: the change in words.
        pass_name: the pass.
    """

    kind: Literal["input", "output"]
    name: str
    before: str
    after: str
    why: str
    pass_name: str


@dataclass(frozen=True)
class RunReport:
    """Everything that one run has to say.

    Attributes:
        input: the model that came in.
        output: the model that was written, None if none was.
        target: name of the target profile.
        pipeline: pipeline string that reproduces the run.
        verdict: "proven" within the declared allowances; "unproven" where no runtime here can tell;
            "rolled back" when some rewrites were wrong, and what is left is proven; "over budget" when
            nothing is wrong with it but it moves the numbers further than allowed; "failed" when nothing
            could be written; "not verified" when nobody asked.
        verdict_reason: one sentence for people.
        passes: what each pass did, in order of their first run.
        before: statistics of the input.
        after: statistics of the result.
        outputs: how far each output moved.
        probes: the inputs it was proven on, one description each.
        runtimes: the runtimes it was compared under.
        culprits: what was rolled back.
        warnings: what else people should know.
        seconds: wall time by stage.
        versions: graphopt, onnx, onnxruntime, ... -> version.
        accuracy: for results that move the numbers, how far.
        latency: for such results, what they gain; None where it was not measured.
        sparsity: of results with many zeros, how many; None for others.
        left_float: what could have been quantized and was not.
        interface: how inputs and outputs were changed, in order; empty when they are as they were.
        exploration: what the search for a mixture of precisions measured; None where there was none.
        recipe: name of the recipe that was run, "" for none.
        stages: what its stages came to.
    """

    input: FileInfo
    output: FileInfo | None
    target: str
    pipeline: str
    verdict: Verdict
    verdict_reason: str = ""
    passes: tuple[PassReport, ...] = ()
    before: ModelStats = field(default_factory=ModelStats)
    after: ModelStats = field(default_factory=ModelStats)
    outputs: tuple[OutputRow, ...] = ()
    probes: tuple[str, ...] = ()
    runtimes: tuple[str, ...] = ()
    culprits: tuple[Culprit, ...] = ()
    warnings: tuple[str, ...] = ()
    seconds: Mapping[str, float] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    accuracy: AccuracyReport | None = None
    latency: LatencyReport | None = None
    sparsity: SparsityReport | None = None
    left_float: tuple[FloatNode, ...] = ()
    exploration: Exploration | None = None
    interface: tuple[PortChange, ...] = ()
    recipe: str = ""
    stages: tuple[StageReport, ...] = ()

    @property
    def writable(self) -> bool:
        """The result may be written: nothing in it is known to be wrong."""
        return self.verdict != "failed"

    def exit_code(self, *, strict: bool = False) -> int:
        """The process exit code; `strict` turns everything that is not proven into a failure.

        What was rolled back counts also where no runtime can tell whether the rest is right.
        """
        if self.verdict in ("failed", "over budget") or (
            strict and self.verdict in ("unproven", "not verified")
        ):
            return 1
        return 3 if self.verdict == "rolled back" or self.culprits else 0

    def to_json(self, *, indent: int | None = 2) -> str:
        """This report as JSON, with its schema version first."""
        return to_json(self, SCHEMA, indent=indent)


def to_json(value: Any, schema: str, *, indent: int | None = 2) -> str:
    """A dataclass as strict JSON. Floats that JSON cannot say become "NaN", "Infinity", "-Infinity".

    Args:
        value: an instance of a dataclass of plain values.
        schema: name and number of the form, written first as `schema`.
        indent: as for `json.dumps`.
    """
    return json.dumps({"schema": schema} | plain(value), indent=indent, ensure_ascii=False, allow_nan=False)


def plain(value: Any) -> Any:
    """`value` with dataclasses, tuples, enums and paths turned into what JSON has.

    Raises:
        TypeError: for a value that is none of these (an array, say).
    """
    if value is None or (isinstance(value, str | bool | int) and not isinstance(value, Enum)):
        return value
    if isinstance(value, float):
        if math.isfinite(value):
            return value
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, Enum):
        return value.name
    if isinstance(value, PurePath):
        return str(value)
    raise TypeError(f"a report holds plain values only, not {type(value).__name__}")
