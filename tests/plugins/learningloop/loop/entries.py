"""What the books of the server hold."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from loop.store import Files


@dataclass(frozen=True)
class Upload:
    """A sample that a detector delivered.

    Attributes:
        stem: The file's name without its ending, as it came.
        image_id: Of the image that it became.
    """

    project: str
    stem: str
    jpeg: bytes
    metadata: dict[str, Any]
    image_id: str = ""


@dataclass(frozen=True)
class ModelUpload:
    """A model's files in one format, as they came.

    Attributes:
        training: The number of the training; `None` from a converter, or a person.
    """

    project: str
    model_id: str
    format: str
    files: Files
    training: int | None = None


@dataclass(frozen=True)
class DetectionsUpload:
    """Up to 100 images' detections of a trainer."""

    project: str
    items: list[dict[str, Any]]


@dataclass(frozen=True)
class Connection:
    """A node's socket; `account` is that of its cookie."""

    sid: str
    kind: str
    organization: str
    project: str
    account: str | None


@dataclass(frozen=True)
class Report:
    """What a node says of itself, or of its work, over its socket or by `POST …/detectors`.

    Attributes:
        project: `organization/project` where it comes with one.
        sid: Of the socket; empty by REST.
    """

    event: str
    body: dict[str, Any]
    project: str = ""
    sid: str = ""
