"""Bodies that are sent in pieces, and again if need be. No generators: trio warns of one that is broken off."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from secrets import token_hex
from typing import Self

import httpx
from anyio import to_thread
from msgspec import Struct

_PIECE = 1 << 16
_FILE_PIECE = 1 << 18


class Part(Struct, frozen=True, kw_only=True):
    """One part of a form.

    Attributes:
        name: Of the field.
        content: The bytes, or the file that holds them; it is read while it is sent.
        filename: Under which name; `None` for a plain field.
        media: Its media type.
    """

    name: str
    content: bytes | Path
    filename: str | None = None
    media: str = "application/octet-stream"


class Body(httpx.AsyncByteStream):
    """What lies in memory and in files, one after the other.

    Attributes:
        media: The media type; empty if the request's headers say it.
        length: In bytes. A file that has become shorter when it is read breaks the request off.

    Raises:
        OSError: A file is not there.
    """

    def __init__(self, sections: Sequence[bytes | Path], media: str = "") -> None:
        self.media = media
        self._sections = [(section, _size(section)) for section in _joined(sections)]
        self.length = sum(size for _, size in self._sections)

    def __aiter__(self) -> AsyncIterator[bytes]:
        return _Pieces(self._sections)


def multipart(parts: Sequence[Part]) -> Body:
    """A `multipart/form-data`; its files are not read into memory.

    Raises:
        OSError: A file is not there.
    """
    boundary = token_hex(16)
    sections: list[bytes | Path] = []
    for part in parts:
        disposition = f'form-data; name="{_quoted(part.name)}"'
        if part.filename is not None:
            disposition += f'; filename="{_quoted(part.filename)}"'
        head = f"--{boundary}\r\nContent-Disposition: {disposition}\r\nContent-Type: {part.media}\r\n\r\n"
        sections += [head.encode(), part.content, b"\r\n"]
    return Body([*sections, f"--{boundary}--\r\n".encode()], f"multipart/form-data; boundary={boundary}")


class _Pieces:
    def __init__(self, sections: Sequence[tuple[bytes | Path, int]]) -> None:
        self._sections = iter(sections)
        self._section: bytes | Path = b""
        self._at = self._size = 0

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        while self._at >= self._size:
            try:
                (self._section, self._size), self._at = next(self._sections), 0
            except StopIteration:
                raise StopAsyncIteration from None
        if isinstance(self._section, Path):
            # Opened anew for each piece: nobody would close what a broken exchange leaves behind.
            piece = await to_thread.run_sync(_read, self._section, self._at, min(_FILE_PIECE, self._size - self._at))
        else:
            piece = bytes(memoryview(self._section)[self._at : self._at + _PIECE])
        self._at += len(piece)
        return piece


def _joined(sections: Sequence[bytes | Path]) -> list[bytes | Path]:
    """What lies in memory side by side becomes one section: fewer and larger pieces."""
    found: list[bytes | Path] = []
    run: list[bytes] = []
    for section in sections:
        if isinstance(section, bytes):
            run.append(section)
            continue
        found += [b"".join(run), section]
        run = []
    return [*found, b"".join(run)]


def _size(section: bytes | Path) -> int:
    return len(section) if isinstance(section, bytes) else section.stat().st_size


def _read(path: Path, at: int, size: int) -> bytes:
    with path.open("rb") as file:
        file.seek(at)
        if not (piece := file.read(size)):
            raise OSError(f"{path.name} became shorter while it was sent")
        return piece


def _quoted(name: str) -> str:
    return name.replace('"', "%22").replace("\r", "%0D").replace("\n", "%0A")
