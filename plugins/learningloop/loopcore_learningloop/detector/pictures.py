"""Images as clients send them: files of any common kind, and arrays over Socket.IO (`learning-loop.md` 4.2)."""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from io import BytesIO
from math import prod
from typing import Any

from loopcore.errors import FrameError
from loopcore.types import RGB, Encoded, Image, Pixels

_MAX_PIXELS = 80_000_000
_MEDIA = "application/octet-stream"


def image_of(image: object) -> Image:
    """An `ImageDict`, or the bytes of a file as releases before 0.18 have them.

    Raises:
        FrameError: It is neither (400).
    """
    match image:
        case bytes():
            return Encoded(image, _MEDIA)
        case {"bytes": bytes(data), "format": "jpeg"}:
            return Encoded(data, _MEDIA)
        case {"bytes": bytes(data), "shape": [*shape], **rest} if rest.get("format") in ("raw", None):
            return Pixels(_array(data, shape, rest.get("dtype", "uint8")))
        case Mapping():
            raise FrameError("an image has 'bytes', and a 'shape' unless its 'format' is 'jpeg'", status=400)
    raise FrameError(f"an image is bytes or an object, not a {type(image).__name__}", status=400)


def _array(data: bytes, shape: list[Any], dtype: object) -> RGB:
    import numpy as np

    if dtype != "uint8":
        raise FrameError(f"the image's dtype is {dtype!r}, expected 'uint8'", status=400)
    if not 2 <= len(shape) <= 3 or not all(type(side) is int and side > 0 for side in shape):
        raise FrameError(f"the image's shape is {shape}, expected height, width and channels", status=400)
    if prod(shape) != len(data):
        raise FrameError(f"an image of the shape {shape} has {prod(shape)} bytes, not {len(data)}", status=400)
    array = np.frombuffer(data, np.uint8).reshape(shape)
    depth = shape[2] if len(shape) == 3 else 1
    if depth == 1:
        return np.repeat(array.reshape(shape[0], shape[1], 1), 3, axis=2)
    if depth not in (3, 4):
        raise FrameError(f"the image has {depth} channels, expected 1, 3 or 4", status=400)
    return np.ascontiguousarray(array[:, :, :3])


def decode_other(data: bytes) -> RGB | None:
    """A BMP or WebP, upright; `None` if it is neither, is damaged, or has too many pixels. Blocking."""
    if data.startswith(b"BM"):
        from PIL.BmpImagePlugin import BmpImageFile

        return _read(BmpImageFile, data, struct.unpack_from("<ii", data.ljust(26), 18))
    if data.startswith(b"RIFF") and data.startswith(b"WEBP", 8):
        from PIL.WebPImagePlugin import WebPImageFile

        return _read(WebPImageFile, data, _webp_size(data.ljust(30)))
    return None


def _read(file: Callable[[BytesIO], Any], data: bytes, size: tuple[int, int]) -> RGB | None:
    import numpy as np
    from PIL import ImageOps

    if abs(size[0] * size[1]) > _MAX_PIXELS:
        return None

    try:
        with file(BytesIO(data)) as picture:
            return np.array(ImageOps.exif_transpose(picture).convert("RGB"))
    except (OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, struct.error):
        return None


def _webp_size(data: bytes) -> tuple[int, int]:
    """Width and height, which the decoder makes room for before anybody can ask it (RFC 9649, 2.5 to 2.7)."""
    match data[12:16]:
        case b"VP8X":
            return 1 + int.from_bytes(data[24:27], "little"), 1 + int.from_bytes(data[27:30], "little")
        case b"VP8L":
            sides = int.from_bytes(data[21:25], "little")
            return 1 + (sides & 0x3FFF), 1 + (sides >> 14 & 0x3FFF)
    return int.from_bytes(data[26:28], "little") & 0x3FFF, int.from_bytes(data[28:30], "little") & 0x3FFF
