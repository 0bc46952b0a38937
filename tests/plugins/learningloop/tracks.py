"""One node after the other meets each answer to each of its calls; what came of it goes into the table of `cells.py`.

Nodes run in hurried event loops; what is here runs in a loop with a true clock, and reaches them by HTTP and through
the server's books.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Awaitable, Callable
from concurrent.futures import wait
from contextlib import asynccontextmanager
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, ClassVar, Self, TypeAlias

import anyio
import httpx
from anyio import AsyncContextManagerMixin, to_thread
from cells import ANSWERS, TABLE, Cell
from hurry import hurried
from loop import DEMO, MODEL_IDS, Call, Fault, LoopServer, StoredModel, category, mocked, picture
from loop.server import across

from loopcore import config
from loopcore.node import Node
from loopcore.node.control_socket import LongOperation
from loopcore.plan import resolve
from loopcore.registry import Registry

DRIVERS = Path(__file__).with_name("programs") / "drivers.py"
SINK = "loop"
SPEED = 20.0
CELL_S = 20.0
"""Within this all must be well again; 400 s on the node's clock."""

MENDS_S = 0.5
"""Before a person comes, where one must: 10 s on the node's clock."""

BY_HAND = frozenset({"401", "403"})
"""After these a node may wait for a person: its account is not accepted."""

REFUSED = BY_HAND | {"404", "409", "422"}
"""The Loop says no, and will say it again: asking on would be a nuisance."""

BELIEVED = frozenset({"409", "nonsense"})
"""These say that the Loop has what it was sent: the node cannot know better."""

Proof: TypeAlias = Callable[[], Awaitable[None]]
"""Returns when what the call was for has been reached."""


class Track(AsyncContextManagerMixin, ABC):
    """A Loop and a node of one role, and how each of its calls is brought about.

    Attributes:
        calls: By their names in `loop.calls`.
        once: Calls whose fault is given once: to get over it costs seconds.
        by_hand: After which answers to which call it may wait for a person, where these are others than `BY_HAND`.
    """

    role: ClassVar[str]
    calls: ClassVar[tuple[str, ...]]
    once: ClassVar[frozenset[str]] = frozenset()
    by_hand: ClassVar[dict[str, frozenset[str]]] = {}

    def __init__(self, folder: Path, *, old: bool = False) -> None:
        self.folder = folder
        self.loop = LoopServer(ping_s=25 / SPEED, old=old)
        self.answer = ""

    @asynccontextmanager
    async def __asynccontextmanager__(self) -> AsyncGenerator[Self]:
        async with self.loop:
            self.prepare()
            with hurried(SPEED) as portal:
                self._portal = portal
                async with (
                    httpx.AsyncClient(verify=False, timeout=CELL_S) as self.client,
                    anyio.create_task_group() as self.people,
                ):
                    await self._start()
                    try:
                        yield self
                    finally:
                        self.people.cancel_scope.cancel()
                        self.loop.faults.lift()
                        with anyio.CancelScope(shield=True):
                            await self._stop()

    async def restart(self) -> None:
        """Another node with the same folder."""
        await self._stop()
        await self._start()

    async def _start(self) -> None:
        self._running, self.client.base_url = await to_thread.run_sync(self._portal.start_task, self._run)
        await self.begin()

    async def _stop(self) -> None:
        self._running.cancel()
        await to_thread.run_sync(wait, [self._running])

    async def meet(self, answer: str) -> AsyncGenerator[tuple[str, Exception | None]]:
        """Meet this answer in each call; for each, what went wrong."""
        for call in self.calls:
            yield call, await self._meet(call, answer)

    async def _meet(self, call: str, answer: str) -> Exception | None:
        """Give this answer to a call, see all well again, and enter it in the table."""
        fault = ANSWERS[answer]
        self.answer = answer
        seen = len(self.loop.arrivals)
        begun = anyio.current_time()
        verdict = "failed"
        try:
            with anyio.fail_after(CELL_S):
                self.loop.faults.script(call, *[fault] * (1 if call in self.once else 2))
                proof = await self.provoke(call)
                await self.loop.arrivals.until(lambda one: one.name == call and one.fault is fault, after=seen)
                verdict = await self._see(proof, may_wait=answer in self.by_hand.get(call, BY_HAND))
        except Exception as exc:  # noqa: BLE001 - it is the cell's result
            return exc
        finally:
            self.loop.faults.lift()
            self.enter(call, verdict, begun)
        return None

    def enter(self, call: str, verdict: str, begun: float) -> None:
        """Write a cell of the table."""
        seconds = (anyio.current_time() - begun) * SPEED
        TABLE.append(Cell(self.role, call, self.answer, verdict, seconds))

    async def _see(self, proof: Proof, *, may_wait: bool) -> str:
        if not may_wait:
            await proof()
            return "ok"
        verdict = "ok"
        while True:
            with anyio.move_on_after(MENDS_S):
                await proof()
                return verdict
            await self.mend()
            verdict = "by hand"

    async def _run(self, *, task_status: Any) -> None:
        table = {
            "node": {"name": "test", "data_dir": str(self.folder)},
            "server": {"port": 0},
            "plugins": {"files": [str(DRIVERS)]},
            **self.tables(),
        }
        self.node = Node(resolve(config.parse(table), Registry()))
        await self.node.run(task_status=task_status)

    async def operate(self, name: str, **parameters: Any) -> Any:
        """One of the operations that commands ask of a running node."""

        async def silent(_: Any) -> None:
            return None

        operation = self.node.operations()[name]
        run = partial(operation.run, silent) if isinstance(operation, LongOperation) else operation
        return await across(self._portal.start_task_soon(partial(run, **parameters)))

    @property
    def platform(self) -> dict[str, Any]:
        """The table of the platform."""
        return {"name": "loop", "driver": "learningloop", "timeout": "4 s", "model_timeout": "6 s", **self.account}

    @property
    def account(self) -> dict[str, Any]:
        return {
            "url": self.loop.url,
            "username": "ranger",
            "password": "krill",
            "organization": "zauberzeug",
            "project": "demo",
        }

    @abstractmethod
    def tables(self) -> dict[str, Any]:
        """The node's tables."""

    def prepare(self) -> None:
        """Put into the Loop what this role needs."""

    async def begin(self) -> None:
        """Wait until the node is at work."""

    @abstractmethod
    async def provoke(self, call: str) -> Proof:
        """Have the node make this call; what shows that it has got what it was for."""

    async def mend(self) -> None:
        """Do what a person does when a node waits for one."""

    @abstractmethod
    async def end(self) -> None:
        """Compare the books: nothing is lost."""


