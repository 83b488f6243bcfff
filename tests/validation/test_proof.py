"""Proofs: what passes, what fails, and who is to blame."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser

from graphopt.budget import Budget
from graphopt.errors import ProviderError, UserError
from graphopt.model import Model
from graphopt.runtime.session import CPU, Session, open_session
from graphopt.runtime.values import Feeds, Value
from graphopt.validation.proof import Options, Proof, Prover, Reference, prove, validate

HEAD = '<ir_version: 8, opset_import: ["": 17]>'
RNG = np.random.default_rng(0)


def model(text: str, **weights: np.ndarray) -> onnx.ModelProto:
    m = parser.parse_model(f"{HEAD} {text}")
    m.graph.initializer.extend(numpy_helper.from_array(v, k) for k, v in weights.items())
    return m


W = RNG.standard_normal((64, 32)).astype(np.float32)
B = RNG.standard_normal(32).astype(np.float32)
LINEAR = "g(float[n,64] x) => (float[n,32] y) { h = MatMul(x, w) y = Add(h, b) }"


def linear(w: np.ndarray = W, b: np.ndarray = B) -> onnx.ModelProto:
    return model(LINEAR, w=w, b=b)


def test_the_same_model_is_proven_exact() -> None:
    proof = prove(linear(), linear(), "EXACT")
    assert proof.verdict == "proven"
    assert proof.probes == ("synthesized, n=1", "synthesized, n=2")
    assert proof.runtimes == ("CPU, optimizations off", "CPU, optimizations on")
    assert [v.name for v in proof.outputs] == ["y"]


def test_an_error_of_a_thousandth_fails_close() -> None:
    proof = prove(linear(), linear(b=B + np.float32(1e-3)), "CLOSE")
    assert proof.verdict == "failed"
    assert proof.culprit == "pass"
    assert proof.failing_probe == 0
    assert "noise floor" in proof.reason
    assert "'y'" in proof.reason


def test_a_reordered_sum_passes_close_and_fails_exact() -> None:
    order = RNG.permutation(64)
    text = "g(float[n,64] x) => (float[n,32] y) { p = Gather<axis=1>(x, i) h = MatMul(p, w) y = Add(h, b) }"
    reordered = model(text, w=W[order], b=B, i=order)
    assert prove(linear(), reordered, "CLOSE").verdict == "proven"
    proof = prove(linear(), reordered, "EXACT")
    assert proof.verdict == "failed"
    assert "not bit for bit equal" in proof.reason


def test_the_sign_of_zero_counts_as_exact_only() -> None:
    a = model("g(float[4] x) => (float[4] y) { y = Mul(x, z) }", z=np.array([1, 1, 0, -0.0], np.float32))
    b = model("g(float[4] x) => (float[4] y) { h = Mul(x, z) y = Add(h, o) }",
              z=np.array([1, 1, 0, -0.0], np.float32), o=np.zeros(1, np.float32))  # fmt: skip
    proof = prove(a, b, "EXACT")
    assert proof.verdict == "failed"
    assert "sign of a zero" in proof.reason
    assert prove(a, b, "CLOSE").verdict == "proven"


def test_nan_in_another_place_fails() -> None:
    a = model("g(float[3] x) => (float[3] y) { y = Mul(x, c) }", c=np.array([1, np.nan, 1], np.float32))
    b = model("g(float[3] x) => (float[3] y) { y = Mul(x, c) }", c=np.array([1, 1, np.nan], np.float32))
    assert prove(a, a, "EXACT").verdict == "proven"
    proof = prove(a, b, "CLOSE")
    assert proof.verdict == "failed"
    assert "NaN" in proof.reason


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("g(float[n,64] x) => (float[n,32] z) { h = MatMul(x, w) z = Add(h, b) }", "output removed: y"),
        ("g(float[n,64] x) => (float[m,32] y) { h = MatMul(x, w) y = Add(h, b) }", "n,32] to float[m,32]"),
        (
            "g(float[2,64] x) => (float[n,32] y) { h = MatMul(x, w) y = Add(h, b) }",
            "changed from float[n,64]",
        ),
        (
            "g(float[n,64] x) => (double[n,32] y) { h = MatMul(x, w) k = Add(h, b) y = Cast<to=11>(k) }",
            "to double[n,32]",
        ),
        ("g(float[n,64] x, float u) => (float[n,32] y) { h = MatMul(x, w) y = Add(h, b) }", "input added: u"),
    ],
)
def test_a_changed_interface_fails(text: str, complaint: str) -> None:
    proof = prove(linear(), model(text, w=W, b=B), "CLOSE")
    assert proof.verdict == "failed"
    assert complaint in proof.reason


def test_validate_lets_dims_be_declared_differently() -> None:
    fixed = model("g(float[n,64] x) => (float[k,32] y) { h = MatMul(x, w) y = Add(h, b) }", w=W, b=B)
    assert validate(linear(), fixed).verdict == "proven"
    assert prove(linear(), fixed).verdict == "failed"


def test_a_result_shape_that_changes_at_run_time_fails() -> None:
    a = model("g(float[n,64] x) => (float[p,q] y) { y = MatMul(x, w) }", w=W)
    b = model("g(float[n,64] x) => (float[p,q] y) { h = MatMul(x, w) y = Transpose(h) }", w=W)
    proof = prove(a, b, "CLOSE")
    assert proof.verdict == "failed"
    assert "shape changed" in proof.reason


@pytest.mark.parametrize(
    "text",
    [
        "g(float[4] x) => (float[4] y) { r = RandomNormalLike(x) y = Add(x, r) }",
        "g(float[4] x) => (float[4] y) { y = Dropout(x, r, t) }",
        "g(float[4] x, bool c) => (float[4] y) { y = If (c) <"
        "then_branch = t() => (float[4] a) { a = RandomUniformLike(x) }, else_branch = e() => (float[4] d)"
        "{ d = Identity(x) }> }",
    ],
)
def test_random_models_are_unproven(text: str) -> None:
    weights = {"r": np.array(0.5, np.float32), "t": np.array(True)} if "Dropout" in text else {}
    m = model(text, **weights)
    proof = prove(m, m, "EXACT")
    assert proof.verdict == "unproven"
    assert "random" in proof.reason
    assert proof.ok


def test_randomness_in_a_function_is_found_and_dead_randomness_is_none() -> None:
    m = parser.parse_model(
        '<ir_version: 8, opset_import: ["": 17, "f": 1]> g(float[4] x) => (float[4] y) { y = f.noise(x) }'
        '<domain: "f", opset_import: ["": 17]> noise(a) => (b) { r = RandomNormalLike(a) b = Add(a, r) }'
    )
    assert "random" in prove(m, m).reason
    dead = model("g(float[4] x) => (float[4] y) { r = RandomNormalLike(x) y = Neg(x) }")
    assert prove(dead, model("g(float[4] x) => (float[4] y) { y = Neg(x) }"), "EXACT").verdict == "proven"


def test_an_unknown_op_is_unproven() -> None:
    m = parser.parse_model(
        '<ir_version: 8, opset_import: ["": 17, "foo": 1]> g(float[4] x) => (float[4] y) { y = foo.Bar(x) }'
    )
    proof = prove(m, m)
    assert proof.verdict == "unproven"
    assert "foo:Bar" in proof.reason


def look_alike(fourth_power: str) -> onnx.ModelProto:
    """Almost a LayerNormalization, with another exponent; onnxruntime's optimizer fuses it all the same."""
    text = f"""g(float[n,3,8] x) => (float[n,3,8] y) {{
        m = ReduceMean<axes=[-1]>(x) d = Sub(x, m) {fourth_power} v = ReduceMean<axes=[-1]>(p)
        a = Add(v, eps) s = Sqrt(a) q = Div(d, s) r = Mul(q, w) y = Add(r, b) }}"""
    ones, f = np.ones(8, np.float32), np.float32
    return model(text, e=np.array(4, f), eps=np.array(1e-5, f), w=ones, b=0 * ones)


