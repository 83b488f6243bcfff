import numpy as np
import onnx
import pytest
from onnx import parser

from graphopt.calibration import collect
from graphopt.calibration.data import open_dataset, ports_of
from graphopt.calibration.fingerprint import session_hash
from graphopt.calibration.service import CalibrationService
from graphopt.calibration.statistics import Gram, Histogram, MeanDifference, MinMax, Moments
from graphopt.errors import UserError
from graphopt.io import session_source
from graphopt.model import Model
from graphopt.pipeline.services import Request

HEAD = '<ir_version: 8, opset_import: ["" : 17]>'
SMALL = f"""{HEAD} g (float[N, 4] x) => (float[N, 2] y)
    <float[4, 2] w = {{1, -1, 2, 0.5, 0, 3, -2, 1}}> {{ a = Relu(x) b = MatMul(a, w) y = Neg(b) }}"""


def model(text):
    return Model.load(parser.parse_model(text))


def service(source, data, **options):
    return CalibrationService(open_dataset(data, *ports_of(source.skeleton())), **options)


def samples(n=21, columns=4, seed=0):
    return np.random.default_rng(seed).normal(size=(n, columns)).astype(np.float32)


def calibrating(x):
    return x[np.arange(len(x)) % 8 != 7] if len(x) >= 8 else x


@pytest.mark.parametrize("max_batch", [1, 4, 32])
def test_observes_intermediates_inputs_and_constants(max_batch):
    small, x = model(SMALL), samples()
    kept = calibrating(x)
    requests = [
        Request(MinMax(), ("x",)),
        Request(MinMax(), ("a",)),
        Request(MinMax(), ("w",)),
        Request(Moments(axis=1), ("b",)),
        Request(MinMax(), ("y", "b")),
    ]
    found = service(small, {"x": x}, max_batch=max_batch).observe(small, None, requests)
    w = np.array([[1, -1], [2, 0.5], [0, 3], [-2, 1]], np.float32)
    b = np.maximum(kept, 0) @ w
    assert (found[0].low[0], found[0].count) == (kept.min(), kept.size)
    assert (found[1].low[0], found[1].high[0]) == (0, kept.max())
    assert (found[2].low[0], found[2].count) == (-2, 8)
    np.testing.assert_allclose(found[3].mean, b.mean(axis=0), rtol=1e-5)
    assert found[3].count.tolist() == [len(kept)] * 2
    assert found[4].high[0] == pytest.approx(np.abs(b).max())
    assert requests[0].statistic.count == 0


