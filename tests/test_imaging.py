"""Pictures are read no larger than needed, upright, and never before their size is known."""

from __future__ import annotations

import struct
import sys
import tracemalloc
import zlib
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from subprocess import run

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from loopcore import imaging
from loopcore.errors import FrameError
from loopcore.types import Box, Classification, Point, Segmentation


def gradient(width: int, height: int) -> Image.Image:
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack((x, y, 255 - x), axis=2).astype(np.uint8))


def encoded(picture: Image.Image, kind: str = "jpeg", orientation: int | None = None, **options: object) -> bytes:
    target = BytesIO()
    if orientation is not None:
        exif = Image.Exif()
        exif[0x0112] = orientation
        options["exif"] = exif
    picture.save(target, kind, **({"quality": 95} if kind == "jpeg" else {}), **options)
    return target.getvalue()


def png_chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


@pytest.mark.parametrize("kind", ["jpeg", "png"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied_to_the_size_and_to_the_pixels(kind, orientation):
    data = encoded(gradient(64, 32), kind, orientation)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(BytesIO(data))))
    header = imaging.probe(data)
    assert (header.height, header.width) == expected.shape[:2]
    assert header.orientation == orientation
    pixels = imaging.decode(data)
    assert pixels.flags.c_contiguous
    assert abs(pixels.astype(int) - expected).mean() < 1


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((100, 60), (100, 60)),
        ((101, 60), (200, 120)),
        ((100, 61), (200, 120)),
        ((399, 10), (400, 240)),
        ((401, 10), (800, 480)),
        ((5000, 5000), (800, 480)),
        ((1, 1), (100, 60)),
        (None, (800, 480)),
    ],
)
def test_a_jpeg_is_decoded_at_the_smallest_scale_that_covers_what_is_asked_for(size, expected):
    data = encoded(gradient(800, 480))
    assert imaging.decode(data, size=size).shape == (expected[1], expected[0], 3)


def test_the_size_asked_for_is_that_of_the_upright_picture():
    data = encoded(gradient(800, 400), orientation=6)
    assert imaging.decode(data, size=(100, 200)).shape == (200, 100, 3)
    assert imaging.decode(data, size=(101, 200)).shape == (400, 200, 3)


@given(st.integers(1, 90), st.integers(1, 90), st.integers(1, 100), st.integers(1, 100))
@settings(max_examples=40, deadline=None)
def test_a_scaled_picture_covers_what_is_asked_for_or_is_whole(width, height, across, down):
    rows, columns, _ = imaging.decode(encoded(gradient(width, height)), size=(across, down)).shape
    assert (columns >= across and rows >= down) or (columns, rows) == (width, height)


@pytest.mark.parametrize("mode", ["L", "CMYK", "RGB"])
def test_jpegs_of_every_colour_space_come_out_as_rgb(mode):
    data = encoded(gradient(40, 40).convert(mode))
    expected = np.asarray(Image.open(BytesIO(data)).convert("RGB")).astype(int)
    assert abs(imaging.decode(data) - expected).mean() < 3


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"])
def test_pngs_of_every_kind_come_out_as_rgb(mode):
    if mode == "I;16":
        picture = Image.fromarray(np.arange(0, 65536, 64, dtype=np.uint16).reshape(32, 32))
        expected = np.repeat((np.asarray(picture) >> 8)[:, :, None], 3, axis=2)
    else:
        picture = gradient(32, 32).convert(mode)
        expected = np.asarray(picture.convert("RGB"))
    pixels = imaging.decode(encoded(picture, "png"))
    assert pixels.dtype == np.uint8
    np.testing.assert_array_equal(pixels, expected)


def test_a_palette_with_transparency_is_read():
    picture = gradient(16, 16).convert("P")
    assert imaging.decode(encoded(picture, "png", transparency=3)).shape == (16, 16, 3)


@pytest.mark.parametrize("kind", ["jpeg", "png"])
def test_an_enormous_picture_is_refused_by_its_header(kind):
    if kind == "png":
        header = struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0)
        data = b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + png_chunk(b"IDAT", zlib.compress(bytes(10_000)))
    else:
        data = bytearray(encoded(gradient(64, 64)))
        at = data.index(b"\xff\xc0") + 5
        data[at : at + 4] = struct.pack(">HH", 50_000, 50_000)
        data = bytes(data)
    tracemalloc.start()
    try:
        with pytest.raises(FrameError) as caught:
            imaging.decode(data)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()
    assert caught.value.status == 413


