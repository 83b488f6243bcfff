"""A residual, partly depthwise Conv-BatchNorm-ReLU classifier of 8x8 digits: BatchNorms wait to be folded."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from . import data, training


class ConvNorm(nn.Sequential):
    """Conv without bias, BatchNorm, activation."""

    def __init__(
        self, channels_in: int, channels: int, kernel: int, activation: nn.Module, **conv: int
    ) -> None:
        super().__init__(
            nn.Conv2d(channels_in, channels, kernel, padding=kernel // 2, bias=False, **conv),
            nn.BatchNorm2d(channels),
            activation,
        )


class Residual(nn.Module):
    """Two 3x3 ConvNorms beside a shortcut, which is a 1x1 ConvNorm where the channels change."""

    def __init__(self, channels_in: int, channels: int, stride: int = 1) -> None:
        super().__init__()
        self.first = ConvNorm(channels_in, channels, 3, nn.ReLU(), stride=stride)
        self.second = ConvNorm(channels, channels, 3, nn.Identity())
        same = channels_in == channels and stride == 1
        self.shortcut = (
            nn.Identity() if same else ConvNorm(channels_in, channels, 1, nn.Identity(), stride=stride)
        )
        self.activation = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels_in, H, W) -> (N, channels, H / stride, W / stride)"""
        return self.activation(self.second(self.first(x)) + self.shortcut(x))


class DigitsCnn(nn.Module):
    """(N, 1, 8, 8) in [0, 1] -> (N, 10) logits."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = ConvNorm(1, 16, 3, nn.ReLU())
        self.residual = nn.Sequential(Residual(16, 16), Residual(16, 32, stride=2))
        self.separable = nn.Sequential(
            ConvNorm(32, 32, 3, nn.ReLU6(), groups=32),
            ConvNorm(32, 64, 1, nn.ReLU6()),
        )
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(0.1)
        self.hidden = nn.Linear(64, 32)
        self.norm = nn.BatchNorm1d(32)
        self.classify = nn.Linear(32, 10)

    def forward(self, image: Tensor) -> Tensor:
        """(N, 1, 8, 8) -> (N, 10)"""
        x = self.separable(self.residual(self.stem((image - 0.305) / 0.376)))
        x = self.dropout(torch.flatten(self.pool(x), 1))
        return self.classify(torch.relu(self.norm(self.hidden(x))))


def build(path: Path) -> None:
    """Train, and export to `path`."""
    training.fix_seeds()
    train, _ = data.load()
    net = DigitsCnn()
    training.train(
        net, training.classifier_loss(net, train.image, train.label), steps=600, learning_rate=1e-2
    )
    training.export_torchscript(
        net,
        train.image[:2],
        path,
        input_name="image",
        output_name="logits",
        dynamic_axes={"image": {0: "batch"}, "logits": {0: "batch"}},
        opset=17,
    )
