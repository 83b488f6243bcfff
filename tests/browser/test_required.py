"""Without a browser the tests skip, and say how to get one; where it is required they fail."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(("required", "outcome"), [("required", "1 error"), ("", "1 skipped")])
def test_a_missing_browser(tmp_path: Path, required: str, outcome: str) -> None:
    env = os.environ | {"PATH": str(tmp_path), "GRAPHOPT_BROWSER": required}
    test = "tests/browser/test_pages.py::test_theme_button_overrides_and_is_kept"
    options = ("-p", "no:xdist", "-m", "slow", "-o", "addopts=--import-mode=importlib -ra")
    command = [sys.executable, "-m", "pytest", *options, test]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert outcome in done.stdout.splitlines()[-1], done.stdout
    assert "apt-get install chromium chromium-driver" in done.stdout
    assert (done.returncode == 0) == (required == "")
