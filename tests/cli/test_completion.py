from __future__ import annotations

import shutil
import subprocess
from typing import Any

import pytest


@pytest.mark.parametrize("shell", ["bash", "zsh", "tcsh"])
def test_scripts_know_the_verbs_and_options(cli: Any, shell: str) -> None:
    code, out, _ = cli("completion", shell)
    assert code == 0
    assert "graphopt" in out
    assert "input-shape" in out
    assert "validate" in out


def test_bash_accepts_its_script(cli: Any) -> None:
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("no bash here")
    script = cli("completion", "bash")[1]
    subprocess.run([bash, "-n"], input=script, text=True, check=True)
    probe = script + '\nCOMP_WORDS=(graphopt ru); COMP_CWORD=1; _shtab_graphopt; echo "${COMPREPLY[@]}"\n'
    done = subprocess.run([bash], input=probe, text=True, capture_output=True, check=True)
    assert done.stdout.split() == ["run"]


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (["passes", "fold-conv-b"], ["fold-conv-bn"]),
        (["run", "m.onnx", "--passes", "cse,fold-conv-b"], ["cse,fold-conv-bn"]),
        (["run", "m.onnx", "--target", ""], ["portable", "ort-cpu", "ort-cuda", "tensorrt"]),
        (["run", "m.onnx", "--verify", "e"], ["each"]),
        (["run", "m.onnx", "--providers", "cu"], ["cuda"]),
    ],
)
def test_bash_offers_values(cli: Any, words: list[str], offered: list[str]) -> None:
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("no bash here")
    script = cli("completion", "bash")[1]
    names = cli("passes", "--names")[1]
    line = " ".join(f"'{word}'" for word in ["graphopt", *words])
    probe = (
        f"{script}\ngraphopt() {{ echo '{names}'; }}\nCOMP_WORDS=({line}); COMP_CWORD={len(words)}\n"
        '_shtab_graphopt; echo "${COMPREPLY[@]}"\n'
    )
    done = subprocess.run([bash], input=probe, text=True, capture_output=True, check=True)
    assert done.stdout.split() == offered
