"""Which tensor of one model is which of another."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import numpy_helper, parser

import graphopt
from graphopt.model import Model
from graphopt.validation.layers import Comparison
from graphopt.validation.matching import Matching, match
from graphopt.validation.net import Net
from graphopt.validation.sketches import match_by_value, sketch
from tests.support import fault_models as fm

RNG = np.random.default_rng(6)
HEAD = '<ir_version: 8, opset_import: ["": 17]>'


def nets(a: onnx.ModelProto, b: onnx.ModelProto) -> Matching:
    return match(Net(Model.load(a)), Net(Model.load(b)))


def names(found: Matching) -> dict[str, tuple[str, str]]:
    """The candidate's tensor -> the reference's, and the evidence."""
    return {
        found.candidate.name(p.candidate): (found.reference.name(p.reference), p.by) for p in found.computed()
    }


def test_a_model_with_itself() -> None:
    found = nets(fm.thirty(), fm.thirty())
    pairs = names(found)
    assert len(pairs) == 91
    assert all(new == old for new, (old, _) in pairs.items())
    assert all(p.certain for p in found.computed() if found.candidate.name(p.candidate) != "y")


@pytest.mark.parametrize("make", [fm.thirty, fm.with_if, fm.looped, fm.parallel, fm.chain])
def test_a_model_whose_names_are_gone(make: object) -> None:
    a = make()  # type: ignore[operator]
    b = fm.renamed(a)
    order = {}  # tensors by their place in the files

    def walk(one: onnx.GraphProto, two: onnx.GraphProto) -> None:
        order.update(zip((v.name for v in two.input), (v.name for v in one.input), strict=True))
        for m, n in zip(one.node, two.node, strict=True):
            order.update(zip(n.output, m.output, strict=True))
            for p, q in zip(m.attribute, n.attribute, strict=True):
                if p.type == onnx.AttributeProto.GRAPH:
                    walk(p.g, q.g)

    walk(a.graph, b.graph)
    found = names(nets(a, b))
    assert len(found) == len(nets(a, a).computed())
    assert all(old == order[new] for new, (old, _) in found.items())


def test_branches_that_look_alike_are_told_apart_by_their_weights() -> None:
    a = fm.parallel()
    b = fm.renamed(a)
    flipped = [*b.graph.node[4:8], *b.graph.node[:4], *b.graph.node[8:]]
    del b.graph.node[:]
    b.graph.node.extend(flipped)
    found = names(nets(a, b))
    assert found[flipped[0].output[0]][0] == "p1"
    assert found[flipped[4].output[0]][0] == "p0"


def test_numbers_that_mean_something_else_are_not_believed() -> None:
    a, b = fm.renamed(fm.thirty()), fm.renamed(fm.thirty(), start=1007)
    found = nets(a, b)
    assert not found.names_count
    assert {by for _, by in names(found).values()} <= {"structure", "name"}
    by_place = dict(
        zip((n.output[0] for n in b.graph.node), (n.output[0] for n in a.graph.node), strict=True)
    )
    assert all(by_place[new] == old for new, (old, _) in names(found).items())


def test_node_names_and_exporters_metadata() -> None:
    head = HEAD.replace("8", "10")
    text = "g (float[4] x, float[4] z) => (float[4] y) {{ {} }}"
    a = parser.parse_model(f"{head} " + text.format("p = Mul(x, z) q = Exp(p) r = Sin(q) y = Add(r, z)"))
    b = parser.parse_model(f"{head} " + text.format("u = Mul(z, x) v = Exp(u) w = Sin(v) y = Sub(w, z)"))
    # After the same start all is found by structure; y is an output. Make the middle unlike instead.
    a.graph.node[1].op_type, b.graph.node[1].op_type = "Tanh", "Tanh"
    a.graph.node[1].name = b.graph.node[1].name = "the_same"
    found = names(nets(a, b))
    assert found["u"][0] == "p"
    assert found["v"][0] == "q"
    c = parser.parse_model(f"{head} " + text.format("u = Sub(z, x) v = Exp(u) w = Sin(v) y = Sub(w, z)"))
    a.graph.node[2].metadata_props.add(key="namespace", value="model/layer")
    c.graph.node[2].metadata_props.add(key="namespace", value="model/layer")
    found = names(nets(a, c))
    assert found["w"] == ("r", "provenance")


def test_fused_regions_have_no_counterpart_inside() -> None:
    a = fm.thirty(layers=4)
    b = graphopt.run(a, "fold-conv-bn").model.to_proto()
    found = names(nets(a, b))
    assert found == {
        **{f"b{i}": (f"b{i}", "name") for i in range(4)},
        **{f"r{i}": (f"r{i}", "name") for i in range(4)},
        "y": ("y", "name"),
    }


def test_tensors_of_other_shapes_are_no_counterparts_by_structure() -> None:
    text = "g (float[4, 6] x) => (float[4, 6] y) { h = MatMul(x, w) g = MatMul(h, v) y = Tanh(g) }"
    narrow, wide = (parser.parse_model(f"{HEAD} {text}") for _ in range(2))
    for proto, width in ((narrow, 3), (wide, 9)):
        for name, shape in (("w", (6, width)), ("v", (width, 6))):
            weight = RNG.standard_normal(shape).astype(np.float32)
            proto.graph.initializer.append(numpy_helper.from_array(weight, name))
    found = names(nets(narrow, fm.renamed(wide)))
    assert "h" not in {old for old, _ in found.values()}
    assert "g" in {old for old, _ in found.values()}


# -- by value ------------------------------------------------------------------------------------------


def optimized(proto: onnx.ModelProto, path: str) -> onnx.ModelProto:
    """As onnxruntime's optimizer writes it: fused, other operators."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = path
    options.log_severity_level = 4
    ort.InferenceSession(proto.SerializeToString(), options)
    return onnx.load(path)


