"""remove-zero-state: zero initial states of LSTM, GRU and RNN are not given."""

from __future__ import annotations

import pytest

from graphopt.testing import assert_refuses, assert_rewrites
from graphopt_passes.cleanup.remove_zero_state import RemoveZeroState

# Sequence 3, batch N, 2 features, 2 hidden units.
HEAD = '<ir_version: 8, opset_import: ["" : {opset}]>'
WEIGHTS = """
  w = ConstantOfShape <value = float[1] {{0.5}}> (ws)
  r = ConstantOfShape <value = float[1] {{0.25}}> (rs)
"""
STATE = """
  s = Shape(x)  n = Gather(s, one)  dims = Concat <axis = 0> (one, n, two)
"""


def lstm(state: str, call: str, opset: int = 17, gates: int = 4, more: str = "") -> str:
    return f"""{HEAD.format(opset=opset)}
    g (float[3, N, 2] x{more}) => (float[3, 1, N, 2] y)
    <int64[1] one = {{1}}, int64[1] two = {{2}}, int64[1] zero = {{0}}, int64[1] four = {{4}},
     int64[3] ws = {{1, {2 * gates}, 2}}, int64[3] rs = {{1, {2 * gates}, 2}},
     float[1, 2, 2] zeros = {{0, 0, 0, 0}}, float[1, 2, 2] minus = {{-0.0, -0.0, -0.0, -0.0}}>
    {{ {WEIGHTS.format()} {STATE} {state} y = {call} }}"""


OF_SHAPE = "z = ConstantOfShape(dims)"
KEPT = {"ConstantOfShape": 2, "LSTM": 1}


@pytest.mark.parametrize("opset", [12, 17])
@pytest.mark.parametrize(
    "state",
    [
        OF_SHAPE,
        "z = ConstantOfShape <value = float[1] {0}> (dims)",
        "t = ConstantOfShape(dims)  z = Identity(t)",
        "t = ConstantOfShape(dims)  z = Slice(t, zero, four, one)",
        "t = ConstantOfShape(one)  z = Expand(t, dims)",
    ],
)
def test_zero_states_of_an_lstm(state: str, opset: int) -> None:
    text = lstm(state, "LSTM <hidden_size = 2> (x, w, r, , , z, z)", opset)
    done = assert_rewrites(RemoveZeroState(), text, ops=KEPT)
    (node,) = (n for n in done.model.graph.nodes if n.op == "LSTM")
    assert len(node.inputs) == 3


@pytest.mark.parametrize(("op", "gates"), [("GRU", 3), ("RNN", 1)])
def test_other_recurrent_operators(op: str, gates: int) -> None:
    text = lstm(OF_SHAPE, f"{op} <hidden_size = 2> (x, w, r, , , z)", gates=gates)
    assert_rewrites(RemoveZeroState(), text, ops={"ConstantOfShape": 2, op: 1})


def test_one_of_two_states() -> None:
    more = ", float[1, N, 2] h"
    first = lstm(OF_SHAPE, "LSTM <hidden_size = 2> (x, w, r, , , z, h)", more=more)
    done = assert_rewrites(RemoveZeroState(), first, ops=KEPT)
    (node,) = (n for n in done.model.graph.nodes if n.op == "LSTM")
    assert [t.name for t in node.inputs[3:]] == ["", "", "", "h"]
    second = lstm(OF_SHAPE, "LSTM <hidden_size = 2> (x, w, r, , , h, z)", more=more)
    done = assert_rewrites(RemoveZeroState(), second, ops=KEPT)
    (node,) = (n for n in done.model.graph.nodes if n.op == "LSTM")
    assert [t.name for t in node.inputs[3:]] == ["", "", "h"]


@pytest.mark.parametrize(
    "state",
    [
        "z = ConstantOfShape <value = float[1] {1}> (dims)",
        "z = ConstantOfShape <value = float[1] {-0.0}> (dims)",
        "t = ConstantOfShape(dims)  z = Cos(t)",
        "t = ConstantOfShape(dims)  z = Add(t, t)",
    ],
)
def test_what_is_not_provably_zero(state: str) -> None:
    assert_refuses(RemoveZeroState(), lstm(state, "LSTM <hidden_size = 2> (x, w, r, , , z, z)"))


def test_constants() -> None:
    fixed = lstm("", "LSTM <hidden_size = 2> (x, w, r, , , zeros, zeros)").replace("[3, N, 2]", "[3, 2, 2]")
    done = assert_rewrites(RemoveZeroState(), fixed.replace("[3, 1, N, 2]", "[3, 1, 2, 2]"), ops=None)
    assert not done.ops["Expand"]
    assert_refuses(
        RemoveZeroState(),
        fixed.replace("zeros, zeros)", "minus, minus)").replace("[3, 1, N, 2]", "[3, 1, 2, 2]"),
    )


def test_states_that_the_caller_may_give() -> None:
    text = lstm("", "LSTM <hidden_size = 2> (x, w, r, , , h, h)", more=", float[1, N, 2] h")
    assert_refuses(RemoveZeroState(), text)


def test_a_state_that_is_read_elsewhere_stays_there() -> None:
    text = lstm(OF_SHAPE, "LSTM <hidden_size = 2> (x, w, r, , , z, z)").replace(
        "(float[3, 1, N, 2] y)", "(float[3, 1, N, 2] y, float[1, N, 2] z)"
    )
    assert_rewrites(
        RemoveZeroState(), text, ops={"ConstantOfShape": 3, "Shape": 1, "Gather": 1, "Concat": 1, "LSTM": 1}
    )


def test_a_kept_node() -> None:
    text = lstm(OF_SHAPE, "LSTM <hidden_size = 2> (x, w, r, , , z, z)")
    assert_refuses(RemoveZeroState(), text, "kept", keep=["y"])


def test_in_a_branch_with_a_captured_state() -> None:
    text = lstm(
        OF_SHAPE,
        """If (c) <
            then_branch = t () => (float[3, 1, N, 2] p) { p = LSTM <hidden_size = 2> (x, w, r, , , z, z) },
            else_branch = e () => (float[3, 1, N, 2] q) { q = LSTM <hidden_size = 2> (x, w, w, , , z, z) }
        >""",
        more=", bool c",
    )
    assert_rewrites(RemoveZeroState(), text, ops={"ConstantOfShape": 2, "If": 1, "LSTM": 2})
