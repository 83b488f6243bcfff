"""Training and exporting, shared by the builders. Everything runs on one thread from fixed seeds."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from pathlib import Path

import onnx
import torch
from torch import Tensor, nn

Batch = Callable[[torch.Generator], Tensor]
"""Draws one mini-batch and returns its loss."""


def fix_seeds(seed: int = 0) -> None:
    """Make the next network's initial weights, dropout and batches reproducible."""
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(seed)


def train(net: nn.Module, loss_of_batch: Batch, *, steps: int, learning_rate: float = 3e-3) -> None:
    """AdamW with a one-cycle schedule; leaves `net` in evaluation mode."""
    generator = torch.Generator().manual_seed(1)
    optimizer = torch.optim.AdamW(net.parameters(), lr=learning_rate, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=learning_rate, total_steps=steps)
    net.train()
    for _ in range(steps):
        optimizer.zero_grad()
        loss_of_batch(generator).backward()
        optimizer.step()
        schedule.step()
    net.eval()


def jitter(image: Tensor, generator: torch.Generator) -> Tensor:
    """(N, 1, H, W) images, each batch shifted by up to one pixel, with light noise: cheap augmentation."""
    dy, dx = torch.randint(-1, 2, (2,), generator=generator).tolist()
    shifted = torch.roll(nn.functional.pad(image, (1, 1, 1, 1)), (dy, dx), dims=(2, 3))[..., 1:-1, 1:-1]
    return shifted + 0.05 * torch.randn(image.shape, generator=generator)


def classifier_loss(net: nn.Module, image: Tensor, label: Tensor, *, batch: int = 64) -> Batch:
    """Cross entropy of `net` on augmented mini-batches of (image, label)."""

    def loss(generator: torch.Generator) -> Tensor:
        rows = torch.randint(len(label), (batch,), generator=generator)
        scores = net(jitter(image[rows], generator))
        return nn.functional.cross_entropy(scores, label[rows], label_smoothing=0.05)

    return loss


def export_torchscript(
    net: nn.Module,
    example: Tensor,
    path: Path,
    *,
    input_name: str,
    output_name: str,
    dynamic_axes: Mapping[str, Mapping[int, str]],
    opset: int,
) -> None:
    """Export with the TorchScript exporter, as raw as it gets.

    No constant folding, and `TrainingMode.PRESERVE` on a network in evaluation mode, which keeps the
    exporter from folding BatchNormalization into Conv.
    """
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            net,
            (example,),
            str(path),
            input_names=[input_name],
            output_names=[output_name],
            dynamic_axes={name: dict(axes) for name, axes in dynamic_axes.items()},
            opset_version=opset,
            do_constant_folding=False,
            training=torch.onnx.TrainingMode.PRESERVE,
            dynamo=False,
        )
    clean(path)


def export_dynamo(
    net: nn.Module,
    example: Tensor,
    path: Path,
    *,
    input_name: str,
    output_name: str,
    dynamic_shape: Mapping[int, str],
    opset: int,
) -> None:
    """Export with the `torch.export`-based exporter, its own optimizer turned off."""
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            net,
            (example,),
            input_names=[input_name],
            output_names=[output_name],
            dynamic_shapes=({axis: torch.export.Dim(name, min=1) for axis, name in dynamic_shape.items()},),
            opset_version=opset,
            dynamo=True,
            optimize=False,
            verbose=False,
        )
    assert program is not None
    program.save(str(path), external_data=False)
    clean(path)


def clean(path: Path) -> None:
    """Drop doc strings and stack traces, which quote the exporting machine's file paths; check the model."""
    model = onnx.load(path)
    model.graph.ClearField("doc_string")
    for node in model.graph.node:
        node.ClearField("doc_string")
        kept = [p for p in node.metadata_props if not p.key.endswith("stack_trace")]
        node.ClearField("metadata_props")
        node.metadata_props.extend(kept)
    onnx.checker.check_model(model, full_check=True)
    path.write_bytes(model.SerializeToString(deterministic=True))
