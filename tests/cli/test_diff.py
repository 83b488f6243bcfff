from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import onnx


def changed(model: Path) -> Path:
    proto = onnx.load(model)
    graph = proto.graph
    del graph.node[0]
    graph.node[0].input[0] = "x"
    graph.initializer[1].float_data[0] += 1
    other = model.with_name("other.onnx")
    onnx.save(proto, other)
    return other


def test_the_same(cli: Any, model: Path) -> None:
    assert cli("diff", model, model)[:2] == (0, "the models are the same\n")
    assert cli("diff", model, model, "-q") == (0, "", "")


def test_what_changed(cli: Any, model: Path) -> None:
    other = changed(model)
    code, out, _ = cli("diff", model, other)
    assert code == 1
    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert "Identity 1 0 -1" in lines
    assert "nodes: 1 removed, 1 changed" in lines
    assert "- a = Identity(x)" in lines
    assert "input 0: a -> x" in lines
    assert "initializers: 1 changed" in lines
    assert "~ b float[2] -> other values, by at most 1" in lines
    assert cli("diff", model, other, "-q") == (1, "", "")


def test_json(cli: Any, model: Path) -> None:
    found = json.loads(cli("diff", model, changed(model), "--json")[1])
    assert found["schema"] == "graphopt.diff/1"
    assert found["ops"] == {"Identity": [1, 0]}
    assert [n["kind"] for n in found["nodes"]] == ["removed", "changed"]
