"""Pipelines with a name.

The order matters in three places. Constants become initializers and dead code goes first, so that every
later pass sees less. Folding and clean-up repeat until nothing changes, because each makes work for the
other. Fusions follow from the largest region to the smallest (LayerNormalization before the affine merges
that would take its pieces), and each makes new work for clean-up, so the two repeat together.
"""

from __future__ import annotations

_START = "lift-constants,dead-nodes,dedup-initializers"

_SIMPLIFY = (
    "inline-if,lift-constants,scalar-range,remove-identity,remove-dropout,remove-zero-state,fold-constants,"
    "fold-half-constants,fold-shapes,fold-dim-operands,merge-equal-shapes,rebuild-shapes,bypass-shape,"
    "remove-noop-cast,remove-noop-reshape,remove-noop-transpose,remove-noop-slice,remove-noop-pad,"
    "remove-noop-expand,remove-noop-tile,remove-noop-resize,remove-single-concat,remove-single-split,"
    "remove-noop-arithmetic,remove-add-zero,cancel-squeeze-unsqueeze,merge-transposes,merge-reshapes,"
    "merge-squeezes,merge-unsqueezes,merge-slices,merge-casts,merge-concats,merge-reduce-unsqueeze,"
    "dedup-initializers,cse"
)

_FUSE = (
    "fuse-layer-norm,fuse-rms-norm,fuse-gelu,fuse-swish,fuse-mish,fuse-hard-swish,merge-clips,"
    "fold-conv-bn,fold-gemm-bn,fold-bn-conv,fold-bn-gemm,fold-pad,"
    "fold-conv-affine,fold-gemm-affine,fold-affine-conv,fold-affine-gemm,merge-affine,merge-matmuls,"
    "fuse-matmul-add,fold-transpose-gemm,normalize-gemm"
)

_FINISH = "dedup-initializers,prune-outputs,dead-nodes,prune-initializers,prune-functions,prune-opset-imports"

CLEANUP = f"{_START},fixpoint({_SIMPLIFY}),{_FINISH}"
FUSION = f"fixpoint({_FUSE})"
PORTABLE = f"{_START},fixpoint(fixpoint({_SIMPLIFY}),fixpoint({_FUSE})),{_FINISH}"
ORT = PORTABLE

# The model is cleaned up first: what is left has the names, and the fusions, of the model that will run.
# Rounding comes before the search, so that no node is put back in float whose only fault was its rounding.
# It also takes the mean errors into the biases, so that correct-bias would have nothing left to do.
INT8 = (
    "default,smooth-activations,insert-qdq,quantize-embeddings,refine-weights,restore-float,"
    "dedup-initializers"
)
INT8_DYNAMIC = "default,orient-gemm,quantize-dynamic,quantize-embeddings,dedup-initializers"
# What is expanded at load is so last: until then the weights are where the passes on rounding look for them.
_SMALL = "refine-weights,quantize-embeddings,expand-weights,dedup-initializers"
INT8_WEIGHTS = f"default,orient-gemm,quantize-weights{{bits=8}},{_SMALL}"
INT4_WEIGHTS = f"default,orient-gemm,quantize-weights{{bits=4 block_size=32}},{_SMALL}"
# onnxruntime's CUDA provider has no integer kernel for QDQ other than MatMulNBits.
INT8_CUDA = INT8_WEIGHTS
FP16 = "default,convert-fp16"
# onnxruntime's CPU provider has no bfloat16 arithmetic: there only the weights are stored that way.
BF16 = "default,convert-bf16{storage=weights}"
BF16_COMPUTE = "default,convert-bf16"
