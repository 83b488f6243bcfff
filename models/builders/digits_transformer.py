"""A transformer that reads a digit row by row, exported twice.

`digits_transformer.onnx` is at opset 16, where LayerNormalization and Gelu do not exist yet, so both arrive
decomposed, as does attention. `digits_transformer_dynamo.onnx` is the same network from the
`torch.export`-based exporter at opset 20 with its optimizer off.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from . import data, training

WIDTH, HEADS, LAYERS = 48, 4, 2


def positions(rows: Tensor) -> Tensor:
    """Sinusoidal positions (T, WIDTH) for (N, T, WIDTH) `rows`, computed at run time: any T is valid."""
    place = torch.arange(rows.shape[1], dtype=torch.float32, device=rows.device).unsqueeze(1)
    rate = torch.exp(torch.arange(0, WIDTH, 2, dtype=torch.float32) * (-math.log(100.0) / WIDTH))
    return torch.cat([torch.sin(place * rate), torch.cos(place * rate)], dim=1)


class Attention(nn.Module):
    """Multi-head self-attention, written out in the way of most published models."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.output = nn.Linear(WIDTH, WIDTH)

    def split(self, x: Tensor) -> Tensor:
        """(N, T, WIDTH) -> (N, HEADS, T, WIDTH / HEADS)"""
        return x.view(x.size(0), x.size(1), HEADS, WIDTH // HEADS).permute(0, 2, 1, 3)

    def forward(self, x: Tensor) -> Tensor:
        """(N, T, WIDTH) -> (N, T, WIDTH)"""
        query, key, value = self.split(self.query(x)), self.split(self.key(x)), self.split(self.value(x))
        scores = torch.matmul(query, key.transpose(-1, -2)) / math.sqrt(WIDTH // HEADS)
        context = torch.matmul(torch.softmax(scores, dim=-1), value)
        context = context.permute(0, 2, 1, 3).contiguous()
        return self.output(context.view(context.size(0), context.size(1), WIDTH))


class Block(nn.Module):
    """Pre-norm transformer layer."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.attention = Attention()
        self.up, self.down = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)
        self.dropout = nn.Dropout(0.05)

    def forward(self, x: Tensor) -> Tensor:
        """(N, T, WIDTH) -> (N, T, WIDTH)"""
        x = x + self.dropout(self.attention(self.norm1(x)))
        return x + self.dropout(self.down(F.gelu(self.up(self.norm2(x)))))


class DigitsTransformer(nn.Module):
    """(N, 1, T, 8) in [0, 1] -> (N, 10) logits, for any number of rows T; trained on 8."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(8, WIDTH)
        self.summary = nn.Parameter(0.02 * torch.randn(1, 1, WIDTH))
        self.blocks = nn.ModuleList(Block() for _ in range(LAYERS))
        self.norm = nn.LayerNorm(WIDTH)
        self.classify = nn.Linear(WIDTH, 10)

    def forward(self, image: Tensor) -> Tensor:
        """(N, 1, T, 8) -> (N, 10)"""
        rows = self.embed(image.squeeze(1))
        rows = rows + positions(rows)
        x = torch.cat([self.summary.expand(rows.size(0), -1, -1), rows], dim=1)
        for block in self.blocks:
            x = block(x)
        return self.classify(self.norm(x)[:, 0])


def trained() -> DigitsTransformer:
    """The trained network, in evaluation mode."""
    training.fix_seeds()
    train, _ = data.load()
    net = DigitsTransformer()
    training.train(net, training.classifier_loss(net, train.image, train.label), steps=2000)
    return net


def build(path: Path) -> None:
    """Train, and export to `path` with the TorchScript exporter."""
    training.export_torchscript(
        trained(),
        torch.zeros(2, 1, 8, 8),
        path,
        input_name="image",
        output_name="logits",
        dynamic_axes={"image": {0: "batch", 2: "rows"}, "logits": {0: "batch"}},
        opset=16,
    )


def build_dynamo(path: Path) -> None:
    """Train, and export to `path` with the `torch.export`-based exporter."""
    training.export_dynamo(
        trained(),
        torch.zeros(2, 1, 8, 8),
        path,
        input_name="image",
        output_name="logits",
        dynamic_shape={0: "batch", 2: "rows"},
        opset=20,
    )
