"""What a compatible node does against a Loop (`learning-loop.md` 14.5), whoever's node it is.

Nodes poll every five seconds, so scenarios run side by side, each with a server and processes of its own.
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import anyio
import httpx
from anyio.from_thread import start_blocking_portal
from loop import ANNOTATOR, ANNOTATOR_IMAGE, DEMO, Book, LoopServer, Report, picture
from peers.processes import Program, free_port

SCENARIO_S = 110
HAPPY = {"success": True, "error_msg": None}


class Nodes(Protocol):
    """Whose nodes they are.

    Attributes:
        ready: What each of them says when it listens.
    """

    ready: str

    def command(self, role: str, port: int, *args: str) -> Sequence[str | Path]:
        """How a node is started that listens on this port of loopback.

        Args:
            role: `detector`, `trainer`, `annotator` …
            port: Where it listens.
            args: Of a trainer: how many seconds its training takes.
        """
        ...


@dataclass
class Stage:
    """What a scenario has: a server, and nodes that are pointed at it."""

    loop: LoopServer
    folder: Path
    nodes: Nodes

    @asynccontextmanager
    async def run(self, role: str, *args: str) -> AsyncGenerator[tuple[Program, httpx.AsyncClient]]:
        """A node that has come up, and a client of it."""
        self.folder.mkdir(exist_ok=True)
        port = free_port()
        environment = {
            "DATA_FOLDER": str(self.folder),
            "LOOP_HOST": self.loop.host,
            "LOOP_USERNAME": "ranger",
            "LOOP_PASSWORD": "krill",
            "LOOP_ORGANIZATION": "zauberzeug",
            "LOOP_PROJECT": "demo",
        }
        async with Program(self.nodes.command(role, port, *args), environment, self.folder) as running:
            await running.says(self.nodes.ready)
            async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", verify=False, timeout=20) as client:
                yield running, client

    async def detect(self, client: httpx.AsyncClient, seed: int, tags: str) -> dict[str, Any]:
        """Have a picture looked at and kept."""
        headers = {"autoupload": "all", "camera-id": "front", "tags": tags}
        answer = await client.post("/detect", files={"file": picture(seed)}, headers=headers)
        assert answer.status_code == 200
        found: dict[str, Any] = answer.json()
        return found


Scenario: TypeAlias = Callable[[Stage], Awaitable[None]]


@contextmanager
def played(scenarios: Mapping[str, Scenario], folder: Path, nodes: Nodes) -> Iterator[dict[str, Future[None]]]:
    """All scenarios on their way, in an event loop of their own."""

    async def play(name: str, scenario: Scenario) -> None:
        with anyio.fail_after(SCENARIO_S):
            async with LoopServer() as loop:
                await scenario(Stage(loop, folder / name, nodes))
                assert list(loop.complaints) == []

    with start_blocking_portal() as portal:
        yield {name: portal.start_task_soon(play, name, scenario) for name, scenario in scenarios.items()}


def runs(version: str | None) -> Callable[[Report], bool]:
    """Whether a detector says that it runs this version."""
    return lambda report: report.body["current_model"] == version


def is_in(state: str) -> Callable[[Report], bool]:
    """Whether a trainer says that it is in this state."""
    return lambda report: report.body["state"] == state


def index_of(book: Book[Report], wanted: Callable[[Report], bool]) -> int:
    return next(index for index, report in enumerate(book) if wanted(report))


async def detector_follows_the_target_and_the_mode(stage: Stage) -> None:
    loop = stage.loop
    async with stage.run("detector") as (_, client):
        assert (await loop.detectors.wait(1))[0].body["current_model"] is None
        await loop.detectors.until(runs("1.1"))
        order = list(dict.fromkeys(call.name for call in loop.calls))
        assert order[0] == "login"
        assert order.index("target") < order.index("download")

        loop.expire_sessions()
        loop.store[DEMO].target = loop.store[DEMO].model("1.2").id
        await loop.detectors.until(runs("1.2"))
        assert len(loop.logins) == 2

        await client.put("/model_version", content="1.0")
        seen = len(loop.detectors)
        await loop.detectors.until(runs("1.0"), after=seen)
        await client.put("/model_version", content="pause")
        assert (await client.get("/model_version")).json()["version_control"] == "pause"
        await client.put("/model_version", content="follow_loop")
        await loop.detectors.until(runs("1.2"), after=seen)


async def detector_delivers_each_picture_but_the_refused_one(stage: Stage) -> None:
    loop = stage.loop
    async with stage.run("detector") as (_, client):
        await loop.detectors.until(runs("1.1"))
        answer = await stage.detect(client, 1, "first")
        (first,) = await loop.uploads.wait(1)
        assert (first.jpeg, first.metadata["tags"][0]) == (picture(1), "first")
        assert len(answer["box_detections"]) == 1
        told, sent = answer["box_detections"][0], first.metadata["box_detections"][0]
        assert {**told, "category_id": None} == {**sent, "category_id": None}

        async with loop.down():
            for seed in (2, 3, 4):
                await stage.detect(client, seed, "poison" if seed == 3 else "kept")
            loop.refuses = lambda upload: "poison" in upload.metadata["tags"]
        await loop.uploads.wait(3)
        assert {upload.jpeg for upload in loop.uploads} == {picture(1), picture(2), picture(4)}
        assert {upload.jpeg for upload in loop.refused} >= {picture(3)}


async def trainer_goes_through_a_whole_training(stage: Stage) -> None:
    loop = stage.loop
    async with stage.run("trainer", "9"):
        lacking = await loop.sockets.begin_training(DEMO, 6, training_number=...)
        assert (lacking["success"], "training_number" in lacking["error_msg"]) == (False, True)
        assert HAPPY.items() <= (await loop.sockets.begin_training(DEMO, 7)).items()
        refused = await loop.sockets.begin_training(DEMO, 8)
        assert (refused["success"], refused["payload"]) == (False, "refused")

        await loop.trainings.wait(2)
        published = await loop.model_uploads.wait(2, within=40)
        assert {upload.format for upload in published} == {"mocked", "mocked_2"}
        assert {(upload.model_id, upload.training) for upload in published} == {(published[0].model_id, 7)}
        await loop.trainers.until(is_in("idle"), after=index_of(loop.trainers, is_in("running")))

        project = loop.store[DEMO]
        model = project.models[published[0].model_id]
        told = json.loads(model.formats["mocked"]["model.json"])
        assert [one["id"] for one in told["categories"]] == [one["id"] for one in project.categories]
        items = [item for upload in loop.detections for item in upload.items]
        assert {item["image_id"] for item in items} == set(project.images)
        assert items[0]["box_detections"][0]["model_name"] == model.version
        assert [call.query["state"] for call in loop.calls if call.name == "data"] == [
            "complete", "inbox", "annotate", "review", "complete",
        ]  # fmt: skip
        contexts = [report.body["context"] for report in loop.trainers if is_in("running")(report)]
        assert contexts[0] == {"organization": "zauberzeug", "project": "demo"}
        first, *_, last = (report.body for report in loop.trainings)
        assert set(last["confusion_matrix"]) == {one["id"] for one in project.categories}
        assert last["best_epoch"] > first["best_epoch"]


async def trainer_forgets_what_is_aborted(stage: Stage) -> None:
    loop = stage.loop
    async with stage.run("trainer", "600"):
        await loop.sockets.begin_training(DEMO, 7)
        await loop.trainers.until(is_in("running"))
        assert (await loop.sockets.abort_training())["success"] is True
        await loop.trainers.until(is_in("idle"), after=len(loop.trainers))
        assert list(loop.model_uploads) == []


async def trainer_goes_on_after_a_kill_and_publishes_when_stopped(stage: Stage) -> None:
    loop = stage.loop
    async with stage.run("trainer", "600") as (trainer, _):
        await loop.sockets.begin_training(DEMO, 8)
        await loop.trainings.wait(1, within=40)
        await trainer.kill()
    async with stage.run("trainer", "600"):
        await loop.trainers.until(is_in("running"), after=len(loop.trainers))
        assert (await loop.sockets.stop_training())["success"] is True
        uploads = await loop.model_uploads.wait(2, within=30)
        assert {upload.training for upload in uploads} == {8}


async def annotator_outlines_what_a_person_draws(stage: Stage) -> None:
    loop = stage.loop
    (category,) = loop.store[ANNOTATOR].categories
    organization, project = ANNOTATOR.split("/")

    def act(event: str, x: int, **more: Any) -> dict[str, Any]:
        context = {"organization": organization, "project": project}
        data = {"coordinate": {"x": x, "y": x}, "event_type": event, "context": context, "image_uuid": ANNOTATOR_IMAGE}
        return {"frontend_id": "browser 1", "data": data | {"category": category} | more}

    async with stage.run("annotator"):
        await loop.annotators.wait(1)
        async with loop.down():
            pass
        await loop.connections.wait(2)
        for event, x in (("left_mouse_down", 3), ("left_mouse_up", 30)):
            answer = await loop.sockets.handle_user_input(act(event, x))
            assert answer == HAPPY | {"payload": answer["payload"]}
            assert answer["payload"].startswith("<")
        (annotation,) = await loop.annotations.wait(1)
        assert (annotation.project, annotation.body["image_id"]) == (ANNOTATOR, ANNOTATOR_IMAGE)
        assert len(annotation.body["shape"]["points"]) >= 3
        assert (await loop.sockets.handle_user_input(act("key_up", 0, key_up="Escape")))["payload"] == ""
        assert (await loop.sockets.user_logout("browser 1"))["success"] is True
        assert [call.path for call in loop.calls if call.name == "image"] == [
            f"/api/{organization}/projects/{project}/images/{ANNOTATOR_IMAGE}/main"
        ]


DETECTOR = (detector_follows_the_target_and_the_mode, detector_delivers_each_picture_but_the_refused_one)
TRAINER = (
    trainer_goes_through_a_whole_training,
    trainer_goes_on_after_a_kill_and_publishes_when_stopped,
    trainer_forgets_what_is_aborted,
)
ANNOTATOR_ROLE = (annotator_outlines_what_a_person_draws,)
