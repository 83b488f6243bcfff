"""Images as inputs, the way a data TOML file describes it. Pillow decodes and resizes them."""

from __future__ import annotations

import difflib
import glob
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from graphopt.calibration.data.description import Description, read_description
from graphopt.calibration.data.source import Record, Source
from graphopt.errors import UserError
from graphopt.runtime.values import Array

if TYPE_CHECKING:
    from PIL.Image import Image

#: What counts as an image in a folder.
SUFFIXES = frozenset(
    (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm")
)

# Of these, Pillow's conversion to 8 bits would clip what is above 255.
_WIDE = {"I", "F", "I;16", "I;16B", "I;16L", "I;16N"}


class Images(Source):
    """The images of a data TOML file, sorted by path, one sample each.

    Args:
        path: the TOML file.
        names: the model's inputs.

    Raises:
        UserError: the file, or Pillow, is not in order; there are no images.
    """

    def __init__(self, path: Path, names: Sequence[str]) -> None:
        pillow()
        self.name, self._path = str(path), path
        self.description = read_description(path)
        self._input = self._find_input(names)
        self.files = self._find_files()
        folders = sorted({f.parent for f in self.files})
        self._labels = {folder: i for i, folder in enumerate(folders)}

    def _find_input(self, names: Sequence[str]) -> str:
        wanted = self.description.input
        if wanted in names or (not wanted and len(names) == 1):
            return wanted or names[0]
        if not wanted:
            raise UserError(
                f"key 'input' is missing: the model has {len(names)} inputs",
                where=self.name,
                fix=f"one of: {', '.join(names)}",
            )
        close = difflib.get_close_matches(wanted, names, n=1)
        raise UserError(
            f"key 'input': no input is called {wanted!r}",
            where=self.name,
            fix=f"did you mean {close[0]!r}?" if close else f"the inputs are: {', '.join(names)}",
        )

    def _find_files(self) -> list[Path]:
        found: set[Path] = set()
        for source in self.description.source:
            place = self._path.parent / source
            if place.is_dir():
                files = {f for f in place.rglob("*") if f.suffix.lower() in SUFFIXES}
            elif place.is_file():
                files = {place}
            else:
                names = glob.iglob(str(place), recursive=True)
                files = {f for f in map(Path, names) if f.is_file()}
            if not files:
                raise UserError(f"key 'source': no images at {source!r}", where=self.name)
            found |= files
        return sorted(found)

    @property
    def count(self) -> int:
        """How many images there are."""
        return len(self.files)

    def records(self) -> Iterator[Record]:
        """A record per image."""
        for file in self.files:
            values: dict[str, Any] = {self._input: load_image(file, self.description)[None]}
            if self.description.labels:
                values[self.description.labels] = np.array([self._labels[file.parent]])
            yield Record(str(file), values)


def pillow() -> Any:
    """The `PIL.Image` module.

    Raises:
        UserError: Pillow is not installed.
    """
    try:
        import PIL.Image
        import PIL.ImageOps
    except ImportError as e:
        raise UserError("images need Pillow", fix="install it with: pip install 'graphopt[images]'") from e
    return PIL.Image


def load_image(file: Path, description: Description) -> Array:
    """One image as the model takes it, without a batch axis: (C, H, W) or (H, W, C).

    Raises:
        UserError: it cannot be decoded, or is smaller than the crop.
    """
    module = pillow()
    from PIL import ImageOps

    try:
        with module.open(file) as image:
            if image.mode in _WIDE:
                raise UserError(
                    f"pixels of more than 8 bits (mode {image.mode}) are not supported",
                    where=str(file),
                    fix="convert the images, or hand in arrays",
                )
            upright = ImageOps.exif_transpose(image)
            return preprocess(upright, description, str(file))
    except (OSError, SyntaxError, ValueError, module.DecompressionBombError) as e:
        raise UserError(f"not readable as an image: {e}", where=str(file)) from e


def preprocess(image: Image, d: Description, where: str) -> Array:
    """`(crop(resize(image)) * scale - mean) / std`, in float32, as `d` says.

    Raises:
        UserError: the image is smaller than the crop.
    """
    image = _cropped(_resized(image.convert("L" if d.channels == "gray" else "RGB"), d), d, where)
    pixels = np.asarray(image)
    pixels = pixels[:, :, None] if pixels.ndim == 2 else pixels
    if d.channels == "bgr":
        pixels = pixels[:, :, ::-1]
    scale, mean, std = (np.array(v, np.float32) for v in (d.scale, d.mean, d.std))
    dtype = np.dtype(d.dtype)
    if dtype.kind == "f" or (scale != 1).any() or mean.any() or (std != 1).any():
        values: Array = (pixels.astype(np.float32) * scale - mean) / std
    else:
        values = pixels
    if dtype.kind in "iu":
        info = np.iinfo(dtype)
        values = np.clip(np.rint(values), info.min, info.max)
    values = values.astype(dtype)
    return np.ascontiguousarray(values.transpose(2, 0, 1) if d.layout == "NCHW" else values)


def _resized(image: Image, d: Description) -> Image:
    if d.size is None:
        return image
    how = getattr(pillow().Resampling, d.interpolation.upper())
    height, width = d.size
    if d.resize == "shorter":
        # torchvision's Resize(size): the longer side is cut off to whole pixels.
        short, long = min(image.size), max(image.size)
        longer = int(height * long / short)
        width, height = (height, longer) if image.width <= image.height else (longer, height)
    if d.resize != "letterbox":
        return image.resize((width, height), how)
    ratio = min(height / image.height, width / image.width)
    inner = image.resize((max(1, round(image.width * ratio)), max(1, round(image.height * ratio))), how)
    fill = d.pad if image.mode == "L" else (d.pad,) * 3
    outer: Image = pillow().new(image.mode, (width, height), fill)
    outer.paste(inner, ((width - inner.width) // 2, (height - inner.height) // 2))
    return outer


def _cropped(image: Image, d: Description, where: str) -> Image:
    if d.crop is None:
        return image
    height, width = d.crop
    if image.height < height or image.width < width:
        raise UserError(
            f"an image of {image.width} x {image.height} is smaller than the crop of {width} x {height}",
            where=where,
            fix='resize first, with resize = "shorter"',
        )
    left, top = round((image.width - width) / 2), round((image.height - height) / 2)
    return image.crop((left, top, left + width, top + height))
