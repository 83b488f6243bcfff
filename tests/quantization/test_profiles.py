"""Target profiles, and which processors need weights of 7 bits."""

from __future__ import annotations

from pathlib import Path

import pytest

from graphopt.errors import UserError
from graphopt.pipeline.targets import TARGETS
from graphopt.quantization.grid import QUANT_TYPES
from graphopt.quantization.profiles import PASS_THROUGH, PROFILES, cpu_flags, get_profile, saturates


def test_every_target_has_a_profile_of_known_types() -> None:
    assert set(PROFILES) == set(TARGETS)
    for profile in PROFILES.values():
        assert profile.activation in profile.activations
        assert profile.weight in profile.weights
        assert set(profile.activations) | set(profile.weights) <= set(QUANT_TYPES)
        assert not set(profile.core) & set(profile.glue)
        assert not set(profile.ops) & set(PASS_THROUGH)


def test_portable_follows_ort_cpu() -> None:
    a, b = get_profile("portable"), get_profile("ort-cpu")
    assert (a.core, dict(a.glue), a.activation, a.bias) == (b.core, dict(b.glue), b.activation, b.bias)


def test_unknown_target() -> None:
    with pytest.raises(UserError, match="no quantization profile"):
        get_profile("abacus")


@pytest.mark.parametrize(
    ("machine", "flags", "expected"),
    [
        ("x86_64", {"avx2", "fma"}, True),
        ("AMD64", {"avx512f"}, True),
        ("x86_64", {"avx2", "avx_vnni"}, False),
        ("x86_64", {"avx512f", "avx512_vnni"}, False),
        ("x86_64", set(), False),  # not known
        ("aarch64", {"asimd"}, False),
    ],
)
def test_who_saturates(machine: str, flags: set[str], expected: bool) -> None:
    assert saturates(machine, frozenset(flags)) is expected


def test_flags_are_read_from_the_first_processor(tmp_path: Path) -> None:
    file = tmp_path / "cpuinfo"
    file.write_text("processor\t: 0\nmodel name\t: x\nflags\t\t: fpu avx2 avx_vnni\n\nprocessor\t: 1\n")
    assert cpu_flags(file) == {"fpu", "avx2", "avx_vnni"}
    file.write_text("Features : asimd\n")
    assert cpu_flags(file) == frozenset()
    assert cpu_flags(tmp_path / "nowhere") == frozenset()
