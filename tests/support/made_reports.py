"""Reports with everything in them, made up: for the tests of what renders them."""

from __future__ import annotations

import math
from collections.abc import Callable

from graphopt.budget import Effect, Exploration, Score, Sensitivity, Survey, Swept, Tradeoff
from graphopt.report.calibrated import CalibratedTensor, CalibrationReport
from graphopt.report.document import (
    Culprit,
    FileInfo,
    ModelStats,
    OutputRow,
    PassReport,
    PortChange,
    Refusal,
    Rewrite,
    RunReport,
)
from graphopt.report.drawn import DrawnBody, DrawnModel, DrawnNode, DrawnTensor, GraphView
from graphopt.report.gated import Check, GateReport, Older
from graphopt.report.html import pages
from graphopt.report.measured import (
    AccuracyReport,
    FloatNode,
    LatencyReport,
    MetricRow,
    SparseTensor,
    SparsityReport,
    StageReport,
)
from graphopt.report.timed import BenchReport, OpTime, PairedRatio, Timing
from graphopt.report.validated import (
    LayerRow,
    Localization,
    NearbyNode,
    RuntimeRow,
    ValidationReport,
)

#: What a name in somebody's model may be.
HOSTILE = '</script><script>window.hacked=1</script>"\'&<img src=x onerror="window.hacked=2">{{7*7}}\u202eabc\u0007é漢'
VERSIONS = {"graphopt": "0.1.0", "onnx": "1.20.0"}

BEFORE = ModelStats(
    40, 36, 12, 1_234_567, 4_938_268, {"Conv": 20, "Relu": 10, "Add": 6, "Constant": 4}, {"": 17}, 8
)
AFTER = ModelStats(30, 30, 11, 1_200_000, 1_300_000, {"Conv": 20, "Relu": 8, HOSTILE: 2}, {"": 18}, 8)

OUTPUTS = (
    OutputRow("logits", "float", ("batch", "10"), "CLOSE", 1.5e-6, 2e-6, 0.9999999, 112.5, 1.2e-5, "ok"),
    OutputRow(HOSTILE, "float", None, "CLOSE", 0.25, 0.5, 0.8, 6.25, 0.001, "failed", "differs everywhere"),
    OutputRow("labels", "int64", ("batch",), "EXACT", 0.0, 0.0, None, None, 0.0, "ok"),
    OutputRow("same", "float", (), "CLOSE", 0.0, 0.0, 1.0, math.inf, 1e-6, "ok"),
)

LAYERS = tuple(
    LayerRow(
        f"/layer{i}/out",
        f"/layer{i}/out",
        "name",
        f"/layer{i}/Conv",
        "Conv",
        i,
        math.inf if i < 3 else 90.0 - 4 * i,
        0.0 if i < 3 else 1e-4 * i,
        i / 10,
        i <= 10,
    )
    for i in range(14)
)


def run() -> RunReport:
    """A run that was rolled back in part, with everything else besides."""
    return RunReport(
        FileInfo("folder/model.onnx", 5_000_000),
        FileInfo("folder/model.opt.onnx", 1_400_000),
        "portable",
        "fold-constants,fuse-gelu",
        "rolled back",
        f"a rewrite at {HOSTILE} was wrong",
        (
            PassReport(
                "fold-constants",
                {"limit": "4"},
                "EXACT",
                7,
                (Refusal("/a/Shape", "its shape is not known", 3), Refusal(HOSTILE, f"because of {HOSTILE}")),
                10,
                2,
                0.25,
                sites=(Rewrite("/a/Add", "a constant is an initializer"),),
            ),
            PassReport("fuse-gelu", numerics="CLOSE", rolled_back_sites=1, skipped="rolled back"),
            PassReport("dead-nodes", seconds=0.001),
            PassReport("insert-qdq", numerics="LOSSY", rewrites=2, nodes_added=8, seconds=1.5, remark="2 of 3",
                       changes=(Rewrite("/conv1", "per channel"), Rewrite(HOSTILE, "per tensor"))),
        ),
        BEFORE,
        AFTER,
        OUTPUTS,
        ("synthesized, batch=2", HOSTILE),
        ("CPU, optimizations off",),
        (Culprit("fuse-gelu", HOSTILE, "moved 0.25", "out.repro/1", "graphopt run x", ("cse",), "Traceback:\n  x\n"),),
        (f"a warning about {HOSTILE}",),
        {"load": 0.5, "passes and proof": 12.25},
        VERSIONS,
        AccuracyReport("56 samples", 34.5, 0.99951, (MetricRow("accuracy", 97.5, 97.25),), ("SQNR >= 15 dB",), ("missed",)),
        LatencyReport("CPU", 0.71, 0.7, 0.73, 4.5, 3.2, (HOSTILE,), "faster", tuple(4 + i / 100 for i in range(101)), tuple(2.7 + i / 100 for i in range(101))),
        SparsityReport(1000, 250, 4000, 3125, (SparseTensor(HOSTILE, 1000, 250),)),
        (FloatNode(HOSTILE, "MatMul", "costs too much"),),
        exploration(),
        (PortChange("input", HOSTILE, "float[1]", "uint8[1]", "raw pixels", "convert-io"),),
        "slim",
        (StageReport("prune", "prune-weights", "failed", ("size <= 0.5",), ("size 0.6",), 4, 20.5, 0.99,
                     (MetricRow("accuracy", 97.5, 96.0),), 0.6, 1.01, 3.5),),
    )  # fmt: skip


