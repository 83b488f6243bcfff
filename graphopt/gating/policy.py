"""What a policy may ask for: the tables and keys of `gate.toml`, as pydantic models.

The descriptions are the reference: the documentation's tables and the starter policies are made from them.
Sizes are in MB of 10^6 bytes, times in milliseconds.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=0)]
Version = Annotated[int, Field(ge=1)]
Undecided = Literal["fail", "pass"]
Confidence = Annotated[float, Field(gt=0, lt=1)]


class Table(BaseModel):
    """A table of the policy: unknown keys and values of the wrong type are errors.

    Attributes:
        settings: keys that say how something is measured, and ask for nothing by themselves.
        neutral: values that ask for nothing, by key, where that is not `false`.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)
    settings: ClassVar[frozenset[str]] = frozenset()
    neutral: ClassVar[frozenset[str]] = frozenset()

    def limits(self) -> Iterator[str]:
        """The keys that ask for something."""
        for key in type(self).model_fields:
            value = getattr(self, key)
            if key in self.settings or value is None:
                continue
            empty = isinstance(value, list | dict) and not value
            if empty and type(self).model_fields[key].default is not None:
                continue  # whereas an empty list of inputs, of which None is the default, asks for none
            if isinstance(value, bool) and value is (key in self.neutral):
                continue
            if isinstance(value, Table) and not any(value.limits()):
                continue
            if isinstance(value, dict) and not any(_asks(v) for v in value.values()):
                continue
            yield key


def _asks(value: object) -> bool:
    """Whether an entry of a table by name asks for something."""
    return any(value.limits()) if isinstance(value, Table) else True


class ModelLimits(Table):
    """`[model]`: whether the model is one, and whether it works."""

    valid: bool | None = Field(default=None, description="true: ONNX's checker finds nothing wrong with it")
    shapes: bool | None = Field(
        default=None, description="true: strict shape inference finds no contradiction"
    )
    runs: bool | None = Field(default=None, description="true: it loads and runs on each of `providers`")
    max_nodes: Count | None = Field(
        default=None, description="most nodes, those of bodies and functions included"
    )


class FileLimits(Table):
    """`[file]`: what the model takes on disk, external data included."""

    max_mb: Positive | None = Field(default=None, description="most megabytes")
    max_ratio: Positive | None = Field(default=None, description="most bytes, in units of the reference's")


class ExternalDataLimits(Table):
    """`[external_data]`: weights in files beside the model."""

    neutral: ClassVar[frozenset[str]] = frozenset({"allowed"})

    inside_folder: bool | None = Field(
        default=None,
        description="true: all of it lies in the model's folder, behind no link, and offsets and lengths "
        "are within the files and do not overlap",
    )
    allowed: bool | None = Field(default=None, description="false: all weights are in the model itself")
    checksums: bool | None = Field(
        default=None, description="true: where the model states a file's SHA-1 (`checksum`), the file has it"
    )
    sha256: dict[str, Annotated[str, Field(pattern="^[0-9a-fA-F]{64}$")]] = Field(
        default_factory=dict, description="SHA-256 by file name, relative to the model's folder"
    )


class WeightLimits(Table):
    """`[weights]`: the values of initializers and Constant nodes."""

    settings: ClassVar[frozenset[str]] = frozenset({"finite_except"})

    finite: bool | None = Field(default=None, description="true: no NaN and no infinity in any of them")
    finite_except: list[str] = Field(
        default_factory=list, description="globs: tensors that may hold them, as masks of attention do"
    )


class VersionLimits(Table):
    """A range of versions."""

    min: Version | None = Field(default=None, description="least version")
    max: Version | None = Field(default=None, description="greatest version")
    exact: Version | None = Field(default=None, description="this version")


class OpsetLimits(VersionLimits):
    """`[opset]`: versions of the operator sets; the keys themselves are about `ai.onnx`."""

    domains: dict[str, VersionLimits] = Field(
        default_factory=dict,
        description='limits by domain, where the model imports it: `[opset.domains."com.microsoft"]`',
    )


class OpLimits(Table):
    """`[ops]`: operators by name, `domain::Op` outside `ai.onnx`; in bodies and functions too."""

    neutral: ClassVar[frozenset[str]] = frozenset({"random"})

    allowed: list[str] | None = Field(default=None, description="globs: every operator matches one of them")
    banned: list[str] = Field(default_factory=list, description="globs: no operator matches any of them")
    random: bool | None = Field(default=None, description="false: nothing random reaches an output")


class DomainLimits(Table):
    """`[domains]`: domains of the operators; `ai.onnx` is the standard one."""

    allowed: list[str] | None = Field(default=None, description="globs: every domain matches one of them")
    banned: list[str] = Field(default_factory=list, description="globs: no domain matches any of them")
    known: bool | None = Field(
        default=None,
        description="true: ONNX, onnxruntime or a local function of the model defines every operator",
    )