PLAIN, HIDDEN = "p = Pow(d, e)", "t = Mul(d, d) p = Mul(t, t)"
BUG = pytest.mark.skipif(
    not Reference(look_alike(PLAIN)).floors.own, reason="this onnxruntime has no such bug"
)


@BUG
def test_a_bug_of_onnxruntimes_optimizer_in_the_original_is_a_warning() -> None:
    m = look_alike(PLAIN)
    prover = Prover(m)
    proof = prover.check(m, "EXACT")
    assert proof.verdict == "proven"
    assert any("onnxruntime's own optimizer changes output 'y'" in w for w in proof.warnings)
    # Its spread must not have become the tolerance: a small error still fails.
    wrong = look_alike(PLAIN.replace("Pow(d, e)", "Pow(x, e)"))
    assert prover.check(wrong, "CLOSE").culprit == "pass"


@BUG
def test_a_rewrite_that_leads_onnxruntimes_optimizer_astray_fails_by_its_name() -> None:
    proof = Prover(look_alike(HIDDEN)).check(look_alike(PLAIN), "CLOSE")
    assert proof.verdict == "failed"
    assert proof.culprit == "onnxruntime's optimizer"
    assert "optimizations on" in proof.reason


def topk(values: str) -> onnx.ModelProto:
    return model(
        f"g(float[n,16] x) => (float[n,3] v, int64[n,3] i) {{ {values} v, i = TopK(h, k) }}",
        k=np.array([3], np.int64),
        o=np.full((1, 16), 2.0, np.float32),
        e=np.array([[0.0] * 8 + [1e-3] * 8], np.float32),
    )