def exploration() -> Exploration:
    """A search over three nodes."""
    units = tuple(
        Sensitivity(name, "Conv", 1000 * (i + 1), Score(20.0 + i, 0.99), Score(40.0 - i, 0.999))
        for i, name in enumerate(("/a", "/b", HOSTILE))
    )
    points = tuple(
        Tradeoff(
            tuple(f"/{k}" for k in range(n)),
            3,
            Score(20.0 + 5 * n, 0.99, {"accuracy": 90 + n}),
            1000 * (n + 1),
            lat,
        )
        for n, lat in enumerate((0.5, 0.7, 0.9))
    )
    return Exploration(Score(20.0, 0.99), units, points)


def survey() -> Survey:
    """A pass on two layers, with a sweep."""

    def effect(node: str, sqnr: float, saved: int) -> Effect:
        return Effect(
            node, "Conv" if node else "", "", Score(sqnr, 0.9), 0, saved, saved // 4, 10 * saved, 0.9
        )

    layers = effect("/a", 30.0, 4000), effect(HOSTILE, 10.0, 2000)
    together = effect("", 9.0, 6000)
    sweep = tuple(Swept(v, layers, together) for v in ("0.3", "0.5"))
    return Survey(
        "prune-weights",
        "none",
        "",
        "56 samples",
        9000,
        2250,
        100_000,
        {},
        layers,
        together,
        "sparsity",
        sweep,
    )


def validation() -> ValidationReport:
    """A candidate that is wrong from one layer on."""
    nearby = (
        NearbyNode("/layer10/Conv", "Conv", ("x", "w"), ("y",), "", "agrees"),
        NearbyNode(HOSTILE, "Mul", ("y", "y"), ("z",), "fuse-gelu", "diverges", True),
    )
    return ValidationReport(
        FileInfo("a.onnx", 1000),
        FileInfo("b.onnx", 900),
        "failed",
        "the output moved too far",
        "CLOSE",
        "candidate",
        "fuse-gelu made a node that computes something else",
        OUTPUTS,
        (
            RuntimeRow("CPU, optimizations off", "CPUExecutionProvider", "off", 0.0, 250.0, True, False, "candidate"),
            RuntimeRow("CUDA", "CUDAExecutionProvider", "on", None, None, False, False, note="not there"),
        ),
        {"y1": "y"},
        (MetricRow("accuracy", 97.5, 12.0),),
        LAYERS,
        Localization(
            True, "it starts here", LAYERS[11], HOSTILE, "Mul", "fuse-gelu", "", ("y",), "CPU", "probe 1", 14, 14, 4, nearby
        ),
        ("synthesized, batch=2",),
        ("the original moves too",),
        BEFORE,
        AFTER,
        {"compare": 1.5},
        VERSIONS,
    )  # fmt: skip


def bench() -> BenchReport:
    """Two models, the second 20% faster."""

    def timing(label: str, factor: float) -> Timing:
        quantiles = tuple(
            factor * (4.0 + 0.01 * i + (0.02 * (i - 95) ** 2 if i > 95 else 0)) for i in range(101)
        )
        at = [quantiles[i] for i in (50, 90, 95, 99)]
        ops = (OpTime("Conv", "CPU", 20, 3.0 * factor, 0.75), OpTime(HOSTILE, "CPU", 4, factor, 0.25))
        return Timing(label, FileInfo(f"{label}.onnx", 1000), 500, 20, label == "A", 4.5 * factor, 4.0 * factor, *at,
                      quantiles, 12.5, 30_000_000, ops, "" if label == "A" else "times drift")  # fmt: skip

    ratio = PairedRatio("A", "B", 0.8, 0.79, 0.82, 0.95, 500, 0.012, "faster")
    return BenchReport(
        "CPUExecutionProvider", "all", 1, (0,), {"IO binding": "yes"}, ("x: float[1,3,224,224]",),
        (timing("A", 1.0), timing("B", 0.8)), (ratio,), (f"noisy: {HOSTILE}",), "a processor", VERSIONS,
    )  # fmt: skip