class PortLimits(Table):
    """One input or output."""

    name: str = Field(description="its name")
    dtype: str | None = Field(default=None, description="element type: `float`, `int64`, ...")
    dims: list[int | str] | None = Field(
        default=None, description='dims: numbers, names of open dims, "?" for anything'
    )


class InterfaceLimits(Table):
    """`[interface]`: what callers rely on."""

    inputs: list[PortLimits] | None = Field(default=None, description="all inputs, in their order")
    outputs: list[PortLimits] | None = Field(default=None, description="all outputs, in their order")
    same_as_reference: bool | None = Field(
        default=None, description="true: names, order, types and dims are the reference's"
    )


class Figures(Table):
    """How close outputs are to the reference's."""

    min_sqnr_db: float | None = Field(
        default=None, description="least signal-to-noise ratio, in dB; float outputs"
    )
    min_cosine: Annotated[float, Field(ge=-1, le=1)] | None = Field(
        default=None, description="least cosine similarity; float outputs"
    )
    max_abs: NotNegative | None = Field(default=None, description="largest absolute difference")
    max_rel: NotNegative | None = Field(
        default=None,
        description="largest difference over the reference's value, or over a thousandth of the RMS where "
        "that is more; float outputs",
    )
    min_equal: Share | None = Field(default=None, description="least share of values that are equal")


class NumericsLimits(Figures):
    """`[numerics]`: outputs next to the reference's; the keys themselves hold for every output."""

    settings: ClassVar[frozenset[str]] = frozenset({"localize"})

    standard: Literal["exact", "close"] | None = Field(
        default=None, description="`exact`: bit for bit; `close`: within the reference's own noise floor"
    )
    localize: bool = Field(
        default=False,
        description="true: if `standard` is not kept, find the first node that computes something else",
    )
    outputs: dict[str, Figures] = Field(
        default_factory=dict,
        description="limits by output (its name, or a glob), each in place of the one for all: "
        "`[numerics.outputs.logits]`",
    )


class MetricLimits(Table):
    """`[metrics.NAME]`: a figure that the task metric returns; higher is better."""

    min: float | None = Field(default=None, description="least value")
    max_drop: NotNegative | None = Field(
        default=None, description="most that it may fall below the reference's"
    )


class LatencyLimits(Table):
    """`[latency]`: time of one run."""

    settings: ClassVar[frozenset[str]] = frozenset(
        {"percentile", "undecided", "confidence", "threads", "seconds"}
    )

    max_ratio: Positive | None = Field(
        default=None, description="most time, in units of the reference's, in paired and interleaved runs"
    )
    max_ms: Positive | None = Field(default=None, description="most milliseconds, at `percentile`")
    percentile: Annotated[float, Field(gt=0, le=100)] = Field(
        default=50, description="which one `max_ms` is about"
    )
    undecided: Undecided = Field(
        default="fail", description="what to do when the limit lies inside the interval of the measured ratio"
    )
    confidence: Confidence = Field(default=0.95, description="of that interval")
    threads: Annotated[int, Field(ge=1)] = Field(1, description="threads within an operator")
    seconds: Annotated[float, Field(gt=0, le=600)] = Field(
        default=2, description="how long to measure; once more, four times as long, while it is undecided"
    )


class SessionLimits(Table):
    """`[session]`: time to load the model into onnxruntime."""

    settings: ClassVar[frozenset[str]] = frozenset({"undecided", "confidence", "repeats"})

    max_ms: Positive | None = Field(default=None, description="most milliseconds; the median counts")
    max_ratio: Positive | None = Field(default=None, description="most time, in units of the reference's")
    undecided: Undecided = Field(default="fail", description="as in `[latency]`")
    confidence: Confidence = Field(default=0.95, description="of the ratio's interval")
    repeats: Annotated[int, Field(ge=3, le=1000)] = Field(
        default=9, description="how often each model is loaded; four times as often while it is undecided"
    )


class MemoryLimits(Table):
    """`[memory]`: what loading and running the model adds, in a process of its own."""

    max_mb: Positive | None = Field(default=None, description="most megabytes, at the peak")
    max_ratio: Positive | None = Field(default=None, description="most of it, in units of the reference's")


class ProviderLimits(Table):
    """`[providers.NAME]`: which nodes an execution provider runs, counted before onnxruntime fuses them."""

    settings: ClassVar[frozenset[str]] = frozenset({"fallback", "shapes_on_cpu"})
    neutral: ClassVar[frozenset[str]] = frozenset({"allow_memcpy"})

    min_share: Share | None = Field(
        default=None, description="least share of the nodes; 1.0: no fallback to others"
    )
    fallback: list[str] = Field(
        default_factory=list, description="globs: operators that others may run; they do not count"
    )
    shapes_on_cpu: bool = Field(
        default=False,
        description="true: nodes that compute shapes do not count where onnxruntime keeps them on the CPU "
        "on purpose",
    )
    allow_memcpy: bool | None = Field(default=None, description="false: no node copies between devices")


