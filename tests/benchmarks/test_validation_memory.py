"""The benchmark of validation's memory runs, finds the wrong node, and stays within its bound."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from /proc")
def test_peak_memory_stays_near_that_of_one_model() -> None:
    done = subprocess.run(
        [sys.executable, "validation_memory.py", "--gigabytes", "0.6"],
        check=False,
        cwd=BENCHMARKS,
        capture_output=True,
        text=True,
        timeout=1200,
    )
    assert done.returncode == 0, done.stderr
    assert "The wrong node is found" in done.stdout
    over = [int(n.replace(",", "")) for n in re.findall(r"\| \+([\d,]+) \|", done.stdout)]
    assert len(over) == 4
    assert max(over) < 600, done.stdout  # MB over the weights of one of the two models
