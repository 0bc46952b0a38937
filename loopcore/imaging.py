"""Encoded bytes to pixels and back: sizes are checked before anything is decoded, and a JPEG no larger than needed.

JPEG is read by simplejpeg, at a fraction of its size where that is enough; PNG by Pillow, which is imported when it is
first needed. Every function may be called from several threads at once.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Callable, Sequence
from io import BytesIO
from typing import TYPE_CHECKING, Literal

import numpy as np
import simplejpeg
from msgspec import Struct

from loopcore.errors import FrameError
from loopcore.types import RGB, Box, Classification, Detection, Point, Segmentation

if TYPE_CHECKING:
    from PIL.ImageDraw import ImageDraw

JPEG = "image/jpeg"
PNG = "image/png"

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_EXIF = b"Exif\0\0"
_ORIENTATION = 0x0112
_MAX_PARTS = 5000  # before the pixels: the largest colour profiles and notes of editors come to hundreds
_SCAN = re.compile(rb"\xff\xda\0")  # the marker and half its length; compressed pixels never look so
_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")  # what ends compressed pixels: no stuffing, restart or fill
_START_OF_SCAN, _END, _LONELY = 0xDA, 0xD9, 0x01
_PNG_END = b"\0\0\0\0IEND"  # four more bytes, its checksum, follow
_USUAL_SCANS = 20  # a progressive JPEG has about ten; each is a pass over the whole picture, however few its bytes
_MAX_SCANS = 200
_MAX_SCANNED = 2_000_000_000  # pixels, over all scans, where there are more than usual
# libjpeg-turbo has vector code for these only: 3/8 takes longer than 1/2, and 5/8 to 7/8 longer than the whole.
_DIVISORS = (8, 4, 2)
_HARMLESS = ("extraneous bytes before marker", "unknown JFIF revision")
_COLORS = ("#ff3b30", "#34c759", "#0a84ff", "#ff9f0a", "#bf5af2", "#00c7be", "#ffd60a", "#ff2d92")


class Header(Struct, frozen=True, kw_only=True):
    """What an encoded picture says of itself.

    Attributes:
        media: `image/jpeg` or `image/png`.
        width: Pixels across, after EXIF rotation.
        height: Pixels down, likewise.
        orientation: The EXIF orientation, 1 to 8; 1 is upright.
    """

    media: str
    width: int
    height: int
    orientation: int = 1


def probe(data: bytes, *, max_pixels: int = 100_000_000) -> Header:
    """Read the header and nothing else.

    Raises:
        FrameError: Empty or damaged (400), more than `max_pixels` (413), or neither JPEG nor PNG (415).
    """
    return _header(data, max_pixels, _count_scans)


def check(data: bytes, *, max_pixels: int = 100_000_000) -> Header:
    """Follow a picture's parts to its end without decoding any: what is cut off shows, at a small part of the cost.

    Raises:
        FrameError: As `probe`, or the picture does not end where it should (400).
    """
    header = _header(data, max_pixels, _follow_scans)
    if header.media == PNG and _PNG_END not in data[-64:-4]:
        raise FrameError("the PNG is damaged: it is cut off", status=400)
    return header


def decode(data: bytes, *, header: Header | None = None, size: tuple[int, int] | None = None) -> RGB:
    """Decode a picture, upright.

    Args:
        data: A JPEG or PNG.
        header: What `probe` said of these bytes; it is asked again without.
        size: The width and height, of the upright picture, that are enough for a model. A JPEG is decoded at the
            smallest of 1/8, 1/4, 1/2 and its full size that covers them, its colours less smooth; a PNG always whole.

    Returns:
        `uint8` `(height, width, 3)`, RGB, C-contiguous, the caller's own.

    Raises:
        FrameError: As `probe`, or the picture is damaged or cut off (400).
    """
    header = header or probe(data)
    pixels = _decode_jpeg(data, header, size) if header.media == JPEG else _decode_png(data)
    return pixels if header.orientation == 1 else _upright(pixels, header.orientation)


def encode_jpeg(pixels: RGB, quality: int = 90) -> bytes:
    """Encode as JPEG, with the colours at half the resolution as cameras do."""
    encoded: bytes = simplejpeg.encode_jpeg(np.ascontiguousarray(pixels), quality, "RGB", "420")
    return encoded


def transcode(data: bytes, media: str) -> bytes:
    """The picture in another media type, upright; the same bytes if they are of that type.

    Raises:
        FrameError: As `decode`; 415 if `media` is neither `image/jpeg` nor `image/png`.
    """
    header = probe(data)
    if header.media == media:
        return data
    if media == JPEG:
        return encode_jpeg(decode(data, header=header))
    if media != PNG:
        raise FrameError(f"no picture can be made {media!r}, only {JPEG} and {PNG}", status=415)
    from PIL import Image

    target = BytesIO()
    Image.fromarray(decode(data, header=header)).save(target, "png")
    return target.getvalue()


def draw(pixels: RGB, detections: Sequence[Detection]) -> RGB:
    """A copy with boxes, points, outlines and labels; coordinates are pixels of this picture."""
    from PIL import Image, ImageDraw, ImageFont

    picture = Image.fromarray(pixels)
    pen = ImageDraw.Draw(picture)
    height = max(11, round(min(picture.size) / 45))
    font = ImageFont.load_default(height)
    colors: dict[str, str] = {}
    lines = 0
    for detection in detections:
        color = colors.setdefault(detection.label, _COLORS[len(colors) % len(_COLORS)])
        x, y = _draw_shape(pen, detection, color, stroke=max(2, height // 7))
        match detection:
            case Classification():
                y = float(lines * (height + 6))
                lines += 1
            case Box() | Segmentation() if y >= height + 5:
                y -= height + 5  # above the shape where there is room, so that it hides nothing of it
        text = f"{detection.label} {detection.confidence:.2f}"
        x = min(max(x, 0.0), max(0.0, picture.width - pen.textlength(text, font=font) - 6))
        y = min(max(y, 0.0), max(0.0, picture.height - height - 6.0))
        pen.rectangle((x, y, x + pen.textlength(text, font=font) + 6, y + height + 5), fill=color)
        pen.text((x + 3, y + 1), text, fill="white", font=font, stroke_width=1, stroke_fill="#202020")
    return np.array(picture)


def _draw_shape(pen: ImageDraw, detection: Detection, color: str, stroke: int) -> tuple[float, float]:
    """Draw the outline; where the label goes."""
    match detection:
        case Box(x=x, y=y, width=width, height=height):
            pen.rectangle((x, y, max(x, x + width), max(y, y + height)), outline=color, width=stroke)
            return x, y
        case Point(x=x, y=y):
            radius = 3 * stroke
            pen.ellipse((x - radius, y - radius, x + radius, y + radius), outline=color, width=stroke)
            return x + radius + stroke, y - radius
        case Segmentation(points=points):
            pen.line([*points, points[0]], fill=color, width=stroke, joint="curve")
            return min(x for x, _ in points), min(y for _, y in points)
        case Classification():
            return 0.0, 0.0


def _header(data: bytes, max_pixels: int, scans: Callable[[bytes], int]) -> Header:
    if not data:
        raise FrameError("the picture is empty", status=400)
    if data.startswith(b"\xff\xd8"):
        media, (width, height, orientation) = JPEG, _probe_jpeg(data, scans)
    elif data.startswith(_PNG_SIGNATURE):
        media, (width, height, orientation) = PNG, _probe_png(data)
    else:
        raise FrameError("this is neither a JPEG nor a PNG", status=415)
    if width * height > max_pixels:
        raise FrameError(f"the picture has {width} × {height} pixels, more than {max_pixels}", status=413)
    if orientation >= 5:
        width, height = height, width
    return Header(media=media, width=width, height=height, orientation=orientation)


def _probe_jpeg(data: bytes, scans_of: Callable[[bytes], int]) -> tuple[int, int, int]:
    try:
        height, width, _, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError as exc:
        raise FrameError(f"the JPEG is damaged: {exc}", status=400) from exc
    orientation = 1
    for marker, start, end in _segments(data):
        if marker == 0xE1 and data.startswith(_EXIF, start):
            orientation = _orientation(data[start + len(_EXIF) : end])
    scans = scans_of(data)
    if scans > _MAX_SCANS or (scans > _USUAL_SCANS and scans * width * height > _MAX_SCANNED):
        raise FrameError(f"the JPEG is read in {scans} scans, too many for its size", status=413)
    return width, height, orientation


def _segments(data: bytes) -> list[tuple[int, int, int]]:
    """Marker, start and end of the segments before the pixels, as far as they can be followed."""
    found: list[tuple[int, int, int]] = []
    at = 2
    fill = 0
    while at + 4 <= len(data) and data[at] == 0xFF and data[at + 1] != 0xDA:
        if len(found) + fill > _MAX_PARTS:
            raise FrameError(f"the JPEG has more than {_MAX_PARTS} parts before its pixels", status=400)
        if data[at + 1] == 0xFF:  # a fill byte
            fill += 1
            at += 1
            continue
        end = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        found.append((data[at + 1], at + 4, end))
        at = end
    return found


def _count_scans(data: bytes) -> int:
    return len(_SCAN.findall(data))  # half the time of `bytes.count`


def _follow_scans(data: bytes) -> int:
    """How many there are, counted by following them to the end of the picture."""
    segments = _segments(data)
    at = segments[-1][2] if segments else 2
    scans = 0
    while (marker := _MARKER.search(data, at)) is not None:
        kind = data[marker.start() + 1]
        length = int.from_bytes(data[marker.end() : marker.end() + 2], "big")
        if kind == _END and scans:
            return scans
        if kind in (_END, _LONELY) or length < 2:
            break
        scans += kind == _START_OF_SCAN
        at = marker.end() + length
    raise FrameError("the JPEG is damaged: it is cut off, or its parts do not follow each other", status=400)


def _probe_png(data: bytes) -> tuple[int, int, int]:
    if len(data) < 33 or data[12:16] != b"IHDR":
        raise FrameError("the PNG is damaged: it has no header", status=400)
    width, height = struct.unpack(">II", data[16:24])
    if not width or not height:
        raise FrameError("the PNG is damaged: it has no pixels", status=400)
    orientation = 1
    at = 33
    for _ in range(_MAX_PARTS):
        if at + 8 > len(data) or (kind := data[at + 4 : at + 8]) == b"IDAT":
            return width, height, orientation
        length = int.from_bytes(data[at : at + 4], "big")
        if kind == b"eXIf":
            orientation = _orientation(data[at + 8 : at + 8 + length])
        at += 12 + length
    raise FrameError(f"the PNG has more than {_MAX_PARTS} parts before its pixels", status=400)


def _orientation(tiff: bytes) -> int:
    """The orientation in EXIF notes; 1 where they are damaged, which does not make the picture bad.

    By hand, because Pillow takes 100 ms to import, warns of damage, and every picture of a phone has such notes.
    """
    order: Literal["little", "big"] = "little" if tiff.startswith(b"II") else "big"
    at = int.from_bytes(tiff[4:8], order)
    for entry in range(at + 2, at + 2 + 12 * int.from_bytes(tiff[at : at + 2], order), 12):
        if entry + 12 > len(tiff):
            break
        if int.from_bytes(tiff[entry : entry + 2], order) == _ORIENTATION:
            value = int.from_bytes(tiff[entry + 8 : entry + 10], order)
            return value if 1 <= value <= 8 else 1
    return 1


def _decode_jpeg(data: bytes, header: Header, size: tuple[int, int] | None) -> RGB:
    width, height = (header.width, header.height) if header.orientation < 5 else (header.height, header.width)
    least = (0, 0)
    if size is not None:
        across, down = size if header.orientation < 5 else (size[1], size[0])
        for divisor in _DIVISORS:
            scaled = (-(-width // divisor), -(-height // divisor))
            if scaled[0] >= across and scaled[1] >= down:
                least = scaled
                break
    try:
        return _read_jpeg(data, least, is_fast=size is not None, strict=True)
    except ValueError as exc:
        damage = str(exc)
    if any(note in damage for note in _HARMLESS):  # some cameras write such pictures, and they are whole
        try:
            return _read_jpeg(data, least, is_fast=size is not None, strict=False)
        except ValueError as exc:
            damage = str(exc)
    raise FrameError(f"the JPEG is damaged: {damage}", status=400)


def _read_jpeg(data: bytes, least: tuple[int, int], *, is_fast: bool, strict: bool) -> RGB:
    pixels: RGB = simplejpeg.decode_jpeg(
        data, "RGB", fastdct=is_fast, fastupsample=is_fast, min_width=least[0], min_height=least[1], strict=strict
    )
    return pixels


def _decode_png(data: bytes) -> RGB:
    from PIL.PngImagePlugin import PngImageFile

    try:
        # Not `Image.open`: that also tries other formats and has a limit of its own, with warnings.
        with PngImageFile(BytesIO(data)) as picture:
            if picture.mode.startswith("I"):  # 16 bits of grey
                grey = (np.asarray(picture).astype(np.uint32) >> 8).astype(np.uint8)
                return np.repeat(grey[:, :, None], 3, axis=2)
            return np.array(picture.convert("RGB"))
    except (OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, struct.error, zlib.error) as exc:
        raise FrameError(f"the PNG is damaged: {exc}", status=400) from exc


def _upright(pixels: RGB, orientation: int) -> RGB:
    import cv2

    turns = {3: cv2.ROTATE_180, 6: cv2.ROTATE_90_CLOCKWISE, 8: cv2.ROTATE_90_COUNTERCLOCKWISE}
    if orientation in turns:
        return np.asarray(cv2.rotate(pixels, turns[orientation]), dtype=np.uint8)
    if orientation in (2, 4):
        return np.asarray(cv2.flip(pixels, 1 if orientation == 2 else 0), dtype=np.uint8)
    turned = cv2.transpose(pixels)
    return np.asarray(turned if orientation == 5 else cv2.rotate(turned, cv2.ROTATE_180), dtype=np.uint8)