def test_ties_may_be_broken_either_way() -> None:
    text = "g(float[n,8] x) => (int64[n,1] i) {{ z = Mul(x, o) i = ArgMax<axis=1{last}>(z) }}"
    tied = model(text.format(last=""), o=np.zeros(1, np.float32))
    last = model(text.format(last=", select_last_index=1"), o=np.zeros(1, np.float32))
    assert prove(tied, last, "CLOSE").verdict == "proven"
    assert prove(tied, last, "EXACT").verdict == "failed"


def test_an_index_of_another_value_is_no_tie() -> None:
    text = "g(float[n,8] x) => (int64[n,1] i) {{ i = {op}<axis=1>(x) }}"
    proof = prove(model(text.format(op="ArgMax")), model(text.format(op="ArgMin")), "CLOSE")
    assert proof.verdict == "failed"
    assert "point at do not agree" in proof.reason


def test_top_k_indices() -> None:
    a, b = topk("h = Mul(x, o)"), topk("h = Add(x, x)")
    assert prove(a, b, "CLOSE").verdict == "proven"
    assert prove(a, topk("g = Mul(x, o) h = Neg(g)"), "CLOSE").verdict == "failed"


def test_integers_must_be_equal() -> None:
    text = "g(float[n] x) => (int32[n] y) {{ a = Add(x, c) y = Cast<to=6>(a) }}".replace("{{", "{").replace(
        "}}", "}"
    )
    a = model(text, c=np.array([100], np.float32))
    b = model(text, c=np.array([101], np.float32))
    proof = prove(a, b, "CLOSE")
    assert proof.verdict == "failed"
    assert "integers differ" in proof.reason


def test_lossy_is_held_to_its_budget() -> None:
    noisy = linear(w=W + RNG.standard_normal(W.shape).astype(np.float32) * 0.05)
    assert prove(linear(), noisy, "CLOSE").verdict == "failed"
    assert prove(linear(), noisy, "LOSSY", budget=Budget()).verdict == "proven"
    proof = prove(linear(), noisy, "LOSSY", budget=Budget(min_sqnr_db=60))
    assert proof.verdict == "failed"
    assert "SQNR" in proof.reason
    measured = prove(linear(), linear(w=np.zeros_like(W)), "LOSSY")
    assert measured.verdict == "proven"
    assert measured.outputs[0].metrics is not None


def test_a_frozen_overridable_initializer_is_caught() -> None:
    text = "g(float[4] x, float[4] s) => (float[4] y) { y = Mul(x, s) }"
    free = model(text, s=np.ones(4, np.float32))
    assert prove(free, free, "EXACT").verdict == "proven"
    frozen = model("g(float[4] x, float[4] s) => (float[4] y) { y = Identity(x) }", s=np.ones(4, np.float32))
    proof = prove(free, frozen, "CLOSE")
    assert proof.verdict == "failed"
    assert proof.failing_probe == 1


def test_the_reference_runs_once_for_many_candidates(monkeypatch: pytest.MonkeyPatch) -> None:
    prover = Prover(linear())
    opened: list[str] = []
    import graphopt.validation.proof as module

    original = module.open_session

    def counting(*args: object, **kwargs: object) -> object:
        opened.append(str(kwargs["optimize"]))
        return original(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "open_session", counting)
    for _ in range(3):
        prover.check(linear(), "EXACT", thorough=False)
    assert opened == ["none"] * 3


def test_a_candidate_that_does_not_load_fails() -> None:
    broken = model("g(float[n,64] x) => (float[n,32] y) { h = MatMul(x, w) y = Nonsense(h, b) }", w=W, b=B)
    proof = prove(linear(), broken)
    assert proof.verdict == "failed"
    assert "does not load" in proof.reason


