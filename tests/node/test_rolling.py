"""A platform says which model is to be live; the node follows, and what serves is never worse off for it."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Self

import anyio
import pytest
from anyio import create_task_group

from loopcore.abc import DeploymentTarget, ModelRegistry
from loopcore.deploy.modelstore import ModelStore
from loopcore.errors import ConfigError, ModelError, RetryableError
from loopcore.node import control
from loopcore.options import Options
from loopcore.testing import FixedBackend, MemoryPlatform, make_jpeg, make_model
from loopcore.testing.platform import MemoryDeployment, MemoryModels
from loopcore.types import Box, Frame, ModelInfo, Prediction

from ..deploy.converters import RawToNull  # noqa: TID252 - the tests are no package with a name
from .conftest import Running, Start

pytestmark = pytest.mark.anyio

JPEG = {"Content-Type": "image/jpeg"}
ROLLOUT: Mapping[str, Any] = {"from": "acme", "every": "100 ms"}


class Acme:
    """A platform that outlives the node's restarts."""

    def __init__(self, folder: Path) -> None:
        self.models = MemoryModels()
        self.deployment = MemoryDeployment(self.models)
        self._folder = folder

    @property
    def driver(self) -> type[MemoryPlatform]:
        acme = self

        class Platform(MemoryPlatform):
            def __init__(self, options: Options) -> None:
                super().__init__(options)
                self.capabilities = {ModelRegistry: acme.models, DeploymentTarget: acme.deployment}

        return Platform

    async def publish(self, version: str, **fields: Any) -> ModelInfo:
        count = len(await self.models.list())
        content = fields.pop("content", version.encode())
        return await self.models.publish(
            make_model(self._folder / str(count), version=version, content=content, **fields)
        )

    async def want(self, version: str, **fields: Any) -> ModelInfo:
        self.deployment.wanted = await self.publish(version, **fields)
        return self.deployment.wanted

    async def until(self, holds: Callable[[Mapping[str, Any]], bool]) -> Mapping[str, Any]:
        """The first report from now on of which this holds; the last one counts too."""
        while not self.deployment.reports or not holds(self.deployment.reports[-1]):
            self.deployment.reported = anyio.Event()
            await self.deployment.reported.wait()
        return self.deployment.reports[-1]

    async def until_state(self, state: str, version: str | None = None) -> Mapping[str, Any]:
        def holds(report: Mapping[str, Any]) -> bool:
            rollout = report["rollouts"][0]
            return rollout["state"] == state and version in (None, (rollout["target"] or {}).get("version"))

        return (await self.until(holds))["rollouts"][0]


@pytest.fixture
def acme(tmp_path: Path) -> Acme:
    return Acme(tmp_path / "acme")


class Picky(FixedBackend):
    """Gives an endless box for models whose version says so."""

    def infer(self, frames: Sequence[Frame]) -> Sequence[Prediction]:
        if self.model.info.version.startswith("bad"):
            return [Prediction(detections=(Box(label="a", x=float("inf"), y=0, width=1, height=1),)) for _ in frames]
        return super().infer(frames)


@pytest.fixture
def roll(start: Start, acme: Acme) -> Start:
    """Starts a node that follows the platform."""

    def starting(drivers: Any = None, **tables: Any) -> Any:
        drivers = {"platform": {"acme": acme.driver}, "backend": {"fixed": Picky}} | (drivers or {})
        tables = {"platforms": [{"driver": "acme"}], "rollouts": [ROLLOUT]} | tables
        return start(drivers, **tables)

    return starting


async def version(running: Running) -> str | None:
    model = (await running.client.get("/status")).json()["model"]
    return model and model["version"]


async def test_a_node_without_a_model_gets_the_one_that_is_wanted_and_tells_the_platform(
    roll: Start, acme: Acme, tmp_path: Path
) -> None:
    await acme.want("5")
    async with roll(node={"name": "test", "data_dir": str(tmp_path / "empty")}) as running:
        assert await acme.until_state("current") == {
            "from": "acme",
            "to": "self",
            "target": {"name": "made", "version": "5", "id": acme.deployment.wanted.id},
            "state": "current",
            "error": None,
        }
        assert (await running.client.post("/predict", content=make_jpeg(1), headers=JPEG)).status_code == 200
        status = (await running.client.get("/status")).json()
        assert (status["model"]["version"], status["models"], status["ready"]) == ("5", ["5"], True)
        assert (await acme.until(lambda report: report["model"] is not None))["model"]["version"] == "5"


