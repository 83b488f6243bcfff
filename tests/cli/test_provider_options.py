"""Options for execution providers reach every session that a verb opens."""

from typing import Any

import pytest

from graphopt.runtime import providers, session

from .conftest import MODELS, Cli

CNN = MODELS / "digits_cnn.onnx"


@pytest.mark.parametrize(
    ("words", "settings"),
    [
        ((), providers.EXACT_MATH),
        (("--tf32", "on"), providers.ProviderSettings(tf32=True)),
        (("--gpu-memory-limit", "2GB"), providers.ProviderSettings(tf32=False, memory_limit=2 * 10**9)),
        (
            ("--provider-option", "device_id=1"),
            providers.ProviderSettings(tf32=False, other={"device_id": "1"}),
        ),
        (("--provider-option", "use_tf32=1"), providers.ProviderSettings(other={"use_tf32": "1"})),
    ],
)
@pytest.mark.parametrize("verb", ["validate", "run"])
def test_they_hold_for_all_of_a_command(
    cli: Cli,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Any,
    verb: str,
    words: tuple[str, ...],
    settings: providers.ProviderSettings,
) -> None:
    seen = []
    create = session._create

    def spy(ort: Any, proto: Any, options: Any, chosen: Any, given: Any) -> Any:
        seen.append(given)
        return create(ort, proto, options, chosen, given)

    monkeypatch.setattr(session, "_create", spy)
    more = ("-o", tmp_path / "out.onnx") if verb == "run" else ()
    code, _, err = cli(verb, CNN, *more, *words, "-q")
    assert code == 0, err
    assert seen
    assert all(given == settings for given in seen)
    assert providers.current() == providers.EXACT_MATH


def test_wrong_ones_are_refused_before_anything_is_done(cli: Cli) -> None:
    code, out, err = cli("validate", CNN, "--tf32", "sometimes")
    assert (code, out) == (2, "")
    assert "--tf32 cannot be 'sometimes'" in err
