"""Matrix products and recurrent layers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from graphopt.graph.dims import Dim, broadcast, fresh_dim, product
from graphopt.graph.rules.call import FLOAT, INT32, UINT8, Call, Rule, Shape, Unknown
from graphopt.graph.rules.elementwise import broadcast_shapes


def matmul_shape(a: Shape | None, b: Shape | None) -> Shape | None:
    """numpy.matmul: vectors lose their axis, the axes before the last two are broadcast."""
    if a is None or b is None:
        return None
    if not a or not b:
        raise Unknown
    rows = a[-2:-1] if len(a) > 1 else ()
    columns = b[-1:] if len(b) > 1 else ()
    batch = broadcast_shapes(a[:-2], b[:-2])
    assert batch is not None
    return batch + rows + columns


def matmul(call: Call) -> None:
    """MatMul."""
    dtype = call.dtype(0)
    call.out(0, call.dtype(1) if dtype is None else dtype, matmul_shape(call.shape(0), call.shape(1)))


def matmul_integer(call: Call) -> None:
    """Integers in, int32 out."""
    call.out(0, INT32, matmul_shape(call.shape(0), call.shape(1)))


def qlinear_matmul(call: Call) -> None:
    """The result has the type of its zero point."""
    call.out(0, call.dtype(7), matmul_shape(call.shape(0), call.shape(3)))


def gemm_shape(call: Call, a: Shape | None, b: Shape | None) -> Shape:
    """Gemm of matrices that may be transposed first."""
    rows = fresh_dim() if a is None else a[1] if call.attr("transA", 0) else a[0]
    columns = fresh_dim() if b is None else b[0] if call.attr("transB", 0) else b[1]
    return rows, columns


def gemm(call: Call) -> None:
    """Gemm."""
    call.out(0, call.dtype(0), gemm_shape(call, call.shape(0), call.shape(1)))


def fused_matmul(call: Call) -> None:
    """com.microsoft FusedMatMul: either operand may be transposed."""
    a, b = call.shape(0), call.shape(1)
    if call.attr("transBatchA", 0) or call.attr("transBatchB", 0):
        raise Unknown
    if a is not None and len(a) > 1 and call.attr("transA", 0):
        a = (*a[:-2], a[-1], a[-2])
    if b is not None and len(b) > 1 and call.attr("transB", 0):
        b = (*b[:-2], b[-1], b[-2])
    call.out(0, call.dtype(0), matmul_shape(a, b))


def matmul_nbits(call: Call) -> None:
    """com.microsoft MatMulNBits: a packed weight of K x N."""
    shape = call.need_shape(0)
    call.out(0, call.dtype(0), (*shape[:-1], call.attr("N")))


def integer_to_float(call: Call) -> None:
    """com.microsoft MatMulIntegerToFloat: the result has the type of the scale."""
    call.out(0, call.dtype(2), matmul_shape(call.shape(0), call.shape(1)))


def dynamic_quantize_matmul(call: Call) -> None:
    """com.microsoft DynamicQuantizeMatMul."""
    call.out(0, call.dtype(0), matmul_shape(call.shape(0), call.shape(1)))


def qgemm(call: Call) -> None:
    """com.microsoft QGemm: float where there is no output zero point."""
    dtype = call.dtype(8) if call.tensor(8) is not None else FLOAT
    call.out(0, dtype, gemm_shape(call, call.shape(0), call.shape(3)))


def einsum(call: Call) -> None:
    """Einsum, with ellipses and implicit output."""
    equation = call.attr("equation").replace(" ", "")
    left, arrow, right = equation.partition("->")
    dims: dict[str, Dim] = {}
    spread: Shape = ()
    for slot, term in enumerate(left.split(",")):
        shape = call.need_shape(slot)
        before, dots, after = term.partition("...")
        covered = len(shape) - len(before) - len(after)
        if covered < 0 or (covered and not dots):
            raise Unknown
        middle = shape[len(before) : len(shape) - len(after)]
        joined = broadcast_shapes(spread, middle)
        spread = joined if joined is not None else ()
        labelled = (
            *zip(before, shape, strict=False),
            *zip(after, shape[len(shape) - len(after) :], strict=True),
        )
        for label, dim in labelled:
            dims[label] = broadcast(dims[label], dim) if label in dims else dim
    if not arrow:
        letters = left.replace(".", "").replace(",", "")
        right = ("..." if "..." in left else "") + "".join(sorted(c for c in dims if letters.count(c) == 1))
    before, dots, after = right.partition("...")
    result = (*(dims[c] for c in before), *(spread if dots else ()), *(dims[c] for c in after))
    call.out(0, call.dtype(0), result)


def _recurrent(call: Call, states: int) -> None:
    x, weights = call.shape(0), call.shape(2)
    dtype = call.dtype(0)
    hidden: Dim | None = call.attr("hidden_size")
    if hidden is None:
        hidden = fresh_dim() if weights is None else weights[2]
    directions = 2 if call.attr("direction", "forward") == "bidirectional" else 1
    if x is None:
        raise Unknown
    if call.attr("layout", 0):
        batch, length = x[0], x[1]
        call.out(0, dtype, (batch, length, directions, hidden))
        final: Shape = (batch, directions, hidden)
    else:
        length, batch = x[0], x[1]
        call.out(0, dtype, (length, directions, batch, hidden))
        final = (directions, batch, hidden)
    for slot in range(1, 1 + states):
        call.out(slot, dtype, final)


def rnn(call: Call) -> None:
    """RNN and GRU: all hidden states, and the last."""
    _recurrent(call, 1)


def lstm(call: Call) -> None:
    """LSTM: as RNN, and the last cell state."""
    _recurrent(call, 2)


def det(call: Call) -> None:
    """Determinants of the innermost matrices."""
    call.out(0, call.dtype(0), call.need_shape(0)[:-2])


# -- attention ---------------------------------------------------------------------------------------------


def attention(call: Call) -> None:
    """Attention (opset 23): 4-D per head, or 3-D with the heads packed into the last axis."""
    query, key, value = call.need_shape(0), call.need_shape(1), call.need_shape(2)
    dtype = call.dtype(0)
    past = call.shape(4)
    if len(query) == 4:
        batch, q_heads, length, _ = query
        kv_heads, new, k_width, v_width = key[1], key[2], key[3], value[3]
        call.out(0, dtype, (batch, q_heads, length, v_width))
    else:
        batch, length, _ = query
        q_heads, kv_heads = call.attr("q_num_heads"), call.attr("kv_num_heads")
        new = key[1]
        k_width, v_width = key[2] // kv_heads, value[2] // kv_heads
        call.out(0, dtype, (batch, length, v_width * q_heads))
    if call.tensor(4) is None:
        total: Dim = new
    else:
        total = fresh_dim() if past is None else past[2] + new
    call.out(1, call.dtype(1), (batch, kv_heads, total, k_width))
    call.out(2, call.dtype(2), (batch, kv_heads, total, v_width))
    call.out(3, dtype, (batch, q_heads, length, total))


def packed_attention(call: Call) -> None:
    """com.microsoft MultiHeadAttention with Q, K, V apart, 3-D: only the first output."""
    query, value = call.need_shape(0), call.shape(2)
    if len(query) != 3:
        raise Unknown
    width = query[2]
    if value is not None:
        if len(value) == 3:
            width = value[2]
        elif len(value) == 4:
            width = product((value[1], value[3]))
    call.out(0, call.dtype(0), (query[0], query[1], width))


def dynamic_quantize_linear(call: Call) -> None:
    """Quantized values, scale, zero point."""
    call.out(0, UINT8, call.shape(0))
    call.out(1, FLOAT, ())
    call.out(2, UINT8, ())


RULES: Final[Mapping[str, Rule]] = {
    "Attention": attention,
    "Det": det,
    "DynamicQuantizeLinear": dynamic_quantize_linear,
    "Einsum": einsum,
    "GRU": rnn,
    "Gemm": gemm,
    "LSTM": lstm,
    "MatMul": matmul,
    "MatMulInteger": matmul_integer,
    "QLinearMatMul": qlinear_matmul,
    "RNN": rnn,
}
