"""Helpers for testing passes: `assert_rewrites`, `assert_refuses`, `apply`.

    def test_double_relu() -> None:
        assert_rewrites(MergeRelu(), '''
            <ir_version: 8, opset_import: ["" : 17]>
            g (float[N, 4] x) => (float[N, 4] y) { a = Relu(x)  y = Relu(a) }
        ''', ops={"Relu": 1})

Every check that can be made without knowing the pass is made: the structure is valid, the interface is the
same, a second run changes nothing, and the outputs on random inputs agree as far as the pass declares.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx.checker
import onnx.parser

from graphopt.budget import Budget
from graphopt.graph.journal import Journal
from graphopt.graph.view import Array
from graphopt.interface import UNCHANGED, InterfaceEdits, Kind
from graphopt.ir import Constant
from graphopt.model import Model
from graphopt.pipeline.base import Limits, Numerics, Pass
from graphopt.pipeline.manager import Settings, execute
from graphopt.pipeline.targets import get_target

Feeds = Mapping[str, Array]


@dataclass(frozen=True)
class Applied:
    """What became of a model.

    Attributes:
        model: the rewritten model.
        journal: changes and refusals.
        proto: the rewritten model as a ModelProto.
    """

    model: Model
    journal: Journal
    proto: onnx.ModelProto

    @property
    def ops(self) -> Counter[str]:
        """Operator types of all bodies, without Constant nodes; "domain::op" outside the standard domain."""
        return count_ops(self.model)

    @property
    def reasons(self) -> list[str]:
        """Reasons of all refusals."""
        return [r.reason for r in self.journal.refusals]


def parse(source: str | onnx.ModelProto) -> onnx.ModelProto:
    """A model from ONNX's text form, checked."""
    model = onnx.parser.parse_model(source) if isinstance(source, str) else source
    onnx.checker.check_model(model)
    return model


def count_ops(model: Model) -> Counter[str]:
    """Operator types of all bodies, without Constant nodes."""
    return Counter(
        f"{n.domain}::{n.op}" if n.domain else n.op
        for body in model.bodies()
        for n in body.nodes
        if n.op != "Constant"
    )


def apply(
    passes: Sequence[Pass] | Pass,
    before: str | onnx.ModelProto,
    *,
    target: str = "portable",
    keep: Sequence[str] = (),
    limits: Limits | None = None,
    data: Any = None,
    budget: Budget | None = None,
) -> Applied:
    """Run `passes`, each once, on a copy of `before`, with every structural check.

    Args:
        passes: the pass or passes under test.
        before: the model, as ONNX text or proto.
        target: target profile.
        keep: globs that the passes must leave alone.
        limits: bounds on what passes may produce.
        data: what passes may measure on, as for `graphopt.run`.
        budget: what passes that move the numbers have to keep.
    """
    from graphopt.lossy import open_services
    from graphopt.runtime.evaluate import evaluate

    model = Model.load(parse(before))
    items = [passes] if isinstance(passes, Pass) else list(passes)
    services = open_services(data, model, metric=None, tell=lambda stage, detail: None)
    settings = Settings(
        get_target(target),
        limits or Limits(),
        tuple(keep),
        evaluate,
        services=services,
        budget=budget,
    )
    done = execute(model, items, settings)
    proto = done.model.to_proto(weights="inline")
    onnx.checker.check_model(proto)
    return Applied(done.model, done.journal, proto)


