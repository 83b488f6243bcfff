from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import graphopt
from graphopt.cli import inspect
from graphopt.cli.main import build_parser, main
from graphopt.errors import PassError

VERBS = ["run", "passes", "inspect", "lint", "validate", "distill", "diff", "completion"]


def test_help_names_every_verb(cli: Any) -> None:
    code, out, _ = cli("--help")
    assert code == 0
    assert all(f"\n    {verb}" in out for verb in VERBS)


def test_help_imports_nothing_heavy() -> None:
    """That is what keeps it fast; its time would say more about the machine."""
    code = (
        "import sys, runpy\n"
        "sys.argv = ['graphopt', '--help']\n"
        "try: runpy.run_module('graphopt', run_name='__main__')\n"
        "except SystemExit: pass\n"
        "heavy = {'numpy', 'onnx', 'onnxruntime', 'onnx_graphsurgeon', 'networkx', 'rich'}\n"
        "sys.exit(', '.join(sorted(heavy & set(sys.modules))) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_explains_itself(cli: Any, verb: str) -> None:
    code, out, _ = cli(verb, "--help")
    assert code == 0
    assert f"usage: graphopt {verb}" in out
    assert max(map(len, out.splitlines())) <= 110


def test_version(cli: Any) -> None:
    assert cli("--version") == (0, f"graphopt {graphopt.__version__}\n", "")


def test_no_arguments_is_a_question(cli: Any) -> None:
    code, out, _ = cli()
    assert (code, out.startswith("usage:")) == (2, True)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["rnu"], "did you mean 'run'?"),
        (["model.onnx"], "graphopt run model.onnx --passes"),
        (["run"], "MODEL"),
        (["run", "m.onnx", "--verfy", "off"], "did you mean '--verify'"),
        (["run", "m.onnx", "--verify=off", "extra"], "unexpected argument 'extra'"),
        (["run", "m.onnx", "-o"], "expected one argument"),
        (["inspect"], "MODEL"),
        (["diff", "a.onnx"], "B"),
        (["completion", "fish"], "invalid choice"),
        (["--nope"], "no option '--nope'"),
    ],
)
def test_wrong_usage_is_one_message_and_exit_2(cli: Any, words: list[str], says: str) -> None:
    code, out, err = cli(*words)
    assert code == 2
    assert says in err
    assert err.startswith("error: ")
    assert err.count("error: ") == 1
    assert "Traceback" not in err
    assert out == ""


def test_an_internal_error_shows_its_traceback_and_exits_4(
    cli: Any, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for error in (ZeroDivisionError("oops"), PassError("cse", "left the graph cyclic")):

        def fail(*args: object, error: Exception = error) -> None:
            raise error

        monkeypatch.setattr(inspect, "inspect", fail)
        code, _, err = cli("inspect", model)
        assert code == 4
        assert "Traceback" in err
        assert str(error) in err
        assert "internal error" in err
        assert f"graphopt inspect {model}" in err


@pytest.mark.parametrize(
    ("error", "code", "says"), [(KeyboardInterrupt, 130, "interrupted"), (MemoryError, 2, "memory")]
)
def test_interrupts(
    cli: Any, model: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException], code: int, says: str
) -> None:
    def fail(*args: object) -> None:
        raise error

    monkeypatch.setattr(inspect, "inspect", fail)
    result, _, err = cli("inspect", model)
    assert result == code
    assert says in err
    assert "Traceback" not in err


def test_a_reader_that_goes_away_is_no_error(model: Path) -> None:
    command = f"{sys.executable} -m graphopt passes | head -n 1; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "0"
    assert "Traceback" not in done.stderr
    assert "Broken" not in done.stderr


def test_a_reader_that_goes_away_does_not_change_the_verdict(model: Path, tmp_path: Path) -> None:
    """`--strict` with `--verify off` is exit code 1, whether anybody reads the report or not."""
    run = f"{sys.executable} -m graphopt run {model} --verify off --strict -v -o {tmp_path}/out.onnx"
    command = f"{run} | true; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "1"
    assert "Traceback" not in done.stderr


def test_no_colours_in_a_pipe(model: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "graphopt", "inspect", str(model)], capture_output=True, text=True, check=True
    )
    assert "\x1b" not in done.stdout


def test_a_terminal_of_any_encoding_can_show_any_name(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    assert main(["passes", "cse"]) == 0


def test_every_option_has_help() -> None:
    parser = build_parser()
    (verbs,) = [action for action in parser._actions if action.dest == "verb"]
    assert verbs.choices is not None
    for name, verb in dict(verbs.choices).items():  # type: ignore[call-overload]
        for action in verb._actions:
            assert action.help, f"{name} {action.option_strings or action.dest}"


def test_verbs_stand_beside_what_they_do(cli: Any) -> None:
    out = cli("--help")[1]
    for verb in VERBS:
        assert any(line.split()[:1] == [verb] and len(line.split()) > 2 for line in out.splitlines())
    assert "130 interrupted" in out
