"""A model: its graph, and everything else that a model file holds."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx_graphsurgeon.ir.tensor import LazyValues

from graphopt import ir
from graphopt.interface import UNCHANGED, InterfaceEdits
from graphopt.io.copying import copy_graph
from graphopt.io.exporter import export_model
from graphopt.io.ir_versions import least_ir_version
from graphopt.io.loading import Loaded, load_file, load_proto
from graphopt.io.placement import Placement, Stripped, Weighed
from graphopt.io.save import SavedFiles, save_model
from graphopt.io.scratch import Scratch
from graphopt.io.session_source import SessionSource, session_source
from graphopt.io.sources import Sources
from graphopt.io.weights import stored_size


class Model:
    """An ONNX model whose weights stay in their file until somebody reads them.

    Attributes:
        graph: the main body; `graph.functions` are the local functions.
        path: the file it came from, if any.
        opset_imports: opset version of each domain, "" for ai.onnx. A function has its own
            (`function.opset_imports`).
        ir_version: the ONNX IR version: the one it was loaded with, or the oldest one that knows what passes
            have put into it since.
        origin: the ModelProto without graph and functions: metadata, training info, ...
        had_external_data: the file that it came from keeps weights in external data files.
        interface: how passes changed its inputs and outputs since it was loaded.
    """

    def __init__(self, loaded: Loaded, path: Path | None = None) -> None:
        self.graph: ir.Graph = loaded.graph
        self.path = path
        self.origin: onnx.ModelProto = loaded.origin
        self.opset_imports: dict[str, int] = loaded.graph.opset_imports
        self._loaded_ir: int = loaded.origin.ir_version
        self.had_external_data = loaded.had_external
        self._sources: Sources = loaded.sources
        self._scratch = Scratch()
        self.interface: InterfaceEdits = UNCHANGED

    @classmethod
    def load(
        cls,
        source: str | Path | onnx.ModelProto | gs.Graph | Model,
        *,
        trust_external_paths: bool = False,
    ) -> Model:
        """Load a model.

        Args:
            source: a path; or a ModelProto or a gs.Graph, which are copied; or a Model, which is returned
                as it is.
            trust_external_paths: allow external data outside the model's folder, behind links, or in
                hard-linked files.

        Raises:
            ModelError: it is missing, malformed, or refers to data that it must not.
        """
        if isinstance(source, Model):
            return source
        if isinstance(source, gs.Graph):
            source = gs.export_onnx(source, do_type_check=False)
        if isinstance(source, onnx.ModelProto):
            return cls(load_proto(source))
        if isinstance(source, str | os.PathLike):
            path = Path(source)
            return cls(load_file(path, trust_external_paths), path)
        raise TypeError(f"cannot load a model from a {type(source).__name__}")

    def bodies(self) -> list[ir.Body]:
        """Every body, each before the body that holds it; functions first, the main graph last."""
        return ir.bodies(self.graph)

    @property
    def ir_version(self) -> int:
        """The IR version that it is written with."""
        return max(self._loaded_ir, least_ir_version(self.graph, self.opset_imports, self.origin))

    @property
    def nbytes(self) -> int:
        """Bytes that the weights take in a file: initializers of all bodies, without loading them."""
        return sum(
            stored_size(constant._values)
            for body in self.bodies()
            for constant in (*body.initializers, *body.defaults.values())
        )

    def file_bytes(self) -> int:
        """Bytes that the model takes in files, to within a few bytes per tensor; no weight is loaded."""
        placement = Weighed()
        return int(self._export(placement).ByteSize()) + placement.nbytes

    @property
    def data_files(self) -> list[Path]:
        """The external data files that it was loaded with."""
        own = None if self.path is None else self.path.resolve()
        return [s.path for s in self._sources.all if s.path is not None and s.path.resolve() != own]

    def stow(self, array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any] | LazyValues:
        """Values for a new constant: `array`, or a temporary file that holds it once there is too much.

        Args:
            array: values that nobody changes any more.
        """
        return self._scratch.stow(array, self._sources)

    def lend(self, nbytes: int) -> None:
        """Say that `nbytes` of a weight are about to be read, so that others can be let go of."""
        self._sources.lend(nbytes)

    def release(self) -> None:
        """Let go of weights in memory that are in files as well; they are read again on use."""
        self._sources.release()

    def to_proto(self, *, weights: Literal["inline", "none"] = "inline") -> onnx.ModelProto:
        """The model as one message.

        Args:
            weights: "inline" loads every weight into it; "none" leaves tensors of more than 1 KiB
                without data, except strings and what shape inference reads.
        """
        return self._export(Placement() if weights == "inline" else Stripped())

    def skeleton(self) -> onnx.ModelProto:
        """The structure with small tensors only: enough for shape inference, cheap to make."""
        return self._export(Stripped())

    def to_gs(self) -> gs.Graph:
        """A plain onnx-graphsurgeon graph with all weights; what gs cannot hold is lost in it."""
        return gs.import_onnx(self.to_proto())

    def copy(self) -> Model:
        """An independent copy of the structure that shares the weights."""
        graph = copy_graph(self.graph)
        twin = Model(Loaded(graph, self.origin, self._sources, self.had_external_data), self.path)
        twin.interface = self.interface
        return twin

    def session_source(self) -> SessionSource:
        """The model in a form that a runtime opens without copying its weights.

        Raises:
            ModelError: more than 2 GiB of weights are neither in files nor in the main graph.
        """
        return session_source(self._export, self._sources)

    def save(
        self, path: str | Path, *, external_data: bool | None = None, overwrite: bool = True
    ) -> SavedFiles:
        """Write the model atomically: a failure leaves everything as it was.

        Args:
            path: the file to write, which may be the one that the model came from.
            external_data: keep the weights in a file `<name>.data` beside the model; None: when the
                input had external data, or the model would pass 2 GiB.
            overwrite: replace an existing file.

        Raises:
            UserError: the model cannot be written there.
        """
        if external_data is None and self.had_external_data:
            external_data = True
        return save_model(
            Path(path), self._export, self._sources, external=external_data, overwrite=overwrite
        )

    def _export(self, placement: Placement) -> onnx.ModelProto:
        return export_model(
            self.graph, self.origin, self.opset_imports, self.ir_version, self._sources, placement
        )
