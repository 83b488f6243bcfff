"""Adapters for Resize and its predecessor Upsample, which changed with nearly every opset."""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from graphopt.passkit import Array, Node, RefusedRewrite, Tensor
from graphopt_passes.conversion._opset_adapters import Adapter, Step


def _upsample_9(step: Step) -> Node | None:
    """Scales are an input from 9 on; from 10 on it is a Resize."""
    scales = np.asarray(step.known("scales"), np.float32)
    held = step.graph.new_constant(step.hint("scales"), scales)
    if step.new >= 10:
        return _resize(step, held, scales, upsampling=True)
    step.drop("scales")
    step.inputs([step.x, held])
    return step.node


def _upsample_10(step: Step) -> Node | None:
    scales = step.node.inputs[1]
    return _resize(step, scales, step.graph.array(scales), upsampling=True)


def _resize_11(step: Step) -> Node | None:
    scales = step.node.inputs[1]
    return _resize(step, scales, step.graph.array(scales), upsampling=False)


def _resize(step: Step, scales: Tensor, known: Array | None, *, upsampling: bool) -> Node | None:
    """A Resize of the newest version in the place of an Upsample or of a Resize of opset 10.

    Until then, coordinates were asymmetric; the nearest one was the one below when sampling up, and the one
    above when sampling down.
    """
    mode = step.known("mode")
    if mode not in ("nearest", "linear"):
        raise RefusedRewrite(f"mode {mode!r} is not one of opset {step.old}")
    attrs: dict[str, Any] = {"mode": mode}
    if step.new < 11:
        return step.graph.replace(step.node.outputs[0], "Resize", [step.x, scales], attrs=attrs)
    attrs["coordinate_transformation_mode"] = "asymmetric"
    if mode == "nearest":
        if known is None and not upsampling:
            raise RefusedRewrite(f"whether {scales.name} samples up or down decides what is nearest")
        up = known is None or bool(np.all(known >= 1))
        if known is not None and not up and not bool(np.all(known <= 1)):
            raise RefusedRewrite("it samples some axes up and others down, with a nearest of their own")
        attrs["nearest_mode"] = "floor" if up else "ceil"
    roi = None if step.new >= 13 else step.graph.new_constant(step.hint("roi"), np.zeros(0, np.float32))
    step.graph.replace(step.node.outputs[0], "Resize", [step.x, roi, scales], attrs=attrs)
    return None


def _resize_13(step: Step) -> Node:
    """Unused inputs are left out rather than empty; a coordinate mode of TensorFlow's is gone."""
    graph, node = step.graph, step.node
    tensors: list[Tensor | None] = []
    for slot in range(len(node.inputs)):
        tensor = graph.input(node, slot)
        empty = (
            slot > 0
            and tensor is not None
            and graph.is_constant(tensor)
            and graph.static_shape(tensor) == (0,)
        )
        tensors.append(None if empty else tensor)
    step.inputs(tensors)
    if step.known("coordinate_transformation_mode") == "tf_half_pixel_for_nn":
        if step.known("mode") != "nearest" or step.known("nearest_mode") != "floor":
            raise RefusedRewrite("tf_half_pixel_for_nn has no counterpart since opset 13")
        # floor((x + 0.5) / s) is (x + 0.5) / s - 0.5 rounded, halves up.
        graph.set_attr(node, "coordinate_transformation_mode", "half_pixel")
        graph.set_attr(node, "nearest_mode", "round_prefer_ceil")
    return node


#: (operator, version that changed it) -> adapter.
ADAPTERS: Final[dict[tuple[str, int], Adapter]] = {
    ("Resize", 11): _resize_11,
    ("Resize", 13): _resize_13,
    ("Upsample", 9): _upsample_9,
    ("Upsample", 10): _upsample_10,
}
