"""The wire format scanner, on well-formed and hostile bytes."""

from __future__ import annotations

import contextlib

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from graphopt.io import wire


def _swap_all(data: bytes, new: bytes) -> bytes:
    pieces = wire.substitute(memoryview(data), lambda a, b: True, lambda a, b: (new, len(new)))
    return data if pieces is None else b"".join(pieces)


def _tensor(name: str, n: int = 8) -> TensorProto:
    return numpy_helper.from_array(np.arange(n, dtype=np.float32), name)


def _nested() -> onnx.ModelProto:
    inner = helper.make_graph([], "inner", [], [], [_tensor("in")])
    middle = helper.make_graph([helper.make_node("If", ["c"], ["o"], then_branch=inner)], "mid", [], [])
    sparse = helper.make_sparse_tensor(
        _tensor("s"), numpy_helper.from_array(np.arange(8, dtype=np.int64), "i"), [100]
    )
    graph = helper.make_graph(
        [
            helper.make_node("Constant", [], ["k"], value=_tensor("v")),
            helper.make_node("If", ["c"], ["o"], then_branch=middle),
        ],
        "g",
        [],
        [],
        [_tensor("a"), _tensor("b")],
        sparse_initializer=[sparse],
    )
    function = helper.make_function(
        "f", "F", [], ["k"], [helper.make_node("Constant", [], ["k"], value=_tensor("fv"))], []
    )
    return helper.make_model(graph, functions=[function])


@pytest.mark.parametrize("size", [0, 1, 127, 128, 20_000])
def test_replaces_raw_data_wherever_tensors_are_and_fixes_the_lengths(size: int) -> None:
    model = _nested()
    new = b"z" * size
    parsed = onnx.ModelProto.FromString(_swap_all(model.SerializeToString(), new))
    main = parsed.graph
    middle = main.node[1].attribute[0].g
    found = [
        *main.initializer,
        main.sparse_initializer[0].values,
        main.sparse_initializer[0].indices,
        main.node[0].attribute[0].t,
        middle.node[0].attribute[0].g.initializer[0],
        parsed.functions[0].node[0].attribute[0].t,
    ]
    assert [t.raw_data for t in found] == [new] * 7
    for tensor in found:
        tensor.raw_data = b"same"
    reference = _nested()
    for tensor in (
        *reference.graph.initializer,
        reference.graph.sparse_initializer[0].values,
        reference.graph.sparse_initializer[0].indices,
        reference.graph.node[0].attribute[0].t,
        reference.graph.node[1].attribute[0].g.node[0].attribute[0].g.initializer[0],
        reference.functions[0].node[0].attribute[0].t,
    ):
        tensor.raw_data = b"same"
    assert parsed == reference


def test_nothing_to_replace_gives_none() -> None:
    data = memoryview(_nested().SerializeToString())
    assert wire.substitute(data, lambda a, b: False, lambda a, b: (b"", 0)) is None
    assert wire.substitute(data, lambda a, b: True, lambda a, b: None) is None


def test_every_cut_is_noticed_or_harmless() -> None:
    data = _nested().SerializeToString()
    noticed = 0
    for end in range(len(data)):
        try:
            wire.substitute(memoryview(data)[:end], lambda a, b: True, lambda a, b: None)
        except wire.WireError as error:
            noticed += error.truncated
    # A cut exactly between two top-level fields leaves a well-formed message.
    assert noticed > len(data) - 10


@pytest.mark.parametrize(
    "data",
    [
        b"\x3a\xff\xff\xff\xff\xff\xff\xff\xff\x7f",  # a graph of 2**63 bytes
        b"\x3a\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",  # a length of more than 64 bits
        b"\x3a\x05\x2a\x7f\x00\x00\x00",  # a tensor that is longer than its graph
        b"\x3b",  # a group
        b"\x0f",  # a wire type that does not exist
        b"\x09\x00",  # 8 bytes announced, one there
        b"\x08",  # a tag without a value
        b"\x80",  # half a tag
    ],
)
def test_malformed_bytes_are_an_error(data: bytes) -> None:
    with pytest.raises(wire.WireError):
        wire.substitute(memoryview(data), lambda a, b: True, lambda a, b: None)


def test_deep_nesting_is_an_error_not_a_crash() -> None:
    data = b""
    for _ in range(400):  # graph > node > attribute > graph > ...
        for tag in (b"\x32", b"\x2a", b"\x0a"):
            data = tag + wire.encode_varint(len(data)) + data
    data = b"\x3a" + wire.encode_varint(len(data)) + data
    with pytest.raises(wire.WireError, match="nested too deeply"):
        wire.substitute(memoryview(data), lambda a, b: True, lambda a, b: None)


@given(st.binary(max_size=200))
@settings(max_examples=300, deadline=None)
def test_any_bytes_give_an_error_or_an_answer(data: bytes) -> None:
    for prefix in (b"", b"\x3a" + wire.encode_varint(len(data)), b"\x08\x08\x3a\x90\x01"):
        with contextlib.suppress(wire.WireError):
            wire.substitute(memoryview(prefix + data), lambda a, b: True, lambda a, b: None)


@given(st.integers(0, 2**63))
@settings(max_examples=100, deadline=None)
def test_varints_round_trip(value: int) -> None:
    encoded = memoryview(wire.encode_varint(value))
    assert wire._varint(encoded, 0, len(encoded)) == (value, len(encoded))