def test_student_and_teacher_see_the_same_batches():
    teacher = model(SMALL)
    student = model(SMALL.replace("b = MatMul(a, w)", "c = MatMul(a, w) b = Add(c, c)"))
    x = samples()
    found = service(teacher, {"x": x}, max_batch=4).observe(
        student, teacher, [Request(MeanDifference(axis=1), ("b",), ("b",)), Request(Gram(), (), ("a",))]
    )
    a = np.maximum(calibrating(x), 0)
    w = np.array([[1, -1], [2, 0.5], [0, 3], [-2, 1]], np.float32)
    np.testing.assert_allclose(found[0].mean, (a @ w).mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(found[1].matrix, a.T.astype(np.float64) @ a, rtol=1e-5)


def test_slices_and_batches_change_nothing():
    small, x = model(SMALL), samples(100)
    names = ["x", "a", "b", "y", "w"]
    runs = []
    for options in ({}, {"slice_bytes": 1}, {"slice_bytes": 24, "max_batch": 1}):
        requests = [Request(Histogram(64), (n,)) for n in names]
        found = service(small, {"x": x}, **options).observe(small, None, requests)
        runs.append([h.to_json() for h in found])
    assert runs[0] == runs[1] == runs[2]


def test_optimizations_while_observing():
    small, x = model(SMALL), samples()
    plain = service(small, {"x": x}).observe(small, None, [Request(Moments(), ("b",))])[0]
    faster = service(small, {"x": x}, optimize="all").observe(small, None, [Request(Moments(), ("b",))])[0]
    assert faster.sum[0] == pytest.approx(plain.sum[0], rel=1e-5)


def test_batches_shrink_when_memory_runs_out(monkeypatch):
    small, x = model(SMALL), samples()
    whole = service(small, {"x": x}).observe(small, None, [Request(Moments(), ("a",))])[0]
    sizes, run = [], collect.Session.run

    def scarce(self, feeds, outputs=None):
        sizes.append(len(feeds["x"]))
        if sizes[-1] > 5:
            raise MemoryError
        return run(self, feeds, outputs)

    monkeypatch.setattr(collect.Session, "run", scarce)
    found = service(small, {"x": x}).observe(small, None, [Request(Moments(), ("a",))])[0]
    assert max(sizes) > 5
    assert found.sum[0] == whole.sum[0]
    assert found.count[0] == whole.count[0]


def test_progress_says_how_far_it_is():
    told = []
    small = model(SMALL)
    asked = service(small, {"x": samples(20)}, max_batch=9, tell=lambda *words: told.append(words))
    asked.observe(small, None, [Request(MinMax(), ("a",))])
    assert told == [("calibrate", "9 of 18 samples"), ("calibrate", "18 of 18 samples")]


def test_answers_are_cached_and_stay_what_they_were():
    small, x = model(SMALL), samples()
    asked = service(small, {"x": x})
    first = asked.observe(small, None, [Request(Moments(), ("a",))])[0]
    asked.dataset = None  # nothing may run any more
    again = asked.observe(model(SMALL), None, [Request(Moments(), ("a",))])[0]
    assert again.sum[0] == first.sum[0]
    again.update(np.full(3, 1e6))
    assert asked.observe(small, None, [Request(Moments(), ("a",))])[0].sum[0] == first.sum[0]


def test_unknown_tensors_are_an_error():
    small = model(SMALL)
    with pytest.raises(UserError, match="nowhere"):
        service(small, {"x": samples()}).observe(small, None, [Request(MinMax(), ("nowhere",))])


IF = f"""{HEAD} g (float[N, 4] x, bool[1] c) => (float[N, 4] y) {{
    k = Squeeze(c)
    y = If (k) <
        then_branch = t () => (float[N, 4] p) {{ m = Relu(x) p = Neg(m) }},
        else_branch = e () => (float[N, 4] q) {{ d = Add(x, x) q = Abs(d) }}
    >
}}"""


def test_tensors_of_both_branches():
    x = samples(10)
    flags = np.arange(10) % 2 == 0
    branching = model(IF)
    data = [{"x": x[i : i + 1], "c": flags[i : i + 1]} for i in range(10)]
    found = service(branching, data).observe(
        branching,
        None,
        [Request(MinMax(axis=1), ("m",)), Request(MinMax(), ("d",)), Request(MinMax(), ("y",))],
    )
    kept = calibrating(x)
    chosen = calibrating(flags.astype(np.float32)).astype(bool)
    np.testing.assert_array_equal(found[0].high, np.maximum(kept[chosen], 0).max(axis=0))
    assert found[1].low[0] == (2 * kept[~chosen]).min()
    assert found[1].count == kept[~chosen].size


LOOP = f"""{HEAD} g (float[N, 4] x, int64 trips) => (float[N, 4] y) {{
    go = Constant <value = bool {{1}}> ()
    y = Loop (trips, go, x) <body = b (int64 i, bool on, float[N, 4] s) => (bool on2, float[N, 4] r) {{
        on2 = Identity(on) h = Relu(s) r = Sub(s, h)
        }}>
}}"""


def test_tensors_of_a_loop_keep_their_channels():
    x = samples(3)
    looping = model(LOOP)
    data = [{"x": x[i : i + 1], "trips": np.array(3)} for i in range(3)]
    requests = [Request(MinMax(axis=1), ("h",)), Request(Moments(), ("s",)), Request(MinMax(), ("r",))]
    found = service(looping, data).observe(looping, None, requests)
    np.testing.assert_array_equal(found[0].high, np.maximum(x, 0).max(axis=0))
    assert found[0].count == 3 * x.size
    assert found[1].count[0] == 3 * x.size


GROWING = f"""{HEAD} g (float[1, 4] x, int64 trips) => (float y) {{
    go = Constant <value = bool {{1}}> ()
    s = Loop (trips, go, x) <body = b (int64 i, bool on, float[K, 4] s) => (bool on2, float[L, 4] r) {{
        on2 = Identity(on) h = Neg(s) r = Concat <axis = 0> (s, h)
        }}>
    y = ReduceSum <keepdims = 0> (s)
}}"""


def test_values_that_grow_from_iteration_to_iteration():
    growing = model(GROWING)
    x = samples(2)
    data = [{"x": x[i : i + 1], "trips": np.array(3)} for i in range(2)]
    found = service(growing, data).observe(
        growing, None, [Request(MinMax(), ("h",)), Request(Moments(), ("r",))]
    )
    assert found[0].high[0] == np.abs(x).max()
    assert found[0].count == (1 + 2 + 4) * x.size
    assert found[1].count[0] == (2 + 4 + 8) * x.size


NESTED = f"""{HEAD} g (float[1, 4] x, int64 trips) => (float[1, 4] y) {{
    go = Constant <value = bool {{1}}> ()
    y = Loop (trips, go, x) <body = b (int64 i, bool on, float[1, 4] s) => (bool on2, float[1, 4] r) {{
        on2 = Identity(on)
        one = Constant <value = int64 {{1}}> ()
        late = Less(one, i)
        r = If (late) <
            then_branch = t () => (float[1, 4] p) {{ m = Relu(s) p = Neg(m) }},
            else_branch = e () => (float[1, 4] q) {{ q = Add(s, s) }}
        >
        }}>
}}"""


def test_a_branch_inside_of_a_loop():
    nested = model(NESTED)
    x = np.array([[1, -2, 3, 0.5]], np.float32)
    found = service(nested, [{"x": x, "trips": np.array(3)}]).observe(
        nested, None, [Request(MinMax(), ("m",)), Request(MinMax(), ("q",)), Request(MinMax(), ("r",))]
    )
    assert (found[0].count, found[0].high[0]) == (4, 12)
    assert (found[1].count, found[1].low[0]) == (8, -8)


SCAN = f"""{HEAD} g (float[5, 4] x) => (float[4] y, float[5, 4] z) {{
    zero = Constant <value = float[4] {{0, 0, 0, 0}}> ()
    y, z = Scan <num_scan_inputs = 1, body = b (float[4] s, float[4] row) => (float[4] r, float[4] o) {{
        r = Add(s, row) h = Neg(r) o = Abs(h)
        }}> (zero, x)
}}"""


def test_tensors_of_a_scan():
    scanning = model(SCAN)
    x = samples(5)
    found = service(scanning, [{"x": x}]).observe(scanning, None, [Request(MinMax(axis=0), ("h",))])
    np.testing.assert_allclose(found[0].low, -np.cumsum(x, axis=0).max(axis=0), rtol=1e-6)
    assert found[0].count == 20


def test_half_precision_is_read_as_float():
    half = model(f"{HEAD} g (float[N, 4] x) => (float16[N, 4] y) {{ h = Cast <to = 10> (x) y = Neg(h) }}")
    found = service(half, {"x": samples()}).observe(half, None, [Request(Gram(), ("h",))])
    assert found[0].matrix.dtype == np.float64


def test_score_of_the_same_model_and_of_a_coarser_one():
    small = model(SMALL)
    asked = service(small, {"x": samples(64)})
    same = asked.score(small, model(SMALL))
    assert (same.sqnr_db, same.cosine) == (np.inf, 1)
    scaled = model(
        SMALL.replace(
            "b = MatMul(a, w)", "c = MatMul(a, w) t = Constant <value = float {1.1}> () b = Mul(c, t)"
        )
    )
    coarse = asked.score(scaled, small)
    assert coarse.sqnr_db == pytest.approx(20, abs=0.01)
    assert coarse.cosine == pytest.approx(1)


def accuracy(pairs):
    right = total = 0
    for given, out in pairs:
        right += int((out["y"].argmax(axis=1) == given["label"]).sum())
        total += len(given["label"])
    return right / total


def test_metrics_see_labels_and_drops_are_the_teachers_minus_the_students():
    small, x = model(SMALL), samples(80)
    w = np.array([[1, -1], [2, 0.5], [0, 3], [-2, 1]], np.float32)
    label = (-np.maximum(x, 0) @ w).argmax(axis=1)
    worse = model(SMALL.replace("y = Neg(b)", "y = Identity(b)"))
    asked = service(small, {"x": x, "label": label}, metric=accuracy, max_batch=7)
    score = asked.score(worse, small)
    assert score.metrics["accuracy"] < 0.5
    assert score.drops["accuracy"] == pytest.approx(1 - score.metrics["accuracy"])
    assert asked.score(small, small).drops == {"accuracy": 0}


def first_only(pairs):
    return {"first": float(next(pairs)[1]["y"][0, 0]), "n": 1}


def test_a_metric_that_stops_early_does_not_shorten_the_score():
    small, x = model(SMALL), samples(20)
    worse = model(
        SMALL.replace("y = Neg(b)", "n = Neg(b) y = Clip(n, m)")
        .replace("w = {", "m = {-3}, float[4, 2] w = {")
        .replace("<float[4, 2] m", "<float m")
    )
    plain = service(small, {"x": x}, max_batch=2).score(worse, small)
    stopped = service(small, {"x": x}, max_batch=2, metric=first_only).score(worse, small)
    assert stopped.sqnr_db == plain.sqnr_db
    assert stopped.metrics.keys() == {"first", "n"}


def no_number(pairs):
    return "good"


def test_a_metric_must_give_numbers():
    small = model(SMALL)
    with pytest.raises(UserError, match="no_number"):
        service(small, {"x": samples()}, metric=no_number).score(small, small)


def test_the_held_back_samples_are_others():
    small = model(SMALL)
    x = samples(16)
    x[calibrating(np.arange(16)[:, None])[:, 0]] = 0  # all but the held-back ones
    worse = model(SMALL.replace("y = Neg(b)", "y = Abs(b)"))
    asked = service(small, {"x": x})
    assert asked.score(worse, small).sqnr_db == np.inf
    assert asked.held_back_score(worse, small).sqnr_db < 10
    assert asked.held_back_words() == "2 held-back samples"


def test_not_finite_and_other_outputs():
    small = model(SMALL)
    broken = model(SMALL.replace("y = Neg(b)", "l = Log(b) y = Neg(l)"))
    assert service(small, {"x": samples()}).score(broken, small).sqnr_db == -np.inf
    picks = model(
        SMALL.replace("float[N, 2] y", "int64[N] y").replace(
            "y = Neg(b)", "y = ArgMax <axis = 1, keepdims = 0> (b)"
        )
    )
    others = model(
        SMALL.replace("float[N, 2] y", "int64[N] y").replace(
            "y = Neg(b)", "y = ArgMin <axis = 1, keepdims = 0> (b)"
        )
    )
    asked = service(picks, {"x": samples()})
    assert asked.score(picks, picks).sqnr_db == np.inf
    assert asked.score(others, picks).cosine < 0.5


def test_latency_is_measured_once():
    small = model(SMALL)
    asked = service(small, {"x": samples()})
    ratio = asked.latency(small, small)
    assert 0.2 < ratio < 5
    assert asked.latency(small, small) == ratio
    assert asked.latency_feeds()[0]["x"].shape == (1, 4)


def test_the_hash_follows_the_weights(tmp_path):
    proto = parser.parse_model(SMALL)
    del proto.graph.initializer[:]
    weights = np.zeros((4, 2), np.float32).repeat(1000, axis=1)
    proto.graph.initializer.append(onnx.numpy_helper.from_array(weights, "w"))
    path = tmp_path / "m.onnx"
    onnx.save(proto, path)
    before = session_hash(Model.load(path).session_source())
    assert session_hash(Model.load(path).session_source()) == before
    weights[0, 0] = 1
    proto.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(weights, "w"))
    onnx.save(proto, path)
    assert session_hash(Model.load(path).session_source()) != before


def test_the_hash_of_weights_in_temporary_files_is_that_of_their_content(monkeypatch):
    monkeypatch.setattr(session_source, "INLINE_LIMIT", 100)

    def hash_of(value):
        proto = parser.parse_model(SMALL)
        weights = np.full((4, 2000), value, np.float32)
        proto.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(weights, "w"))
        source = Model.load(proto).session_source()
        assert source.spill is not None
        return session_hash(source)

    assert hash_of(1) == hash_of(1) != hash_of(2)
