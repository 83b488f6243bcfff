"""Benchmark graphopt beside the other ONNX optimizers.

    python benchmarks/peers.py --peers-python PEERS/bin/python models/*.onnx
    python benchmarks/peers.py --peers-python PEERS/bin/python --scale 1000,10000,50000
    python benchmarks/peers.py --peers-python PEERS/bin/python --big

For each model and each other tool, graphopt and that tool run alternately, each in a fresh process on the
same core; ratios are taken pair by pair. Results are counted and checked against the original in separate
processes. A Markdown page goes to docs/measurements/. PEERS is a virtual environment with the other tools
(README.md here says which), which also judges the results.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import measure
import report
from report import OURS, Costs, ModelResult, Row

HERE = Path(__file__).resolve().parent
PEERS = ("onnxsim", "onnxslim", "onnxoptimizer", "onnxscript", "ort_basic")
NO_COSTS = Costs(math.nan, math.nan, math.nan, math.nan)
SLOW = 60.0
"""Seconds from which a tool is not run again on the same model."""


@dataclass
class Tool:
    """A command to measure.

    Attributes:
        name: as in the tables.
        template: its command line with `{in}` and `{out}`.
        timed_out: it was stopped at the time limit on the model before.
    """

    name: str
    template: str
    timed_out: bool = False

    def command(self, source: Path, target: Path) -> list[str]:
        """The command line for one model."""
        return [
            part.replace("{in}", str(source)).replace("{out}", str(target))
            for part in shlex.split(self.template)
        ]


def without_folders(text: str) -> str:
    """`text` with absolute paths cut to their last part: pages say nothing of the machine's folders."""
    roots = "|".join(re.escape(entry.name) for entry in Path("/").iterdir() if entry.is_dir())
    return re.sub(rf"(?<![\w.-])/({roots})/(?:[^\s'\":,/]+/)*", "", text)