class IntegerLimits(Table):
    """`[int8]`: nodes that run as integer kernels, read from the graph that onnxruntime executes."""

    settings: ClassVar[frozenset[str]] = frozenset({"ops", "target"})

    min_share: Share | None = Field(
        default=None, description="least share of the nodes for which the target has an integer kernel"
    )
    max_fallbacks: Count | None = Field(
        default=None, description="most nodes that are quantized and run in float all the same"
    )
    ops: list[str] | None = Field(
        default=None, description="globs: operators that count; by default all that have integer kernels"
    )
    target: Literal["ort-cpu", "ort-cuda"] = Field(default="ort-cpu", description="who executes the model")


class AgainstLimits(Table):
    """`[against]`: an older version of the same model, and how far this one may be from it."""

    settings: ClassVar[frozenset[str]] = frozenset({"model"})

    model: str | None = Field(default=None, description="the older version; `--against` goes first")
    same_interface: bool | None = Field(default=None, description="true: inputs and outputs are as they were")
    same_opsets: bool | None = Field(
        default=None, description="true: opset imports and IR version are as they were"
    )
    max_size_growth: float | None = Field(
        default=None, description="most growth of the file: 0.1 is a tenth, 0 is none"
    )
    max_node_growth: float | None = Field(default=None, description="most growth of the number of nodes")
    max_new_ops: Count | None = Field(
        default=None, description="most kinds of operators that the older version does not have"
    )


class MeasureSettings(Table):
    """`[measure]`: what the model is measured with. Files are relative to the policy's folder."""

    reference: str | None = Field(
        default=None, description="the model to compare with, usually the float one; `--reference` goes first"
    )
    data: str | None = Field(
        default=None,
        description="what to run on: `.npz`, a folder, `file.py:function`, ...; otherwise inputs are "
        "synthesized; `--data` goes first",
    )
    metric: str | None = Field(
        default=None,
        description="the task metric: `file.py:function` or `module:function`; `--metric` goes first",
    )
    providers: list[str] | None = Field(
        default=None,
        description="execution providers, `cpu` by default; numbers have to hold on all of them, times are "
        "taken on the first; `--providers` goes first",
        min_length=1,
    )
    tf32: bool | None = Field(
        default=None,
        description="float32 is rounded to TF32 in products on NVIDIA's providers; unless this says so, "
        "figures and times are taken as onnxruntime runs the model by default, `standard` without TF32",
    )
    provider_options: dict[str, str] = Field(
        default_factory=dict,
        description='options of the providers, by onnxruntime\'s names: `device_id = "1"`',
    )
    input_shapes: dict[str, list[Annotated[int, Field(ge=1)]]] = Field(
        default_factory=dict, description="dims of inputs by name, for synthesized inputs"
    )
    max_samples: Annotated[int, Field(ge=1)] | None = Field(
        default=None, description="use no more of the data than so many samples, from the first on"
    )


class Policy(Table):
    """A policy: what a model has to keep, and what it is measured with."""

    settings: ClassVar[frozenset[str]] = frozenset({"name", "description", "measure"})

    name: str = Field(default="", description="what reports call it; by default the file's name")
    description: str = Field(default="", description="what it is for")
    measure: MeasureSettings = Field(
        default_factory=MeasureSettings, description="what the model is measured with"
    )
    model: ModelLimits | None = Field(default=None, description="is it valid, does it run")
    file: FileLimits | None = Field(default=None, description="size on disk")
    external_data: ExternalDataLimits | None = Field(default=None, description="weights beside the model")
    weights: WeightLimits | None = Field(default=None, description="values of weights")
    opset: OpsetLimits | None = Field(default=None, description="versions of operator sets")
    ir_version: VersionLimits | None = Field(default=None, description="version of the file format")
    ops: OpLimits | None = Field(default=None, description="operators")
    domains: DomainLimits | None = Field(default=None, description="domains of operators")
    interface: InterfaceLimits | None = Field(default=None, description="inputs and outputs")
    numerics: NumericsLimits | None = Field(default=None, description="outputs next to the reference's")
    metrics: dict[str, MetricLimits] = Field(
        default_factory=dict, description="figures of the task metric, by name"
    )
    latency: LatencyLimits | None = Field(default=None, description="time of a run")
    session: SessionLimits | None = Field(default=None, description="time to load")
    memory: MemoryLimits | None = Field(default=None, description="memory at the peak")
    providers: dict[str, ProviderLimits] = Field(
        default_factory=dict, description="who runs the nodes, by provider"
    )
    int8: IntegerLimits | None = Field(default=None, description="coverage by integer kernels")
    against: AgainstLimits | None = Field(default=None, description="changes since an older version")
