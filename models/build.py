"""Rebuild the models of this folder, their data and the manifest.

pip install -r models/requirements.txt
python models/build.py                      # everything, about a minute on one core
python models/build.py digits_cnn.onnx      # one of them
"""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import sklearn
import torch
from builders import data, digits_cnn, digits_lstm, digits_transformer, messy
from evaluate import evaluate

HERE = Path(__file__).parent
DATA = "digits.npz"

HEADER = """\
# Written by build.py. What each model is, where it came from, and how well it does on the held-out digits
# (450 images, `digits.npz`), measured by evaluate.py with ONNX Runtime's optimizations off.
"""

SOURCE = """\
[data]
file = "digits.npz"
sha256 = "{sha256}"
bytes = {bytes}
source = "Optical Recognition of Handwritten Digits, E. Alpaydin and C. Kaynak, UCI Machine Learning \
Repository (doi 10.24432/C50P49), as bundled with scikit-learn (sklearn.datasets.load_digits)"
licence = "CC BY 4.0"
split = "held-out quarter of 1797 images, stratified, seed 0"
"""


@dataclass(frozen=True)
class Recipe:
    """How one model comes about: its builder, and the words for it."""

    file: str
    build: Any
    exporter: str
    what: str


RECIPES = (
    Recipe(
        "digits_cnn.onnx",
        digits_cnn.build,
        "TorchScript, no constant folding, unfused BatchNorm, opset 17",
        "residual and depthwise Conv-BatchNorm-ReLU classifier",
    ),
    Recipe(
        "digits_transformer.onnx",
        digits_transformer.build,
        "TorchScript, no constant folding, opset 16 (LayerNorm and Gelu decomposed)",
        "two-layer transformer over the rows of a digit",
    ),
    Recipe(
        "digits_transformer_dynamo.onnx",
        digits_transformer.build_dynamo,
        "torch.export, optimizer off, opset 20",
        "the same transformer from torch's other exporter",
    ),
    Recipe(
        "digits_lstm.onnx",
        digits_lstm.build,
        "TorchScript, no constant folding, opset 17",
        "two-layer bidirectional LSTM over the rows of a digit",
    ),
    Recipe(
        "messy.onnx",
        messy.build,
        "TorchScript, no constant folding, unfused BatchNorm, opset 17",
        "U-shaped denoiser for pictures of any size, full of shape arithmetic",
    ),
)


def sha256(path: Path) -> str:
    """Hex digest of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def signature(values: Any) -> list[str]:
    """Graph inputs or outputs as texts such as `image: float32 [batch, 1, 8, 8]`."""
    texts = []
    for value in values:
        tensor = value.type.tensor_type
        dims = ", ".join(d.dim_param or str(d.dim_value) for d in tensor.shape.dim)
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)
        texts.append(f"{value.name}: {dtype} [{dims}]")
    return texts


def entry(recipe: Recipe) -> str:
    """The manifest's table for one model."""
    path = HERE / recipe.file
    model = onnx.load(path)
    metric, value = evaluate(path)
    fields = {
        "file": recipe.file,
        "sha256": sha256(path),
        "bytes": path.stat().st_size,
        "what": recipe.what,
        "exporter": recipe.exporter,
        "built_by": f"python models/build.py {recipe.file}",
        "inputs": signature(model.graph.input),
        "outputs": signature(model.graph.output),
        "nodes": len(model.graph.node),
        "metric": metric,
        "value": round(value, 3),
    }
    # JSON strings, numbers and flat lists are TOML as they stand.
    lines = (f"{key} = {json.dumps(content)}" for key, content in fields.items())
    return "\n".join(["[[model]]", *lines, ""])


def versions() -> str:
    """The manifest's table of what the models were built with."""
    found = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "scikit-learn": sklearn.__version__,
        "onnx": onnx.__version__,
        "onnxruntime": onnxruntime.__version__,
    }
    return "\n".join(["[built_with]", *(f"{name} = {json.dumps(text)}" for name, text in found.items()), ""])


def main() -> None:
    """Command line."""
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "files", nargs="*", metavar="FILE", help="models to build (default: all, and the data)"
    )
    wanted = set(parser.parse_args().files)
    unknown = wanted - {recipe.file for recipe in RECIPES} - {DATA}
    if unknown:
        parser.error(f"no recipe for {', '.join(sorted(unknown))}")

    if not wanted or DATA in wanted:
        data.save_held_out(HERE / DATA)
    for recipe in RECIPES:
        if not wanted or recipe.file in wanted:
            start = time.perf_counter()
            recipe.build(HERE / recipe.file)
            seconds = time.perf_counter() - start
            print(f"{recipe.file}: {evaluate(HERE / recipe.file)} in {seconds:.0f} s", flush=True)

    source = SOURCE.format(sha256=sha256(HERE / DATA), bytes=(HERE / DATA).stat().st_size)
    tables = [HEADER, versions(), source, *(entry(recipe) for recipe in RECIPES)]
    (HERE / "manifest.toml").write_text("\n".join(tables), encoding="utf-8")


if __name__ == "__main__":
    main()
