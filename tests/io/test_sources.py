from __future__ import annotations

import mmap
import sys
from pathlib import Path

import numpy as np
import pytest

from graphopt.io.scratch import ScratchSource
from graphopt.io.sources import Sources


def resident_file_bytes() -> int:
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.partition("RssFile:")[2].split()[0]) << 10


def test_views_outlive_a_release(tmp_path: Path) -> None:
    data = np.random.default_rng(0).bytes(3 * mmap.PAGESIZE)
    (tmp_path / "w").write_bytes(data)
    sources = Sources()
    view = sources.file(tmp_path / "w").view(100, 2 * mmap.PAGESIZE)
    assert view == data[100 : 100 + 2 * mmap.PAGESIZE]
    sources.release()
    assert view == data[100 : 100 + 2 * mmap.PAGESIZE]


def test_views_of_the_temporary_file_outlive_a_release(tmp_path: Path) -> None:
    with (tmp_path / "s").open("w+b") as file:
        file.write(b"x" * mmap.PAGESIZE)
        file.flush()
        source = ScratchSource(file.fileno(), file, 0, mmap.PAGESIZE)
        source.release()  # before it is mapped, there is nothing to let go of
        view = source.view(0, 5)
        source.release()
        assert view == b"xxxxx"


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_reading_all_weights_keeps_few_of_them_resident(tmp_path: Path) -> None:
    piece = 1 << 23
    with (tmp_path / "w").open("wb") as file:
        file.truncate(24 * piece)
    sources = Sources()
    source = sources.file(tmp_path / "w")
    before, most = resident_file_bytes(), 0
    for i in range(24):
        assert not np.frombuffer(source.view(i * piece, piece), np.uint8).any()
        most = max(most, resident_file_bytes() - before)
    assert most < 12 * piece
    sources.release()
    assert resident_file_bytes() - before < piece


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_reading_arrays_again_keeps_few_of_them_resident(tmp_path: Path) -> None:
    piece = 1 << 23
    with (tmp_path / "w").open("wb") as file:
        file.truncate(24 * piece)
    sources = Sources()
    source = sources.file(tmp_path / "w")
    arrays = [np.frombuffer(source.view(i * piece, piece), np.uint8) for i in range(24)]
    before, most = resident_file_bytes(), 0
    for array in arrays:
        sources.lend(array.nbytes)
        assert not array.any()
        most = max(most, resident_file_bytes() - before)
    assert most < 12 * piece