class Detector(Track):
    """Follows the target, tells its status, delivers what it keeps."""

    role = "detector"
    calls = ("login", "detectors", "target", "models", "download", "project", "upload")

    def __init__(self, folder: Path, *, old: bool = False) -> None:
        super().__init__(folder, old=old)
        self.accepted: dict[str, str] = {}
        self.seed = 0

    def tables(self) -> dict[str, Any]:
        return {
            "backend": {"driver": "mocked", "model": "follow"},
            "platforms": [self.platform],
            "rollouts": [{"from": "loop", "to": "self", "every": "1 s", "report": "2 s"}],
            "sinks": [{"driver": "learningloop", "name": SINK, "timeout": "4 s", **self.account}],
            "outbox": {"min_free": 0},
        }

    async def begin(self) -> None:
        await self._reports(len(self.loop.detectors))
        await self._runs(self._target().version, after=0)

    async def provoke(self, call: str) -> Proof:
        seen = len(self.loop.detectors)
        match call:
            case "login":
                self.loop.expire_sessions()
                return lambda: self._reports(seen)
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
    calls = ("socket", "update_detector")

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, old=True)

    async def provoke(self, call: str) -> Proof:
        if call == "socket":
            await self.loop.sockets.drop()
        return await super().provoke("target")


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