def assert_rewrites(
    passes: Sequence[Pass] | Pass,
    before: str | onnx.ModelProto,
    after: str | onnx.ModelProto | None = None,
    *,
    ops: Mapping[str, int] | None = None,
    target: str = "portable",
    keep: Sequence[str] = (),
    inputs: Feeds | Sequence[Feeds] | None = None,
    numerics: Numerics | None = None,
    limits: Limits | None = None,
    data: Any = None,
    once: bool = False,
) -> Applied:
    """Assert that `passes` rewrite `before`, soundly.

    Args:
        passes: the pass or passes under test.
        before: the model, as ONNX text or proto.
        after: what it must become, up to the names of intermediate tensors and nodes.
        ops: operator counts that it must have afterwards, over all bodies, Constant left out.
        target: target profile.
        keep: globs that the passes must leave alone.
        inputs: feeds to compare outputs on; random ones for two sizes of every symbolic dim by default.
        numerics: allowance; the weakest that the passes declare by default.
        limits: bounds on what passes may produce.
        data: what passes may measure on, as for `graphopt.run`.
        once: a second run makes no sense: what was asked for cannot be asked of the result again.

    Returns:
        The rewritten model and its journal, for further assertions.
    """
    items = [passes] if isinstance(passes, Pass) else list(passes)
    proto = parse(before)
    done = apply(items, proto, target=target, keep=keep, limits=limits, data=data)
    assert done.journal.changes, f"nothing was rewritten; refusals: {done.reasons}"
    if ops is not None:
        assert dict(done.ops) == dict(ops), f"{dict(done.ops)} where {dict(ops)} was expected"
    if after is not None:
        expected, got = canonical(parse(after)), canonical(done.proto)
        assert got == expected, f"became\n{got}\nwhere\n{expected}\nwas expected"
    if not once:
        again = apply(items, done.proto, target=target, keep=keep, limits=limits, data=data)
        assert not again.journal.changes, f"not idempotent: {[str(c.key) for c in again.journal.changes]}"
    edits = done.model.interface
    assert_same_interface(proto, done.proto, edits)
    weakest = max((p.numerics for p in items), key=list(Numerics).index)
    assert_same_numbers(proto, done.proto, numerics or weakest, inputs, edits)
    return done


def assert_refuses(
    passes: Sequence[Pass] | Pass,
    before: str | onnx.ModelProto,
    reason: str | None = None,
    *,
    target: str = "portable",
    keep: Sequence[str] = (),
    limits: Limits | None = None,
    data: Any = None,
) -> Applied:
    """Assert that `passes` leave `before` alone and, if given, that a recorded reason contains `reason`."""
    done = apply(passes, before, target=target, keep=keep, limits=limits, data=data)
    assert not done.journal.changes, f"rewrote {[str(c.key) for c in done.journal.changes]}"
    if reason is not None:
        assert any(reason in r for r in done.reasons), f"{reason!r} is not among {done.reasons}"
    return done


def assert_same_interface(
    before: onnx.ModelProto, after: onnx.ModelProto, edits: InterfaceEdits = UNCHANGED
) -> None:
    """Inputs and outputs have the same names, order, types and dims, and defaults stay overridable.

    What `edits` say was changed is as they say. The IR version is the same, unless the model is of a newer
    opset now.
    """
    kinds: tuple[Kind, Kind] = ("input", "output")
    for kind in kinds:
        old, new = list(getattr(before.graph, kind)), list(getattr(after.graph, kind))
        assert [v.name for v in old] == [v.name for v in new], f"{kind}s changed"
        for a, b in zip(old, new, strict=True):
            assert edits.declared(kind, a).type == b.type, f"type of {kind} {a.name} changed"
    inputs = {v.name for v in before.graph.input}
    defaults = [t.name for t in before.graph.initializer if t.name in inputs]
    assert defaults == [t.name for t in after.graph.initializer if t.name in inputs], "defaults changed"
    if {(o.domain, o.version) for o in after.opset_import} <= {
        (o.domain, o.version) for o in before.opset_import
    }:
        assert before.ir_version == after.ir_version, "IR version changed"


def assert_same_numbers(
    before: onnx.ModelProto,
    after: onnx.ModelProto,
    numerics: Numerics,
    inputs: Feeds | Sequence[Feeds] | None = None,
    edits: InterfaceEdits = UNCHANGED,
) -> None:
    """Outputs agree on ONNX Runtime with optimizations off.

    EXACT: bit for bit. CLOSE: within 1e-5 (half precision: 1e-2) of the output's RMS. LOSSY is not checked.
    """
    from graphopt.runtime.session import Translated, open_session

    if numerics is Numerics.LOSSY:
        return
    if inputs is None:
        sets: Sequence[Feeds] = [random_feeds(before, size, size) for size in (2, 3)]
    else:
        sets = [inputs] if isinstance(inputs, Mapping) else list(inputs)
    with (
        open_session(Translated(before, edits), optimize="none", prepack=False) as old,
        open_session(after, optimize="none", prepack=False) as new,
    ):
        for feeds in sets:
            fed = edits.feeds(feeds, synthesized=inputs is None)
            want, got = old.run(fed), new.run(fed)
            for name in want:
                _assert_same(name, want[name], got[name], numerics)


