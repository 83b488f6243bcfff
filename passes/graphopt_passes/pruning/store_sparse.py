"""Store weights that are mostly zero as sparse tensors."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Final

import numpy as np

from graphopt.passkit import Constant, Numerics, Pass, PassContext, RefusedRewrite, Rewriter

# Bytes of the place of an element: ONNX has int64 only.
_PLACE: Final = 8
# The file format's version that has sparse initializers.
_IR_VERSION: Final = 6
# Runtimes that read them.
_TARGETS: Final = ("portable", "ort-cpu", "ort-cuda")


@dataclass(frozen=True)
class StoreSparse(Pass):
    """w = {(i, w_i) : w_i != 0}: a sparse initializer where that takes less space in the file.

    An element that is not zero then takes 8 bytes more for its place, so that float32 pays from two thirds of
    zeros on. ONNX Runtime makes the tensor dense again when it loads the model: memory and time of a run stay
    what they are. Put this last: passes that change weights make them dense.

    Refuses when: the target does not read sparse initializers (TensorRT); the file format is older than IR
    version 6; the weight holds -0.0, which would come back as 0.0; it is an output, or kept.
    """

    name: ClassVar[str] = "store-sparse"
    numerics: ClassVar[Numerics] = Numerics.EXACT

    least_saving: float = field(
        default=0.05, metadata={"help": "share of a tensor's bytes that has to be saved"}
    )

    def __post_init__(self) -> None:
        """Check ranges."""
        if not 0 <= self.least_saving < 1:
            raise ValueError(f"least_saving is a share from 0 to below 1, not {self.least_saving:g}")

    def run(self, graph: Rewriter, ctx: PassContext) -> None:
        """Store the weights of one body."""
        for constant in list(graph.body.initializers) if not graph.is_function else []:
            readers = graph.consumers(constant)
            if not readers or len(constant.shape) < 2 or graph.is_sparse(constant):
                continue
            dtype = np.dtype(constant.dtype)
            if dtype.kind != "f":
                continue
            try:
                self._store(graph, ctx, constant)
            except RefusedRewrite as refused:
                graph.refuse(readers[0], refused.reason)

    def _store(self, graph: Rewriter, ctx: PassContext, constant: Constant) -> None:
        values = graph.array(constant)
        if values is None:
            raise RefusedRewrite(f"{constant.name} is kept")
        left = int(np.count_nonzero(values))
        if left * (values.itemsize + _PLACE) > values.nbytes * (1 - self.least_saving):
            return  # not sparse enough to be a candidate
        if ctx.target.name not in _TARGETS:
            raise RefusedRewrite(f"{ctx.target.name} does not read sparse initializers")
        if graph.ir_version < _IR_VERSION:
            raise RefusedRewrite(f"IR version {graph.ir_version} has no sparse initializers")
        if graph.is_output(constant):
            raise RefusedRewrite(f"{constant.name} is an output")
        if (np.signbit(values) & (values == 0)).any():
            raise RefusedRewrite(f"{constant.name} holds -0.0, which a sparse tensor does not keep")
        root = graph.consumers(constant)[0]
        saved = values.nbytes - left * (values.itemsize + _PLACE)
        why = f"{1 - left / values.size:.1%} zeros stored as places: {saved / 1e3:,.1f} kB less"
        with graph.site(root, why):
            graph.redirect(constant, graph.new_sparse_constant(constant.name, values), root, why)
