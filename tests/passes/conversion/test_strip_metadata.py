from __future__ import annotations

from typing import Any

import onnx
import pytest

from graphopt.testing import apply, assert_refuses, assert_rewrites, parse
from graphopt_passes.conversion.strip_metadata import StripMetadata

HEAD = '<ir_version: 10, opset_import: ["" : 17]>'


def model() -> onnx.ModelProto:
    proto = parse(f"""{HEAD} g (float[N] x, bool c) => (float[N] y) <float[N] a> {{
        a = Relu(x)
        y = If (c) <then_branch = t () => (float[N] p) {{ p = Neg(a) }},
                    else_branch = e () => (float[N] q) {{ q = Abs(a) }}>
    }}""")
    inner = proto.graph.node[1].attribute[0].g
    for thing in (proto, proto.graph, proto.graph.node[0], proto.graph.input[0], inner, inner.node[0]):
        thing.doc_string = "where it came from"
        thing.metadata_props.add(key="path", value="/home/somebody")
        thing.metadata_props.add(key="license", value="MIT")
    proto.graph.node[0].name = "first"
    proto.producer_name = "exporter"
    return proto


def texts(proto: onnx.ModelProto) -> str:
    return str(proto)


def test_all_of_it() -> None:
    done = assert_rewrites(StripMetadata(), model())
    text = texts(done.proto)
    for gone in ("where it came from", "somebody", "MIT", "value_info"):
        assert gone not in text
    assert done.proto.graph.node[0].name == "first"
    assert done.proto.producer_name == "exporter"


@pytest.mark.parametrize(
    ("options", "stays", "gone"),
    [
        ({"doc_strings": False}, "where it came from", "somebody"),
        ({"metadata": False}, "somebody", "where it came from"),
        ({"value_info": False}, "value_info", "somebody"),
        ({"keep": ("lic*",)}, "MIT", "somebody"),
        ({"node_names": True}, "exporter", "first"),
    ],
)
def test_what_to_keep(options: dict[str, Any], stays: str, gone: str) -> None:
    text = texts(assert_rewrites(StripMetadata(**options), model()).proto)
    assert stays in text
    assert gone not in text


def test_kept_nodes() -> None:
    text = texts(assert_rewrites(StripMetadata(), model(), keep=["first"]).proto.graph.node[0])
    assert "somebody" in text


def test_value_info_stays_where_other_domains_are() -> None:
    text = '<ir_version: 8, opset_import: ["" : 17, "com.microsoft" : 1]> g (float[N] x) => (float[N] y) <float[N] a> { a = com.microsoft.FastGelu(x) y = Relu(a) }'
    assert_refuses(StripMetadata(), text, "may not be known otherwise")


def test_nothing_to_strip() -> None:
    assert not apply(
        StripMetadata(), f"{HEAD} g (float[N] x) => (float[N] y) {{ y = Relu(x) }}"
    ).journal.changes


def test_told_to_do_nothing() -> None:
    with pytest.raises(ValueError, match="nothing"):
        StripMetadata(doc_strings=False, metadata=False, value_info=False)
