"""What a bundle is made of: its structs, and tar members as bytes."""

from __future__ import annotations

import re
import tarfile
from contextlib import suppress
from datetime import datetime
from hashlib import sha256
from typing import Annotated, Literal, NamedTuple, TypeVar

import msgspec
from msgspec import Meta, Struct

from loopcore.errors import FrameError
from loopcore.imaging import probe
from loopcore.types import Digest, Sample, SampleInfo, sample_id

HEAD, END = "bundle.json", "end.json"
MAX_IMAGE_BYTES = 256_000_000
MAX_JSON_BYTES = 16_000_000
BLOCK = 512
SUFFIXES = {"image/jpeg": ".jpg", "image/png": ".png"}

_NAME = re.compile(r"[0-9a-f]{64}\.(?:json|jpg|png)|bundle\.json|end\.json", re.ASCII)
_Count = Annotated[int, Meta(ge=0, le=1 << 62)]
T = TypeVar("T")


class Choice(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Which samples a bundle was to have.

    Attributes:
        sink: Those that wait for this sink.
        since: Kept at this time or later.
        until: Kept before this time.
        reasons: With one of these reasons; empty: with any or none.
    """

    sink: str | None = None
    since: datetime | None = None
    until: datetime | None = None
    reasons: tuple[str, ...] = ()

    def wants(self, info: SampleInfo) -> bool:
        """Whether a sample belongs in it; `sink` is for the caller to look at."""
        return (
            (self.since is None or info.kept >= self.since)
            and (self.until is None or info.kept < self.until)
            and (not self.reasons or not set(self.reasons).isdisjoint(info.reasons))
        )


class Head(Struct, frozen=True, kw_only=True):
    """`bundle.json`; `origin` says whose outbox it is, `id` tells bundles apart."""

    version: Literal[1] = 1
    id: Annotated[str, Meta(pattern="^[0-9a-f]{32}$")]
    origin: str
    choice: Choice


class Known(Struct, frozen=True, kw_only=True):
    """The JSON of a sample. `seq` and `revision` say which content of which place in the origin's queue it was."""

    version: Literal[1] = 1
    seq: _Count
    revision: _Count
    image: str
    sample: SampleInfo


class End(Struct, frozen=True, kw_only=True):
    """`end.json`: how many samples, and the chain over them."""

    version: Literal[1] = 1
    samples: _Count
    chain: Digest


class Member(NamedTuple):
    """A sample in a bundle, sound."""

    seq: int
    revision: int
    sample: Sample


class Damage(NamedTuple):
    """A part of a bundle that holds no sound sample; `id` where it is known whose it was."""

    offset: int
    why: str
    id: str | None = None


class Mark(Struct, frozen=True, kw_only=True):
    """How far a bundle was read or written, without damage."""

    offset: int
    samples: int
    chain: Digest


def admissible(sample: Sample) -> str | None:
    """Why a sample from a stranger cannot be taken in; `None` if it can.

    What `POST /predict` asks of a picture is asked here, and that the JSON can be written again.
    """
    info = sample.info
    try:
        found = probe(sample.image)
        msgspec.json.encode(info)
    except (FrameError, OverflowError, ValueError, RecursionError) as exc:
        return str(exc)
    if (found.media, found.width, found.height) != (info.media, info.width, info.height):
        return f"the picture is {found.media} of {found.width} × {found.height}, which its JSON does not say"
    return None


def end_of(mark: Mark) -> End:
    """The end of a bundle that reaches to here."""
    return End(samples=mark.samples, chain=mark.chain)


def linked(chain: str, digest: bytes) -> str:
    """The chain with one more sample."""
    return sha256(bytes.fromhex(chain) + digest).hexdigest()


def after(at: int, size: int) -> int:
    """Where the next header is."""
    return at + BLOCK + -(-size // BLOCK) * BLOCK


def member(name: str, data: bytes) -> list[bytes]:
    """A member of the tar, in parts."""
    return [header(name, len(data)), data, bytes(-len(data) % BLOCK)]


def header(name: str, size: int) -> bytes:
    """A member's first block."""
    info = tarfile.TarInfo(name)
    info.size = size
    return info.tobuf(tarfile.USTAR_FORMAT)


def parsed(block: bytes) -> tuple[str, int] | None:
    """Name and size, of a header that this module could have written."""
    name = block[:100].rstrip(b"\0").decode("ascii", "replace")
    digits = block[124:135]
    if block[257:263] != b"ustar\0" or not _NAME.fullmatch(name) or not re.fullmatch(rb"[0-7]{11}", digits):
        return None
    size = int(digits, 8)
    return (name, size) if block == header(name, size) else None


def decoded(data: bytes | None, kind: type[T]) -> T | None:
    """What a JSON says, if it says what it should."""
    with suppress(msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
        return msgspec.json.decode(data or b"", type=kind)
    return None


def consistent(known: Known) -> bool:
    """Whether what it says of the sample agrees with itself."""
    info = known.sample
    times = [moment for moment in (info.kept, info.captured) if moment is not None]
    return (
        all(moment.tzinfo is not None and 1 < moment.year < 9999 for moment in times)
        and known.image == f"{info.image_id}{SUFFIXES.get(info.media)}"
        and info.id == sample_id(info.image_id, info.camera, info.captured)
    )
