"""A bidirectional two-layer LSTM that reads a digit row by row."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from . import data, training

HIDDEN = 24


class DigitsLstm(nn.Module):
    """(N, 1, T, 8) in [0, 1] -> (N, 10) logits, for any number of rows T; trained on 8."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(8, HIDDEN, num_layers=2, batch_first=True, bidirectional=True)
        self.dropout = nn.Dropout(0.1)
        self.classify = nn.Linear(2 * HIDDEN, 10)

    def forward(self, image: Tensor) -> Tensor:
        """(N, 1, T, 8) -> (N, 10)"""
        rows = image.view(image.size(0), -1, image.size(3))
        _, (hidden, _) = self.lstm(rows)
        return self.classify(self.dropout(torch.cat([hidden[-2], hidden[-1]], dim=1)))


def build(path: Path) -> None:
    """Train, and export to `path`."""
    training.fix_seeds()
    train, _ = data.load()
    net = DigitsLstm()
    training.train(
        net, training.classifier_loss(net, train.image, train.label), steps=1500, learning_rate=1e-2
    )
    training.export_torchscript(
        net,
        train.image[:2],
        path,
        input_name="image",
        output_name="logits",
        dynamic_axes={"image": {0: "batch", 2: "rows"}, "logits": {0: "batch"}},
        opset=17,
    )