class Converter(Track):
    """Gives models a format that they lack."""

    role = "converter"
    calls = ("login", "projects", "models", "project", "download", "publish_model")
    by_hand: ClassVar[dict[str, frozenset[str]]] = dict.fromkeys(
        ("login", "project", "download", "publish_model"), REFUSED
    )
    once = frozenset({"project", "publish_model"})

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.models: list[StoredModel] = []

    def tables(self) -> dict[str, Any]:
        everywhere = {key: value for key, value in self.platform.items() if key not in ("organization", "project")}
        conversion = {"platform": "loop", "from": "format_a", "to": "format_b", "every": "1 s"}
        return {"platforms": [everywhere], "conversions": [conversion]}

    async def provoke(self, call: str) -> Proof:
        if call in ("login", "projects", "models"):
            if call == "login":
                self.loop.expire_sessions()
            seen = len(self.loop.calls)
            return lambda: self._looks(seen)
        name = f"project-{len(self.models)}"
        model = self.loop.store.add_project("zauberzeug", name, [category("fish")]).add_model("1.0", format_a=mocked())
        self.models.append(model)
        return lambda: self._converted(model)

    async def mend(self) -> None:
        await self.operate("forget_conversions")

    async def end(self) -> None:
        assert all("format_b" in model.formats for model in self.models)

    async def _looks(self, seen: int) -> None:
        """It has got the models of all projects."""
        got: set[str] = set()

        def all_got(call: Call) -> bool:
            if call.name == "projects":
                got.clear()
            if call.name == "models" and call.status == 200 and call.fault is None:
                got.add(call.path)
            return len(got) == len(self.loop.store.projects)

        await self.loop.calls.until(all_got, after=seen)

    async def _converted(self, model: StoredModel) -> None:
        upload = await self.loop.model_uploads.until(lambda upload: upload.model_id == model.id)
        organization, _, id = upload.project.partition("/")
        del self.loop.store.projects[organization, id]


class Trainer(Track):
    """Trains when it is told to: one training meets an answer in all its calls, or in one, where that may end it."""

    role = "trainer"
    talk = ("status", "login", "socket", "update_trainer")
    work = ("data", "images", "image", "models", "download", "update_training", "publish_training", "detections")
    calls = talk + work
    formats = frozenset({"mocked", "mocked_2"})

    def tables(self) -> dict[str, Any]:
        return {"trainer": {"driver": "waiting", "backend": "mocked"}, "platforms": [self.platform]}

    async def begin(self) -> None:
        await self.loop.trainers.wait(len(self.loop.trainers) + 1)

    async def meet(self, answer: str) -> AsyncGenerator[tuple[str, Exception | None]]:
        for call in self.talk:
            yield call, await self._meet(call, answer)
        for calls in [(call,) for call in self.work] if answer in REFUSED - BY_HAND else [self.work]:
            error = await self._train(calls, ANSWERS[answer])
            for call in calls:
                yield call, error

    async def _train(self, calls: tuple[str, ...], fault: Fault) -> Exception | None:
        """A training in which each of these calls meets the fault."""
        begun, seen, verdict = anyio.current_time(), len(self.loop.arrivals), "failed"
        for call in calls:
            self.loop.faults.script(call, fault, fault)
        number = len(self.loop.store[DEMO].trainings) + 1
        try:
            with anyio.fail_after(CELL_S):
                times = await self._insist(number)
                met = {one.name for one in list(self.loop.arrivals)[seen:] if one.fault is fault}
                assert met == set(calls)
                verdict = "ok" if times == 1 else "by hand"
        except Exception as exc:  # noqa: BLE001 - it is the cells' result
            return exc
        finally:
            self.loop.faults.lift()
            for call in calls:
                self.enter(call, verdict, begun)
        return None

    async def _insist(self, number: int) -> int:
        """Give a training until it has come to a good end, as a person does; how often that was."""
        for times in count(1):
            seen, told = len(self.loop.trainers), len(self.loop.detections)
            await self._give(number)
            begun = await self._index(lambda state: state not in ("idle", "blocked"), seen)
            await self._index(lambda state: state == "idle", begun)
            model = self.loop.store[DEMO].trainings[number].model
            there = model is not None and set(model.formats) == self.formats
            looked_at = {item["image_id"] for upload in self.loop.detections[told:] for item in upload.items}
            if self.answer in BELIEVED or (there and looked_at == set(self.loop.store[DEMO].images)):
                return times
        raise AssertionError

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

    async def provoke(self, call: str) -> Proof:
        if call != "update_trainer":
            self.loop.expire_sessions()
            await self.loop.sockets.drop()
        seen = len(self.loop.trainers)
        return lambda: self._reports(seen)

    async def _reports(self, seen: int) -> None:
        await self.loop.trainers.wait(seen + 1)

    async def end(self) -> None:
        project = self.loop.store[DEMO]
        assert all(training.model for training in project.trainings.values())