def test_sequences_and_optionals_are_compared_by_structure() -> None:
    text = "g(float[n,6] x) => (seq(float[n,2]) s) {{ s = SplitToSequence<axis=1>({x}, c) }}"
    a = parser.parse_model(HEAD + text.format(x="x"))
    b = parser.parse_model(
        HEAD + "g(float[n,6] x) => (seq(float[n,2]) s) { z = Neg(x) s = SplitToSequence<axis=1>(z, c) }"
    )
    c = parser.parse_model(
        HEAD + "g(float[n,6] x) => (seq(float[n,2]) s) { s = SplitToSequence<axis=1>(x, c) }"
    )
    for m, split in ((a, [2, 2, 2]), (b, [2, 2, 2]), (c, [3, 3])):
        m.graph.initializer.append(numpy_helper.from_array(np.array(split, np.int64), "c"))
    proof = prove(a, a, "EXACT")
    assert proof.verdict == "proven"
    assert [v.name for v in proof.outputs] == ["s[0]", "s[1]", "s[2]"]
    assert prove(a, b).verdict == "failed"
    assert "structure differs" in prove(a, c).reason


def test_half_precision_hidden_behind_a_cast_has_the_tolerance_of_half_precision() -> None:
    head, half = "g(float16[n,64] x) => (float[n,32] y)", W.astype(np.float16)
    a = model(f"{head} {{ h = MatMul(x, w) y = Cast<to=1>(h) }}", w=half)
    order = RNG.permutation(64)
    text = f"{head} {{ p = Gather<axis=1>(x, i) h = MatMul(p, w) y = Cast<to=1>(h) }}"
    b = model(text, w=half[order], i=order)
    assert prove(a, b).verdict == "proven"


def test_options_reach_the_probes() -> None:
    proof: Proof = prove(linear(), linear(), options=Options(input_shapes={"x": (7, 64)}, probe_sets=3))
    assert proof.probes == ("synthesized, n=7",) * 3


def test_a_provider_that_computes_something_else_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for a GPU: the CPU under another name, wrong for models that hold a Sub."""
    import graphopt.validation.proof as proof_module
    import graphopt.validation.reference as reference_module
    import graphopt.validation.tolerance as tolerance_module

    class Wrong:
        def __init__(self, inner: Session, offset: float) -> None:
            self.inner, self.offset = inner, np.float32(offset)

        def __enter__(self) -> "Wrong":
            return self

        def __exit__(self, *exc: object) -> None:
            self.inner.close()

        def run(self, feeds: Feeds) -> dict[str, Value]:
            return {k: v + self.offset for k, v in self.inner.run(feeds).items()}  # type: ignore[operator]

    def fake(source: onnx.ModelProto, **kwargs: object) -> object:
        elsewhere = kwargs.pop("provider", CPU) == "GPU"
        session = open_session(source, **kwargs)  # type: ignore[arg-type]
        bad = any(n.op_type == "Sub" for n in source.graph.node)
        return Wrong(session, 0.5 if bad else 1e-6) if elsewhere else session

    for module in (proof_module, reference_module, tolerance_module):
        monkeypatch.setattr(module, "open_session", fake)
    monkeypatch.setattr(reference_module, "resolve_provider", lambda p: p)
    prover = Prover(linear(), options=Options(providers=(CPU, "GPU")))
    good = prover.check(linear(), "EXACT")
    assert good.verdict == "proven"
    assert good.runtimes[-1] == "GPU, optimizations on"
    text = "g(float[n,64] x) => (float[n,32] y) { h = MatMul(x, w) y = Sub(h, c) }"
    bad = prover.check(model(text, w=W, c=-B), "CLOSE")
    assert bad.verdict == "failed"
    assert bad.culprit == "provider"
    assert "GPU" in bad.reason


def test_a_provider_that_is_not_there_is_an_error() -> None:
    with pytest.raises(ProviderError, match="NoSuch"):
        prove(linear(), linear(), options=Options(providers=("NoSuch",)))


def test_weights_that_live_in_memory_and_in_files(tmp_path: Path) -> None:
    onnx.save(linear(), tmp_path / "m.onnx")
    reference = Model.load(tmp_path / "m.onnx")
    assert prove(reference, Model.load(linear()), "EXACT").verdict == "proven"
    assert prove(reference, Model.load(linear(b=B + 1))).verdict == "failed"


def test_data_that_the_original_refuses_is_the_users_mistake() -> None:
    m = model("g(float[n,k] x) => (float[n,32] y) { y = MatMul(x, w) }", w=W)
    with pytest.raises(UserError, match="does not run on the given inputs"):
        prove(m, m, data={"x": np.ones((2, 3), np.float32)})
    assert prove(m, m, data={"x": np.ones((2, 64), np.float32)}).probes == ("data, n=2, k=64",)


def test_probes_can_be_shared() -> None:
    first = Reference(linear())
    second = Reference(linear(b=B + 1), probes=first.probes.sets)
    assert [s.feeds["x"] is t.feeds["x"] for s, t in zip(first.probes.sets, second.probes.sets, strict=True)]
    assert second.probes.sets[0].describe() == first.probes.sets[0].describe()
