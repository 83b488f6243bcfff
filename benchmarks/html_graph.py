"""How long pages with large graphs take: to make, and to open in a real browser.

    python benchmarks/html_graph.py [NODES ...]

Each model is benchmarks/synthetic.py's, before and after the default pipeline. Opening is counted from the
start of the navigation until the graph is drawn and can be used (the page marks it), the median of five.
Needs chromium, chromedriver and selenium. Prints a table in Markdown; seconds of Python are processor time.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import graphopt
from graphopt import pages
from graphopt.viewing import view

HERE = Path(__file__).resolve().parent
OPENINGS = 5
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --window-size=1400,1000"
).split()


def browser(profile: str) -> Any:
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = str(shutil.which("chromium"))
    for flag in (*FLAGS, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    return webdriver.Chrome(
        options=options, service=webdriver.ChromeService(str(shutil.which("chromedriver")))
    )


def opened(driver: Any, page: Path) -> float:
    """Milliseconds from the start of the navigation until the graph can be used."""
    driver.get(page.as_uri())
    while True:
        found = driver.execute_script("return performance.getEntriesByName('graph-ready')[0]?.startTime")
        if found is not None:
            return float(found)
        time.sleep(0.01)


def timed(driver: Any, script: str, times: int = 10) -> float:
    """Milliseconds that a piece of script takes."""
    return float(
        driver.execute_script(
            "const g = document.documentElement.graph, start = performance.now();"
            f"for (let i = 0; i < {times}; i++) {{ {script} }} return (performance.now() - start) / {times};"
        )
    )


def row(driver: Any, folder: Path, nodes: int) -> list[str]:
    model = folder / f"{nodes}.onnx"
    subprocess.run([sys.executable, HERE / "synthetic.py", "nodes", str(nodes), model], check=True)
    result = graphopt.run(model, verify="off")
    start = time.process_time()
    drawn = view(result.model, graphopt.load(model))
    draw = time.process_time() - start
    page = folder / f"{nodes}.html"
    pages.write(page, pages.html(result.report, graph=drawn))
    whole = time.process_time() - start
    ready = statistics.median(opened(driver, page) for _ in range(OPENINGS))
    overview = timed(driver, "g.panes.before.fit(); g.panes.before.draw();")
    near = timed(driver, "const p = g.panes.before; p.scale = 1; p.draw();")
    search = timed(driver, "document.querySelector('.search input').value = 'MatMul_1'; g._find();", 3)
    assert drawn.before is not None
    return [
        f"{drawn.before.node_count:,} -> {drawn.after.node_count:,}",
        f"{draw:.1f}",
        f"{whole:.1f}",
        f"{page.stat().st_size / 1e6:.2f}",
        f"{ready / 1e3:.2f}",
        f"{overview:.1f}",
        f"{near:.1f}",
        f"{search:.0f}",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "nodes",
        nargs="*",
        type=int,
        default=[1000, 5000, 20_000, 50_000],
        metavar="NODES",
        help="about so many",
    )
    sizes = parser.parse_args().nodes
    print("| nodes | drawing, s | page, s | MB | opens, s | whole, ms | near, ms | search, ms |")
    print("|---|--:|--:|--:|--:|--:|--:|--:|")
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as profile:
        driver = browser(profile)
        try:
            for nodes in sizes:
                print(f"| {' | '.join(row(driver, Path(folder), nodes))} |", flush=True)
        finally:
            driver.quit()


if __name__ == "__main__":
    main()
