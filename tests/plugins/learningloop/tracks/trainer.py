"""What a trainer says to a Loop."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence
from itertools import count
from pathlib import Path
from typing import Any, ClassVar

import anyio
from cells import ANSWERS
from loop import DEMO, MODEL_IDS, DetectionsUpload, Fault, picture

from tracks.track import BELIEVED, CELL_S, GARBAGE, NONE, REFUSED, Proof, Track


class Talker(Track):
    """A trainer that is told of nothing to train."""

    role = "trainer"
    calls: ClassVar[tuple[str, ...]] = ("status", "login", "socket", "update_trainer")

    def tables(self) -> dict[str, Any]:
        return {"trainer": {"driver": "waiting", "backend": "mocked"}, "platforms": [self.platform]}

    async def begin(self) -> None:
        await self._reports(len(self.loop.trainers))

    async def provoke(self, call: str) -> Proof:
        if call != "update_trainer":
            self.loop.expire_sessions()
            await self.loop.sockets.drop()
        seen = len(self.loop.trainers)
        return lambda: self._reports(seen)

    async def end(self) -> None:
        assert self.loop.trainers[-1].body["state"] == "idle"

    async def _reports(self, seen: int) -> None:
        await self.loop.trainers.wait(seen + 1)


class Trainer(Talker):
    """Trains when it is told to: one training meets an answer in all its calls, or in one, where that may end it."""

    calls: ClassVar[tuple[str, ...]] = (
        "data",
        "project",
        "images",
        "image",
        "models",
        "download",
        "update_training",
        "publish_training",
        "detections",
    )
    by_hand: ClassVar[dict[str, frozenset[str]]] = {
        "data": REFUSED,
        "project": REFUSED,
        "images": REFUSED,
        "models": REFUSED,
        "download": REFUSED | GARBAGE,
        "publish_training": REFUSED,
        "detections": REFUSED,
    }
    formats = frozenset({"mocked", "mocked_2"})

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.given: dict[int, str] = {}

    async def meet(self, answer: str, calls: Sequence[str]) -> AsyncGenerator[tuple[str, Exception | None]]:
        self.answer = answer
        for some in [(call,) for call in calls] if answer in REFUSED | GARBAGE else [tuple(calls)] * bool(calls):
            error = await self._train(some, ANSWERS[answer])
            for call in some:
                yield call, error

    async def _train(self, calls: tuple[str, ...], fault: Fault) -> Exception | None:
        """A training in which each of these calls meets the fault."""
        begun, seen, verdict = anyio.current_time(), len(self.loop.arrivals), "failed"
        for call in calls:
            self.loop.faults.script(call, *[fault] * (2 if self.answer == "401" else 1))  # one 401 is nothing to it
        project = self.loop.store[DEMO]
        number = len(project.trainings) + 1
        project.add_image(picture(len(project.images)), state="complete")  # the others are kept from the last training
        try:
            with anyio.fail_after(CELL_S):
                times = await self._insist(number, calls)
                met = {one.name for one in list(self.loop.arrivals)[seen:] if one.fault is fault}
                assert met == set(calls), f"never called: {set(calls) - met}"
                assert times == 1 or all(self.answer in self.by_hand.get(call, NONE) for call in calls), "it gave up"
                verdict = "ok" if times == 1 else "by hand"
        except Exception as exc:  # noqa: BLE001 - it is the cells' result
            return exc
        finally:
            self.loop.faults.lift()
            for call in calls:
                self.enter(call, verdict, begun)
        return None

    async def _insist(self, number: int, calls: tuple[str, ...]) -> int:
        """Give a training until it has come to a good end, as a person does; how often that was."""
        self.given[number] = self.answer
        for times in count(1):
            seen, told = len(self.loop.trainers), len(self.loop.detections)
            await self._give(number)
            begun = await self._index(lambda state: state not in ("idle", "blocked"), seen)
            await self._index(lambda state: state == "idle", begun)
            if self._is_good(number, calls, self.loop.detections[told:]):
                return times
        raise AssertionError

    def _is_good(self, number: int, calls: tuple[str, ...], found: Sequence[DetectionsUpload]) -> bool:
        """The Loop has the model, and what it finds on each image; where it has said that it has, that is enough."""
        project = self.loop.store[DEMO]
        model = project.trainings[number].model
        formats = set() if model is None else set(model.formats)
        missing = set(project.images) - {item["image_id"] for upload in found for item in upload.items}
        believed = calls if self.answer in BELIEVED else ()
        dropped = 1 if "image" in calls else 0
        published = formats == self.formats or "publish_training" in believed
        return published and (len(missing) <= dropped or "detections" in believed)

    async def _give(self, number: int) -> None:
        base = MODEL_IDS["1.1"]
        while True:
            try:
                ack = await self.loop.sockets.begin_training(DEMO, number, base_model_uuid=base)
            except ConnectionError:
                continue  # the page shows that the trainer is away
            if ack["success"] or ack["payload"] == "refused":
                return

    async def _index(self, wanted: Callable[[str], bool], after: int) -> int:
        report = await self.loop.trainers.until(lambda report: wanted(report.body["state"]), after=after)
        return list(self.loop.trainers).index(report, after)

    async def end(self) -> None:
        trainings = self.loop.store[DEMO].trainings.values()
        missing = [training.number for training in trainings if training.model is None]
        assert {self.given[number] for number in missing} <= BELIEVED
