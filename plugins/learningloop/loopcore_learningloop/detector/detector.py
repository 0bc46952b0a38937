"""What the detector does with images, by whatever transport they come (`learning-loop.md` 4.3)."""

from __future__ import annotations

import logging

from loopcore.abc import Service
from loopcore.types import Answer, Image, ModelInfo, Prediction
from loopcore_learningloop import packages, wire
from loopcore_learningloop.detector.wishes import Wish, now
from loopcore_learningloop.tolerant import Said
from loopcore_learningloop.translation import SAID, Categories, found

_log = logging.getLogger(__name__)

PICKED = "picked_by_system"
"""The tag of what a client has picked (5.5)."""


class Detector:
    """Looks at images, and keeps them.

    Args:
        service: The node.
    """

    def __init__(self, service: Service) -> None:
        self._service = service
        self._known: tuple[ModelInfo | None, Categories] = (None, Categories())

    async def detect(self, image: Image, wish: Wish) -> wire.ImageMetadata:
        """What the model finds on an image; it may be kept, and is durable then.

        Raises:
            LoopcoreError: As `Service.predict`.
        """
        answer = await self._service.predict(
            image, camera=wish.camera, captured=wish.created, tags=wish.tags, source=wish.source, keep=wish.keep
        )
        return self._metadata(answer, wish)

    async def upload(self, image: Image, said: Said, *, urgent: bool = False) -> None:
        """Keep an image that a client has picked; it is durable when this returns.

        Raises:
            FrameError: It is no picture.
            StorageError: It could not be stored.
        """
        if said.notes:
            _log.warning(
                "Some of what a client says of an image is left out count=%d: %s", len(said.notes), said.notes[0]
            )
        prediction = None
        if said.detections or said.category_ids:
            extra = {SAID: said.category_ids} if said.category_ids else {}
            prediction = Prediction(detections=tuple(said.detections), model_version=said.model, extra=extra)
        await self._service.keep(
            image,
            camera=said.camera,
            captured=said.created,
            tags=(*said.tags, PICKED),
            source=said.source,
            prediction=prediction,
            annotations=said.annotations,
            state=said.state,
            urgent=urgent,
        )

    def _metadata(self, answer: Answer, wish: Wish) -> wire.ImageMetadata:
        prediction = answer.prediction
        lists = found(
            prediction.detections,
            prediction.model_version,
            self._categories(prediction),
            size=(answer.width, answer.height),
            flat=True,
        )
        return wire.ImageMetadata(
            box_detections=lists.box_detections,
            point_detections=lists.point_detections,
            segmentation_detections=lists.segmentation_detections,
            classification_detections=lists.classification_detections,
            tags=[*dict.fromkeys((*wish.tags, *answer.reasons))],
            created=wish.told or now(),
            source=wish.source,
        )

    def _categories(self, prediction: Prediction) -> Categories:
        """Of the model that made the prediction; of none if another one serves by now."""
        info = self._service.model()
        if info is not self._known[0]:
            told = packages.told_of(info) if info else None
            self._known = info, Categories(told.categories if told else ())
        is_same = info is not None and (info.name, info.version) == (prediction.model, prediction.model_version)
        return self._known[1] if is_same else Categories()
