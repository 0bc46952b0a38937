"""What the Loop holds: projects, images, models, trainings."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from hashlib import sha256
from typing import Any
from uuid import uuid4

STATES = ("inbox", "annotate", "review", "complete", "trash")

Files = dict[str, bytes]
"""A model in one format: its files by name, flat."""


@dataclass
class StoredImage:
    """An image of a project; `data` is what `GET …/images` says of it (2.3)."""

    id: str
    jpeg: bytes
    data: dict[str, Any]

    @property
    def state(self) -> str:
        state: str = self.data["state"]
        return state


@dataclass
class StoredModel:
    """A model of a project.

    Attributes:
        version: Dotted digits; `None`: it exists, and nobody can choose it.
        training: The number of the training that it came from.
    """

    id: str
    version: str | None
    formats: dict[str, Files] = field(default_factory=dict)
    comment: str = ""
    training: int | None = None
    created: str = field(default_factory=lambda: now())

    @property
    def listed(self) -> dict[str, Any]:
        keys = ("id", "version", "created", "comment")
        return {key: getattr(self, key) for key in keys} | {"formats": sorted(self.formats)}


@dataclass
class Training:
    """A training that was given to a trainer; only these take a model."""

    number: int
    config: dict[str, Any] = field(default_factory=dict)
    model: StoredModel | None = None


@dataclass
class Project:
    """A project and all that is in it.

    Attributes:
        target: The id of the model that detectors are to run.
    """

    organization: str
    name: str
    host: str = ""
    categories: list[dict[str, Any]] = field(default_factory=list)
    images: dict[str, StoredImage] = field(default_factory=dict)
    models: dict[str, StoredModel] = field(default_factory=dict)
    trainings: dict[int, Training] = field(default_factory=dict)
    target: str | None = None

    @property
    def id(self) -> str:
        return self.name.lower()

    @property
    def resource(self) -> str:
        return f"/{self.organization}/projects/{self.id}"

    @cached_property
    def by_hash(self) -> dict[tuple[str, str], str]:
        """Uploads that have been stored: stem and hash of the content → id of the image."""
        return {}

    def model(self, version: str) -> StoredModel:
        return next(model for model in self.models.values() if model.version == version)

    def next_version(self) -> str:
        taken = [tuple(map(int, model.version.split("."))) for model in self.models.values() if model.version]
        major, minor = max((version[:2] for version in taken), default=(1, -1))
        return f"{major}.{minor + 1}"

    def add_image(self, jpeg: bytes, *, state: str = "inbox", id: str | None = None, **data: Any) -> StoredImage:
        """Store a JPEG; what `data` does not say of it is empty (2.3)."""
        id = id or str(uuid4())
        base: dict[str, Any] = {
            "id": id,
            "created": now(),
            "state": state,
            "set": "train",
            "resource": f"{self.resource}/images/{id}/main",
            "thumbnail": f"{self.resource}/images/{id}/thumb",
            "width": None,
            "height": None,
            "classification_annotation": None,
            "tags": [],
        }
        for kind in ("box", "point", "segmentation"):
            base |= {f"{kind}_annotations": [], f"{kind}_detections": []}
        image = StoredImage(id, jpeg, base | data)
        self.images[id] = image
        return image

    def add_model(self, version: str | None, *, id: str | None = None, **formats: Files) -> StoredModel:
        """Store a model with these formats; each is completed as on receipt."""
        model = StoredModel(id or str(uuid4()), version)
        self.models[model.id] = model
        for format, files in formats.items():
            self.receive(model, format, files)
        return model

    def receive(self, model: StoredModel, format: str, files: Mapping[str, bytes]) -> None:
        """Store a format of a model, with the `model.json` completed or made (8)."""
        told = json.loads(files.get("model.json", b"{}"))
        model.formats[format] = {**files, "model.json": self._completed(model, format, told)}

    def _completed(self, model: StoredModel, format: str, told: dict[str, Any]) -> bytes:
        ours = {
            "host": self.host,
            "organization": self.organization,
            "project": self.id,
            "version": model.version,
            "id": model.id,
            "format": format,
        }
        return json.dumps({"categories": self.categories} | told | ours).encode()


class Store:
    """All projects, by organization and id."""

    def __init__(self) -> None:
        self.host = ""
        self.projects: dict[tuple[str, str], Project] = {}

    def add_project(self, organization: str, name: str, categories: Iterable[dict[str, Any]] = ()) -> Project:
        project = Project(organization.lower(), name, self.host, list(categories))
        self.projects[project.organization, project.id] = project
        return project

    def __getitem__(self, path: str) -> Project:
        """The project `organization/id`."""
        organization, _, id = path.partition("/")
        return self.projects[organization, id]


def category(name: str, type: str = "box", **more: Any) -> dict[str, Any]:
    """A category as the Loop knows it (2.3)."""
    return {"id": str(uuid4()), "name": name, "type": type, "color": "#00ff00", "description": None, **more}


def zipped(files: Mapping[str, bytes]) -> bytes:
    """A flat zip; the same files give the same bytes."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in sorted(files.items()):
            archive.writestr(zipfile.ZipInfo(name, (2024, 1, 1, 0, 0, 0)), content, zipfile.ZIP_DEFLATED)
    return buffer.getvalue()


def digest(content: bytes) -> str:
    return sha256(content).hexdigest()


def now() -> str:
    """Local time without a zone, as the sample of a real Loop has it (2.3)."""
    return datetime.now().isoformat()  # noqa: DTZ005
