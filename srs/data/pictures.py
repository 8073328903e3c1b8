"""Picture files as pixels: one way of reading for data sets and for the command.

Pixels have 8 bits a channel, more are refused. A picture is turned as its EXIF says, put on white where it is transparent, made
RGB or grey, resized, and of that the central square is kept.
"""

import io
import warnings
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image

_TURNS = dict(
    enumerate(
        (
            Image.Transpose.FLIP_LEFT_RIGHT,
            Image.Transpose.ROTATE_180,
            Image.Transpose.FLIP_TOP_BOTTOM,
            Image.Transpose.TRANSPOSE,
            Image.Transpose.ROTATE_270,
            Image.Transpose.TRANSVERSE,
            Image.Transpose.ROTATE_90,
        ),
        start=2,
    )
)  # by EXIF's orientation; 1 is upright


def content(path: str | Path, told: str = "") -> bytes:
    """The bytes of a file. Raises ValueError that begins with ``told`` (the path, if not given) where it cannot be read."""
    try:
        return Path(path).read_bytes()
    except (OSError, ValueError) as error:
        raise ValueError(f"{told or path}: {getattr(error, 'strerror', None) or error}") from error


def quiet() -> warnings.catch_warnings:
    """Within, what Pillow warns of (EXIF data, say) is not shown. Not for threads: warnings are the process's."""
    return warnings.catch_warnings(action="ignore")


def decode(content: bytes, told: str, channels: int, shorter: int, size: int) -> np.ndarray:
    """The picture in a file's bytes, :func:`framed`: (``channels``, size, size) uint8; 3 channels are RGB, 1 is grey.

    Raises ValueError that begins with ``told`` for what cannot be read, for more than 8 bits a channel, and for pictures of
    more than Pillow's MAX_IMAGE_PIXELS, before or after they are resized.
    """
    try:
        with Image.open(io.BytesIO(content)) as file:
            _require_room(*file.size)
            deep = _is_deep(file)  # of which Pillow would keep what it likes
            if not deep:
                return framed(_flat(_upright(file), "RGB" if channels == 3 else "L"), shorter, size)
    except Exception as error:  # decoders raise what they like
        raise ValueError(f"{told} is not an image that can be read: {error or type(error).__name__}") from error
    raise ValueError(f"{told} has more than 8 bits a channel: save it with 8")


def framed(picture: Image.Image, shorter: int, size: int) -> np.ndarray:
    """The central square of a picture whose shorter side is made ``shorter`` pixels long: (C, size, size) uint8.

    Where that is ``size``, nothing beside the square enters it. Raises ValueError where the longer side would become too long.
    """
    from torchvision.transforms.functional import center_crop, resize

    if shorter == size:
        side = min(picture.size)
        left, top = (picture.width - side) // 2, (picture.height - side) // 2
        picture = picture.crop((left, top, left + side, top + side))
    _require_room(shorter, shorter * max(picture.size) // min(picture.size))
    pixels = np.asarray(center_crop(resize(picture, shorter), size))
    return np.atleast_3d(pixels).transpose(2, 0, 1).copy()


def suffixes() -> set[str]:
    """The suffixes of files that may be pictures, in lower case."""
    return {suffix for suffix, kind in Image.registered_extensions().items() if kind in Image.OPEN}


def _require_room(width: int, height: int) -> None:
    most = Image.MAX_IMAGE_PIXELS  # up to twice as many Pillow warns only
    if most is not None and width * height > most:
        raise ValueError(f"{width}x{height} pixels are more than {most:,}")


def _is_deep(file: Image.Image) -> bool:
    wide = (settings for codec, _, _, settings in file.tile if codec.startswith("ppm"))
    return file.mode[0] in "IF" or ";16" in str(file.tile) or any(most > 255 for _, most in wide)


def _upright(file: Image.Image) -> Image.Image:
    """The picture turned as its EXIF says; as it lies where that cannot be read."""
    file.load()
    try:
        turn = _TURNS.get(file.getexif().get(ExifTags.Base.Orientation))
    except Exception:  # ImageNet has such files
        turn = None
    return file if turn is None else file.transpose(turn)


def _flat(picture: Image.Image, mode: str) -> Image.Image:
    """The picture in ``mode``, on white where it is transparent."""
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    return picture.convert(mode)
