"""Reading intermediate values of a model, a bounded number of bytes at a time.

The model is cut to what the wanted tensors need, and run once for each slice of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from graphopt.calibration.taps import CannotTap, Cut, cut
from graphopt.ir import Tensor
from graphopt.runtime.session import RuntimeFailure, Session, open_session
from graphopt.runtime.values import Array, Value
from graphopt.validation.net import Net
from graphopt.validation.oracles import Runtime

#: Bytes of observed values that are held at a time.
SLICE_BYTES: Final = 64 << 20
# What is assumed of values whose size is not known beforehand, as a share of a slice.
_UNKNOWN: Final = 1 / 16


@dataclass
class Watch:
    """One model under one runtime, observed on one set of inputs.

    Args:
        net: the model.
        runtime: how it is run.
        feeds: the inputs.
        prepack: kernels may copy weights (where the runtime would let them).
        threads: threads within an operator.

    Attributes:
        hidden: tensors that cannot be observed, with the reason.
        runs: how often a session was run.
    """

    net: Net
    runtime: Runtime
    feeds: Mapping[str, Value]
    prepack: bool = True
    threads: int = 1
    hidden: dict[Tensor, str] = field(default_factory=dict)
    runs: int = 0
    _sizes: dict[Tensor, int] = field(default_factory=dict)
    _cuts: Any = None

    def sizes(self, tensors: Sequence[Tensor]) -> dict[Tensor, int]:
        """Bytes that each takes, measured in one run that keeps none of them."""
        unknown = [t for t in tensors if t not in self._sizes]
        main = [t for t in unknown if not self._is_nested(t)]
        if main:
            self._measure(main)
        for t in unknown:
            self._sizes.setdefault(t, int(_UNKNOWN * SLICE_BYTES))
        return {t: self._sizes[t] for t in tensors}

    def _measure(self, tensors: Sequence[Tensor]) -> None:
        source = self.net.source
        try:
            counting = cut(source.proto, source.folder, source, [t.name for t in tensors], sizes=True)
            with self._open(counting) as session:
                found = session.run(self._given(session))
                self.runs += 1
        except (CannotTap, RuntimeFailure, MemoryError):
            return
        by_name = {t.name: t for t in tensors}
        for name, taps in counting.taps.items():
            tensor = by_name[name]
            width = self._width(tensor)
            count = sum(int(np.asarray(found[counting.sizes[tap.output]])) for tap in taps)
            self._sizes[tensor] = max(64, width * count)

    def _width(self, tensor: Tensor) -> int:
        from graphopt.runtime.values import numpy_dtype

        dtype = self.net.facts.dtype(tensor)
        try:
            return numpy_dtype(dtype).itemsize if dtype is not None else 4
        except (KeyError, ValueError):
            return 4

    def _is_nested(self, tensor: Tensor) -> bool:
        place = self.net.places.get(tensor)
        return place is not None and bool(place.body)

    def read(self, tensors: Sequence[Tensor]) -> dict[Tensor, list[Array]]:
        """Values of one run: for each tensor one, or one per iteration of a loop, or none if not computed.

        What cannot be observed is left out, and is in `hidden` since.
        """
        found: dict[Tensor, list[Array]] = {}
        wanted = []
        for tensor in dict.fromkeys(tensors):
            fed = self.feeds.get(tensor.name) if tensor.name in self.net.inputs else None
            if isinstance(fed, np.ndarray):
                found[tensor] = [fed]
            elif tensor not in self.hidden:
                wanted.append(tensor)
        stack = [wanted] if wanted else []
        while stack:
            batch = stack.pop()
            got = self._attempt(batch)
            if isinstance(got, str):
                if len(batch) == 1:
                    self.hidden[batch[0]] = got
                else:
                    middle = len(batch) // 2
                    stack += [batch[middle:], batch[:middle]]
            else:
                found |= got
        return found

    def _attempt(self, tensors: Sequence[Tensor]) -> dict[Tensor, list[Array]] | str:
        """The values, or why they cannot be had together."""
        nested = [t for t in tensors if self._is_nested(t)]
        why = ""
        for flat in (False, True) if nested else (False,):
            source = self.net.source
            dtypes = {t.name: d for t in nested if (d := self.net.facts.dtype(t)) is not None}
            try:
                model = cut(
                    source.proto, source.folder, source, [t.name for t in tensors], dtypes=dtypes, flat=flat
                )
                with self._open(model) as session:
                    results = session.run(self._given(session))
                    self.runs += 1
            except CannotTap as e:
                why = str(e)
                continue
            except RuntimeFailure as e:
                why = e.message
                continue
            except MemoryError:
                return "there is not enough memory for it"
            found: dict[Tensor, list[Array]] = {}
            for tensor in tensors:
                values = [results[tap.output] for tap in model.taps[tensor.name]]
                if not all(isinstance(v, np.ndarray) for v in values):
                    self.hidden[tensor] = "it is no tensor"
                    continue
                pairs = zip(model.taps[tensor.name], values, strict=True)
                found[tensor] = [a for tap, v in pairs for a in tap.values(np.asarray(v))]
            return found
        return why

    def _open(self, model: Cut) -> Session:
        return open_session(
            model,
            optimize=self.runtime.optimize,
            provider=self.runtime.provider,
            prepack=self.prepack and self.runtime.prepack,
            threads=self.threads,
            arena=False,
            settings=self.runtime.settings,
        )

    def _given(self, session: Session) -> dict[str, Value]:
        ports = {p.name for p in (*session.inputs, *session.overridable)}
        return {n: v for n, v in self.feeds.items() if n in ports}


def slices(items: Sequence[Any], sizes: Mapping[Any, int], most: int = SLICE_BYTES) -> Iterator[list[Any]]:
    """`items` in order, in parts that together take no more than `most` bytes (beyond one item)."""
    part: list[Any] = []
    used = 0
    for item in items:
        size = sizes.get(item, 0)
        if part and used + size > most:
            yield part
            part, used = [], 0
        part.append(item)
        used += size
    if part:
        yield part