def test_the_limit_on_pixels_is_exact():
    data = encoded(gradient(30, 20))
    assert imaging.probe(data, max_pixels=600).width == 30
    with pytest.raises(FrameError) as caught:
        imaging.probe(data, max_pixels=599)
    assert caught.value.status == 413


def test_a_progressive_jpeg_with_very_many_scans_is_refused():
    data = encoded(gradient(64, 64), progressive=True)
    assert imaging.decode(data).shape == (64, 64, 3)
    scan = data[data.rindex(b"\xff\xda") : -2]
    with pytest.raises(FrameError) as caught:
        imaging.decode(data[:-2] + scan * 300 + b"\xff\xd9")
    assert caught.value.status == 413


def test_the_scans_of_a_large_jpeg_are_paid_for_by_its_pixels():
    size = (10_000).to_bytes(2, "big")
    data = encoded(gradient(64, 64), progressive=True)
    at = data.index(b"\xff\xc2") + 5
    large = data[:at] + size + size + data[at + 4 :]
    assert imaging.probe(large).width == 10_000
    scan = data[data.rindex(b"\xff\xda") : -2]
    with pytest.raises(FrameError) as caught:
        imaging.probe(large[:-2] + scan * 20 + b"\xff\xd9")
    assert caught.value.status == 413


@pytest.mark.parametrize(
    ("media", "at", "part"),
    [
        ("jpeg", 2, b"\xff\xfe\x00\x02"),
        ("jpeg", 2, b"\xff\xe1\x00\x08Exif\0\0"),
        ("jpeg", 2, b"\xff"),
        ("png", 33, b"\0\0\0\0eXIfcccc"),
    ],
)
def test_a_picture_of_nothing_but_notes_is_refused_before_they_are_all_read(media, at, part):
    data = encoded(gradient(8, 8), media)
    assert imaging.probe(data[:at] + part * 100 + data[at:]).width == 8
    with pytest.raises(FrameError, match="parts before its pixels"):
        imaging.probe(data[:at] + part * 6000 + data[at:])


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"", 400),
        (b"\xff\xd8\xff", 400),
        (b"\x89PNG\r\n\x1a\n", 400),
        (b"GIF89a" + bytes(100), 415),
        (b"<svg/>", 415),
        (bytes(1000), 415),
    ],
)
def test_what_is_not_a_picture_is_refused_with_the_status_that_says_why(data, status):
    with pytest.raises(FrameError) as caught:
        imaging.probe(data)
    assert caught.value.status == status


@pytest.mark.parametrize("kind", ["jpeg", "png"])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_a_picture_that_is_cut_off_is_refused(kind, share):
    noise = np.random.default_rng(0).integers(0, 255, (80, 80, 3), dtype=np.uint8)
    data = encoded(Image.fromarray(noise), kind)
    with pytest.raises(FrameError) as caught:
        imaging.decode(data[: int(len(data) * share)], size=(10, 10))
    assert caught.value.status == 400


@given(st.sampled_from(["jpeg", "png"]), st.binary(min_size=1, max_size=40), st.floats(0, 1))
@settings(max_examples=150, deadline=None)
def test_a_damaged_picture_gives_pixels_or_a_frame_error(kind, damage, where):
    data = bytearray(encoded(gradient(48, 40), kind, orientation=6))
    at = int(where * (len(data) - len(damage)))
    data[at : at + len(damage)] = damage
    try:
        pixels = imaging.decode(bytes(data))
    except FrameError:
        return
    assert pixels.ndim == 3


def test_a_jpeg_with_stray_bytes_before_a_marker_is_read():
    data = encoded(gradient(40, 40))
    assert imaging.decode(data[:-2] + b"\x00\x01\x02" + data[-2:]).shape == (40, 40, 3)


def test_damaged_exif_leaves_the_picture_as_it_lies():
    data = encoded(gradient(40, 20), orientation=6)
    at = data.index(b"Exif\0\0") + 6
    assert imaging.probe(data).orientation == 6
    for damage in (
        b"\xff" * 8,
        b"II*\0" + b"\xff" * 20,
        bytes(24),
        b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x09",
    ):
        header = imaging.probe(data[:at] + damage + data[at + len(damage) :])
        assert (header.width, header.height, header.orientation) == (40, 20, 1)