async def test_no_request_fails_while_models_change(roll: Start, acme: Acme) -> None:
    async with roll() as running:
        answers: list[int] = []
        enough = anyio.Event()

        async def ask() -> str:
            answer = await running.client.post("/predict", content=make_jpeg(1), headers=JPEG)
            answers.append(answer.status_code)
            return str(answer.json()["prediction"]["model_version"])

        async def go_on_asking() -> None:
            while not enough.is_set():
                await ask()

        async with create_task_group() as tasks:
            for _ in range(4):
                tasks.start_soon(go_on_asking)
            for number in ("11", "12", "13"):
                await acme.want(number)
                await acme.until_state("current", number)
                assert await ask() == number
            enough.set()
    assert set(answers) == {200}


async def test_a_model_trained_anew_under_the_same_version_replaces_the_old_one(roll: Start, acme: Acme) -> None:
    old = await acme.want("7", content=b"old")
    async with roll() as running:
        await acme.until_state("current", "7")
        new = await acme.want("7", content=b"new")
        await acme.until(lambda report: report["model"]["id"] == new.id)
        assert (await running.client.get("/status")).json()["model"]["id"] == new.id != old.id


async def test_a_model_that_the_gate_refuses_never_serves_and_is_not_fetched_again_even_after_a_restart(
    roll: Start, acme: Acme, data_dir: Path
) -> None:
    await acme.want("bad")
    for _ in range(2):
        async with roll() as running:
            shown = await acme.until_state("refused")
            assert "the rule 'warm-up' refuses made bad: it gives boxes that are not finite" in shown["error"]
            assert await version(running) == "1"
            assert acme.models.fetched == [("bad", "null")]
            acme.deployment.reports.clear()
    async with roll({"backend": {"fixed": FixedBackend}}) as running:
        await acme.until_state("refused")
        assert await control(data_dir).call("forget_refused") == 1
        await acme.until_state("current")
        assert await version(running) == "bad"


async def test_a_model_without_the_labels_that_the_gate_wants_is_refused(roll: Start, acme: Acme) -> None:
    await acme.want("5", labels=("cat",))
    async with roll(rollouts=[{**ROLLOUT, "gate": {"labels": ["cat", "fox"]}}]) as running:
        assert "it lacks the labels 'fox'" in (await acme.until_state("refused"))["error"]
        assert await version(running) == "1"


DIARY = """
from pathlib import Path
from loopcore.hookspecs import hookimpl

def note(line):
    with Path(__file__).with_suffix(".txt").open("a") as file:
        print(line, file=file)

@hookimpl
async def loopcore_model_activated(model, previous):
    note(f"activated {model.info.version} after {previous and previous.info.version}")

@hookimpl
async def loopcore_model_refused(model, why):
    note(f"refused {model.version}: {why}")
"""


async def test_hooks_hear_of_what_serves_and_of_what_was_refused(roll: Start, acme: Acme, tmp_path: Path) -> None:
    (tmp_path / "diary.py").write_text(DIARY)
    async with roll(plugins={"files": [str(tmp_path / "diary.py")]}):
        await acme.want("bad")
        await acme.until_state("refused")
        await acme.want("5")
        await acme.until_state("current")
    assert (tmp_path / "diary.txt").read_text().splitlines() == [
        "activated 1 after None",
        "refused bad: the rule 'warm-up' refuses made bad: it gives boxes that are not finite",
        "activated 5 after 1",
    ]


async def test_updates_that_are_held_come_when_they_are_let(roll: Start, acme: Acme, data_dir: Path) -> None:
    async with roll() as running:
        await control(data_dir).call("hold_updates", hold=True)
        await acme.want("5")
        await acme.until_state("held", "5")
        assert (await version(running), acme.models.fetched) == ("1", [])
        await control(data_dir).call("hold_updates", hold=False)
        await acme.until_state("current")
        assert await version(running) == "5"


