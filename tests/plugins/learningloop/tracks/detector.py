"""What a detector says to a Loop."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import anyio
from loop import DEMO, MODEL_IDS, LoopServer, StoredModel, mocked, picture

from tracks.track import BELIEVED, GARBAGE, REFUSED, SPEED, Proof, Track

SINK = "loop"


class Detector(Track):
    """Follows the target, tells its status, delivers what it keeps."""

    role = "detector"
    calls: ClassVar[tuple[str, ...]] = ("login", "detectors", "target", "models", "download", "project", "upload")
    by_hand: ClassVar[dict[str, frozenset[str]]] = {"login": REFUSED | GARBAGE}

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.accepted: dict[str, str] = {}
        self.seed = 0

    def tables(self) -> dict[str, Any]:
        return {
            "backend": {"driver": "mocked", "model": "follow"},
            "platforms": [self.platform],
            "rollouts": [{"from": "loop", "to": "self", "every": "1 s", "report": "2 s"}],
            "sinks": [{"driver": "learningloop", "name": SINK, "timeout": "8 s", **self.account}],
            "outbox": {"min_free": 0},
        }

    async def begin(self) -> None:
        await self._reports(len(self.loop.detectors))
        await self._runs(self._target().version or "", after=0)

    async def provoke(self, call: str) -> Proof:
        seen = len(self.loop.detectors)
        match call:
            case "login":
                self.loop.expire_sessions()
                return lambda: self._works(seen)
            case "detectors":
                return lambda: self._reports(seen)
            case "target":
                running = self.loop.store[DEMO].target
                version = "1.2" if running == MODEL_IDS["1.1"] else "1.1"
                self._aim(self.loop.store[DEMO].model(version).id)
                return lambda: self._runs(version, after=seen)
            case "models" | "download":
                version = self._new_model()
                return lambda: self._runs(version, after=seen)
            case "project":
                await self.restart()  # it asks when it meets a label for the first time
        sent = await self._keep(3)
        return lambda: self._arrived(sent)

    async def mend(self) -> None:
        await self.client.put("/model_version", content="follow_loop")
        await self.client.put("/outbox_mode", content="continuous_upload")

    async def end(self) -> None:
        missing = set(self.accepted) - self._there() - await self._rejected()
        assert {self.accepted[id] for id in missing} <= BELIEVED

    def _new_model(self) -> str:
        project = self.loop.store[DEMO]
        version = project.next_version()
        self._aim(project.add_model(version, mocked=mocked()).id)
        return version

    def _target(self) -> StoredModel:
        project = self.loop.store[DEMO]
        return project.models[project.target or ""]

    def _aim(self, id: str) -> None:
        self.loop.store[DEMO].target = id

    async def _runs(self, version: str, *, after: int) -> None:
        await self.loop.detectors.until(lambda report: report.body["current_model"] == version, after=after)

    async def _reports(self, seen: int) -> None:
        await self.loop.detectors.wait(seen + 1)

    async def _works(self, seen: int) -> None:
        """It has logged in for whatever it does."""
        await self._reports(seen)
        calls = len(self.loop.calls)
        await self.loop.calls.until(lambda call: call.name == "target" and call.status == 200, after=calls)
        await self._arrived(await self._keep(1))

    async def _keep(self, count: int) -> set[str]:
        """Have pictures kept; the ids of the samples."""
        ids: set[str] = set()
        for _ in range(count):
            self.seed += 1
            jpeg = picture(self.seed, width=64 + self.seed % 50)
            answer = await self.client.post(
                "/predict", params={"keep": "all"}, content=jpeg, headers={"content-type": "image/jpeg"}
            )
            ids.add(answer.raise_for_status().json()["sample_id"])
        self.accepted |= dict.fromkeys(ids, self.answer)
        return ids

    async def _arrived(self, ids: set[str]) -> None:
        """All that was sent is with the Loop, or was refused by it, or the Loop says that it has it."""
        status = await self.operate("outbox_drain")
        if status["sinks"][SINK]["waiting"]:
            await anyio.sleep_forever()  # it has halted: a person is needed
        assert self.answer in BELIEVED or ids <= self._there() | await self._rejected()

    def _there(self) -> set[str]:
        return {upload.stem.removeprefix("image_") for upload in self.loop.uploads}

    async def _rejected(self) -> set[str]:
        return {row["id"] for row in await self.operate("outbox_rejected")}


class OldDetector(Detector):
    """The same at a Loop from before 2025: status and target go over the socket."""

    role = "old loop"
    calls: ClassVar[tuple[str, ...]] = ("socket", "update_detector")

    def make_loop(self) -> LoopServer:
        return LoopServer(ping_s=25 / SPEED, old=True)

    async def provoke(self, call: str) -> Proof:
        if call == "socket":
            await self.loop.sockets.drop()
        return await super().provoke("target")
