"""A denoiser of pictures of any size, written the way research code is and exported with no clean-up at all.

Its shapes are computed at run time: padding to a multiple of four, views of unknown batch and area, resizing
to the skip connection's size, and cropping back. Unfused BatchNorms, chunk, expand, dropout and identities
complete what an optimizer meets in practice.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from . import data, training


class ConvNorm(nn.Sequential):
    """Conv with bias, BatchNorm, LeakyReLU."""

    def __init__(self, channels_in: int, channels: int, stride: int = 1) -> None:
        super().__init__(
            nn.Conv2d(channels_in, channels, 3, stride=stride, padding=1),
            nn.BatchNorm2d(channels),
            nn.LeakyReLU(0.1),
        )


class GlobalContext(nn.Module):
    """Adds to every pixel one attention-weighted summary of all pixels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.score = nn.Conv2d(channels, 1, 1)
        self.transform = nn.Sequential(nn.Linear(channels, channels), nn.LayerNorm(channels), nn.GELU())

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, H, W)"""
        weights = torch.softmax(self.score(x).view(x.size(0), 1, -1), dim=-1)
        pixels = x.view(x.size(0), x.size(1), -1).permute(0, 2, 1)
        context = self.transform(torch.bmm(weights, pixels).squeeze(1))
        return x + context.unsqueeze(-1).unsqueeze(-1).expand(-1, -1, x.size(2), x.size(3))


class Gate(nn.Module):
    """Half of the channels, gated by the other half."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.mix = nn.Conv2d(channels, 2 * channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, H, W)"""
        value, gate = self.mix(x).chunk(2, dim=1)
        return value * torch.sigmoid(gate)


class Denoiser(nn.Module):
    """(N, 1, H, W) noisy in [0, 1] -> (N, 1, H, W) restored in [0, 1]."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.entry = ConvNorm(1, width)
        self.down1 = ConvNorm(width, 2 * width, stride=2)
        self.down2 = ConvNorm(2 * width, 2 * width, stride=2)
        self.context = GlobalContext(2 * width)
        self.gate = Gate(2 * width)
        self.dropout = nn.Dropout2d(0.02)
        self.up1 = ConvNorm(4 * width, width)
        self.enlarge = nn.ConvTranspose2d(width, width, 2, stride=2, bias=False)
        self.enlarge_norm = nn.BatchNorm2d(width)
        self.identity = nn.Identity()
        self.up2 = ConvNorm(2 * width, width)
        self.leave = nn.Conv2d(width, 1, 3, padding=1)

    def forward(self, noisy: Tensor) -> Tensor:
        """(N, 1, H, W) -> (N, 1, H, W)"""
        height, width = noisy.shape[-2:]
        x = F.pad(noisy, (0, (4 - width % 4) % 4, 0, (4 - height % 4) % 4), mode="replicate")
        fine = self.entry(x * 2.0 - 1.0)
        middle = self.down1(fine)
        coarse = self.dropout(self.gate(self.context(self.down2(middle))))
        coarse = F.interpolate(coarse, size=middle.shape[-2:], mode="bilinear", align_corners=False)
        middle = self.up1(torch.cat([middle, coarse], dim=1))
        fine = torch.cat([fine, F.relu(self.enlarge_norm(self.enlarge(middle)))], dim=1)
        noise = self.identity(self.leave(self.up2(fine)))
        return torch.clamp((x - noise)[:, :, :height, :width], 0.0, 1.0)


def build(path: Path) -> None:
    """Train on noisy digits of three sizes, and export to `path`."""
    training.fix_seeds()
    train, _ = data.load()
    net = Denoiser()
    sizes = [(16, 16), (14, 18), (20, 15)]

    def loss(generator: torch.Generator) -> Tensor:
        size = sizes[int(torch.randint(len(sizes), (), generator=generator))]
        rows = torch.randint(len(train.image), (32,), generator=generator)
        clean = data.enlarge(train.image[rows], size)
        return F.mse_loss(net(data.add_noise(clean, generator)), clean)

    training.train(net, loss, steps=1500, learning_rate=4e-3)
    axes = {0: "batch", 2: "height", 3: "width"}
    training.export_torchscript(
        net,
        torch.zeros(2, 1, 16, 16),
        path,
        input_name="noisy",
        output_name="restored",
        dynamic_axes={"noisy": axes, "restored": axes},
        opset=17,
    )
