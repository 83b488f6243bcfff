"""docs/refresh_readme.py puts what examples print into README, and nothing else."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]
README = """Before.

```python title="shown.py"
TEXT = "shown"
```

<!-- example -->
```console
$ echo "$PWD"; cat shown.py
stale
```

<!-- example: exit code 3 -->
```console
$ echo gone wrong; exit 3
```

<!-- example: exit code 2, first 1 line -->
```console
$ echo one; echo two; exit 2
```

Between, with `code`.

<!-- example -->
```python
print("new  ")
```

```text
old
```

```console
$ echo not an example
kept
```
"""


@pytest.fixture(scope="module")
def refresh() -> ModuleType:
    spec = importlib.util.spec_from_file_location("refresh_readme", ROOT / "docs" / "refresh_readme.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_outputs_are_replaced(refresh: ModuleType, tmp_path: Path) -> None:
    expected = (
        README.replace("stale\n", f'{refresh.SHOWN}\nTEXT = "shown"\n')
        .replace("exit 3\n", "exit 3\ngone wrong\n")
        .replace("exit 2\n", "exit 2\none\n...\n")
        .replace("old\n", "new\n")
    )
    assert refresh.refreshed(README, tmp_path) == expected
    assert refresh.refreshed(expected, tmp_path) == expected


def test_another_exit_code_is_an_error(refresh: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="exits with 3, not 0"):
        refresh.refreshed(README.replace(": exit code 3", ""), tmp_path)
