"""What README shows and promises: its commands run, and verbs, options, targets, presets and codes exist."""

from __future__ import annotations

import argparse
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from graphopt.cli.main import build_parser
from graphopt.pipeline.registry import DEFAULT, NONE, installed
from graphopt.pipeline.targets import TARGETS

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
Blocks = Callable[[str], list[Any]]


def verbs() -> dict[str, argparse.ArgumentParser]:
    for action in build_parser()._actions:
        if isinstance(action, argparse._SubParsersAction):
            return dict(action.choices)
    raise AssertionError("there are no verbs")


def rows(heading: str) -> list[str]:
    """First cells of the table whose header row starts with `heading`."""
    table = re.search(rf"^\| {heading}.*\n\|[-|]+\n((?:\|.*\n)+)", README, re.M)
    assert table is not None, f"no table of {heading}"
    return [line.split("|")[1].strip() for line in table[1].splitlines()]


def test_the_blocks_that_ci_runs_are_there(blocks: Blocks) -> None:
    marked = {b.mark: b for b in blocks("README.md")}
    assert "graphopt run models/digits_cnn.onnx --passes" in marked["main job"].text
    assert "pytest" in marked["tests"].text


def test_examples(blocks: Blocks, shell: Any) -> None:
    """All examples in order, in one folder: exit codes, verdicts, and the outputs of Python examples."""
    shutil.copytree(
        ROOT / "models", shell.folder / "models", ignore=shutil.ignore_patterns("builders", "__*")
    )
    found = blocks("README.md")
    ran = 0
    for i, block in enumerate(found):
        if block.title:
            (shell.folder / block.title).write_text(block.text)
        if not block.mark.startswith("example"):
            continue
        ran += 1
        if block.language == "python":
            (shell.folder / "example.py").write_text(block.text)
            printed = shell("python example.py").stdout
            assert shape(printed) == shape(found[i + 1].text)
            continue
        code = int(m[1]) if (m := re.search(r"exit code (\d)", block.mark)) else 0
        (command,) = block.commands
        printed = shell(command, code).stdout
        shown = block.text.splitlines()[1:]
        if not shown:  # -q
            assert printed == ""
            continue
        assert measured(printed.splitlines()[0]) == measured(shown[0])
        for line in shown:
            if line.startswith(("culprit ", "  nodes ")):
                assert line.split() in [p.split() for p in printed.splitlines()], (
                    f"not printed: {line}; run: python docs/refresh_readme.py"
                )
        if "first " in block.mark:
            continue
        table = section(printed, "  accuracy ")
        assert [measured(row) for row in table] == [
            measured(row) for row in section(block.text, "  accuracy ")
        ]
        # How long something takes is the machine's: that it was timed, under what, is ours.
        assert [r.split()[0] for r in section(printed, "  latency ")] == [
            r.split()[0] for r in section(block.text, "  latency ")
        ]
    assert ran >= 8


def shape(text: str) -> list[str]:
    """Lines with their floating-point figures blanked: those differ from one machine to another."""
    return [re.sub(r"\d\.\de-\d\d", "#", line) for line in text.splitlines()]


def measured(line: str) -> list[str]:
    """Words of a line with decimal fractions blanked: what is counted stays, what is measured does not."""
    return [re.sub(r"[-+]?\d+\.\d+(e[-+]\d+)?", "#", word) for word in line.split()]


def section(text: str, heading: str) -> list[str]:
    """The rows of a table, with its heading, up to the next empty line."""
    lines = text.splitlines()
    start = next((i for i, line in enumerate(lines) if line.startswith(heading)), len(lines))
    end = next((i for i in range(start, len(lines)) if not lines[i].strip()), len(lines))
    # A warning may follow the table of latencies, or not: that depends on the machine as well.
    return [line for line in lines[start:end] if line.startswith("  ")]


def test_what_was_measured_may_differ_and_nothing_else() -> None:
    assert measured("SQNR (worst output)  40.1 dB") == measured("SQNR (worst output)  39.95 dB")
    assert measured("psnr 24.1 24.0 -0.01") == measured("psnr  24.2  24.0  +0.02")
    assert measured("nodes 40 23") != measured("nodes 40 24")
    assert measured("SQNR (worst output)  identical") != measured("SQNR (worst output)  40.1 dB")


def test_a_section_ends_with_its_table() -> None:
    text = "a\n\n  latency  before\n  CPU  1 ms\nwarning: slow\n\n  other\n"
    assert section(text, "  latency ") == ["  latency  before", "  CPU  1 ms"]
    assert section(text, "  none ") == []


def test_verbs() -> None:
    named = [re.match(r"`graphopt (\w+)", cell) for cell in rows("verb")]
    assert [m[1] for m in named if m] == list(verbs())


def test_options() -> None:
    known = {s for v in verbs().values() for a in v._actions for s in a.option_strings}
    prose = re.sub(r"^```.*?^```$", "", README, flags=re.M | re.S)
    named = set(re.findall(r"`(--[a-z-]+)", prose))
    named |= {
        word
        for line in README.splitlines()
        if line.startswith("$ graphopt")
        for word in line.split()
        if word.startswith("--")
    }
    assert named - known == set()
    assert {"--target", "--passes", "--strict", "--data", "--explain"} <= named


def test_targets() -> None:
    assert [re.findall(r"`([\w-]+)`", cell)[0] for cell in rows("target")] == list(TARGETS)


def test_presets() -> None:
    named = {name for cell in rows("preset") for name in re.findall(r"`([\w-]+)`", cell)}
    ours = {p for p in installed().preset_names() if installed().source(p).startswith("graphopt ")}
    assert named == ours | {DEFAULT, NONE}


def test_exit_codes() -> None:
    from graphopt.cli import main, run
    from graphopt.errors import UserError
    from graphopt.report.document import FileInfo, RunReport

    rolled_back = RunReport(FileInfo(), None, "portable", "none", "rolled back").exit_code()
    failed = RunReport(FileInfo(), None, "portable", "none", "failed").exit_code()
    assert (run.UNPROVEN, failed, UserError.exit_code, rolled_back) == (1, 1, 2, 3)
    codes = {0, 1, 2, 3, main.INTERNAL_ERROR, main.INTERRUPTED}
    assert {int(cell) for cell in rows("exit code")} == codes


@pytest.mark.parametrize(
    ("arguments", "code"), [("run no-such.onnx", 2), ("run {model} --passes no-such", 2)]
)
def test_bad_input_is_exit_code_2(arguments: str, code: int, shell: Any) -> None:
    model = ROOT / "models" / "digits_cnn.onnx"
    shell(f"graphopt {arguments.format(model=model)} -o out.onnx", code)
    assert not (shell.folder / "out.onnx").exists()