async def test_a_paused_node_shows_the_target_and_keeps_its_model(roll: Start, acme: Acme, data_dir: Path) -> None:
    async with roll(backend={"driver": "fixed", "model": "pause"}) as running:
        await acme.want("5")
        await acme.until_state("paused", "5")
        assert await version(running) == "1"
        await control(data_dir).call("set_model", choice="follow")
        await acme.until_state("current")
        assert await version(running) == "5"


async def test_a_version_that_only_the_platform_has_can_be_chosen(roll: Start, acme: Acme, data_dir: Path) -> None:
    await acme.publish("8")
    async with roll() as running:
        await control(data_dir).call("set_model", choice="8")
        assert await version(running) == "8"
        await acme.until_state("waiting")
        with pytest.raises(ModelError, match="has no model '9'"):
            await control(data_dir).call("set_model", choice="9")
        assert await version(running) == "8"
    async with roll() as running:
        assert await version(running) == "8"


async def test_a_version_of_two_models_must_be_told_by_id(roll: Start, acme: Acme, data_dir: Path) -> None:
    one, two = [await acme.publish("8", content=content) for content in (b"one", b"two")]
    async with roll() as running:
        with pytest.raises(ModelError, match="say the id"):
            await control(data_dir).call("set_model", choice="8")
        await control(data_dir).call("set_model", choice=one.id[:12])
        assert (await running.client.get("/status")).json()["model"]["id"] == one.id
    async with roll() as running:
        assert (await running.client.get("/status")).json()["model"]["id"] == one.id != two.id


async def test_one_step_back_is_the_model_before_and_stays(roll: Start, acme: Acme, data_dir: Path) -> None:
    await acme.want("5")
    async with roll() as running:
        await acme.until_state("current")
        await control(data_dir).call("previous_model")
        assert await version(running) == "1"
        await acme.until_state("paused", "5")
    async with roll() as running:
        assert await version(running) == "1"
        await control(data_dir).call("previous_model")
        assert await version(running) == "5"


async def test_without_a_model_before_there_is_no_way_back(roll: Start, data_dir: Path) -> None:
    async with roll() as running:
        with pytest.raises(ModelError, match="no model has served before"):
            await control(data_dir).call("previous_model")
        assert await version(running) == "1"


async def test_a_node_works_from_its_last_model_when_the_platform_is_away(roll: Start, acme: Acme) -> None:
    await acme.want("5")
    async with roll():
        await acme.until_state("current")
    acme.deployment.errors.extend(RetryableError("no route") for _ in range(100))
    async with roll() as running:
        assert await version(running) == "5"
        assert (await running.client.post("/predict", content=make_jpeg(1), headers=JPEG)).status_code == 200
        acme.deployment.errors.clear()


async def test_a_download_goes_on_after_a_restart_where_it_broke_off(roll: Start, acme: Acme) -> None:
    class Torn(MemoryModels):
        seen: str | None = None

        async def fetch(self, info: ModelInfo, format: str, into: Path) -> None:
            if not self.fetched:
                self.fetched.append((info.version, format))
                (into / "weights.bin.part").write_text("half")
                raise RetryableError("reset")
            self.seen = (into / "weights.bin.part").read_text()
            await super().fetch(info, format, into)

    acme.models = torn = Torn()
    await acme.want("5")
    async with roll():
        assert (await acme.until_state("failed"))["error"] == "reset"
    async with roll() as running:
        await acme.until_state("current")
        assert (await version(running), torn.seen) == ("5", "half")


async def test_a_version_that_the_toml_names_is_fetched_by_a_node_that_lacks_it(
    roll: Start, acme: Acme, tmp_path: Path
) -> None:
    await acme.publish("8")
    tables = {"node": {"data_dir": str(tmp_path / "empty")}, "backend": {"driver": "fixed", "model": "8"}}
    async with roll(**tables) as running:
        await acme.until(lambda report: report["model"] is not None)
        assert await version(running) == "8"


async def test_a_model_of_another_format_is_converted_on_its_way(roll: Start, acme: Acme) -> None:
    await acme.want("5", format="raw")
    async with roll({"converter": {"raw-to-null": RawToNull}}) as running:
        await acme.until_state("current")
        assert await version(running) == "5"