def gate() -> GateReport:
    """A policy of four limits: one passes, two fail, one could not be measured."""
    checks = (
        Check(
            "latency.max_ratio",
            "latency over the reference's",
            "0.80",
            "at most 0.9",
            "passed",
            0.8,
            0.9,
            line=4,
        ),
        Check(
            "numerics.min_sqnr_db",
            "signal to noise",
            "6.2 dB",
            "at least 20 dB",
            "failed",
            6.2,
            20.0,
            HOSTILE,
            9,
        ),
        Check("ops.banned", "operators", HOSTILE, "none of Mul", "failed", line=12),
        Check("providers.cuda", "nodes on CUDA", "-", "all", "error", detail="no CUDA device", line=15),
    )
    return GateReport(
        FileInfo("b.onnx", 900),
        "gate.toml",
        HOSTILE,
        "failed",
        checks,
        FileInfo("a.onnx", 1000),
        validation(),
        bench(),
        (f"added: {HOSTILE}",),
        Older(
            FileInfo("old.onnx", 950),
            BEFORE,
            ("input x",),
            (HOSTILE,),
            {"added": 2},
            {"changed": 1},
            {HOSTILE: (0, 2)},
        ),
        BEFORE,
        AFTER,
        ("something",),
        {"numerics": 2.0},
        VERSIONS,
    )


def calibration() -> CalibrationReport:
    """Two tensors, of which one range cuts values off."""
    edges = tuple(-1 + 0.1 * i for i in range(21))
    counts = tuple(1 + 50 * min(i, 19 - i) for i in range(20))
    total = sum(counts) + 40
    methods = {"minmax": (-1.0, 1.0), "percentile": (-0.75, 0.8)}
    return CalibrationReport(
        "model.ranges.json", "fold-constants", 450, "minmax", "uint8", False,
        (
            CalibratedTensor("/a", "float", -1.0, 1.0, False, -1.0, 1.0, total, 40, 0, 0, methods, edges, counts),
            CalibratedTensor(HOSTILE, "float", -0.5, 0.5, True, -1.0, 1.0, total, 40, 1, 2, methods, edges, counts),
        ),
    )  # fmt: skip


def graph() -> GraphView:
    """A chain of three nodes of which one was replaced; the second model's names are hostile."""

    def body(state: str, name: str, op: str, made_by: str) -> DrawnBody:
        tensors = (
            DrawnTensor("x", "float[batch,4]", "input"),
            DrawnTensor("w", "float[4]", "initializer", "16 B: 1, 2, 3, 4"),
            DrawnTensor(f"{name}_out", "float[batch,4]"),
            DrawnTensor("y", "float[batch,4]", "output"),
        )
        nodes = (
            DrawnNode("x", "", "input", pair=0, outputs=(0,), x=0, y=0),
            DrawnNode(name, op, "node", state, -1 if state != "same" else 1, made_by, (0, 1), (2,), (),  # type: ignore[arg-type]
                      (f"alpha={HOSTILE}",), x=0, y=70),
            DrawnNode("last", "Relu", "node", "changed", 2, "", (2,), (3,), changes=(f"input 0: a -> {HOSTILE}",), x=0, y=140),
            DrawnNode("y", "", "output", pair=3, inputs=(3,), x=0, y=210),
        )  # fmt: skip
        return DrawnBody("main", pair=0, nodes=nodes, tensors=tensors, width=136, height=250)

    return GraphView(
        DrawnModel(HOSTILE, (body("added", HOSTILE, f"my.domain::{HOSTILE}", "fuse-gelu"),)),
        DrawnModel("model.onnx", (body("removed", "first", "Mul", ""),)),
        136,
        40,
    )


#: A page of each kind of report, by name.
PAGES: dict[str, Callable[[], str]] = {
    "run": lambda: pages.run_page(run(), graph=graph(), layers=LAYERS, calibration=calibration()),
    "validate": lambda: pages.validation_page(validation(), graph=graph()),
    "bench": lambda: pages.bench_page(bench()),
    "gate": lambda: pages.gate_page(gate(), graph=graph()),
    "exploration": lambda: pages.sensitivity_page(exploration(), HOSTILE),
    "survey": lambda: pages.sensitivity_page(survey(), HOSTILE),
    "calibration": lambda: pages.calibration_page(calibration()),
}