def _assert_same(name: str, want: Any, got: Any, numerics: Numerics) -> None:
    if isinstance(want, list):
        assert len(want) == len(got), f"{name}: {len(got)} elements, not {len(want)}"
        for a, b in zip(want, got, strict=True):
            _assert_same(name, a, b, numerics)
        return
    want, got = np.asarray(want), np.asarray(got)
    assert want.dtype == got.dtype, f"{name}: dtype {got.dtype}, not {want.dtype}"
    assert want.shape == got.shape, f"{name}: shape {got.shape}, not {want.shape}"
    is_float = want.dtype.kind == "f" or want.dtype.name == "bfloat16"
    if numerics is Numerics.EXACT or not is_float:
        same = want.tobytes() == got.tobytes() if want.dtype.kind != "O" else bool((want == got).all())
        assert same, f"{name} is not bit for bit the same"
        return
    half = want.dtype.itemsize < 4
    a, b = want.astype(np.float64), got.astype(np.float64)
    assert (np.isnan(a) == np.isnan(b)).all(), f"{name}: NaNs differ"
    finite = np.isfinite(a)
    assert (a[~finite & ~np.isnan(a)] == b[~finite & ~np.isnan(a)]).all(), f"{name}: infinities differ"
    if finite.any():
        rms = float(np.sqrt(np.mean(a[finite] ** 2))) or 1.0
        worst = float(np.abs(a[finite] - b[finite]).max())
        assert worst <= (1e-2 if half else 1e-5) * rms, f"{name} is off by {worst} (RMS {rms})"


def random_feeds(model: onnx.ModelProto, size: int, seed: int = 0) -> dict[str, Array]:
    """Random inputs: every dim that is not fixed is `size`; floats are normal, integers 0 or 1.

    Inputs that have a default value are left out.
    """
    rng = np.random.default_rng(seed)
    defaults = {t.name for t in model.graph.initializer}
    feeds: dict[str, Array] = {}
    for info in model.graph.input:
        if info.name in defaults:
            continue
        tensor = info.type.tensor_type
        shape = [d.dim_value if d.HasField("dim_value") else size for d in tensor.shape.dim]
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)
        if dtype.kind == "f" or dtype.name == "bfloat16":
            feeds[info.name] = rng.standard_normal(shape).astype(dtype)
        elif dtype.kind == "O":
            feeds[info.name] = rng.integers(0, 9, shape).astype(str).astype(object)
        else:
            feeds[info.name] = rng.integers(0, 2, shape).astype(dtype)
    return feeds


def canonical(model: onnx.ModelProto) -> str:
    """A text of the model in which intermediate names are numbered, for structural equality.

    Constants appear by value, so an initializer equals a Constant node of the same value.
    """
    loaded = Model.load(model)
    names: dict[Any, str] = {}
    lines: list[str] = []

    def spell(t: Any) -> str:
        if not t.name:
            return "_"
        if t not in names:
            if isinstance(t, Constant):
                array = t.values
                names[t] = f"{array.dtype}{list(array.shape)}{np.array2string(array.ravel(), threshold=64)}"
            else:
                names[t] = f"%{len(names)}"
        return names[t]

    main = loaded.graph
    for t in [*main.inputs, *main.outputs]:
        names[t] = t.name

    def write(body: Any, indent: str) -> None:
        for node in body.nodes:
            if node.op == "Constant" and isinstance(node.attrs.get("value"), Constant):
                names[node.outputs[0]] = spell(node.attrs["value"])
                continue
            attrs = []
            for key, value in sorted(node.attrs.items()):
                if isinstance(value, Constant):
                    value = value.values.tolist()
                attrs.append(f"{key}={value}" if not hasattr(value, "nodes") else f"{key}=<body>")
            outs = ", ".join(spell(t) for t in node.outputs)
            ins = ", ".join(spell(t) for t in node.inputs)
            lines.append(
                f"{indent}{outs} = {node.domain}{'.' if node.domain else ''}{node.op}"
                f"<{', '.join(attrs)}>({ins})"
            )
            for inner in node.bodies():
                lines.append(f"{indent}  body({', '.join(spell(t) for t in inner.inputs)}):")
                write(inner, indent + "    ")
                lines.append(f"{indent}  returns {', '.join(spell(t) for t in inner.outputs)}")

    write(main, "")
    lines.append(f"returns {', '.join(spell(t) for t in main.outputs)}")
    return "\n".join(lines)