async def test_old_models_are_cleared_away(roll: Start, acme: Acme, data_dir: Path) -> None:
    async with roll():
        for number in ("11", "12", "13", "14", "15"):
            await acme.want(number)
            await acme.until_state("current", number)
    assert [model.info.version for model in ModelStore(data_dir / "models").list()] == ["15", "14", "13"]


async def test_reports_that_fail_disturb_nothing(roll: Start, acme: Acme, caplog: pytest.LogCaptureFixture) -> None:
    class Deaf(MemoryDeployment):
        async def report(self, status: Mapping[str, Any]) -> None:
            raise RetryableError("busy")

    acme.deployment = Deaf(acme.models)
    async with roll() as running:
        await acme.want("5")
        while await version(running) != "5":
            await acme.deployment.asked.wait()
            acme.deployment.asked = anyio.Event()
    assert len([record for record in caplog.records if "takes no report" in record.message]) == 1


async def test_a_later_choice_goes_before_a_download_that_was_begun(roll: Start, acme: Acme, data_dir: Path) -> None:
    class Slow(MemoryModels):
        begun = anyio.Event()
        go_on = anyio.Event()

        async def fetch(self, info: ModelInfo, format: str, into: Path) -> None:
            self.begun.set()
            await self.go_on.wait()
            await super().fetch(info, format, into)

    acme.models = slow = Slow()
    await acme.publish("8")
    async with roll() as running, create_task_group() as tasks:

        async def choose() -> None:
            with pytest.raises(ModelError, match="chosen meanwhile"):
                await control(data_dir).call("set_model", choice="8")

        tasks.start_soon(choose)
        await slow.begun.wait()
        await control(data_dir).call("set_model", choice="2")
        slow.go_on.set()
        assert await version(running) == "2"


async def test_an_exclusive_backend_never_holds_two_models_and_the_old_one_comes_back(roll: Start, acme: Acme) -> None:
    open_now: list[str] = []
    most: list[int] = []

    class Alone(Picky):
        @asynccontextmanager
        async def __asynccontextmanager__(self) -> AsyncGenerator[Self]:
            open_now.append(self.model.info.version)
            most.append(len(open_now))
            try:
                yield self
            finally:
                open_now.remove(self.model.info.version)

    backend = {"driver": "fixed", "exclusive": True}
    async with roll({"backend": {"fixed": Alone}}, backend=backend) as running:
        await acme.want("bad")
        await acme.until_state("refused")
        assert await version(running) == "1"
        await acme.want("5")
        await acme.until_state("current")
        assert await version(running) == "5"
    assert set(most) == {1}


async def test_models_travel_to_another_platform(roll: Start, acme: Acme, tmp_path: Path) -> None:
    device = Acme(tmp_path / "device")
    tables = {
        "platforms": [{"driver": "acme"}, {"driver": "device"}],
        "rollouts": [{**ROLLOUT, "to": "device"}, ROLLOUT],
    }
    wanted = await acme.want("5")
    async with roll({"platform": {"acme": acme.driver, "device": device.driver}}, **tables):
        await acme.until_state("current")
        assert device.deployment.wanted is not None
        assert device.deployment.wanted.id == wanted.id


async def test_a_platform_that_names_no_target_cannot_be_followed(roll: Start, acme: Acme) -> None:
    class Mute(MemoryPlatform):
        def __init__(self, options: Options) -> None:
            super().__init__(options)
            del self.capabilities[DeploymentTarget]

    with pytest.RaisesGroup(
        pytest.RaisesExc(ConfigError, match=r"rollouts\[0\]: the platform 'acme' has no DeploymentTarget"),
        flatten_subgroups=True,
    ):
        async with roll({"platform": {"acme": Mute}}):
            pass


async def test_the_node_ends_when_the_platform_asks_for_its_restart(roll: Start, acme: Acme) -> None:
    asked = anyio.Event()
    acme.deployment.restart_wanted = asked.wait
    async with roll() as running:
        assert (await running.client.get("/status")).status_code == 200
        asked.set()
        await running.ended.wait()
