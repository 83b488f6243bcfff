"""Inferred facts against the expected outputs of ONNX's own operator tests."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from graphopt.errors import UserError
from graphopt.graph import shapes
from graphopt.graph.dims import Sym, evaluate
from graphopt.graph.facts import Facts
from graphopt.graph.schema_shapes import SchemaHints
from graphopt.graph.shapes import infer
from graphopt.model import Model


@pytest.fixture(scope="module")
def cases() -> list[Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loader = pytest.importorskip("onnx.backend.test.loader")
        return [c for c in loader.load_model_tests(kind="node") if c.model is not None]


@pytest.fixture(params=["with hints", "rules alone"], autouse=True)
def layers(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Alone, a rule's error cannot hide behind a disagreement with ONNX's inference."""
    if request.param == "rules alone":
        monkeypatch.setattr(shapes, "SchemaHints", lambda proto: SchemaHints(None))


def contradictions(
    name: str, facts: Facts, model: Model, outputs: Any, sizes: dict[str, int]
) -> Iterator[str]:
    """What `facts` say about the outputs of `model` that is not so."""

    def is_wrong(element: Any, actual: Any) -> bool:
        if isinstance(element, Sym):
            if element.is_anonymous:
                return False
            element = evaluate(element, sizes)
        return bool(element != actual)

    for tensor, array in zip(model.graph.outputs, outputs, strict=False):
        if not isinstance(array, np.ndarray | np.generic):
            continue
        array = np.asarray(array)
        shape, dtype, value = facts.shape(tensor), facts.dtype(tensor), facts.value(tensor)
        if shape is not None and (len(shape) != array.ndim or any(map(is_wrong, shape, array.shape))):
            yield f"{name}: shape {shape}, not {array.shape}"
        if dtype is not None and array.dtype != object and array.dtype.kind not in "US":
            expected = onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
            if dtype != expected:
                yield f"{name}: dtype {dtype}, not {expected}"
        if value is not None:
            flat = array.ravel().tolist()
            if len(flat) != len(value) or any(map(is_wrong, value, flat)):
                yield f"{name}: value {value}, not {flat}"


def check(cases: list[Any], prepare: Any) -> tuple[int, int]:
    """Number of models, and of tensors whose shape was fully known, in the end."""
    wrong, models, known = [], 0, 0
    for case in cases:
        prepared = prepare(case)
        if prepared is None:
            continue
        proto, sizes = prepared
        try:
            model = Model.load(proto)
        except UserError:
            continue
        facts = infer(model, strict=True)
        models += 1
        for _, outputs in case.data_sets[:1]:
            wrong += contradictions(case.name, facts, model, outputs, sizes)
        for tensor in model.graph.outputs:
            shape = facts.shape(tensor)
            known += shape is not None and not any(isinstance(d, Sym) and d.is_anonymous for d in shape)
    assert not wrong, "\n".join(wrong)
    return models, known


def test_never_contradicts_the_expected_outputs(cases: list[Any]) -> None:
    models, known = check(cases, lambda case: (case.model, {}))
    assert models > 1500
    assert known > 1650


def test_with_symbolic_input_dims(cases: list[Any]) -> None:
    def prepare(case: Any) -> Any:
        proto = copy.deepcopy(case.model)
        sizes: dict[str, int] = {}
        for value in proto.graph.input:
            for dim in value.type.tensor_type.shape.dim:
                if dim.HasField("dim_value"):
                    # Dims of one size share a name, as they would in an exported model.
                    dim.dim_param = f"d{dim.dim_value}"
                    sizes[f"d{int(dim.dim_param[1:])}"] = int(dim.dim_param[1:])
        return proto, sizes

    models, known = check(cases, prepare)
    assert models > 1500
    assert known > 1300


def test_with_small_integer_inputs_as_constants(cases: list[Any]) -> None:
    def prepare(case: Any) -> Any:
        proto = copy.deepcopy(case.model)
        kept = []
        for value, array in zip(case.model.graph.input, case.data_sets[0][0], strict=False):
            small = isinstance(array, np.ndarray) and array.size <= 64 and array.dtype.kind in "ib"
            scales = isinstance(array, np.ndarray) and array.ndim == 1 and array.dtype == np.float32
            if small or (scales and array.size <= 8):
                proto.graph.initializer.append(numpy_helper.from_array(array, value.name))
            else:
                kept.append(value)
        if len(kept) == len(case.model.graph.input):
            return None
        del proto.graph.input[:]
        proto.graph.input.extend(kept)
        return proto, {}

    models, known = check(cases, prepare)
    assert models > 300
    assert known > 300
