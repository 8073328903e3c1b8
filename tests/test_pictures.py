"""Pictures are read in one way, by the command and by a data set of files."""

import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from srs.__main__ import read_picture
from srs.data.datasets import FolderPart, pictures

SIZE = 16


class Card:
    """What a picture is read for."""

    image_size, channels = SIZE, 3


def _command(path: Path) -> torch.Tensor:
    return read_picture(path, Card)


def _folder(path: Path) -> torch.Tensor:
    size = path.stat().st_size if path.exists() else 0
    part = FolderPart(np.array([path.name.encode()]), np.array([size]), np.array([0]), str(path.parent), SIZE, SIZE)
    return part.images(np.array([0]))[0]


READERS = pytest.mark.parametrize("read", [_command, _folder])


def png(width: int, height: int, depth: int, kind: int, row: bytes) -> bytes:
    """A PNG whose lines are all ``row``, in modes that Pillow does not write."""

    def chunk(name, content):
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)
    lines = zlib.compress((b"\0" + row) * min(height, 100))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", lines) + chunk(b"IEND", b"")


def _saved(path: Path, picture: Image.Image, **settings) -> bytes:
    picture.save(path, **settings)
    return path.read_bytes()


def _broken(folder: Path) -> dict[str, bytes]:
    """Files that no reader may take, by name."""
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8))
    whole = {kind: _saved(folder / f"whole.{kind}", photo) for kind in ("png", "jpg", "bmp", "gif", "tif", "webp")}
    halves = {f"half.{kind}": content[: len(content) // 2] for kind, content in whole.items()}
    heads = {f"head.{kind}": content[:20] for kind, content in whole.items()}
    wrong = bytearray(whole["png"])
    wrong[60:70] = bytes(10)  # a checksum that fails: SyntaxError
    return (
        halves
        | heads
        | {
            "empty.png": b"",
            "text.jpg": b"no picture",
            "wrong.png": bytes(wrong),
            "huge.png": png(20_000, 20_000, 8, 0, bytes(20_000)),  # 400 megapixels: DecompressionBombError
            "large.png": png(10_000, 10_000, 8, 0, bytes(10_000)),  # 100 megapixels: a warning of Pillow's
        }
    )


DEEP = {
    "grey.png": lambda path: Image.fromarray(np.full((9, 9), 40_000, np.uint16)).save(path),
    "colour.png": lambda path: path.write_bytes(png(2, 2, 16, 2, b"\x9c\x40" * 6)),
    "transparent.png": lambda path: path.write_bytes(png(2, 2, 16, 6, b"\x9c\x40" * 8)),
    "grey_transparent.png": lambda path: path.write_bytes(png(2, 2, 16, 4, b"\x9c\x40" * 4)),
    "sixteen.tif": lambda path: Image.fromarray(np.full((9, 9), 40_000, np.uint16)).save(path),
    "whole.tif": lambda path: Image.fromarray(np.full((9, 9), 40_000, np.int32)).save(path),
    "float.tif": lambda path: Image.fromarray(np.full((9, 9), 0.5, np.float32)).save(path),
    "grey.pgm": lambda path: path.write_bytes(b"P5 2 2 65535\n" + b"\x9c\x40" * 4),
    "colour.ppm": lambda path: path.write_bytes(b"P6 2 2 65535\n" + b"\x9c\x40" * 12),
    "plain.ppm": lambda path: path.write_bytes(b"P3 1 1 1023\n1000 20 3\n"),
}


@READERS
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_what_is_broken_is_named(tmp_path, read):
    for name, content in _broken(tmp_path).items():
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(ValueError) as caught:
            read(path)
        assert str(path) in str(caught.value) and "is not an image that can be read: " in str(caught.value), name


@READERS
@pytest.mark.parametrize("name", DEEP)
def test_more_than_8_bits_are_refused(tmp_path, read, name):
    DEEP[name](tmp_path / name)
    with pytest.raises(ValueError, match=f"{name}.* has more than 8 bits a channel: save it with 8"):
        read(tmp_path / name)


@READERS
def test_what_is_no_file_is_named(tmp_path, read):
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(ValueError, match=r"folder\.png'?: Is a directory"):
        read(tmp_path / "folder.png")
    with pytest.raises((ValueError, FileNotFoundError), match=r"nowhere\.png"):
        read(tmp_path / "nowhere.png")


def _drawing() -> np.ndarray:
    """Four colours, and 40x24 pixels: no turn leaves it as it was."""
    pixels = np.zeros((24, 40, 3), np.uint8)
    pixels[:12, :20], pixels[:12, 20:], pixels[12:, :20] = (255, 0, 0), (0, 255, 0), (0, 0, 255)
    return pixels


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_turned_as_their_exif_says(tmp_path, orientation):
    drawing = _drawing()
    stored = {  # what a camera that was held so stores
        1: drawing,
        2: drawing[:, ::-1],
        3: drawing[::-1, ::-1],
        4: drawing[::-1],
        5: drawing.swapaxes(0, 1),
        6: np.rot90(drawing),
        7: drawing[::-1, ::-1].swapaxes(0, 1),
        8: np.rot90(drawing, -1),
    }[orientation]
    picture = Image.fromarray(np.ascontiguousarray(stored))
    exif = picture.getexif()
    exif[0x0112] = orientation
    picture.save(tmp_path / "turned.png", exif=exif)
    Image.fromarray(drawing).save(tmp_path / "upright.png")
    upright = _command(tmp_path / "upright.png")
    for read in (_command, _folder):
        assert torch.equal(read(tmp_path / "turned.png"), upright)


@pytest.mark.parametrize("exif", [b"MM\0*\0\0", b"MM\0*\1\0\0\x08\0\1\1\x12\0\3\0\0\0\1\0\1\0\0\0\0\0\0"])
def test_exif_that_cannot_be_read_turns_nothing(tmp_path, exif):
    Image.fromarray(_drawing()).save(tmp_path / "plain.png")
    Image.fromarray(_drawing()).save(tmp_path / "broken.png", exif=b"Exif\0\0" + exif)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        assert torch.equal(_folder(tmp_path / "broken.png"), _command(tmp_path / "plain.png"))
    assert not told


def test_threads_leave_the_processs_warnings_as_they_were(tmp_path):
    Image.fromarray(_drawing()).save(tmp_path / "one.png")
    size, before, threads = (tmp_path / "one.png").stat().st_size, list(warnings.filters), torch.get_num_threads()
    part = FolderPart(np.array([b"one.png"] * 200), np.array([size] * 200), np.zeros(200, int), str(tmp_path), SIZE, SIZE)
    try:
        torch.set_num_threads(4)
        for _ in range(3):
            part.images(np.arange(200))
            assert warnings.filters == before
    finally:
        torch.set_num_threads(threads)


def _transparent() -> dict[str, Image.Image]:
    alpha = Image.fromarray(np.repeat(np.uint8([[0, 255]]), 12, axis=0).repeat(6, axis=1))
    colours = Image.new("RGB", (12, 12), (10, 20, 30))
    rgba = colours.copy()
    rgba.putalpha(alpha)
    grey = colours.convert("L")
    grey.putalpha(alpha)
    palette = Image.new("P", (12, 12), 1)
    palette.putpalette([0, 0, 0, 10, 20, 30])
    palette.paste(0, (0, 0, 6, 12))
    palette.info["transparency"] = 0
    return {"rgba": rgba, "grey": grey, "palette": palette}


@READERS
@pytest.mark.parametrize("name", _transparent())
def test_transparency_is_white(tmp_path, read, name):
    _transparent()[name].save(tmp_path / "picture.png")
    seen = read(tmp_path / "picture.png")
    assert seen.shape == (3, SIZE, SIZE) and seen[:, :, :6].min() == 1 and seen[:, :, -6:].max() < 0.2


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "CMYK", "YCbCr"])
def test_both_readers_see_the_same(tmp_path, mode):
    suffix = "jpg" if mode in ("CMYK", "YCbCr") else "png"
    noise = np.random.default_rng(1).integers(0, 256, (37, 50, 3), np.uint8)
    for name, pixels in {"wide": noise, "high": noise.swapaxes(0, 1), "square": noise[:, :37]}.items():
        path = tmp_path / f"{name}.{suffix}"
        Image.fromarray(np.ascontiguousarray(pixels)).convert(mode).save(path)
        seen = _command(path)
        assert torch.equal(seen, _folder(path)) and seen.shape == (3, SIZE, SIZE) and seen.std() > 0.05


def test_a_long_picture_takes_no_memory(tmp_path):
    Image.new("L", (200_000, 1), 255).save(tmp_path / "long.png")
    assert _command(tmp_path / "long.png").min() == 1
    with pytest.raises(ValueError, match=r"long\.png is not .*: 200x40000000 pixels are more than 89,478,485"):
        pictures.decode((tmp_path / "long.png").read_bytes(), "long.png", 3, 200, 100)


def test_suffixes_are_those_of_pictures_that_can_be_opened():
    found = pictures.suffixes()
    assert {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".webp"} <= found and not {".pdf", ".txt", ".csv", ""} & found
