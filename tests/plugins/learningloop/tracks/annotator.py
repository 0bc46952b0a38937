"""What an annotator says to a Loop."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anyio
from loop import DEMO, picture

from tracks.track import BELIEVED, Proof, Track


class Annotator(Track):
    """Outlines what people draw."""

    role = "annotator"
    calls = ("status", "login", "socket", "update_annotation_node", "image", "update_segmentation_annotation")

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.wanted: dict[str, str] = {}

    def tables(self) -> dict[str, Any]:
        return {"annotator": {"driver": "frames"}, "platforms": [self.platform]}

    async def begin(self) -> None:
        await self.loop.annotators.wait(len(self.loop.annotators) + 1)

    async def provoke(self, call: str) -> Proof:
        if call == "update_annotation_node":
            seen = len(self.loop.annotators)
            return lambda: self._reports(seen)
        if call in ("status", "login", "socket"):
            self.loop.expire_sessions()
            await self.loop.sockets.drop()
            seen = len(self.loop.annotators)
            return lambda: self._reports(seen)
        image = self.loop.store[DEMO].add_image(picture(len(self.loop.store[DEMO].images))).id
        self.wanted[image] = self.answer
        self.people.start_soon(self._outline, image, shown := anyio.Event())
        return shown.wait

    async def end(self) -> None:
        missing = set(self.wanted) - {report.body["image_id"] for report in self.loop.annotations}
        assert {self.wanted[image] for image in missing} <= BELIEVED

    async def _reports(self, seen: int) -> None:
        await self.loop.annotators.wait(seen + 1)

    async def _outline(self, image: str, shown: anyio.Event) -> None:
        """A person drags a box over it, again and again until the outline is shown."""
        while not (await self._act(image, "left_mouse_down", 3) and await self._act(image, "left_mouse_up", 30)):
            pass
        shown.set()

    async def _act(self, image: str, event: str, x: int) -> bool:
        data = {
            "coordinate": {"x": x, "y": x},
            "event_type": event,
            "context": {"organization": "zauberzeug", "project": "demo"},
            "image_uuid": image,
            "category": self.loop.store[DEMO].categories[2],
        }
        try:
            answer = await self.loop.sockets.handle_user_input({"frontend_id": "browser", "data": data})
        except ConnectionError:
            return False  # the page shows that the annotator is away
        shown: bool = answer["success"]
        return shown
