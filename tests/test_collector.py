from __future__ import annotations

import gc

import pytest

from graphopt import collector


def test_paused_stops_collection_and_resumes_it() -> None:
    assert gc.isenabled()
    during: list[bool] = []

    def fail() -> None:
        with collector.paused():
            during.append(gc.isenabled())
            raise ValueError("inside")

    with pytest.raises(ValueError, match="inside"):
        fail()
    assert during == [False]
    assert gc.isenabled()


def test_paused_leaves_a_collector_that_was_off_off() -> None:
    gc.disable()
    try:
        with collector.paused():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_relaxed_raises_thresholds_and_puts_them_back() -> None:
    before = gc.get_threshold()
    with collector.relaxed():
        assert gc.isenabled()
        during = gc.get_threshold()
    assert all(now >= then for now, then in zip(during, before, strict=True))
    assert during[0] > 10_000
    assert gc.get_threshold() == before


@pytest.mark.parametrize("mine", [(0, 10, 10), (1_000_000, 100, 100)])
def test_relaxed_respects_a_caller_who_wants_less(mine: tuple[int, int, int]) -> None:
    before = gc.get_threshold()
    gc.set_threshold(*mine)
    try:
        with collector.relaxed():
            assert gc.get_threshold() == mine
        assert gc.get_threshold() == mine
    finally:
        gc.set_threshold(*before)
