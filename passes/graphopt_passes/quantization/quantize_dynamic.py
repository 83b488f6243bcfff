"""quantize-dynamic: int8 weights, and activations whose range is taken anew from every input."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import onnx

from graphopt.passkit import (
    Array,
    AttributeRef,
    Node,
    Numerics,
    Pass,
    PassContext,
    RefusedRewrite,
    Rewriter,
    Tensor,
)
from graphopt.quantkit import QUANT_TYPES, QuantType, WeightMethod, reduced, weight_grid
from graphopt_passes.quantization._lstm import quantize_lstm
from graphopt_passes.quantization._pick import check_globs, picked
from graphopt_passes.quantization._weights import Weight, check_weight, finite_values, in_order, weight_slots

_FLOAT = onnx.TensorProto.FLOAT
_PRODUCTS = ("MatMul", "Gemm")
# Never quantized here; a person who wonders why is told.
_NEVER = {
    "Conv": "Conv has no fast dynamic kernel (ConvInteger runs at 0.02 to 0.13 of the float speed): "
    "quantize it statically, or its weight alone",
    "ConvTranspose": "ConvTranspose has no integer kernel",
    "GRU": "GRU has no integer kernel: quantize-weights{ops=GRU} can store its weights in fewer bits",
    "RNN": "RNN has no integer kernel",
}


@dataclass(frozen=True)
class _Product:
    """x @ W * alpha + c, with a constant matrix W of shape (K, N).

    Attributes:
        x: the activation.
        weight: the matrix with all its readers.
        transposed: it is stored as (N, K).
        alpha: factor.
        c: what is added, with its factor.
    """

    node: Node
    x: Tensor
    weight: Weight
    transposed: bool
    alpha: float
    c: Tensor | None
    beta: float


@dataclass(frozen=True)
class QuantizeDynamic(Pass):
    """x @ W = MatMulInteger(DynamicQuantizeLinear(x), Q) * (scale of x * scale of W), for constant W.

    Weights are int8, symmetric, with a scale per column; activations are uint8, one scale per tensor, found
    while the model runs, so no data is needed. All products of one activation share its
    DynamicQuantizeLinear. ONNX Runtime makes DynamicQuantizeMatMul or MatMulIntegerToFloat of the pieces.
    LSTM becomes com.microsoft's DynamicQuantizeLSTM under the target ort-cpu.

    Refuses when: an operand is not constant (a product of two activations would quantize both on every
    call) or the constant is the left one; its weight is not float32, not a matrix, not finite, kept, a graph
    output, smaller than `min_elements`, or read by something else too; Gemm transposes its left operand.
    LSTM: another target; peepholes, layout=1; weights that are not constant or not private. Conv, GRU and
    RNN always: they have no kernel that is fast.
    """

    name: ClassVar[str] = "quantize-dynamic"
    numerics: ClassVar[Numerics] = Numerics.LOSSY
    quantizes: ClassVar[bool] = True

    ops: tuple[str, ...] = field(
        default=("MatMul", "Gemm", "LSTM"), metadata={"help": "operators to quantize"}
    )
    nodes: tuple[str, ...] = field(default=(), metadata={"help": "globs; only nodes that match one"})
    exclude: tuple[str, ...] = field(default=(), metadata={"help": "globs; not nodes that match one"})
    method: WeightMethod = field(
        default="mse",
        metadata={"help": "weight scales of least squared error, or minmax: those that cover all weights"},
    )
    reduce_range: bool = field(
        default=False, metadata={"help": "7-bit weights: for x86 processors without VNNI"}
    )
    min_elements: int = field(default=1024, metadata={"help": "leave weights with fewer elements alone"})

    def __post_init__(self) -> None:
        """Check the operator names."""
        unknown = [op for op in self.ops if op not in (*_PRODUCTS, "LSTM")]
        if unknown:
            raise ValueError(f"ops are among MatMul, Gemm, LSTM, not {', '.join(unknown)}")

    def least_opset(self) -> int:
        """DynamicQuantizeLinear is of opset 11."""
        return 11

    def run(self, graph: Rewriter, ctx: PassContext) -> None:
        """Quantize the products and LSTMs of this body."""
        candidates = in_order(graph, self.ops)
        check_globs(graph, ctx, self, candidates, (*self.nodes, *self.exclude))
        for node in graph.by_op(*_NEVER):
            graph.refuse(node, _NEVER[node.op])
        chosen = [n for n in candidates if picked(n, self.nodes, self.exclude)]
        if chosen and graph.opset < self.least_opset():
            for node in chosen:
                graph.refuse(node, f"DynamicQuantizeLinear needs opset 11, this is {graph.opset}")
            return
        done: set[Node] = set()
        for node in chosen:
            if node in done or not graph.is_live(node):
                continue
            try:
                if node.op == "LSTM":
                    quantize_lstm(graph, ctx, node, self._type(), self.method, self.min_elements)
                else:
                    done.update(self._rewrite(self._group(node, graph), graph))
            except RefusedRewrite as refused:
                graph.refuse(node, refused.reason)

    def _type(self) -> QuantType:
        return reduced(QUANT_TYPES["int8"]) if self.reduce_range else QUANT_TYPES["int8"]

    def _group(self, node: Node, graph: Rewriter) -> list[_Product]:
        """`node` and whoever else reads its weight: they change together."""
        slots = weight_slots(graph, node)
        if not slots:
            raise RefusedRewrite("both operands are computed (or both constant): quantizing them costs more")
        if slots == [0]:
            raise RefusedRewrite("its weight is the left operand, which kernels want to be an activation")
        weight = check_weight(graph, node, 1)
        if not weight.local:
            raise RefusedRewrite(f"{weight.tensor.name} is also read in another body")
        return [self._read(graph, role.node, weight) for role in weight.roles]

    def _read(self, graph: Rewriter, node: Node, weight: Weight) -> _Product:
        if node.op not in self.ops or not picked(node, self.nodes, self.exclude):
            raise RefusedRewrite(f"{weight.tensor.name} is also read by {node.op} {node.name}, not selected")
        if graph.keeps(node):
            raise RefusedRewrite(f"{node.name or node.op}, which reads the weight, is kept")
        if weight.constant.dtype != np.float32:
            raise RefusedRewrite("DynamicQuantizeLinear takes float32 only")
        shape = tuple(weight.constant.shape)
        if len(shape) != 2:
            raise RefusedRewrite(f"its weight {weight.tensor.name} is a stack of matrices")
        if shape[0] * shape[1] < self.min_elements:
            raise RefusedRewrite(f"its weight {weight.tensor.name} has too few elements to bother")
        if weight.roles[0].slot != 1 or any(r.slot != 1 for r in weight.roles):
            raise RefusedRewrite(f"{weight.tensor.name} is also the left operand of a product")
        x = node.inputs[0]
        if node.op == "MatMul":
            return _Product(node, x, weight, False, 1.0, None, 1.0)
        alpha, beta, turned = (graph.attr(node, n) for n in ("alpha", "beta", "transA"))
        if any(isinstance(v, AttributeRef) for v in (alpha, beta, turned)):
            raise RefusedRewrite("attributes of Gemm are parameters of the function")
        if turned:
            raise RefusedRewrite("Gemm transposes its left operand, MatMulInteger does not")
        if not alpha > 0:
            raise RefusedRewrite("alpha of Gemm is not positive, so no scale can take it in")
        c = graph.input(node, 2)
        if beta != 1.0 and c is not None and not graph.is_constant(c):
            raise RefusedRewrite("beta of Gemm is not 1 and its bias is not constant")
        return _Product(node, x, weight, weight.depth == 1, float(alpha), c if beta else None, float(beta))

    def _rewrite(self, group: list[_Product], graph: Rewriter) -> list[Node]:
        weight = group[0].weight
        values = finite_values(graph, weight.tensor)
        grid = weight_grid(values, self._type(), axis=weight.channel, method=self.method)
        q = grid.quantize(values)
        name = weight.tensor.name
        with graph.site(weight.node, f"{name}: int8 per column, activations quantized at run time"):
            turned = np.ascontiguousarray(q.T) if group[0].transposed else q
            matrix = graph.new_constant(f"{name}_quantized", turned)
            scales: dict[float, Tensor] = {}
            for product in group:
                if product.alpha not in scales:
                    factors = (grid.scale * np.float32(product.alpha)).astype(np.float32)
                    scales[product.alpha] = graph.new_constant(f"{name}_scale", factors)
                self._product(graph, product, matrix, scales[product.alpha])
        return [p.node for p in group]

    def _product(self, graph: Rewriter, product: _Product, matrix: Tensor, scale: Tensor) -> None:
        x, old = product.x, product.node.outputs[0]
        q, x_scale, x_zero = quantized_activation(graph, x)
        total = graph.op("MatMulInteger", [q, matrix, x_zero], hint=f"{old.name}_int32")
        wide = graph.op("Cast", [total], attrs={"to": int(_FLOAT)}, hint=f"{old.name}_unscaled")
        factor = graph.op("Mul", [x_scale, scale], hint=f"{old.name}_scale")
        if product.c is None:
            graph.replace(old, "Mul", [wide, factor])
            return
        result = graph.op("Mul", [wide, factor], hint=f"{old.name}_product")
        c = product.c
        if product.beta != 1.0:
            values: Array | None = graph.array(c)
            assert values is not None
            c = graph.new_constant(c.name, (values * np.float32(product.beta)).astype(np.float32))
        graph.replace(old, "Add", [result, c])


def quantized_activation(graph: Rewriter, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """uint8, scale and zero point of `x`, from the one DynamicQuantizeLinear of it in this body."""
    for reader in graph.consumers(x):
        if graph.is_op(reader, "DynamicQuantizeLinear") and graph.is_live(reader):
            outputs = reader.outputs
            if len(outputs) == 3 and all(t.name for t in outputs):
                return outputs[0], outputs[1], outputs[2]
    made = graph.op("DynamicQuantizeLinear", [x], n_outputs=3, hint=f"{x.name}_quantized")
    return made[0], made[1], made[2]
