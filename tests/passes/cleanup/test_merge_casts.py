from __future__ import annotations

import itertools

import ml_dtypes
import numpy as np
import onnx
import pytest

from graphopt.testing import assert_refuses, assert_rewrites
from graphopt_passes.cleanup.merge_casts import MergeCasts, holds_all, is_removable

HEAD = '<ir_version: 8, opset_import: ["" : 17]>'
T = onnx.TensorProto
NAMES = {T.FLOAT: "float", T.DOUBLE: "double", T.FLOAT16: "float16", T.BFLOAT16: "bfloat16", T.BOOL: "bool",
         T.INT8: "int8", T.INT16: "int16", T.INT32: "int32", T.INT64: "int64",
         T.UINT8: "uint8", T.UINT16: "uint16", T.UINT32: "uint32", T.UINT64: "uint64"}  # fmt: skip


def chain(start: int, through: int, end: int) -> str:
    casts = f"a = Cast<to = {int(through)}>(x)  y = Cast<to = {int(end)}>(a)"
    return f"{HEAD} g ({NAMES[start]}[N] x) => ({NAMES[end]}[N] y) {{ {casts} }}"


def everything(dtype: int) -> np.ndarray:
    """All values of small types, the hard ones of large types."""
    kind = onnx.helper.tensor_dtype_to_np_dtype(dtype)
    if kind == np.bool_:
        return np.array([False, True])
    if kind.itemsize <= 2:
        values = np.arange(2 ** (8 * kind.itemsize), dtype=f"u{kind.itemsize}").view(kind)
        # NaN payloads are the conversions' own business.
        return (
            values[~np.isnan(values.astype(np.float32))] if kind.kind != "i" and kind.kind != "u" else values
        )
    if kind.kind == "f":
        rng = np.random.default_rng(0)
        edge = np.array([0, -0.0, np.inf, -np.inf, 1e-45, 65504, 65520, 3e38, 1 / 3, 2**24 + 1], kind)
        return np.concatenate([edge, rng.standard_normal(1000).astype(kind)])
    info = np.iinfo(kind)
    near = [2**k + d for k in range(info.bits) for d in (-1, 0, 1)]
    return np.array([v for v in [info.min, *near, *(-n for n in near)] if info.min <= v <= info.max], kind)


SAFE = [
    (a, b, c)
    for a, b, c in itertools.product(NAMES, repeat=3)
    if len({a, b}) == 2 and b != c and is_removable(a, b, c) and T.BFLOAT16 not in (a, b, c)
]


@pytest.mark.parametrize("start", sorted({a for a, _, _ in SAFE}), ids=lambda t: NAMES[t])
def test_every_pair_that_goes_is_exact_for_every_value(start: int) -> None:
    for _, through, end in (s for s in SAFE if s[0] == start):
        assert_rewrites(
            MergeCasts(),
            chain(start, through, end).replace("y = Cast", "z = Cast").replace(" }", "  y = Identity(z) }"),
            ops={"Identity": 1} if start == end else {"Cast": 1, "Identity": 1},
            inputs={"x": everything(start)},
        )


@pytest.mark.parametrize(
    ("start", "through", "end"),
    [
        (T.FLOAT, T.FLOAT16, T.FLOAT),  # rounds
        (T.INT64, T.INT32, T.INT64),  # wraps
        (T.INT64, T.FLOAT, T.INT64),  # 24 bits
        (T.INT32, T.FLOAT, T.INT32),
        (T.INT64, T.DOUBLE, T.INT64),  # 53 bits
        (T.DOUBLE, T.FLOAT, T.FLOAT16),  # rounds twice
        (T.UINT16, T.FLOAT16, T.FLOAT),  # overflows
        (T.INT8, T.UINT8, T.INT16),  # loses the sign
        (T.INT8, T.FLOAT, T.UINT8),  # undefined for negative numbers
        (T.FLOAT16, T.FLOAT, T.INT8),  # undefined beyond the range
        (T.FLOAT, T.BOOL, T.FLOAT),
        (T.FLOAT16, T.BFLOAT16, T.FLOAT),
        (T.INT8, T.INT32, T.STRING),
    ],
)
def test_pairs_that_lose_something(start: int, through: int, end: int) -> None:
    assert not is_removable(start, through, end)
    if end != T.STRING:
        assert_refuses(MergeCasts(), chain(start, through, end), "not the direct cast")


def test_the_table_agrees_with_numpy() -> None:
    for a, b in itertools.product(NAMES, repeat=2):
        if b == T.BOOL or (a == b):
            continue
        values = everything(a)
        target = onnx.helper.tensor_dtype_to_np_dtype(b)
        with np.errstate(all="ignore"):
            there = values.astype(target)
            back = there.astype(values.dtype)
            exact = bool((values.astype(np.longdouble) == there.astype(np.longdouble)).all()) and bool(
                (back == values).all()
            )
        if holds_all(a, b):
            assert exact, (NAMES[a], NAMES[b])
        elif a in (T.INT8, T.UINT8, T.INT16, T.UINT16, T.FLOAT16, T.BFLOAT16):
            assert not exact, (NAMES[a], NAMES[b])


def test_a_shared_middle_stays() -> None:
    assert_rewrites(
        MergeCasts(),
        f"""{HEAD} g (int32[N] x) => (int64[N] a, float[N] y) {{ a = Cast<to = 7>(x)  y = Cast<to = 1>(a) }}""",
        f"""{HEAD} g (int32[N] x) => (int64[N] a, float[N] y) {{ a = Cast<to = 7>(x)  y = Cast<to = 1>(x) }}""",
    )


def test_an_input_under_an_output_name() -> None:
    assert_refuses(MergeCasts(), chain(T.FLOAT, T.DOUBLE, T.FLOAT), "an input")


def test_an_unknown_source_type_in_a_function() -> None:
    assert_refuses(
        MergeCasts(),
        """<ir_version: 8, opset_import: ["" : 17, "f" : 1]>
        g (float[N] x) => (float[N] y) { y = f.foo(x) }
        <domain: "f", opset_import: ["" : 17]> foo (a) => (b) { c = Cast<to = 11>(a)  b = Cast<to = 1>(c) }""",
    )


def test_in_a_branch_but_not_across() -> None:
    text = f"""{HEAD} g (int32[N] x, bool c) => (float[N] y) {{
        w = Cast<to = 7>(x)
        y = If(c) <
            then_branch = t () => (float[N] p) {{ d = Cast<to = 7>(x)  p = Cast<to = 1>(d) }},
            else_branch = e () => (float[N] q) {{ q = Cast<to = 1>(w) }}
        >
    }}"""
    assert_rewrites(MergeCasts(), text, ops={"If": 1, "Cast": 3})


def test_bfloat16_is_a_number_type() -> None:
    assert np.dtype(ml_dtypes.bfloat16) == onnx.helper.tensor_dtype_to_np_dtype(T.BFLOAT16)
    assert holds_all(T.UINT8, T.BFLOAT16)
    assert not holds_all(T.INT16, T.BFLOAT16)
