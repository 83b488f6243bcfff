"""Runs whose inputs and outputs stay on the device, so that timing them does not time copies."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from graphopt.runtime import values
from graphopt.runtime.providers import NVIDIA
from graphopt.runtime.values import Feeds

if TYPE_CHECKING:
    from graphopt.runtime.session import Session


class Bound:
    """Inputs of one run, bound once, on the device that the session's first nodes read them from.

    Outputs are allocated on the device in the first run, and written in place from then on.

    Args:
        raw: onnxruntime's session.
        session: the same as a `Session`.
        binding: onnxruntime's binding.
        keep_alive: arrays that the binding borrows.
    """

    def __init__(self, raw: Any, session: Session, binding: Any, keep_alive: Any) -> None:
        self._raw, self._session, self._binding, self._keep_alive = raw, session, binding, keep_alive

    def run(self) -> None:
        """Run once; returns when the device has finished.

        Raises:
            RuntimeFailure: onnxruntime refused.
        """
        try:
            self._raw.run_with_iobinding(self._binding)
            self._binding.synchronize_outputs()
        except Exception as e:  # the bindings raise unrelated classes
            from graphopt.runtime.session import failure

            raise failure(e, while_running=True, session=self._session) from e

    def outputs(self) -> dict[str, values.Value]:
        """What the last run computed, copied to the host."""
        names = [p.name for p in self._session.outputs]
        types = {p.name: p.elem_type or 0 for p in self._session.outputs}
        found = self._binding.get_outputs()
        return {name: values.from_ort(value, types[name]) for name, value in zip(names, found, strict=True)}


def bind(raw: Any, session: Session, feeds: Feeds) -> Bound:
    """See `Session.bind`."""
    from graphopt.runtime.session import RuntimeFailure, failure, onnxruntime

    ort = onnxruntime()
    on_gpu = session.provider in NVIDIA
    device = "cuda" if on_gpu else "cpu"
    number = int(session.settings.options(session.provider).get("device_id", "0")) if on_gpu else 0
    types = {p.name: p.elem_type for p in (*session.inputs, *session.overridable)}
    arrays = [v for v in feeds.values() if isinstance(v, np.ndarray) and v.dtype.kind not in "OUST"]
    if len(arrays) < len(feeds) or any(p.elem_type is None for p in session.outputs):
        raise RuntimeFailure("unsupported", "only tensors of numbers can be bound")
    binding = raw.io_binding()
    kept = []
    try:
        for name, value in feeds.items():
            elem_type = types.get(name)
            assert isinstance(value, np.ndarray)
            if values.is_native(elem_type):
                array = np.ascontiguousarray(value).reshape(value.shape)
                given = ort.OrtValue.ortvalue_from_numpy(array, device, number)
                kept.append(array)
            else:
                given = values.to_ort(value, elem_type)  # the binding brings it to the device
                kept.append(value)
            binding.bind_ortvalue_input(name, given)
            kept.append(given)
        for port in session.outputs:
            where = "cpu" if port.elem_type == values.TensorType.STRING else device
            binding.bind_output(port.name, where, number if where == device else 0)
        binding.synchronize_inputs()
    except Exception as e:  # the bindings raise unrelated classes
        raise failure(e, while_running=True, session=session) from e
    return Bound(raw, session, binding, kept)
