"""Images as inputs: against references written out in numpy, pixel by pixel."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from graphopt.calibration.data import Port, batches, open_dataset
from graphopt.calibration.data.description import Description
from graphopt.calibration.data.images import load_image
from graphopt.errors import UserError

Image = pytest.importorskip("PIL.Image")

RGB = np.random.default_rng(0).integers(0, 256, (6, 10, 3), np.uint8)
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def image(path: Path, pixels: np.ndarray = RGB, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)
    return path


def describe(**fields: Any) -> Description:
    return Description(("x",), **({"resize": "none"} | fields))


def even(seed: int, shape: tuple[int, ...]) -> np.ndarray:
    """Pixels of which all means of four are whole."""
    return np.random.default_rng(seed).integers(0, 64, shape, np.uint8) * np.uint8(4)


def box_reduced(pixels: np.ndarray, factor: int) -> np.ndarray:
    """What a box filter makes of whole factors: means."""
    h, w, c = pixels.shape
    return pixels.reshape(h // factor, factor, w // factor, factor, c).mean((1, 3))


def test_normalization_and_layout(tmp_path: Path) -> None:
    file = image(tmp_path / "a.png")
    found = load_image(file, describe(mean=MEAN, std=STD))
    wanted = np.empty((3, 6, 10))
    for c in range(3):
        for i in range(6):
            for j in range(10):
                wanted[c, i, j] = (RGB[i, j, c] / 255 - MEAN[c]) / STD[c]
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=1e-6)
    assert np.array_equal(
        load_image(file, describe(layout="NHWC", mean=MEAN, std=STD)), found.transpose(1, 2, 0)
    )


def test_channels(tmp_path: Path) -> None:
    file = image(tmp_path / "a.png")
    whole = {"dtype": "uint8", "scale": (1.0,), "layout": "NHWC"}
    assert np.array_equal(load_image(file, describe(**whole)), RGB)
    assert np.array_equal(load_image(file, describe(channels="bgr", **whole)), RGB[:, :, ::-1])
    gray = load_image(file, describe(channels="gray", **whole))
    assert gray.shape == (6, 10, 1)
    np.testing.assert_allclose(gray[:, :, 0], RGB @ [0.299, 0.587, 0.114], atol=1)
    # A mean of three numbers is in the order of the channels.
    bgr = load_image(file, describe(channels="bgr", mean=(1.0, 2.0, 3.0), scale=(1.0,)))
    assert np.array_equal(bgr, RGB.transpose(2, 0, 1)[::-1] - np.float32([[[1]], [[2]], [[3]]]))


def test_signed_integers_are_shifted_and_clipped(tmp_path: Path) -> None:
    file = image(tmp_path / "a.png")
    found = load_image(file, describe(dtype="int8", scale=(1.0,), mean=(128.0,), layout="NHWC"))
    assert np.array_equal(found, RGB.astype(int) - 128)
    clipped = load_image(file, describe(dtype="int8", scale=(1.0,), layout="NHWC"))
    assert np.array_equal(clipped, np.minimum(RGB, 127))


def test_resize_exact(tmp_path: Path) -> None:
    pixels = even(1, (8, 12, 3))
    file = image(tmp_path / "a.png", pixels)
    d = describe(resize="exact", size=(4, 6), interpolation="box", dtype="uint8", scale=(1.0,), layout="NHWC")
    assert np.array_equal(load_image(file, d), box_reduced(pixels, 2))


def test_shorter_side_and_centre_crop(tmp_path: Path) -> None:
    """As torchvision's Resize(4) and CenterCrop(3): the window starts at round((12 - 3) / 2), round((4 - 3) / 2)."""
    pixels = even(2, (24, 8, 3))
    file = image(tmp_path / "a.png", pixels)
    d = describe(
        resize="shorter", size=(4, 4), interpolation="box", dtype="uint8", scale=(1.0,), layout="NHWC"
    )
    tall = load_image(file, d)
    assert tall.shape == (12, 4, 3)
    assert np.array_equal(tall, box_reduced(pixels, 2))
    cropped = load_image(file, replace(d, crop=(3, 3)))
    assert np.array_equal(cropped, tall[4:7, 0:3])
    wide = image(tmp_path / "b.png", pixels.transpose(1, 0, 2))
    assert load_image(wide, d).shape == (4, 12, 3)


def test_letterbox(tmp_path: Path) -> None:
    pixels = even(3, (8, 16, 3))
    file = image(tmp_path / "a.png", pixels)
    d = describe(
        resize="letterbox",
        size=(8, 8),
        pad=114,
        interpolation="box",
        dtype="uint8",
        scale=(1.0,),
        layout="NHWC",
    )
    found = load_image(file, d)
    assert (found[:2] == 114).all()
    assert (found[6:] == 114).all()
    assert np.array_equal(found[2:6], box_reduced(pixels, 2))