@dataclass
class Runs:
    """All runs of one tool on one model, and the folder with its last result."""

    tool: Tool
    folder: Path
    usages: list[measure.Usage] = field(default_factory=list)

    @property
    def result(self) -> Path:
        """Where the tool writes."""
        return self.folder / "result.onnx"

    def again(self, model: Path, timeout: float) -> measure.Usage:
        """Run the tool once more, into an empty folder."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        usage = measure.run(self.tool.command(model, self.result), timeout=timeout)
        self.usages.append(usage)
        return usage

    def failure(self) -> str | None:
        """Why there is nothing to judge."""
        last = self.usages[-1]
        if last.status is None:
            return f"stopped after {last.wall:.0f} s"
        if last.failed or not self.result.exists():
            lines = [line for line in last.output.splitlines() if line.strip()]
            return without_folders(f"exit {last.status}: {lines[-1].strip()[:160] if lines else 'no output'}")
        return None


class Judge:
    """Asks check.py, in the environment of the other tools, about models."""

    def __init__(self, python: Path) -> None:
        self.python = python

    def ask(self, *arguments: object) -> Any:
        """One verb of check.py; raises RuntimeError with its message when it fails."""
        command = [str(self.python), str(HERE / "check.py"), *map(str, arguments)]
        process = subprocess.run(command, capture_output=True, text=True, check=False)
        if process.returncode:
            raise RuntimeError(without_folders(process.stderr.strip().splitlines()[-1][:200]))
        return json.loads(process.stdout.splitlines()[-1])


class Benchmark:
    """Runs all tools on one model after another."""

    def __init__(
        self, ours: Tool | None, peers: Sequence[Tool], judge: Judge, args: argparse.Namespace
    ) -> None:
        self.ours, self.peers, self.judge = ours, peers, judge
        self.repeat: int = args.repeat
        self.timeout: float = args.timeout

    def measure(self, model: Path, work: Path, *, grown: bool) -> ModelResult:
        """All tools on `model`; their files go to `work` and are gone afterwards.

        `grown`: it is a larger version of the model before, so tools that were stopped there are left out.
        """
        before = self.judge.ask("count", model)
        kept = work / "reference"
        kept.mkdir()
        if not self.judge.ask("reference", model, kept)["sets"]:
            raise RuntimeError("it runs on neither input set")
        mine = Runs(self.ours, work / OURS) if self.ours else None
        rows = []
        for peer in self.peers:
            if grown and peer.timed_out:
                rows.append(Row(peer.name, NO_COSTS, "left out: too slow on a smaller graph"))
            else:
                rows.append(self.against(peer, mine, model, work, kept))
        if mine is not None:
            if not mine.usages:
                mine.again(model, self.timeout)
            rows.insert(0, self.row(mine, None, kept))
        shutil.rmtree(work)
        return ModelResult(model.stem, before["nodes"], before["bytes"], tuple(rows))

    def against(self, peer: Tool, mine: Runs | None, model: Path, work: Path, kept: Path) -> Row:
        """graphopt, peer, graphopt, peer, ... on one model; the peer's row."""
        theirs = Runs(peer, work / peer.name)
        ratios = []
        for _ in range(self.repeat):
            ours = mine.again(model, self.timeout) if mine else None
            usage = theirs.again(model, self.timeout)
            if ours is not None and not ours.failed and not usage.failed:
                ratios.append(ours.cpu / usage.cpu)
            if usage.failed or usage.wall > SLOW:
                break
        peer.timed_out = theirs.usages[-1].status is None
        row = self.row(theirs, statistics.median(ratios) if ratios else None, kept)
        shutil.rmtree(theirs.folder)
        return row

    def row(self, runs: Runs, ratio: float | None, kept: Path) -> Row:
        """What the runs of one tool amount to."""
        usages = runs.usages
        costs = Costs(
            cpu=statistics.median(usage.cpu for usage in usages),
            wall=statistics.median(usage.wall for usage in usages),
            peak_mb=max(usage.peak_mb for usage in usages),
            anonymous_mb=max(usage.anonymous_mb for usage in usages),
        )
        failure = runs.failure()
        if failure is not None:
            return Row(runs.tool.name, costs, failure)
        try:
            after = self.judge.ask("count", runs.result)
            errors = self.judge.ask("compare", runs.result, kept)
        except RuntimeError as error:
            return Row(runs.tool.name, costs, f"its result does not load: {error}")
        return Row(runs.tool.name, costs, None, after["nodes"], after["bytes"], errors, ratio)


def cpu_model() -> str:
    """The processor's family, as the kernel names it."""
    text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    found = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return found.group(1).strip() if found else "unknown CPU"


def our_version() -> str:
    """Read from the source, so that nothing needs to be imported."""
    source = HERE.parent / "graphopt" / "__init__.py"
    found = re.search(
        r'^__version__\s*=\s*"(.+)"', source.read_text("utf-8") if source.exists() else "", re.M
    )
    return found.group(1) if found else "unknown"


def pin(cpu: int | None) -> None:
    """Keep this process, and so every tool it starts, on one core."""
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0)) if cpu is None else cpu})


def models(args: argparse.Namespace, work: Path) -> Iterator[tuple[Path, bool]]:
    """The models to run on, and whether each is a larger version of the one before.

    Synthetic ones are written when they are needed and removed afterwards.
    """
    yield from ((model, False) for model in args.models)
    python = str(args.peers_python)
    wanted = [("nodes", count, f"decoder_{count}_nodes") for count in args.scale]
    if args.big is not None:
        wanted.append(("bytes", round(args.big * 1e9), f"decoder_{args.big:g}_GB"))
    for index, (what, amount, name) in enumerate(wanted):
        path = work / f"{name}.onnx"
        subprocess.run([python, str(HERE / "synthetic.py"), what, str(amount), str(path)], check=True)
        yield path, what == "nodes" and index > 0
        path.unlink()
        path.with_name(f"{path.name}.data").unlink(missing_ok=True)


def arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description="Benchmark graphopt beside the other ONNX optimizers.")
    parser.add_argument("models", nargs="*", type=Path, help="models to run on")
    parser.add_argument(
        "--graphopt",
        default="graphopt run {in} -o {out} --verify off",
        help="graphopt's command line; '' leaves it out (default: %(default)s)",
    )
    parser.add_argument("--peers-python", type=Path, required=True, help="Python that has the other tools")
    parser.add_argument("--peers", default=",".join(PEERS), help="which of them (default: %(default)s)")
    parser.add_argument(
        "--repeat", type=int, default=3, help="pairs per model and tool (default: %(default)s)"
    )
    parser.add_argument("--timeout", type=float, default=300, help="seconds per run (default: %(default)s)")
    parser.add_argument(
        "--scale",
        type=lambda text: [int(part) for part in text.split(",")],
        default=[],
        metavar="N,N,...",
        help="also synthetic graphs of about N nodes each, smallest first",
    )
    parser.add_argument(
        "--big",
        type=float,
        nargs="?",
        const=4.0,
        metavar="GB",
        help="also a synthetic model with external data (default: 4 GB; needs three times that on disk)",
    )
    parser.add_argument("--cpu", type=int, help="core to run on (default: the last one)")
    parser.add_argument("--work", type=Path, help="folder for temporary files (default: the system's)")
    parser.add_argument(
        "--output", type=Path, help="Markdown file (default: docs/measurements/ by what is run)"
    )
    parser.add_argument("--title", help="heading of the page")
    args = parser.parse_args()
    unknown = set(args.peers.split(",")) - {*PEERS, ""}
    if unknown:
        parser.error(f"no such tool: {', '.join(sorted(unknown))}; there are {', '.join(PEERS)}")
    if args.graphopt and shutil.which(shlex.split(args.graphopt)[0]) is None:
        parser.error(f"--graphopt: {shlex.split(args.graphopt)[0]} is not on the PATH")
    if not args.models and not args.scale and args.big is None:
        parser.error("name models, or --scale, or --big")
    missing = [str(model) for model in args.models if not model.is_file()]
    if missing:
        parser.error(f"no such file: {', '.join(missing)}")
    if args.output is None:
        kind = "models" if args.models else "scale" if args.scale else "big"
        args.output = HERE.parent / "docs" / "measurements" / f"peers-{kind}.md"
    return args


def main() -> None:
    """Command line."""
    args = arguments()
    pin(args.cpu)
    judge = Judge(args.peers_python)
    ours = Tool(OURS, args.graphopt) if args.graphopt else None
    peers = [
        Tool(name, shlex.join([str(args.peers_python), str(HERE / "peer.py"), name, "{in}", "{out}"]))
        for name in args.peers.split(",")
        if name
    ]
    versions = {**({OURS: our_version()} if ours else {}), **judge.ask("versions")}
    benchmark = Benchmark(ours, peers, judge, args)
    results: list[ModelResult] = []
    with tempfile.TemporaryDirectory(prefix="peers-", dir=args.work) as folder:
        for model, grown in models(args, Path(folder)):
            work = Path(folder) / "runs"
            work.mkdir()
            try:
                results.append(benchmark.measure(model.resolve(), work, grown=grown))
            except RuntimeError as error:
                print(f"{model.name}: left out, the original cannot be judged: {error}", file=sys.stderr)
                shutil.rmtree(work)
                continue
            print(report.model_table(results[-1]), flush=True)
    if not results:
        raise SystemExit("nothing could be measured")
    title = args.title or "graphopt beside the other optimizers"
    command = shlex.join(["python", "benchmarks/peers.py", *map(without_folders, sys.argv[1:])])
    scale = len(args.scale) > 1 and args.big is None
    text = report.document(title, command, cpu_model(), versions, results, scale=scale)
    print(report.summary(results))
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(text, encoding="utf-8")
    print(f"written: {args.output}")


if __name__ == "__main__":
    main()
