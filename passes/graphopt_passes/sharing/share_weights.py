"""share-weights: weights that take few values."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import ClassVar, Final, Literal

import numpy as np

from graphopt.passkit import Array, Node, Numerics, Pass, PassContext, RefusedRewrite, Rewriter, UserError
from graphopt.quantkit import Watch
from graphopt_passes.linear.layer import LinearLayer, read_linear
from graphopt_passes.linear.power import ColumnPower
from graphopt_passes.quantization._pick import check_globs, picked
from graphopt_passes.quantization._weights import (
    HALF_SCALE_OPSET,
    RECURRENT,
    Weight,
    check_weight,
    dequantized,
    finite_values,
    float_bytes,
    in_order,
    owns,
    redirect,
    rescaled,
    stored_bytes,
    weight_slots,
)
from graphopt_passes.quantization.expand_weights import becomes_nbits
from graphopt_passes.sharing._forms import (
    SHIFT_OPSET,
    gathered,
    gathered_bytes,
    stored_arrays,
    uniform_grid,
)
from graphopt_passes.sharing._palettes import (
    Slices,
    decibels,
    deflated,
    has_zeros,
    share,
    spread_importance,
)

_KNOWN: Final = ("MatMul", "Gemm", "Conv", "ConvTranspose", *RECURRENT)
_GRIDS: Final = ("dequantize", "block")


@dataclass(frozen=True)
class ShareWeights(Pass):
    """W ~ P[I]: weights become the 2**bits values of least squared error that stand for them best.

    P minimizes sum_i h_i (w_i - P[I_i])^2 exactly, by dynamic programming on the sorted weights (Wang and Song,
    "Ckmeans.1d.dp", The R Journal 3/2, 2011; above 4096 distinct values to within a bound, see sharing/kmeans.py).
    Without data h = 1 (Han et al., "Deep Compression", arXiv:1510.00149); with data h is the mean square of the
    input that the weight multiplies, the diagonal of X^T X (Kim et al., "SqueezeLLM", arXiv:2306.07629).
    Zeros of a pruned weight stay zeros: 0 is an entry of its palettes.

    form, and where it saves what:
      gather: Gather(P, I). The file is smaller. Runtimes compute the weights once, while they load the model,
        and then hold and read them as floats: neither memory nor time is saved. Standard operators of opset 11.
      dequantize: P is evenly spaced around 0, so that DequantizeLinear makes the weights, of int8 or, from opset
        21 and up to 4 bits on, int4. MatMul and Gemm then run as MatMulNBits on integers in ONNX Runtime, and
        memory is saved as well; a Conv dequantizes on every call, unless `expand-weights` follows.
      block: like dequantize, with a step per output channel and `group_size` inputs. Opset 21.
      dense: floats as before, of few values. The file is not smaller until it is compressed. Passes that come
        later see ordinary weights; a second `share-weights` with another form stores them without loss.

    Refuses when: the weight is not a constant float32 or float16 tensor, or not finite, kept, a graph output,
    or smaller than `min_elements`; something other than the operators of `ops`, or a node that is not
    selected, reads it too; what is stored would not be smaller; the opset lacks the form.
    """

    name: ClassVar[str] = "share-weights"
    numerics: ClassVar[Numerics] = Numerics.LOSSY

    bits: int = field(default=6, metadata={"help": "a palette has 2**bits entries, 1 to 8 bits"})
    granularity: Literal["tensor", "channel", "column"] = field(
        default="tensor",
        metadata={
            "help": "what has a palette of its own: the weight, or `group_size` of its output channels, or "
            "`group_size` of its inputs"
        },
    )
    group_size: int = field(
        default=0, metadata={"help": "channels or inputs per palette; 0: 1 channel, 64 inputs"}
    )
    form: Literal["gather", "dequantize", "block", "dense"] = field(
        default="gather", metadata={"help": "how the weights are stored"}
    )
    packed: bool = field(
        default=True,
        metadata={
            "help": "gather: indices without a gap between their bits; false: a byte each, which makes a "
            "larger file that compresses better"
        },
    )
    importance: Literal["auto", "inputs", "none"] = field(
        default="auto",
        metadata={"help": "what an error counts: the square of the input, or 1; auto: inputs if there is data"},
    )
    ops: tuple[str, ...] = field(
        default=("MatMul", "Gemm", "Conv"),
        metadata={"help": "operators whose weights are shared, of " + ", ".join(_KNOWN)},
    )
    layers: tuple[str, ...] = field(default=(), metadata={"help": "globs; only nodes that match one"})
    exclude: tuple[str, ...] = field(default=(), metadata={"help": "globs; not nodes that match one"})
    min_elements: int = field(default=1024, metadata={"help": "leave weights with fewer elements alone"})

    def __post_init__(self) -> None:
        """Check options against each other."""
        low = 2 if self.form in _GRIDS else 1
        if not low <= self.bits <= 8:
            raise ValueError(f"bits of form={self.form} are from {low} to 8, not {self.bits}")
        if self.group_size < 0:
            raise ValueError("group_size must not be negative")
        if self.form == "dequantize" and (self.granularity == "column" or self.group_size > 1):
            raise ValueError("form=dequantize has a step per tensor or per channel; form=block has groups")
        if self.form == "block" and self.granularity == "tensor" and "granularity" in self.__dict__:
            # The default: a block is one of columns anyway.
            object.__setattr__(self, "granularity", "column")
        if self.form == "block" and self.granularity != "column":
            raise ValueError("form=block has a step per channel and block of inputs: granularity=column")
        if self.min_elements < 1:
            raise ValueError("min_elements is at least 1")
        unknown = [op for op in self.ops if op not in _KNOWN]
        if unknown:
            raise ValueError(f"ops are among {', '.join(_KNOWN)}, not {', '.join(unknown)}")
