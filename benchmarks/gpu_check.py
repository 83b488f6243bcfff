"""Everything that a GPU is to be checked for, in one go, as a page.

    python benchmarks/gpu_check.py                            # the models of this repository, on CUDA
    python benchmarks/gpu_check.py models /path/to/exports    # and those in a folder
    python benchmarks/gpu_check.py --provider cpu --output /tmp/page.md   # the same path without a GPU

Per model: whether the provider computes what the CPU does, TF32 off and on; whether the optimized model does;
the latency of the optimized model over the original's, with bound inputs; what TF32 gains; which nodes are
computed where, copies between devices, and why nodes are left to the CPU. Once: what TF32 does to numbers,
whether the memory limit is obeyed, whether runs are waited for. Where the provider cannot be used, the page
says why and what was not run, and the CPU's part is run all the same.

It runs where graphopt is not installed too, from a checkout on PYTHONPATH together with `passes`.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import os
import platform
import sys
import tempfile
import time
import tomllib
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
#: Edges of the matrices that are multiplied.
SMALL, LARGE = 1024, 4096
NEEDED = ("numpy", "onnx", "onnxruntime", "onnx_graphsurgeon", "networkx", "ml_dtypes")


@dataclass
class Row:
    """What was found of one model."""

    name: str
    cells: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def register_passes() -> None:
    """Make the passes known where graphopt is on PYTHONPATH only, by the entry points in pyproject.toml."""
    if any(p.name == "fold-constants" for p in importlib.metadata.entry_points(group="graphopt.passes")):
        return
    from graphopt import __version__ as version

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    folder = Path(tempfile.mkdtemp(prefix="graphopt-"))
    info = folder / f"graphopt-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: graphopt\nVersion: {version}\n")
    lines: list[str] = []
    for group, entries in project["entry-points"].items():
        lines += [f"[{group}]", *(f"{name} = {target}" for name, target in entries.items()), ""]
    (info / "entry_points.txt").write_text("\n".join(lines))
    sys.path.append(str(folder))


def trouble(provider: str) -> str:
    """Why the provider cannot be used here; "" if it can."""
    from onnx import parser

    from graphopt.errors import GraphOptError, UserError
    from graphopt.runtime.session import open_session

    tiny = parser.parse_model(
        '<ir_version: 8, opset_import: ["": 17]> g(float[1] x) => (float[1] y) { y = Neg(x) }'
    )
    try:
        with open_session(tiny, provider=provider) as session:
            session.run({"x": __import__("numpy").ones(1, "float32")})
    except UserError as error:
        return "; ".join(filter(None, [error.what, *(error.fix or "").splitlines()])).replace("  ", "")
    except (GraphOptError, MemoryError) as error:
        return " ".join(str(error).split())
    return ""


def device_checks(provider: str) -> list[tuple[str, str]]:
    """What is checked once, on products of matrices: nothing on the CPU."""
    import numpy as np
    from onnx import numpy_helper, parser

    from graphopt.runtime.cuda import DeviceMemoryError
    from graphopt.runtime.measure import Contestant, Plan, measure
    from graphopt.runtime.providers import EXACT_MATH, NVIDIA, ProviderSettings, resolve_provider
    from graphopt.runtime.session import open_session

    full = resolve_provider(provider)
    if full not in NVIDIA:
        return []

    def product(n: int) -> tuple[Any, dict[str, Any]]:
        model = parser.parse_model(
            f'<ir_version: 8, opset_import: ["": 17]> g (float[{n},{n}] x) => (float[{n},{n}] y)'
            f" <float[{n},{n}] w> {{ y = MatMul(x, w) }}"
        )
        rng = np.random.default_rng(n)
        del model.graph.initializer[:]
        w = rng.standard_normal((n, n)).astype(np.float32)
        model.graph.initializer.append(numpy_helper.from_array(w, "w"))
        return model, {"x": rng.standard_normal((n, n)).astype(np.float32)}

    def errors() -> str:
        model, feeds = product(SMALL)
        w = numpy_helper.to_array(model.graph.initializer[0]).astype(np.float64)
        truth = feeds["x"].astype(np.float64) @ w
        words = []
        for name, settings in (("off", EXACT_MATH), ("on", ProviderSettings(tf32=True))):
            with open_session(model, provider=full, settings=settings) as session:
                got = np.asarray(session.run(feeds)["y"], np.float64)
            words.append(f"TF32 {name} {np.sqrt(np.mean((got - truth) ** 2) / np.mean(truth**2)):.2e}")
        return ", ".join(words)

    def limit() -> str:
        model, feeds = product(LARGE)
        try:
            with open_session(model, provider=full, settings=ProviderSettings(memory_limit=50_000_000)) as s:
                s.run(feeds)
        except DeviceMemoryError as error:
            return f"obeyed: {error.what}"
        return "**failed**: it was not obeyed"

    def waiting() -> str:
        (small, a), (large, b) = product(SMALL), product(LARGE)
        sides = [Contestant(small, [a]), Contestant(large, [b])]
        found = measure(sides, Plan(provider=full, seconds=2.0, settings=EXACT_MATH))
        ratio = found.ratios[0].ratio
        word = "" if found.bound and ratio > 8 else "**failed**: "  # 64 times the arithmetic
        return f"{word}x{ratio:.1f}, inputs {'bound' if found.bound else 'not bound'}"

    def same() -> str:
        model, feeds = product(256)
        with open_session(model, provider=full) as session:
            bound = session.bind(feeds)
            for _ in range(3):
                bound.run()
            equal = np.array_equal(bound.outputs()["y"], session.run(feeds)["y"])  # type: ignore[arg-type]
        return "bit for bit" if equal else "**failed**: they differ"

    checks: dict[str, Callable[[], str]] = {
        f"relative error of a product of {SMALL} x {SMALL} matrices, RMS": errors,
        f"memory limit of 50 MB, three matrices of {4e-6 * LARGE**2:.0f} MB": limit,
        f"time of {LARGE} x {LARGE} over that of {SMALL} x {SMALL}: runs are waited for": waiting,
        "bound runs against plain ones": same,
    }
    found = []
    for name, make in checks.items():
        try:
            found.append((name, make()))
        except Exception as error:  # one failing check must not hide the others
            traceback.print_exc()
            found.append((name, f"**failed**: {type(error).__name__}: {' '.join(str(error).split())[:300]}"))
    return found


def check(path: Path, provider: str, seconds: float, folder: Path) -> Row:
    """All checks of one model; each failure goes into its cell."""
    import graphopt
    from graphopt.runtime.inputs import synthesize
    from graphopt.runtime.providers import EXACT_MATH, NVIDIA, ProviderSettings, resolve_provider, using

    row = Row(path.name)
    full = resolve_provider(provider)
    providers = ("cpu",) if provider == "cpu" else ("cpu", provider)
    on_gpu = full in NVIDIA
    coarse = ProviderSettings(tf32=True)
    optimized = folder / f"{path.stem}.opt.onnx"

    def cell(name: str, make: Callable[[], str]) -> None:
        try:
            row.cells[name] = make()
        except Exception as error:  # one failing check must not hide the others
            row.cells[name] = "**failed**"
            row.notes.append(f"{name}: {type(error).__name__}: {' '.join(str(error).split())[:400]}")
            traceback.print_exc()

    def parity(settings: ProviderSettings) -> str:
        with using(settings):
            found = graphopt.validate(path, path, providers=providers)
        used = [
            r.candidate_used for r in found.runtimes if r.provider == full and r.candidate_used is not None
        ]
        if found.verdict != "proven":
            row.notes.append(f"{found.verdict}: {found.reason or found.explanation}")
        return f"{found.verdict}{f', {max(used):.3g} of allowance' if used else ''}"

    def optimize() -> str:
        target = "ort-cuda" if on_gpu else "ort-cpu"
        result = graphopt.run(path, target=target, providers=providers)
        report = result.report
        if report.verdict in ("failed",):
            row.notes.append(f"optimized: {report.verdict_reason}")
            return f"**{report.verdict}**"
        result.save(optimized, overwrite=True)
        return f"{report.verdict}, {report.before.nodes} -> {report.after.nodes} nodes"

    def latency() -> str:
        if not optimized.exists():
            return "no result to time"
        found = graphopt.bench(
            [path, optimized], provider=provider, seconds=seconds, profile=False, memory=False
        )
        ratio, (before, after) = found.ratios[0], found.timings
        row.notes += [f"latency: {n}" for n in found.notes]
        row.cells["open"] = f"{before.create_ms or 0:.0f} -> {after.create_ms or 0:.0f} ms"
        return (
            f"{before.p50_ms:.3f} -> {after.p50_ms:.3f} ms, x{ratio.ratio:.3f} "
            f"({ratio.low:.3f} to {ratio.high:.3f}), {ratio.verdict}"
        )

    def tf32() -> str:
        from graphopt.runtime.measure import Contestant, Plan, measure

        model = graphopt.load(path)
        feeds = [synthesize(model.skeleton(), count=1)[0].feeds]
        source = model.session_source()
        sides = [Contestant(source, feeds, s) for s in (EXACT_MATH, coarse)]
        ratio = measure(sides, Plan(provider=full, seconds=seconds)).ratios[0]
        return f"x{ratio.ratio:.3f} ({ratio.low:.3f} to {ratio.high:.3f}), {ratio.verdict}"

    def placement() -> str:
        from graphopt.runtime.assignment import assignment

        found = assignment(graphopt.load(path).session_source(), provider=provider)
        causes = Counter((n.cause, n.op) for n in found.fallbacks)
        words = [f"{count} {op} ({cause})" for (cause, op), count in causes.most_common(6)]
        if words:
            row.notes.append(f"on the CPU: {', '.join(words)}{', ...' if len(causes) > len(words) else ''}")
        executed = ", ".join(f"{k.removesuffix('ExecutionProvider')} {v}" for k, v in found.executed.items())
        return f"{found.coverage:.0%} of {len(found.nodes)}; executed: {executed}; {found.copy_count} copies"

    cell("parity, TF32 off" if on_gpu else "parity", lambda: parity(EXACT_MATH))
    if on_gpu:
        cell("parity, TF32 on", lambda: parity(coarse))
    cell("optimized", optimize)
    cell("latency", latency)
    if on_gpu:
        cell("TF32 on over off", tf32)
    cell("nodes on the provider", placement)
    return row


def page(
    rows: Sequence[Row], device: Sequence[tuple[str, str]], provider: str, why_not: str, took: float
) -> str:
    """The page, as Markdown."""
    from graphopt import summary
    from graphopt.runtime.machine import machine
    from graphopt.runtime.providers import (
        AS_DEPLOYED,
        NVIDIA,
        available_providers,
        onnxruntime,
        resolve_provider,
    )

    ort = onnxruntime()
    full = resolve_provider(provider)
    cuda = getattr(ort, "cuda_version", "") or "none"
    versions = ", ".join(f"{k} {v}" for k, v in summary.versions().items())
    lines = [
        "# Check on a GPU",
        "",
        f"Made with `benchmarks/gpu_check.py`, {time.strftime('%Y-%m-%d %H:%M', time.gmtime())} UTC, "
        f"in {took:.0f} s.",
        "",
        f"- provider: {full}",
        f"- machine: {machine(full, AS_DEPLOYED)}",
        f"- versions: Python {platform.python_version()}, {versions}; onnxruntime built for CUDA: {cuda}",
        f"- providers of this onnxruntime: {', '.join(available_providers())}",
        "",
    ]
    if full not in NVIDIA:
        reason = f"CUDA could not be used: {why_not}" if why_not else "the CPU was asked for."
        lines += [
            f"**Not run on a GPU**: {reason}",
            "",
            "Not run: parity of CUDA and CPU with TF32 off and on, latency with bound inputs on CUDA, what "
            "TF32 gains and costs, the assignment of nodes on CUDA, the memory limit, and the tests in "
            "`tests/cuda/`. What follows is the CPU's part of the same script.",
            "",
        ]
    columns = list(dict.fromkeys(name for row in rows for name in row.cells))
    lines += [f"| model | {' | '.join(columns)} |", "|" + "---|" * (len(columns) + 1)]
    lines += [f"| {r.name} | {' | '.join(r.cells.get(c, '') for c in columns)} |" for r in rows]
    lines += [
        "",
        "*Parity*: the model against itself on the CPU with optimizations off; the share of the allowance "
        "that is used (1 is the limit). *Latency*: median times of original and optimized model, and the "
        "paired ratio with its 99% interval. *Nodes on the provider*: before fusions; executed nodes after "
        "fusions, copies included.",
    ]
    if device:
        lines += ["", "## The device", "", "| check | found |", "|---|---|"]
        lines += [f"| {name} | {found} |" for name, found in device]
    noted = [r for r in rows if r.notes]
    if noted:
        lines += ["", "## Notes", ""]
        lines += [f"- {r.name}: {n}" for r in noted for n in r.notes]
    return "\n".join(lines) + "\n"


def models(given: Sequence[str]) -> Iterator[Path]:
    """The ONNX files among files and folders."""
    for text in given or [str(ROOT / "models")]:
        path = Path(text)
        if path.is_dir():
            yield from sorted(p for p in path.glob("*.onnx") if not p.name.endswith(".opt.onnx"))
        else:
            yield path


def main() -> int:
    """Run the check; 0 if nothing failed, 1 if something did, 2 if it cannot run."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="*", help="ONNX files and folders of them (default: models/)")
    parser.add_argument("--provider", default="cuda")
    parser.add_argument("--seconds", type=float, default=4.0, help="for each comparison of latency")
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "measurements" / "gpu.md")
    parser.add_argument("--limit", type=float, default=1e9, help="start no model after so many seconds")
    args = parser.parse_args()
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        sys.stderr.write(f"install these first: {', '.join(missing)}\n")
        return 2
    register_passes()
    start = time.monotonic()
    why_not = trouble(args.provider)
    provider = "cpu" if why_not else args.provider
    if why_not:
        sys.stderr.write(f"{args.provider} cannot be used: {why_not}\nrunning the CPU's part\n")
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="graphopt-") as folder:
        for path in models(args.models):
            if time.monotonic() - start > args.limit:
                rows.append(Row(path.name, notes=["not run: the time was up"]))
                continue
            sys.stderr.write(f"{path.name}\n")
            sys.stderr.flush()
            rows.append(check(path, provider, args.seconds, Path(folder)))
            _write(args.output, page(rows, (), provider, why_not, time.monotonic() - start))
    device = device_checks(provider)
    _write(args.output, page(rows, device, provider, why_not, time.monotonic() - start))
    failed = any("failed" in c for r in rows for c in r.cells.values()) or any(
        "failed" in f for _, f in device
    )
    sys.stdout.write(args.output.read_text(encoding="utf-8"))
    return 1 if failed else 0


def _write(path: Path, text: str) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


if __name__ == "__main__":
    sys.exit(main())
