"""What each target makes of quantized models: which operators, types and places.

Measured on ONNX Runtime 1.32 by reading the graph that it runs after its own optimizer.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Final, Literal

from graphopt.errors import UserError

BiasForm = Literal["int32", "float"]

#: Operators that move elements about: the slot of what they move. They run on integers where what they read
#: and what they write lie on one grid.
PASS_THROUGH: Final[Mapping[str, int]] = MappingProxyType(
    dict.fromkeys(
        "DepthToSpace Expand Flatten Gather GatherElements Identity MaxPool ReduceMax ReduceMin Reshape "
        "Resize Slice Split Squeeze Tile Transpose Unsqueeze".split(),
        0,
    )
)

#: Operators with an integer kernel of their own that are no gain alone: which of their inputs are data, None
#: for all of them.
GLUE: Final[Mapping[str, tuple[int, ...] | None]] = MappingProxyType(
    {
        "Add": None,
        "AveragePool": (0,),
        "Concat": None,
        "GlobalAveragePool": (0,),
        "LeakyRelu": (0,),
        "Mul": None,
        "Sigmoid": (0,),
        "Where": (1, 2),
    }
)


@dataclass(frozen=True)
class Profile:
    """How a target wants its quantized models.

    Attributes:
        name: the target.
        core: operators worth quantizing for their own sake.
        glue: operators that are quantized to keep a region of integers together.
        activation: type of activations; others that may be asked for are in `activations`.
        weight: type of weights; others in `weights`.
        symmetric: activations have no zero point.
        bias: how a bias goes with integer weights.
        output_pairs: an operator gets its integer kernel only if its output is quantized as well.
        no_kernel: operators without an integer kernel -> what to say about them.
        refusal: why nothing is to be quantized with activations; "" where it is.
    """

    name: str
    core: tuple[str, ...] = ("Conv", "Gemm", "MatMul")
    glue: Mapping[str, tuple[int, ...] | None] = field(default_factory=lambda: GLUE)
    activation: str = "uint8"
    activations: tuple[str, ...] = ("uint8", "int8", "uint16", "int16")
    weight: str = "int8"
    weights: tuple[str, ...] = ("int8", "uint8", "int16", "int4")
    symmetric: bool = False
    bias: BiasForm = "int32"
    output_pairs: bool = True
    no_kernel: Mapping[str, str] = field(default_factory=dict)
    refusal: str = ""

    @property
    def ops(self) -> tuple[str, ...]:
        """All operators that can be asked for by name."""
        return (*self.core, *self.glue)


_ORT_CPU: Final = Profile(
    "ort-cpu",
    no_kernel=MappingProxyType({"ConvTranspose": "onnxruntime has no integer kernel for ConvTranspose"}),
)

PROFILES: Final[Mapping[str, Profile]] = MappingProxyType(
    {
        "ort-cpu": _ORT_CPU,
        # Standard operators only, which these are: placed so that they run on integers where ORT does.
        "portable": Profile("portable", no_kernel=_ORT_CPU.no_kernel),
        "ort-cuda": Profile(
            "ort-cuda",
            refusal="onnxruntime's CUDA provider has no integer kernels for quantized activations: the model "
            "would run in float, with the rounding and the extra operators on top",
        ),
        "tensorrt": Profile(
            "tensorrt",
            core=("Conv", "ConvTranspose", "Gemm", "MatMul"),
            glue=MappingProxyType({"Add": None}),
            activation="int8",
            activations=("int8",),
            weights=("int8",),
            symmetric=True,
            bias="float",
            output_pairs=False,
        ),
    }
)


def get_profile(target: str) -> Profile:
    """The profile of the target called `target`.

    Raises:
        UserError: there is none.
    """
    if target not in PROFILES:
        raise UserError(
            f"there is no quantization profile for {target!r}", fix=f"there are: {', '.join(PROFILES)}"
        )
    return PROFILES[target]


def cpu_flags(cpuinfo: Path = Path("/proc/cpuinfo")) -> frozenset[str]:
    """Instruction sets of this processor as Linux names them; empty where that cannot be read."""
    try:
        text = cpuinfo.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return frozenset()
    for line in text.splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "flags":
            return frozenset(value.split())
    return frozenset()


def saturates(machine: str | None = None, flags: frozenset[str] | None = None) -> bool:
    """Whether this processor adds products of 8-bit integers with saturation at 16 bits.

    That is x86 with AVX2 or AVX-512 but without their VNNI extensions, where weights of 8 bits can give wrong
    sums and weights of 7 bits cannot.
    """
    machine = platform.machine() if machine is None else machine
    if machine.lower() not in ("x86_64", "amd64"):
        return False
    known = cpu_flags() if flags is None else flags
    return bool(known) and not known & {"avx512_vnni", "avx_vnni", "avx_vnni_int8", "amx_int8"}
