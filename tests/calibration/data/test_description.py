"""Data TOML files: every key, and errors that point at the key."""

from pathlib import Path

import pytest

from graphopt.calibration.data.description import Description, read_description
from graphopt.errors import UserError


def read(folder: Path, text: str) -> Description:
    (folder / "d.toml").write_text(text)
    return read_description(folder / "d.toml")


def test_defaults(tmp_path: Path) -> None:
    assert read(tmp_path, 'source = "a"\nsize = 224') == Description(("a",), size=(224, 224))
    assert read(tmp_path, 'source = "a"\nresize = "none"\ndtype = "uint8"').scale == (1.0,)


def test_every_key(tmp_path: Path) -> None:
    text = """
        source = ["a", "b/*.png"]
        input = "image"
        resize = "shorter"
        size = 256
        crop = [224, 192]
        pad = 114
        interpolation = "bicubic"
        channels = "bgr"
        scale = "1/127.5"
        mean = [1, 1.5, 2]
        std = 0.5
        layout = "NHWC"
        dtype = "float16"
        labels = "label"
    """
    assert read(tmp_path, text) == Description(
        source=("a", "b/*.png"),
        input="image",
        resize="shorter",
        size=(256, 256),
        crop=(224, 192),
        pad=114,
        interpolation="bicubic",
        channels="bgr",
        scale=(1 / 127.5,),
        mean=(1.0, 1.5, 2.0),
        std=(0.5,),
        layout="NHWC",
        dtype="float16",
        labels="label",
    )


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("size = ", "not readable as TOML"),
        ("size = 4", "key 'source' is missing"),
        ('source = "a"', "key 'size' is missing"),
        ('source = "a"\nsize = 4\nresise = "exact"', "unknown key 'resise'\n  did you mean 'resize'?"),
        ('source = "a"\nsize = 4\nqqq = 1', "unknown key 'qqq'\n  there are: source, input"),
        ('source = "a"\nsize = [1, 2, 3]', r"key 'size' cannot be \[1, 2, 3\]"),
        ('source = "a"\nsize = 0', "key 'size' cannot be 0"),
        ('source = "a"\nsize = true', "key 'size' cannot be True"),
        ('source = "a"\nresize = "none"\nsize = 4', "key 'size' has no use"),
        ('source = "a"\nresize = "shorter"\nsize = [4, 5]', "one number"),
        ('source = "a"\nresize = "longer"\nsize = 4', "'longer': it is one of exact, shorter"),
        ('source = "a"\nsize = 4\ncrop = 5', "key 'crop'.*is larger"),
        ('source = "a"\nsize = 4\nmean = [1, 2]', "key 'mean' has 2 numbers, 'rgb' has 3 channels"),
        ('source = "a"\nsize = 4\nstd = [1, 0, 1]', "key 'std' cannot be"),
        ('source = "a"\nsize = 4\nscale = "1/0"', "key 'scale' cannot be '1/0'"),
        ('source = "a"\nsize = 4\nscale = "abc"', "key 'scale' cannot be 'abc'"),
        ('source = "a"\nsize = 4\nscale = nan', "key 'scale' cannot be nan"),
        ('source = "a"\nsize = 4\npad = 300', "key 'pad' cannot be 300"),
        ("source = 3\nsize = 4", "key 'source' cannot be 3"),
    ],
)
def test_mistakes(tmp_path: Path, text: str, complaint: str) -> None:
    with pytest.raises(UserError, match=complaint) as e:
        read(tmp_path, text)
    assert e.value.where == str(tmp_path / "d.toml")
