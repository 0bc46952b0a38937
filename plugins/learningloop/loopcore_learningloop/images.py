"""The images of a project (`learning-loop.md` 2.2, 2.3, 5.3)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from msgspec.structs import asdict

from loopcore.abc import ImageStore, StoredImage
from loopcore.errors import RejectedError
from loopcore.types import Annotation, ModelInfo, Prediction
from loopcore_learningloop import packages, wire
from loopcore_learningloop.fetching import Fetching
from loopcore_learningloop.projects import Project
from loopcore_learningloop.translation import Categories, found

CHUNK = 100
"""Of how many images one call may hand over predictions (2.2)."""


class Images(ImageStore):
    """The images of one project."""

    def __init__(self, project: Project) -> None:
        self._project = project

    async def images(self, states: Sequence[str] = ()) -> Sequence[str]:
        """See `ImageStore`. What is in the trash counts only where that is named."""
        ids: list[str] = []
        for state in states or wire.IMAGE_STATES:
            path = self._project.path("data")
            ids += (await self._project.loop.get(path, wire.ProjectData, params={"state": state})).image_ids
        return list(dict.fromkeys(ids))

    async def fetch(self, images: Sequence[str], into: Path, got: Callable[[StoredImage], None]) -> None:
        """See `ImageStore`."""
        await Fetching(self._project, into, got).run(images)

    async def add(self, image: str, annotations: Sequence[Annotation]) -> None:  # noqa: ARG002 - the contract's
        """See `ImageStore`. The protocol has no call for it."""
        raise RejectedError(f"the Loop takes annotations of its people only, and none for the image {image}")

    async def predictions(self, predictions: Mapping[str, Prediction], model: ModelInfo) -> None:
        """See `ImageStore`. The ids of categories are the model's, where it came from the Loop, else the project's."""
        names = frozenset(one.label for prediction in predictions.values() for one in prediction.detections)
        told = packages.told_of(model)
        categories = Categories(told.categories if told else ())
        if not categories.knows(names):
            categories = await self._project.categories(names)
        items = list(predictions.items())
        for start in range(0, len(items), CHUNK):
            lists = [
                wire.Detections(image_id=image, **asdict(found(one.detections, model.version, categories)))
                for image, one in items[start : start + CHUNK]
            ]
            await self._project.loop.call("POST", self._project.path("detections"), json=lists)