def test_pictures_are_decoded_by_several_threads_at_once():
    pictures = [
        encoded(gradient(100 + n, 80), kind, orientation=1 + n % 8) for n in range(8) for kind in ("jpeg", "png")
    ]
    expected = [imaging.decode(data) for data in pictures]
    with ThreadPoolExecutor(8) as pool:
        for found, wanted in zip(pool.map(imaging.decode, pictures * 5), expected * 5, strict=True):
            np.testing.assert_array_equal(found, wanted)


def test_encoding_and_decoding_give_nearly_the_same_picture():
    pixels = np.asarray(gradient(64, 48))
    assert abs(imaging.decode(imaging.encode_jpeg(pixels)).astype(int) - pixels).mean() < 3


def test_transcoding_leaves_the_bytes_alone_where_the_type_is_right_and_else_turns_upright():
    data = encoded(gradient(40, 20), orientation=6)
    assert imaging.transcode(data, "image/jpeg") is data
    png = imaging.transcode(data, "image/png")
    assert imaging.probe(png) == imaging.Header(media="image/png", width=20, height=40)
    np.testing.assert_array_equal(imaging.decode(png), imaging.decode(data))
    assert imaging.probe(imaging.transcode(png, "image/jpeg")).media == "image/jpeg"
    with pytest.raises(FrameError) as caught:
        imaging.transcode(data, "image/gif")
    assert caught.value.status == 415


def test_drawing_marks_every_kind_of_detection_and_leaves_the_original_alone():
    pixels = np.full((200, 300, 3), 90, np.uint8)
    before = pixels.copy()
    box = Box(label="cat <b>", confidence=0.5, x=60, y=70, width=80, height=50)
    for found in (
        box,
        Point(label="nose", x=100, y=100),
        Segmentation(label="leaf", points=((10, 10), (90, 10), (40, 80))),
        Classification(label="day", confidence=0.9),
        Box(label="outside", x=-500, y=-500, width=100, height=100),
    ):
        drawn = imaging.draw(pixels, [found])
        assert (drawn != before).any()
        assert drawn.shape == before.shape
    np.testing.assert_array_equal(pixels, before)
    drawn = imaging.draw(pixels, [box])
    assert (drawn[120, 60:140] != 90).any(axis=1).mean() > 0.9
    np.testing.assert_array_equal(drawn[90:110, 70:130], before[90:110, 70:130])


def test_pillow_is_not_imported_before_it_is_needed():
    code = (
        "import sys, numpy; from loopcore import imaging; data = imaging.encode_jpeg(numpy.zeros((8, 8, 3), 'uint8'));"
        "imaging.decode(data); sys.exit('PIL' in sys.modules or 'cv2' in sys.modules)"
    )
    assert run([sys.executable, "-c", code], check=False).returncode == 0


KINDS = {
    "baseline": {},
    "progressive": {"progressive": True},
    "optimized": {"optimize": True},
    "with restarts": {"restart_marker_rows": 2},
    "full colours": {"subsampling": 0},
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("quality", [1, 50, 95])
def test_jpeg_that_is_cut_off_anywhere_is_found_without_decoding(kind, quality):
    noise = np.random.default_rng(quality).integers(0, 256, (120, 160, 3), dtype=np.uint8)
    target = BytesIO()
    Image.fromarray(noise).save(target, "jpeg", quality=quality, **KINDS[kind])
    whole = target.getvalue()
    assert imaging.check(whole) == imaging.probe(whole)
    for cut in range(1, len(whole), max(1, len(whole) // 300)):
        with pytest.raises(FrameError):
            imaging.check(whole[:-cut])


def test_jpeg_with_a_foreign_end_or_middle_is_found():
    whole = encoded(gradient(160, 120))
    other = encoded(gradient(64, 64))
    middle = len(whole) - 500
    assert imaging.check(whole + b"whatever a camera adds").width == 160
    with pytest.raises(FrameError):
        imaging.check(whole[:middle] + other[:600])
    with pytest.raises(FrameError):
        imaging.check(whole[:middle] + b"<html>503</html>")


def test_png_that_is_cut_off_is_found():
    whole = encoded(gradient(64, 32), "png")
    assert imaging.check(whole) == imaging.probe(whole)
    for cut in (1, 5, 12, 13, 100):
        with pytest.raises(FrameError):
            imaging.check(whole[:-cut])


@given(st.binary(max_size=300))
def test_check_takes_nothing_for_a_picture_that_is_none(tail):
    with pytest.raises(FrameError):
        imaging.check(tail)
