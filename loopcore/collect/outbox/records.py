"""One sample as bytes in a segment: a header, what is known of it as JSON, the image as it came.

```
magic 8 | length of the JSON 4 | length of the image 8 | CRC-32 of these and the JSON 4 | JSON | image
```
The image's own check is its SHA-256, which the JSON holds as `image_id`.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple
from zlib import crc32

import msgspec
from msgspec import Struct

from loopcore.types import SampleInfo

MAGIC = b"\x89LOOP1\r\n"
_HEAD = struct.Struct(">8sIQ")
_CRC = struct.Struct(">I")
HEADER_BYTES = _HEAD.size + _CRC.size


class Entry(Struct, frozen=True, kw_only=True):
    """What a record says besides the image: enough to rebuild the index.

    Attributes:
        seq: The place in the queue.
        revision: How often the sample was accepted again with something new.
        takers: The sinks that are to get this revision.
        aged: The outbox's `AgeClock` when the sample was first accepted.
        info: The sample.
    """

    seq: int
    revision: int
    takers: tuple[str, ...]
    aged: float
    info: SampleInfo


class Found(NamedTuple):
    """A record met while reading through a segment; `sound` if the image has its hash."""

    offset: int
    length: int
    entry: Entry
    sound: bool


class Gap(NamedTuple):
    """Bytes that are no record."""

    offset: int
    length: int


class DamagedError(Exception):
    """The bytes at this place are not the record that was written there."""


_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(Entry)


def encode(entry: Entry, image: bytes) -> list[bytes]:
    """A record, in parts to be written one after the other."""
    meta = _encoder.encode(entry)
    head = _HEAD.pack(MAGIC, len(meta), len(image))
    return [head, _CRC.pack(crc32(meta, crc32(head))), meta, image]


def decode(data: bytes | memoryview) -> Entry:
    """The entry of a record, from at least its header and JSON.

    Raises:
        DamagedError: It is none.
    """
    return _decode_at(memoryview(data), 0)[0]


def image_of(data: bytes, entry: Entry) -> bytes:
    """The image of a whole record, checked.

    Raises:
        DamagedError: It is not the one that was accepted.
    """
    image = data[len(data) - entry.info.image_bytes :]
    if len(image) != entry.info.image_bytes or sha256(image).hexdigest() != entry.info.image_id:
        raise DamagedError("the image does not have its hash")
    return image


def scan(path: Path, offset: int = 0, *, check_images: bool = True) -> Iterator[Found | Gap]:
    """Read through a segment from a place where a record begins or the file ends."""
    with path.open("rb") as file:
        file.seek(0, 2)
        if file.tell() <= offset:
            return
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data, memoryview(data) as view:
            while offset < len(view):
                try:
                    entry, length = _decode_at(view, offset)
                    if offset + length > len(view):
                        raise DamagedError("too short for the image")  # noqa: TRY301
                except DamagedError:
                    following = data.find(MAGIC, offset + 1)
                    following = len(view) if following < 0 else following
                    yield Gap(offset, following - offset)
                    offset = following
                    continue
                sound = not check_images or _sound(
                    view[offset + length - entry.info.image_bytes : offset + length], entry
                )
                yield Found(offset, length, entry, sound)
                offset += length


def _sound(image: memoryview, entry: Entry) -> bool:
    with image:
        return sha256(image).hexdigest() == entry.info.image_id


def _decode_at(view: memoryview, offset: int) -> tuple[Entry, int]:
    if len(view) - offset < HEADER_BYTES:
        raise DamagedError("too short for a header")
    magic, meta_bytes, image_bytes = _HEAD.unpack_from(view, offset)
    start = offset + HEADER_BYTES
    if magic != MAGIC or start + meta_bytes > len(view):
        raise DamagedError("no header")
    crc = crc32(view[start : start + meta_bytes], crc32(view[offset : offset + _HEAD.size]))
    if crc != _CRC.unpack_from(view, offset + _HEAD.size)[0]:
        raise DamagedError("the header or the JSON is not what was written")
    try:
        entry = _decoder.decode(view[start : start + meta_bytes])
    except msgspec.MsgspecError as exc:
        raise DamagedError(f"the JSON is not an entry: {exc}") from exc
    if entry.info.image_bytes != image_bytes:
        raise DamagedError("header and JSON differ")
    return entry, HEADER_BYTES + meta_bytes + image_bytes
