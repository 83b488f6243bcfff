"""The data behind every model: scikit-learn's bundled copy of the UCI handwritten digits.

1,797 grey-scale images of 8x8 pixels with values 0..16, split once into 1,347 for training and 450
held out (stratified by class). The held-out part is what `digits.npz` carries.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor
from torch.nn import functional as F

HELD_OUT = 0.25
SPLIT_SEED = 0
NOISE = 0.2
"""Standard deviation of the noise that the denoiser removes, in units of the full grey scale."""


@dataclass(frozen=True)
class Digits:
    """One side of the split.

    Attributes:
        image: (N, 1, 8, 8) float32 in [0, 1].
        label: (N,) int64 in 0..9.
    """

    image: Tensor
    label: Tensor


def load() -> tuple[Digits, Digits]:
    """The training part and the held-out part, always the same split."""
    digits = load_digits()
    image = (digits.images[:, None] / 16).astype(np.float32)
    label = digits.target.astype(np.int64)
    rows = train_test_split(
        np.arange(len(label)), test_size=HELD_OUT, random_state=SPLIT_SEED, stratify=label
    )
    train, held_out = (Digits(torch.from_numpy(image[r]), torch.from_numpy(label[r])) for r in rows)
    return train, held_out


def enlarge(image: Tensor, size: tuple[int, int] = (16, 16)) -> Tensor:
    """(N, 1, 8, 8) digits resampled to `size`: the clean pictures of the denoising task."""
    return F.interpolate(image, size=size, mode="bilinear", align_corners=False)


def add_noise(clean: Tensor, generator: torch.Generator) -> Tensor:
    """`clean` with Gaussian noise, clipped to [0, 1] and rounded to 8 bits as a camera would deliver it."""
    noise = NOISE * torch.randn(clean.shape, generator=generator)
    return ((clean + noise).clamp(0, 1) * 255).round() / 255


def save_held_out(path: Path) -> None:
    """Write the held-out arrays under the names of the models' inputs, with the answers beside them.

    `image` (450, 1, 8, 8), `label` (450,), `noisy` and `clean` (450, 1, 16, 16).
    """
    _, held_out = load()
    clean = (enlarge(held_out.image) * 255).round() / 255
    noisy = add_noise(clean, torch.Generator().manual_seed(99))
    arrays = {"image": held_out.image, "label": held_out.label, "noisy": noisy, "clean": clean}
    np.savez_compressed(path, allow_pickle=False, **{name: array.numpy() for name, array in arrays.items()})
