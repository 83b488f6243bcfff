"""Pipelines with a name.

The order matters in three places. Constants become initializers and dead code goes first, so that every
later pass sees less. Folding and clean-up repeat until nothing changes, because each makes work for the
other. Fusions come after them, from the largest region to the smallest (LayerNormalization before the affine
merges that would take its pieces), and are followed by one more clean-up.
"""

from __future__ import annotations

START = "lift-constants,dead-nodes,dedup-initializers"

SIMPLIFY = (
    "inline-if,remove-identity,remove-dropout,fold-constants,fold-shapes,bypass-shape,"
    "remove-noop-cast,remove-noop-reshape,remove-noop-transpose,remove-noop-slice,remove-noop-pad,"
    "remove-noop-expand,remove-noop-tile,remove-single-concat,remove-single-split,remove-noop-arithmetic,"
    "remove-add-zero,"
    "cancel-squeeze-unsqueeze,merge-transposes,merge-reshapes,merge-squeezes,merge-unsqueezes,merge-slices,"
    "merge-casts,merge-concats,merge-reduce-unsqueeze,cse"
)

FUSE = (
    "fuse-layer-norm,fuse-rms-norm,fuse-gelu,fuse-hard-swish,fuse-mish,merge-clips,"
    "fold-conv-bn,fold-gemm-bn,fold-bn-conv,fold-conv-affine,fold-gemm-affine,fold-affine-conv,merge-affine,"
    "fold-pad,fuse-matmul-add,fold-transpose-gemm"
)

FINISH = (
    "dedup-initializers,prune-outputs,dead-nodes,prune-initializers,prune-functions,prune-opset-imports"
)

SIMPLIFY_PRESET = f"{START},fixpoint({SIMPLIFY}),{FINISH}"
FUSE_PRESET = f"fixpoint({FUSE})"
DEFAULT = f"{START},fixpoint(fixpoint({SIMPLIFY}),fixpoint({FUSE})),{FINISH}"