def test_bilinear_enlarging(tmp_path: Path) -> None:
    """Centres of pixels are aligned: twice as large, each new pixel is 3/4 of the near and 1/4 of the far one."""
    row = np.array([[[0], [100], [200]]], np.uint8).repeat(3, 2)
    file = image(tmp_path / "a.png", row)
    d = describe(resize="exact", size=(1, 6), dtype="uint8", scale=(1.0,), layout="NHWC")
    assert load_image(file, d)[0, :, 0].tolist() == [0, 25, 75, 125, 175, 200]


def test_cameras_that_were_held_sideways(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise
    file = image(tmp_path / "a.png", exif=exif)
    found = load_image(file, describe(dtype="uint8", scale=(1.0,), layout="NHWC"))
    assert np.array_equal(found, np.rot90(RGB, -1))


def test_palettes_and_transparency(tmp_path: Path) -> None:
    Image.fromarray(RGB).convert("P").save(tmp_path / "p.png")
    Image.fromarray(RGB).convert("RGBA").save(tmp_path / "a.png")
    for name in "pa":
        assert load_image(tmp_path / f"{name}.png", describe()).shape == (3, 6, 10)


def test_what_is_no_image(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"a\.png: not readable as an image"):
        load_image(tmp_path / "a.png", describe())
    file = image(tmp_path / "b.png")
    file.write_bytes(file.read_bytes()[:-60])
    with pytest.raises(UserError, match=r"b\.png: not readable as an image"):
        load_image(file, describe())
    with pytest.raises(UserError, match="10 x 6 is smaller than the crop of 8 x 8"):
        load_image(image(tmp_path / "c.png"), describe(crop=(8, 8)))
    deep = image(tmp_path / "d.png", np.zeros((4, 4), np.uint16))
    with pytest.raises(UserError, match="more than 8 bits"):
        load_image(deep, describe())


PORTS = [Port("image", 1, ("n", 3, 4, 4))]


def write(folder: Path, text: str) -> Path:
    (folder / "data.toml").write_text(text)
    return folder / "data.toml"


def test_a_folder_in_order_with_labels(tmp_path: Path) -> None:
    for i, name in enumerate(("dog/2.png", "cat/9.png", "cat/10.JPG", "cat/notes.txt", "dog/1.png")):
        if name.endswith("txt"):
            (tmp_path / "photos" / name).write_text("no image")
        else:
            image(tmp_path / "photos" / name, np.full((8, 8, 3), i * 10, np.uint8))
    path = write(tmp_path, 'source = "photos"\nsize = 4\nscale = 1\nlabels = "label"\n')
    dataset = open_dataset(path, PORTS)
    assert dataset.size == 4
    (batch,) = batches(dataset, PORTS)
    assert batch.feeds["image"].shape == (4, 3, 4, 4)
    assert batch.feeds["image"][:, 0, 0, 0].tolist() == [20, 10, 40, 0]
    assert batch.extra["label"].tolist() == [0, 0, 1, 1]


def test_globs_and_lists(tmp_path: Path) -> None:
    for name in ("a/1.png", "a/2.png", "b/1.png"):
        image(tmp_path / name)
    path = write(tmp_path, 'source = ["*/1.png", "a"]\nsize = 4\n')
    assert open_dataset(path, PORTS).size == 3
    with pytest.raises(UserError, match="no images at 'c/\\*'"):
        open_dataset(write(tmp_path, 'source = "c/*"\nsize = 4\n'), PORTS)


def test_the_wrong_size_names_the_image(tmp_path: Path) -> None:
    image(tmp_path / "a" / "1.png")
    with pytest.raises(
        UserError,
        match=r"1\.png: axis 2 of input 'image' is 4, the data has 5: it takes \[n,3,4,4\], the data is \[1,3,5,5\]",
    ):
        list(open_dataset(write(tmp_path, 'source = "a"\nsize = 5\n'), PORTS))


def test_which_input(tmp_path: Path) -> None:
    image(tmp_path / "a" / "1.png")
    with pytest.raises(UserError, match="no input is called 'imag'\n  did you mean 'image'"):
        open_dataset(write(tmp_path, 'source = "a"\nsize = 4\ninput = "imag"\n'), PORTS)
    two = [*PORTS, Port("mask", 1, ("n",))]
    with pytest.raises(UserError, match="key 'input' is missing: the model has 2 inputs"):
        open_dataset(write(tmp_path, 'source = "a"\nsize = 4\n'), two)
    with pytest.raises(UserError, match="lacks input 'mask'"):
        list(open_dataset(write(tmp_path, 'source = "a"\nsize = 4\ninput = "image"\n'), two))


def test_without_pillow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    with pytest.raises(
        UserError, match=r"images need Pillow\n  install it with: pip install 'graphopt\[images\]'"
    ):
        open_dataset(write(tmp_path, 'source = "a"\nsize = 4\n'), PORTS)
