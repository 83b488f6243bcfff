"""Noise floors: the original's own spread, and nothing else."""

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser

from graphopt.runtime.inputs import Synthesizer
from graphopt.runtime.probe import find_probes
from graphopt.runtime.providers import CUDA, ProviderSettings
from graphopt.runtime.session import open_session
from graphopt.validation import tolerance as module
from graphopt.validation.tolerance import Floors, noise_floors

RNG = np.random.default_rng(0)
TEXT = (
    "g(float[n,64] x) => (float[n,32] y, int64[n] i) { y = MatMul(x, w) i = ArgMax<axis=1, keepdims=0>(y) }"
)
W = RNG.standard_normal((64, 32)).astype(np.float32)


def model(text: str = TEXT, **weights: np.ndarray) -> onnx.ModelProto:
    m = parser.parse_model(f'<ir_version: 8, opset_import: ["": 17]> {text}')
    m.graph.initializer.extend(numpy_helper.from_array(v, k) for k, v in (weights or {"w": W}).items())
    return m


class Shifted:
    """A session whose float outputs are moved by a share of their RMS."""

    def __init__(self, inner: object, share: float) -> None:
        self.inner, self.share = inner, share

    def __enter__(self) -> "Shifted":
        return self

    def __exit__(self, *exc: object) -> None:
        self.inner.close()  # type: ignore[attr-defined]

    def run(self, feeds: object) -> dict[str, np.ndarray]:
        out = self.inner.run(feeds)  # type: ignore[attr-defined]
        rms = np.sqrt(np.mean(out["y"] ** 2))
        return out | {"y": out["y"] + np.float32(self.share * rms)}


def floors(monkeypatch: pytest.MonkeyPatch, share: dict[str, float], m: onnx.ModelProto) -> Floors:
    """Floors of a model that moves by `share` of its RMS at each optimization level."""
    maker = Synthesizer(m)
    with open_session(m, prepack=False) as session:
        probes = find_probes(session, maker)
    real = module.open_session
    monkeypatch.setattr(
        module, "open_session", lambda *a, **k: Shifted(real(*a, **k), share.get(k["optimize"], 0.0))
    )
    return noise_floors(m, probes, maker.structure)


def rms_of(m: onnx.ModelProto) -> list[float]:
    maker = Synthesizer(m)
    probes = find_probes(open_session(m, prepack=False), maker)
    return [float(np.sqrt(np.mean(np.square(o["y"], dtype=np.float64)))) for o in probes.outputs]  # type: ignore[arg-type]


def test_the_floor_is_at_least_sixteen_epsilons_of_the_rms() -> None:
    m = model("g(float[n,64] x) => (float[n,64] y) { y = Neg(x) }", w=W)
    maker = Synthesizer(m)
    probes = find_probes(open_session(m), maker)
    found = noise_floors(m, probes, maker.structure)
    for tolerance, rms in zip(found.tolerances, rms_of(m), strict=True):
        assert tolerance["y"].floor == pytest.approx(16 * 2.0**-23 * rms)
        assert tolerance["y"].limit == pytest.approx(8 * 16 * 2.0**-23 * rms)


def test_the_spread_is_the_floor_where_it_is_larger(monkeypatch: pytest.MonkeyPatch) -> None:
    m = model()
    found = floors(monkeypatch, {"none": 1e-5, "all": 1e-4}, m)
    for tolerance, rms in zip(found.tolerances, rms_of(m), strict=True):
        assert tolerance["y"].floor == pytest.approx(1e-4 * rms, rel=0.05)
    assert found.own == {}


def test_a_gross_spread_is_the_optimizers_and_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    m = model()
    found = floors(monkeypatch, {"none": 1e-5, "all": 0.5}, m)
    assert "0.5 of its RMS" in found.own["y"]
    for tolerance, rms in zip(found.tolerances, rms_of(m), strict=True):
        assert tolerance["y"].floor == pytest.approx(1e-5 * rms, rel=0.1)


def test_integers_have_no_floor() -> None:
    m = model()
    maker = Synthesizer(m)
    found = noise_floors(m, find_probes(open_session(m), maker), maker.structure)
    assert found.tolerances[0]["i"].limit == 0
    assert found.tolerances[0]["i"].integers == 0


def test_lean_is_one_session(monkeypatch: pytest.MonkeyPatch) -> None:
    m = model()
    maker = Synthesizer(m)
    probes = find_probes(open_session(m), maker)
    opened: list[tuple[str, int]] = []
    real = module.open_session

    def counting(*a: object, **k: object) -> object:
        opened.append((k["optimize"], k["threads"]))  # type: ignore[arg-type]
        return real(*a, **k)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "open_session", counting)
    noise_floors(m, probes, maker.structure, runs="lean")
    assert opened == [("all", 2)]
    noise_floors(m, probes, maker.structure, runs="full")
    assert opened[1:] == [("none", 2), ("all", 1), ("all", 2)]


@pytest.mark.parametrize(("tf32", "is_noise"), [(True, True), (False, False)])
def test_what_tf32_moves_is_noise_where_it_is_on(
    monkeypatch: pytest.MonkeyPatch, tf32: bool, is_noise: bool
) -> None:
    m, share = model(), 0.03  # of the RMS: far beyond float32, as products of ten bits may come to
    maker = Synthesizer(m)
    with open_session(m, prepack=False) as session:
        probes = find_probes(session, maker)
    monkeypatch.setattr(
        module, "open_session", lambda source, **k: Shifted(open_session(source, prepack=False), share)
    )
    settings = ProviderSettings(tf32=tf32)
    found = noise_floors(m, probes, maker.structure, provider=CUDA, settings=settings)
    assert ("y" not in found.own) == is_noise
    floor = found.tolerances[0]["y"].floor / rms_of(m)[0]
    assert floor == pytest.approx(share if is_noise else 16 * 2.0**-23, rel=1e-3)
