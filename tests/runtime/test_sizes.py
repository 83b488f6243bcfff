"""Which sizes are tried for symbolic dims, and in which order."""

import itertools

import onnx
import pytest
from onnx import TensorProto, helper

from graphopt.runtime.sizes import MAX_ATTEMPTS, Symbol, assignments, evaluate, symbols_of


def inputs(**shapes: list[int | str | None]) -> list[onnx.ValueInfoProto]:
    return [helper.make_tensor_value_info(k, TensorProto.FLOAT, v) for k, v in shapes.items()]


def kinds(values: list[onnx.ValueInfoProto]) -> dict[str, str]:
    return {s.name: s.kind for s in symbols_of(values)}


def test_kinds_of_a_decoder_with_a_cache() -> None:
    values = inputs(
        input_ids=["batch", "seq"],
        attention_mask=["batch", "total"],
        past_key=["batch", 4, "past", 8],
    )
    assert kinds(values) == {"batch": "batch", "seq": "sequence", "total": "total", "past": "past"}


def test_kinds_without_names() -> None:
    values = inputs(
        input_ids=["s0", "s1"],
        attention_mask=["s2", "s3"],
        past_key=["s4", 4, "s5", 8],
        x=[None, 3, None, None],
    )
    found = kinds(values)
    assert [found[f"s{i}"] for i in range(6)] == ["batch", "other", "batch", "total", "batch", "past"]
    assert (found["x:0"], found["x:2"], found["x:3"]) == ("batch", "spatial", "spatial")


@pytest.mark.parametrize("names", [("batch", "seq", "total", "past"), ("s0", "s1", "s3", "s5")])
def test_the_first_guess_ties_the_mask_to_past_and_present(names: tuple[str, ...]) -> None:
    batch, seq, total, past = names
    values = inputs(input_ids=[batch, seq], attention_mask=[batch, total], past_key=[batch, 4, past, 8])
    for probe in (0, 1):
        first = next(assignments(symbols_of(values), {}, probe))
        assert first[total] == first[past] + first[seq]
        assert first[batch] == probe + 1


def test_two_probes_differ_in_every_free_dim() -> None:
    symbols = symbols_of(inputs(x=["n", "t", 3], y=["n", "u"]))
    a, b = (next(assignments(symbols, {}, probe)) for probe in (0, 1))
    assert all(a[s.name] != b[s.name] for s in symbols)
    assert a["t"] != a["u"]


def test_expressions_follow_their_parts() -> None:
    sizes = {"past_sequence_length": 3, "sequence_length": 5}
    assert evaluate("past_sequence_length + sequence_length", sizes) == 8
    assert evaluate("2*sequence_length - 1", sizes) == 9
    assert evaluate("sequence_length", sizes) is None
    assert evaluate("past + unknown", sizes) is None
    assert evaluate("__import__('os').getcwd() + 1", sizes) is None
    symbols = symbols_of(inputs(a=["b", "s"], m=["b", "s + 4"]))
    assert all(x["s + 4"] == x["s"] + 4 for x in itertools.islice(assignments(symbols, {}, 0), 8))


def test_pins_hold_and_attempts_end() -> None:
    symbols = [Symbol(f"d{i}", "other") for i in range(5)]
    tried = list(assignments(symbols, {"d2": 77}, 0, hints=[23]))
    assert all(sizes["d2"] == 77 for sizes in tried)
    assert len({tuple(s.items()) for s in tried}) == len(tried) <= MAX_ATTEMPTS
    assert any(sizes["d0"] == 23 for sizes in tried)
