"""Take the pictures of docs/images/report-*.png: real reports of real models in a real browser.

    python docs/screenshots.py [NAME ...]

Needs chromium, chromedriver, and `pip install -e '.[dev]'`. Takes two minutes. Look at the pictures before
you commit them.
"""

from __future__ import annotations

import argparse
import io
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
IMAGES = ROOT / "docs" / "images"
MODELS = ROOT / "models"
_FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --hide-scrollbars --force-device-scale-factor=1"
).split()
_COLOURS = 256
_MOST_BYTES = 300_000


def main(argv: list[str] | None = None) -> int:
    """Take the pictures that are named, or all."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(SHOTS))
    names = parser.parse_args(argv).names or list(SHOTS)
    with tempfile.TemporaryDirectory() as folder, browser() as driver:
        for name in names:
            SHOTS[name](Path(folder), driver)
    return 0


# -- the browser -------------------------------------------------------------------------------------------


@contextmanager
def browser() -> Iterator[Any]:
    """A window of 1400 x 900."""
    from selenium import webdriver

    binary, helper = shutil.which("chromium"), shutil.which("chromedriver")
    if binary is None or helper is None:
        sys.exit("chromium or chromedriver is missing; on Debian: apt-get install chromium chromium-driver")
    with tempfile.TemporaryDirectory() as profile:
        options = webdriver.ChromeOptions()
        options.binary_location = binary
        for flag in (*_FLAGS, f"--user-data-dir={profile}"):
            options.add_argument(flag)
        driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(helper))
        try:
            yield driver
        finally:
            driver.quit()


def show(driver: Any, page: Path, *, width: int = 1280, height: int = 860, dark: bool = False) -> None:
    """Open a page in a window of that size."""
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    features = [
        {"name": "prefers-color-scheme", "value": "dark" if dark else "light"},
        {"name": "prefers-reduced-motion", "value": "reduce"},
    ]
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    driver.get(page.as_uri())
    for _ in range(200):
        if driver.execute_script(
            "const s = document.querySelector('section.graph'); return !s || s.dataset.ready"
        ):
            break
        time.sleep(0.05)
    time.sleep(0.4)


def at(driver: Any, selector: str) -> None:
    """Scroll so that an element stands below the header."""
    driver.execute_script(
        "window.scrollTo(0, document.querySelector(arguments[0]).getBoundingClientRect().top + scrollY - 56)",
        selector,
    )
    time.sleep(0.4)


def save(driver: Any, name: str) -> None:
    """What is in sight, with few colours."""
    from PIL import Image

    picture = Image.open(io.BytesIO(driver.get_screenshot_as_png())).convert("RGB")
    file = IMAGES / f"report-{name}.png"
    small = picture.quantize(_COLOURS, kmeans=2, dither=Image.Dither.NONE)
    small.save(file, optimize=True)
    size = file.stat().st_size
    print(f"{file.relative_to(ROOT)}: {picture.width} x {picture.height}, {size:,} bytes")
    if size > _MOST_BYTES:
        sys.exit(f"{file.name} has more than {_MOST_BYTES:,} bytes")


def graphopt(folder: Path, *words: object, codes: tuple[int, ...] = (0,)) -> None:
    """Run the command line in a folder."""
    command = [sys.executable, "-m", "graphopt", *map(str, words)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode not in codes:
        sys.exit(f"{' '.join(command)}\n{done.stdout}\n{done.stderr}")


# -- the reports -------------------------------------------------------------------------------------------


def made(folder: Path, name: str, make: Callable[[Path], None]) -> Path:
    """A page, made once; models lie under plain names beside it."""
    page = folder / f"{name}.html"
    if not page.exists():
        for file in ("messy.onnx", "digits_cnn.onnx", "digits.npz", "metrics.py"):
            shutil.copy(MODELS / file, folder / file)
        make(page)
    return page


def messy(folder: Path) -> Path:
    """The default pipeline on messy.onnx."""
    run = partial(graphopt, folder, "run", "messy.onnx", "-o", "messy.opt.onnx", "--html")
    return made(folder, "messy", run)


def quantized(folder: Path) -> Path:
    """digits_cnn.onnx in 8 bits."""
    words = ("--passes", "int8", "--data", "digits.npz", "--metric", "metrics.py:accuracy")
    files = ("-o", "digits_cnn.int8.onnx", "--html")
    return made(folder, "int8", partial(graphopt, folder, "run", "digits_cnn.onnx", *words, *files))


def large(folder: Path) -> Path:
    """20,000 nodes."""

    def make(page: Path) -> None:
        script = ROOT / "benchmarks" / "synthetic.py"
        subprocess.run([sys.executable, script, "nodes", "20000", folder / "decoder.onnx"], check=True)
        graphopt(folder, "run", "decoder.onnx", "--verify", "off", "-o", "decoder.opt.onnx", "--html", page)

    return made(folder, "large", make)


def select(driver: Any, text: str) -> None:
    """Search, and jump to the first that is found."""
    driver.execute_script(
        "const g = document.documentElement.graph;"
        "document.querySelector('.search input').value = arguments[0];"
        "g._find(); g._hit(0); g._close();",
        text,
    )
    time.sleep(0.5)


# -- the pictures ------------------------------------------------------------------------------------------


def shot_run(folder: Path, driver: Any) -> None:
    """Verdict, figures, operators."""
    show(driver, messy(folder), height=900)
    save(driver, "run")


def shot_graph(folder: Path, driver: Any) -> None:
    """A BatchNormalization that went into its Conv, before and after."""
    show(driver, messy(folder), width=1400, height=830)
    at(driver, "#graph")
    select(driver, "/entry/entry.1/BatchNormalization")
    save(driver, "graph")


def shot_large(folder: Path, driver: Any) -> None:
    """20,000 nodes at once, in the dark."""
    show(driver, large(folder), width=1400, height=830, dark=True)
    at(driver, "#graph")
    save(driver, "graph-20k")


def shot_layers(folder: Path, driver: Any) -> None:
    """Signal to noise along the depth."""
    show(driver, quantized(folder), height=760)
    at(driver, "#layers")
    save(driver, "layers")


def shot_calibration(folder: Path, driver: Any) -> None:
    """Histograms with ranges."""
    show(driver, quantized(folder), height=760)
    at(driver, "#calibration")
    save(driver, "calibration")


def shot_gate(folder: Path, driver: Any) -> None:
    """A policy that a model misses."""
    quantized(folder)

    def make(page: Path) -> None:
        policy = subprocess.run(
            [sys.executable, "-m", "graphopt", "gate", "--init", "int8", "digits_cnn.int8.onnx"],
            cwd=folder, capture_output=True, text=True, check=True,
        ).stdout  # fmt: skip
        (folder / "gate.toml").write_text(policy)
        words = ("--policy", "gate.toml", "--reference", "digits_cnn.onnx", "--data", "digits.npz")
        graphopt(folder, "gate", "digits_cnn.int8.onnx", *words, "--html", page, codes=(0, 1))

    show(driver, made(folder, "gate", make), height=900)
    save(driver, "gate")


def shot_bench(folder: Path, driver: Any) -> None:
    """Two distributions."""
    messy(folder)
    bench = partial(graphopt, folder, "bench", "messy.onnx", "messy.opt.onnx", "--html")
    page = made(folder, "bench", bench)
    show(driver, page, height=820)
    save(driver, "bench")


SHOTS: dict[str, Callable[[Path, Any], None]] = {
    "run": shot_run,
    "graph": shot_graph,
    "graph-20k": shot_large,
    "layers": shot_layers,
    "calibration": shot_calibration,
    "gate": shot_gate,
    "bench": shot_bench,
}

if __name__ == "__main__":
    raise SystemExit(main())
