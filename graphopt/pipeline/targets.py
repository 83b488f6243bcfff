"""Target profiles: who will execute the model, hence which rewrites are legal and worth it."""

from __future__ import annotations

from dataclasses import dataclass

from graphopt.errors import UserError

_ORT_OPS = frozenset(
    {
        "BiasGelu",
        "FastGelu",
        "FusedMatMul",
        "Gelu",
        "MatMulNBits",
        "QuickGelu",
        "SimplifiedLayerNormalization",
        "SkipLayerNormalization",
        "SkipSimplifiedLayerNormalization",
    }
)
# Kernels of the CPU provider alone.
_ORT_CPU_OPS = _ORT_OPS | {"DynamicQuantizeLSTM"}


@dataclass(frozen=True)
class Target:
    """An execution target.

    Attributes:
        name: what the user calls it.
        contrib: operators of the domain com.microsoft that it executes.
        providers: onnxruntime execution providers that stand for it, the preferred first.
    """

    name: str
    contrib: frozenset[str] = frozenset()
    providers: tuple[str, ...] = ("CPUExecutionProvider",)

    def has_contrib(self, op: str) -> bool:
        """Whether the target executes com.microsoft's `op`."""
        return op in self.contrib


TARGETS = {
    t.name: t
    for t in (
        Target("portable"),
        Target("ort-cpu", _ORT_CPU_OPS),
        Target("ort-cuda", _ORT_OPS, ("CUDAExecutionProvider", "CPUExecutionProvider")),
        Target("tensorrt", frozenset(), ("TensorrtExecutionProvider", "CUDAExecutionProvider")),
    )
}


def get_target(name: str) -> Target:
    """The target called `name`.

    Raises:
        UserError: there is none; the message lists those there are.
    """
    if name not in TARGETS:
        raise UserError(f"unknown target {name!r}", fix=f"targets: {', '.join(TARGETS)}")
    return TARGETS[name]