def test_a_fused_model_whose_names_are_gone(tmp_path: object) -> None:
    a = fm.thirty()
    b = fm.renamed(optimized(a, f"{tmp_path}/fused.onnx"))
    assert {n.op_type for n in b.graph.node} <= {"FusedConv", "Conv", "Relu", "Identity"}
    found = nets(a, b)
    before = len(found.computed())
    comparison = Comparison(found, {"x": RNG.standard_normal((1, 6, 8, 8)).astype(np.float32)})
    assert match_by_value(comparison) > 20
    assert len(found.computed()) == len(b.graph.node) > before
    gaps = comparison.gaps(found.computed())
    assert all(g is not None and g.ok for g in gaps.values())
    relus = [p for p in found.computed() if found.candidate.places[p.candidate].node.op == "FusedConv"]
    assert all(found.reference.places[p.reference].node.op in ("Relu", "Identity") for p in relus)


def test_sketches() -> None:
    a = RNG.standard_normal((3, 70000)).astype(np.float32)
    one = sketch([a])
    assert one is not None
    assert one.rms == pytest.approx(float(np.sqrt(np.mean(a.astype(np.float64) ** 2))))
    noisy = sketch([a + (1e-6 * RNG.standard_normal(a.shape)).astype(np.float32)])
    assert noisy is not None
    assert one.is_near(noisy, 1e-4)
    for other in (a[:, ::-1], -a, a * np.float32(1.001), np.roll(a, 1)):
        unlike = sketch([np.ascontiguousarray(other)])
        assert unlike is not None
        assert not one.is_near(unlike, 1e-4)
    turned = sketch([a.T.copy()])
    assert turned is not None
    assert turned.key != one.key
    for nothing in ([], [np.zeros((4, 4), np.float32)], [a[0, :3]], [np.arange(9)], [np.full(9, np.nan)]):
        assert sketch(nothing) is None
