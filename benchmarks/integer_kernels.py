"""How long ONNX Runtime's float and integer kernels take, and the constants that explain it.

    python integer_kernels.py [--json MEASURED] [--from MEASURED] [--markdown PAGE]

Every layer is timed in float and as the integer kernel of the same shape, one thread, interleaved, least of
many runs: what disturbs a shared machine only ever makes a run longer. Layers that fit onto themselves are
also timed three in a row, which tells the kernel from the changes of layout at its borders. Non-negative
least squares on relative errors fit what graphopt/quantization/cost.py needs: time per multiply-add, per
element, and per node. Layers that were left out of the fit say how good it is.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper

Array = Any
SECONDS = 0.1
"""How long to repeat a pair of layers."""
MOST_MACS = 300_000_000
MOST_ELEMENTS = 1_500_000
"""Beyond this, memory is measured rather than kernels."""


def session(nodes: list[Any], inputs: list[Any], outputs: list[Any], constants: dict[str, Array]) -> Any:
    import onnxruntime as ort

    tensors = [numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items()]
    graph = helper.make_graph(nodes, "g", inputs, outputs, tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


class Runner:
    """A session with its input bound, so that a run is little but its kernels."""

    def __init__(self, raw: Any, x: Array) -> None:
        self.raw, self.binding = raw, raw.io_binding()
        self.binding.bind_cpu_input("x", x)
        self.binding.bind_output("y", "cpu")

    def run(self) -> float:
        start = time.perf_counter()
        self.raw.run_with_iobinding(self.binding)
        return time.perf_counter() - start


def least(runners: list[Runner]) -> list[float]:
    """The least time of each, interleaved."""
    for runner in runners:
        runner.run()
        runner.run()
    best = [float("inf")] * len(runners)
    end = time.perf_counter() + SECONDS
    rounds = 0
    while rounds < 5 or time.perf_counter() < end:
        for i, runner in enumerate(runners):
            best[i] = min(best[i], runner.run())
        rounds += 1
    return best


def value(name: str, dtype: int, shape: tuple[int, ...] | None) -> Any:
    return helper.make_tensor_value_info(name, dtype, shape)


def layer(op: str, x: tuple[int, ...], w: tuple[int, ...], chain: int = 1, **attrs: Any) -> list[Runner]:
    """The layer in float, and with uint8 going in and coming out; `chain` of them in a row."""
    rng = np.random.default_rng(0)
    weights = rng.normal(size=w).astype(np.float32)
    axis, n = (0, w[0]) if op == "Conv" else (1, w[1])
    bias = ["b"] if op != "MatMul" else []
    constants = {"w": weights, "b": np.zeros(n, np.float32)}
    rank = len(x)
    names = ["x", *(f"t{i}" for i in range(1, chain)), "y"]
    float_nodes = [
        helper.make_node(op, [names[i], "w", *bias], [names[i + 1]], **attrs) for i in range(chain)
    ]
    data = rng.normal(size=x).astype(np.float32)
    first = session(float_nodes, [value("x", 1, x)], [value("y", 1, (None,) * rank)], constants)
    quantized = {
        "s": np.float32(0.05),
        "z": np.uint8(128),
        "ws": np.full(n, 0.02, np.float32),
        "wz": np.zeros(n, np.int8),
        "wq": np.clip(np.rint(weights * 50), -127, 127).astype(np.int8),
        "bs": np.full(n, 0.001, np.float32),
        "bq": np.zeros(n, np.int32),
    }
    nodes = [
        helper.make_node("DequantizeLinear", ["wq", "ws", "wz"], ["wd"], axis=axis),
        helper.make_node("DequantizeLinear", ["bq", "bs"], ["bd"], axis=0),
    ]
    for i in range(chain):
        nodes += [
            helper.make_node("DequantizeLinear", [names[i], "s", "z"], [f"d{i}"]),
            helper.make_node(op, [f"d{i}", "wd", *(["bd"] if bias else [])], [f"a{i}"], **attrs),
            helper.make_node("QuantizeLinear", [f"a{i}", "s", "z"], [names[i + 1]]),
        ]
    second = session(
        nodes, [value("x", TensorProto.UINT8, x)], [value("y", TensorProto.UINT8, (None,) * rank)], quantized
    )
    return [Runner(first, data), Runner(second, rng.integers(0, 255, x).astype(np.uint8))]


def boundary(n: int) -> list[Runner]:
    """Nothing, Q and DQ over n elements."""
    rng = np.random.default_rng(0)
    constants = {"s": np.float32(0.05), "z": np.uint8(128)}
    nothing = [helper.make_node("Identity", ["x"], ["y"])]
    q = [helper.make_node("QuantizeLinear", ["x", "s", "z"], ["y"])]
    dq = [helper.make_node("DequantizeLinear", ["x", "s", "z"], ["y"])]
    x, i = rng.normal(size=n).astype(np.float32), rng.integers(0, 255, n).astype(np.uint8)
    return [
        Runner(session(nothing, [value("x", 1, (1,))], [value("y", 1, (1,))], {}), x[:1]),
        Runner(session(q, [value("x", 1, (n,))], [value("y", 2, (n,))], constants), x),
        Runner(session(dq, [value("x", 2, (n,))], [value("y", 1, (n,))], constants), i),
    ]


def shapes() -> list[dict[str, Any]]:
    """What is measured: a seeded sample of the grid."""
    pick = random.Random(0)
    sizes = (7, 14, 28, 56, 112, 224)
    convs = [
        {"op": "Conv", "cin": cin, "cout": cout, "k": k, "hw": hw, "group": 1}
        for cin in (1, 3, 16, 32, 64, 128, 256)
        for cout in (8, 16, 32, 64, 128, 256)
        for k in (1, 3, 5)
        for hw in sizes
        if cin * cout * k * k * hw * hw <= MOST_MACS and (cin + cout) * hw * hw <= MOST_ELEMENTS
    ]
    depthwise = [
        {"op": "Conv", "cin": c, "cout": c, "k": k, "hw": hw, "group": c}
        for c in (16, 32, 64, 128, 256)
        for k in (3, 5)
        for hw in sizes
        if 2 * c * hw * hw <= MOST_ELEMENTS
    ]
    sides = (32, 64, 128, 256, 512, 1024)
    products = [
        {"op": op, "m": m, "k": k, "n": n}
        for op in ("Gemm", "MatMul")
        for m in (1, 4, 16, 64, 256)
        for k in sides
        for n in sides
    ]
    return [*pick.sample(convs, 150), *depthwise, *pick.sample(products, 90)]


def runners(shape: dict[str, Any], chain: int) -> list[Runner]:
    if shape["op"] != "Conv":
        return layer(shape["op"], (shape["m"], shape["k"]), (shape["k"], shape["n"]), chain)
    k, hw = shape["k"], shape["hw"]
    weight = (shape["cout"], shape["cin"] // shape["group"], k, k)
    attrs = {"pads": [k // 2] * 4, "group": shape["group"]}
    return layer("Conv", (1, shape["cin"], hw, hw), weight, chain, **attrs)


def measure() -> dict[str, Any]:
    rows = []
    for shape in shapes():
        for chain in (
            (1, 3) if shape.get("cin", shape.get("k")) == shape.get("cout", shape.get("n")) else (1,)
        ):
            rows.append({**shape, "chain": chain, "seconds": least(runners(shape, chain))})
    sizes = [2**p for p in range(8, 23, 2)]
    return {"layers": rows, "boundaries": [{"n": n, "seconds": least(boundary(n))} for n in sizes]}


# -- the fit ---------------------------------------------------------------------------------------------


def nonnegative(a: Array, t: Array) -> Array:
    """Least squares of relative errors with coefficients >= 0, by coordinate descent."""
    a = a / t[:, None]
    size = np.sqrt((a * a).sum(axis=0)) + 1e-30
    a = a / size
    x = np.zeros(a.shape[1])
    gram, target = a.T @ a, a.sum(axis=0)
    for _ in range(20_000):
        for j in range(len(x)):
            if gram[j, j] > 0:  # a term that no layer has stays 0
                x[j] = max(0.0, x[j] + (target[j] - gram[j] @ x) / gram[j, j])
    return x / size


def shape_of(row: dict[str, Any]) -> Any:
    from graphopt.quantization.cost import LayerShape

    if row["op"] != "Conv":
        return LayerShape.matmul(row["m"], row["k"], row["n"])
    size = (row["hw"],) * 2
    return LayerShape.conv(1, row["cin"], row["cout"], (row["k"],) * 2, size, size, row["group"])


def design(row: dict[str, Any], form: str) -> Array:
    """What a chain of layers does: its kernels, and the layout of what goes in and comes out."""
    from graphopt.quantization.cost import layout_terms, terms

    shape = shape_of(row)
    kernels = [row["chain"] * x for x in terms(shape, form)]
    return np.array([*kernels, *layout_terms(shape, shape.read, shape.written)], float)


def fit(measured: dict[str, Any]) -> dict[str, Any]:
    rows = measured["boundaries"]
    base = min(r["seconds"][0] for r in rows)
    n = np.array([r["n"] for r in rows], float)
    constants: dict[str, Any] = {"run": base, "quality": {}}
    for name, column in (("quantize", 1), ("dequantize", 2)):
        t = np.array([r["seconds"][column] for r in rows]) - base
        constants[name] = nonnegative(np.stack([np.ones(len(n)), n], 1), np.maximum(t, 1e-7)).tolist()
    kinds: dict[str, list[Any]] = {}
    for row in measured["layers"]:
        kinds.setdefault(shape_of(row).kind, []).append(row)
    for kind, items in kinds.items():
        # A layer's two chains stay together, on one side.
        keys = list(dict.fromkeys(str({**r, "chain": 0, "seconds": 0}) for r in items))
        held = set(keys[::4])
        test = [r for r in items if str({**r, "chain": 0, "seconds": 0}) in held]
        train = [r for r in items if r not in test]
        guesses = []
        for column, form in enumerate(("float", "integer")):
            a = np.array([design(r, form) for r in train])
            x = nonnegative(a, np.array([max(r["seconds"][column] - base, 5e-8) for r in train]))
            constants[f"{kind}.{form}"] = x.tolist()
            guesses.append(np.array([design(r, form) for r in test]) @ x)
            t = np.array([max(r["seconds"][column] - base, 5e-8) for r in test])
            errors = np.abs(guesses[-1] / t - 1)
            constants["quality"][f"{kind}.{form}"] = [
                float(np.median(errors)),
                float(np.quantile(errors, 0.9)),
            ]
        pairs = np.array([[max(s - base, 5e-8) for s in r["seconds"]] for r in test])
        truth, guess = pairs[:, 0] / pairs[:, 1], guesses[0] / guesses[1]
        clear = (truth > 1.25) | (truth < 0.8)
        same = (truth > 1) == (guess > 1)
        constants["quality"][f"{kind}.sign"] = [float(same.mean()), float(same[clear].mean()), len(test)]
    return constants


def conv_name(r: dict[str, Any]) -> str:
    depthwise = " depthwise" if r["group"] > 1 else ""
    return f"Conv {r['cin']}->{r['cout']} {r['k']}x{r['k']} {r['hw']}x{r['hw']}{depthwise}"


def markdown(measured: dict[str, Any], constants: dict[str, Any]) -> str:
    lines = ["| layer | float | integer | float / integer |", "|---|---|---|---|"]
    for r in sorted(measured["layers"], key=lambda r: r["seconds"][0] / r["seconds"][1]):
        name = f"{r['op']} {r['m']}x{r['k']}x{r['n']}" if r["op"] != "Conv" else conv_name(r)
        name += f", {r['chain']} in a row" if r["chain"] > 1 else ""
        a, b = (max(s - constants["run"], 1e-7) for s in r["seconds"])
        lines.append(f"| {name} | {a * 1e6:.1f} us | {b * 1e6:.1f} us | {a / b:.2f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--json", type=Path, help="write what was measured")
    parser.add_argument("--from", dest="source", type=Path, help="read it instead of measuring")
    parser.add_argument("--markdown", type=Path, help="write a table of all layers")
    args = parser.parse_args()
    measured = json.loads(args.source.read_text()) if args.source else measure()
    if args.json:
        args.json.write_text(json.dumps(measured))
    constants = fit(measured)
    print(json.dumps(constants, indent=2))
    if args.markdown:
        args.markdown.write_text(markdown(measured, constants) + "\n")


if __name__ == "__main__":
    main()
