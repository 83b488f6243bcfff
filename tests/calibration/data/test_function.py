"""Functions that make data: found by name, called for every reading, errors that point into their code."""

import sys
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent
from typing import Any

import numpy as np
import pytest

from graphopt.calibration.data import Port, load_callable, open_dataset
from graphopt.errors import UserError

PORTS = [Port("x", 1, ("n", 2))]


@pytest.fixture(autouse=True)
def _same_modules(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    path, modules = list(sys.path), set(sys.modules)
    monkeypatch.chdir(tmp_path)
    yield
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        del sys.modules[name]


def write(name: str, text: str) -> None:
    Path(name).write_text(dedent(text))


def test_a_function_in_a_file_or_module() -> None:
    write("helper_of_mine.py", "ROWS = 3")
    write(
        "my_data.py",
        """
        import numpy as np
        from helper_of_mine import ROWS

        class Readers:
            @staticmethod
            def three():
                import helper_of_mine  # late imports find it too
                for i in range(helper_of_mine.ROWS):
                    yield {"x": np.full(2, i, np.float32)}
        """,
    )
    for name in ("my_data.py:Readers.three", "./my_data.py:Readers.three", "my_data:Readers.three"):
        dataset = open_dataset(name, PORTS)
        for _ in range(2):
            assert [float(s["x"][0, 0]) for s in dataset] == [0, 1, 2]
        assert dataset.name == name


def test_a_function_of_the_caller() -> None:
    def table() -> dict[str, Any]:
        return {"x": np.zeros((5, 2), np.float32)}

    assert len(list(open_dataset(table, PORTS))) == 5
    assert open_dataset(table, PORTS).name == "table"


def test_a_function_that_wants_to_know_how_many() -> None:
    def some(n: int) -> Any:
        return ({"x": np.full(2, i, np.float32)} for i in range(n))

    assert len(list(open_dataset(some, PORTS))) == 256


def test_errors_point_into_their_code() -> None:
    write(
        "bad.py",
        """
        import json
        def generator():
            yield {"x": [[1, 2]]}
            json.loads("{")
        def direct():
            return {}["a"]
        def takes(a, b):
            return []
        def number():
            return 3
        def items():
            return [1]
        nothing = None
        """,
    )
    cases = {
        "generator": r"bad\.py:5: JSONDecodeError: .*\n  raised by what was asked for as 'bad\.py:generator'",
        "direct": r"bad\.py:7: KeyError: 'a'",
        "takes": "missing a required argument: 'b'",
        "number": "it returned int, not mappings",
        "items": "bad.py:items #0: int is no mapping",
        "nothing": "'nothing' is NoneType, no function",
        "generater": "there is no 'generater' in it\n  there are: generator, direct",
    }
    for name, complaint in cases.items():
        with pytest.raises(UserError, match=complaint) as e:
            list(open_dataset(f"bad.py:{name}", PORTS))
        assert e.value.__suppress_context__ or e.value.__cause__ is None


def test_modules_that_cannot_be_imported() -> None:
    write("broken.py", "def f(:\n")
    write("needy.py", "import not_there_at_all\n")
    with pytest.raises(UserError, match=r"broken\.py:1: SyntaxError"):
        load_callable("broken.py:f")
    with pytest.raises(
        UserError, match=r"needy\.py:1: ModuleNotFoundError: No module named 'not_there_at_all'"
    ):
        load_callable("needy:f")
    with pytest.raises(UserError, match="there is no module 'nowhere'"):
        load_callable("nowhere:f")
    with pytest.raises(UserError, match=r"nowhere\.py: no such file"):
        load_callable("nowhere.py:f")
    with pytest.raises(UserError, match="--metric 'f' is no function"):
        load_callable("f", "--metric")


def test_modules_of_the_folder_hide_nothing_afterwards() -> None:
    write("tomllib.py", "def f(): return {'x': [[1, 2]]}\n")
    load_callable("tomllib.py:f")
    assert sys.path[0] != str(Path.cwd())
