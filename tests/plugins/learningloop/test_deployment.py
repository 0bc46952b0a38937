"""The Loop says which model is to be live, and hears how the node is doing, in the words of old and new Loops."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any

import pytest
from loop import DEMO, MODEL_IDS, Answer, LoopServer, Nonsense, Reset
from loopcore_learningloop import wire
from loopcore_learningloop.client import Loop
from loopcore_learningloop.deployment import Deployment, detector_status
from loopcore_learningloop.options import PlatformOptions
from loopcore_learningloop.packages import EXTRA
from loopcore_learningloop.projects import Project

from loopcore.deploy.identity import same_model
from loopcore.errors import RejectedError, RemoteError, RetryableError
from loopcore.options import Secret

pytestmark = pytest.mark.anyio

MODEL = {"name": "demo", "version": "1.0", "format": "onnx", "id": "5be1", "labels": []}
STATUS: dict[str, Any] = {
    "node": "gate-3",
    "ready": True,
    "uptime_s": 12.9,
    "model": MODEL,
    "updates_held": False,
    "rollouts": [
        {"from": "loop", "to": "elsewhere", "target": {"version": "9"}, "state": "failed", "error": "not ours"},
        {"from": "loop", "to": "self", "target": {"version": "1.1"}, "state": "failed", "error": "no such format"},
    ],
}


def options(loop: LoopServer, **more: Any) -> PlatformOptions:
    account = {"username": "ranger", "password": Secret("krill")}
    return PlatformOptions(url=loop.url, organization="zauberzeug", project="demo", **(account | more))


@pytest.fixture
async def project(loop: LoopServer) -> AsyncGenerator[Project]:
    async with Loop(options(loop), tries=1) as client:
        yield Project(client, "Zauberzeug", "Demo")


@pytest.fixture
def deployment(loop: LoopServer, project: Project) -> Deployment:
    return Deployment(project, options(loop))


async def test_target_is_the_model_that_people_chose(loop: LoopServer, deployment: Deployment) -> None:
    target = await deployment.target()
    assert target is not None
    assert (target.name, target.version, target.format) == ("demo", "1.1", "")
    assert target.extra[EXTRA]["id"] == MODEL_IDS["1.1"]


async def test_another_model_of_the_same_version_is_another_target(loop: LoopServer, deployment: Deployment) -> None:
    before = await deployment.target()
    loop.store[DEMO].target = loop.store[DEMO].add_model("1.1", mocked={}).id
    after = await deployment.target()
    assert before is not None
    assert after is not None
    assert before.version == after.version
    assert not same_model(before, after)


@pytest.mark.parametrize("body", [None, b'{"model_uuid": null, "version": null}', b'{"model_uuid": "", "version": ""}'])
async def test_without_a_choice_there_is_no_target(
    loop: LoopServer, deployment: Deployment, body: bytes | None
) -> None:
    loop.store[DEMO].target = None
    if body:
        loop.faults.set("target", Nonsense(body))
    assert await deployment.target() is None


@pytest.mark.parametrize(
    "fault",
    [Answer(500), Reset(), Nonsense(), Nonsense(b"{}"), Answer(404, {"content-type": "text/html"}, b"<html>")],
    ids=str,
)
async def test_loop_that_cannot_say_is_an_error_and_not_the_lack_of_a_choice(
    loop: LoopServer, deployment: Deployment, fault: Any
) -> None:
    loop.faults.set("target", fault)
    with pytest.raises(RetryableError):
        await deployment.target()


async def test_target_cannot_be_set_from_here(deployment: Deployment) -> None:
    target = await deployment.target()
    assert target is not None
    with pytest.raises(RejectedError, match=r"choose 1\.1 there"):
        await deployment.assign(target)


async def test_loop_hears_all_that_it_shows(loop: LoopServer, deployment: Deployment) -> None:
    await deployment.report(STATUS)
    (report,) = await loop.detectors.wait(1)
    assert report.body.pop("node_version").startswith("loopcore ")
    assert len(report.body.pop("uuid")) == 36
    assert report.body == {
        "name": "gate-3",
        "state": "online",
        "uptime": 12,
        "model_format": "onnx",
        "current_model": "1.0",
        "target_model": "1.1",
        "errors": {"update_model": "no such format"},
        "operation_mode": "idle",
    }
    assert len(loop.complaints) == 0


@pytest.mark.parametrize(
    ("changes", "mode", "current"),
    [
        ({"ready": False, "model": None}, "startup", None),
        ({"updates_held": True}, "detecting", "1.0"),
        ({"rollouts": []}, "idle", "1.0"),
    ],
)
def test_mode_of_a_node_is_told_in_the_loops_words(changes: dict[str, Any], mode: str, current: str | None) -> None:
    told = detector_status(STATUS | changes, PlatformOptions(organization="o", project="p"))
    assert (told.operation_mode, told.current_model) == (mode, current)


def test_little_may_be_known_of_a_node() -> None:
    told = detector_status({}, PlatformOptions(node_version="7", node_id="mine"))
    assert (told.uuid, told.node_version, told.errors, told.target_model) == ("mine", "7", {}, None)


def test_node_keeps_its_id_and_has_another_in_another_project() -> None:
    ids = [
        detector_status(STATUS, PlatformOptions(organization="o", project=project)).uuid for project in ("p", "p", "q")
    ]
    assert ids[0] == ids[1] != ids[2]


async def test_muted_node_exchanges_nothing(loop: LoopServer, project: Project) -> None:
    deployment = Deployment(project, options(loop, muted=True))
    await deployment.report(STATUS)
    assert await deployment.target() is None
    assert len(loop.arrivals) == 0


async def test_old_loop_is_told_over_its_socket_and_answers_with_the_target(loop: LoopServer, project: Project) -> None:
    told: list[wire.DetectorStatus] = []

    async def over_socket(_: Project, status: wire.DetectorStatus) -> wire.Target | None:
        told.append(status)
        return wire.Target(model_uuid=MODEL_IDS["1.2"], version="1.2")

    deployment = Deployment(project, options(loop), over_socket)
    for call in ("detectors", "target"):
        loop.faults.set(call, Answer(404, {}, b'{"detail":"Not Found"}'))
    assert await deployment.target() is None
    await deployment.report(STATUS)
    target = await deployment.target()
    assert target is not None
    assert target.extra[EXTRA]["id"] == MODEL_IDS["1.2"]
    assert [status.name for status in told] == ["gate-3"]
    loop.faults.lift()  # the Loop is a new one by now
    await deployment.report(STATUS)
    assert [report.body["name"] for report in loop.detectors] == ["gate-3"]
    target = await deployment.target()
    assert target is not None
    assert target.version == "1.1"


@pytest.mark.parametrize("fault", [Answer(404), Answer(500), Reset()], ids=str)
async def test_report_that_nobody_takes_is_an_error(loop: LoopServer, deployment: Deployment, fault: Any) -> None:
    loop.faults.set("detectors", fault)
    with pytest.raises(RemoteError):
        await deployment.report(STATUS)
