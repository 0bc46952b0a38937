"""A node: what its parts promise together."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar

import anyio
import pytest
from anyio import fail_after
from anyio.abc import TaskStatus

from loopcore.abc import Platform, Service, Sink, Source
from loopcore.errors import ConfigError, LoopcoreError, ModelError, NotReadyError, PluginError, StorageError
from loopcore.node import control
from loopcore.node.control_socket import serve_control
from loopcore.options import Options
from loopcore.package import write_package
from loopcore.testing import FixedBackend, make_jpeg
from loopcore.types import Delivered, ModelInfo, Receipt, Sample

from .conftest import Start, make_model

pytestmark = pytest.mark.anyio

JPEG = {"Content-Type": "image/jpeg"}


class Shelf(Sink):
    """A sink whose samples outlive it, so that they can be looked at after a restart."""

    samples: ClassVar[dict[str, Sample]] = {}
    arrived: ClassVar[anyio.Event]

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        type(self).arrived = anyio.Event()

    async def send(self, samples: Sequence[Sample]) -> Sequence[Receipt]:
        for sample in samples:
            self.samples[sample.info.id] = sample
        type(self).arrived.set()
        return [Delivered() for _ in samples]


@pytest.fixture
def shelf() -> type[Shelf]:
    return type("Shelf", (Shelf,), {"samples": {}})


class Failing(Source):
    """Begins, and then fails."""

    async def run(self, service: Service, *, task_status: TaskStatus[None]) -> None:
        task_status.started()
        raise ZeroDivisionError


class Absent(Source):
    async def run(self, service: Service, *, task_status: TaskStatus[None]) -> None:
        raise ConfigError("there is no such camera")


CapabilityT = TypeVar("CapabilityT")


class Bare(Platform):
    async def capability(self, kind: type[CapabilityT]) -> CapabilityT | None:
        return None


async def test_a_posted_picture_travels_to_the_sink(start: Start, shelf: type[Shelf]) -> None:
    async with start({"sink": {"memory": shelf}}) as running:
        answer = await running.client.post("/predict?camera=c1", content=make_jpeg(1), headers=JPEG)
        assert answer.status_code == 200
        await shelf.arrived.wait()
    assert list(shelf.samples) == [answer.json()["sample_id"]]
    assert shelf.samples[answer.json()["sample_id"]].image == make_jpeg(1)


async def test_a_node_ends_by_itself_when_sources_and_sinks_are_done(start: Start, shelf: type[Shelf]) -> None:
    sources = [{"driver": "memory", "count": 5}]
    async with start({"sink": {"memory": shelf}}, until_done=True, sources=sources) as running:
        await running.ended.wait()
    assert len(shelf.samples) == 5


async def test_what_was_accepted_while_sending_was_off_is_sent_after_a_restart(
    start: Start, shelf: type[Shelf], data_dir: Path
) -> None:
    async with start({"sink": {"memory": shelf}}) as running:
        await control(data_dir).call("set_outbox", sending=False)
        for seed in range(3):
            assert (await running.client.post("/predict", content=make_jpeg(seed), headers=JPEG)).json()["sample_id"]
    assert not shelf.samples
    async with start({"sink": {"memory": shelf}}, until_done=False) as running:
        status = (await running.client.get("/status")).json()
        assert status["sending"] is False
        assert status["sinks"]["memory"]["waiting"] == 3
        await control(data_dir).call("set_outbox", sending=True)
        with fail_after(10):
            while len(shelf.samples) < 3:
                await shelf.arrived.wait()
                shelf.arrived = anyio.Event()


async def test_the_chosen_model_survives_a_restart_until_the_toml_says_otherwise(start: Start, data_dir: Path) -> None:
    async with start() as running:
        assert (await running.client.get("/status")).json()["model"]["version"] == "1"
        await control(data_dir).call("set_model", choice="2")
        assert (await running.client.get("/status")).json()["model"]["version"] == "2"
    async with start() as running:
        assert (await running.client.get("/status")).json()["model"]["version"] == "2"
    async with start(backend={"driver": "fixed", "model": "1"}) as running:
        assert (await running.client.get("/status")).json()["model"]["version"] == "1"


async def test_a_choice_that_is_not_to_be_remembered_counts_until_the_restart(start: Start, data_dir: Path) -> None:
    backend = {"driver": "fixed", "model": "pause", "remember": False}
    async with start(backend=backend) as running:
        await control(data_dir).call("set_model", choice="follow")
        assert (await running.node.status())["model_choice"] == "follow"
    async with start(backend=backend) as running:
        assert (await running.node.status())["model_choice"] == "pause"
    async with start(backend=backend | {"remember": True}) as running:
        assert (await running.node.status())["model_choice"] == "pause"


async def test_nonsense_is_not_remembered(start: Start, data_dir: Path) -> None:
    async with start() as running:
        for question in ({"sending": "yes"}, {"sending": None}, {"sending": [[]]}):
            with pytest.raises(ConfigError):
                await control(data_dir).call("set_outbox", **question)
        assert (await running.client.get("/status")).json()["sending"] is True
    async with start() as running:
        assert (await running.client.get("/status")).json()["sending"] is True


@pytest.mark.parametrize("content", [b"", b"\xff", b'{"model": "\xff"}', b"[" * 90_000, b'{"sending": "yes"}'])
async def test_a_damaged_state_is_told_in_a_sentence(start: Start, data_dir: Path, content: bytes) -> None:
    (data_dir / "state.json").write_bytes(content)
    with pytest.raises(ExceptionGroup) as caught:
        async with start():
            raise AssertionError("the node started")
    assert caught.group_contains(StorageError, match="is damaged")


async def test_a_choice_that_cannot_be_had_changes_nothing(start: Start, data_dir: Path) -> None:
    async with start() as running:
        with pytest.raises(ModelError, match="'9'"):
            await control(data_dir).call("set_model", choice="9")
        status = (await running.client.get("/status")).json()
    assert status["model"]["version"] == "1"
    assert status["model_choice"] == "follow"


async def test_reload_opens_the_model_anew_and_no_request_fails(start: Start, data_dir: Path) -> None:
    opened: list[str] = []

    class Counting(FixedBackend):
        def __init__(self, options: Any, model: Any) -> None:
            super().__init__(options, model)
            opened.append(model.info.version)

    async with start({"backend": {"fixed": Counting}}) as running:
        await control(data_dir).call("reload")
        assert (await running.client.post("/predict", content=make_jpeg(1), headers=JPEG)).status_code == 200
    assert opened == ["1", "1"]


async def test_a_node_without_a_model_answers_503_and_is_not_ready(start: Start, tmp_path: Path) -> None:
    async with start(node={"data_dir": str(tmp_path / "empty")}) as running:
        answer = await running.client.post("/predict", content=make_jpeg(1), headers=JPEG)
        assert answer.status_code == 503
        assert answer.headers["Retry-After"]
        assert (await running.client.get("/ready")).status_code == 503


async def test_a_model_of_a_format_that_the_backend_cannot_run_is_refused_by_name(start: Start, tmp_path: Path) -> None:
    model = make_model(tmp_path / "eim", "1", format="eim")
    with pytest.RaisesGroup(
        pytest.RaisesExc(ConfigError, match=r"backend.model: the model is in the format 'eim'"), flatten_subgroups=True
    ):
        async with start(backend={"driver": "fixed", "model": str(model.path)}):
            pass


async def test_a_source_that_fails_takes_nothing_down(start: Start) -> None:
    sources = [{"driver": "failing"}]
    async with start({"source": {"failing": Failing}}, sources=sources) as running:
        assert (await running.client.post("/predict", content=make_jpeg(1), headers=JPEG)).status_code == 200
        status = (await running.client.get("/status")).json()
    assert status["sources"]["failing"]["state"] == "failed"
    assert status["sources"]["failing"]["last_error"] == "ZeroDivisionError"


async def test_a_source_that_cannot_begin_ends_the_start(start: Start) -> None:
    with pytest.RaisesGroup(pytest.RaisesExc(ConfigError, match="no such camera"), flatten_subgroups=True):
        async with start({"source": {"absent": Absent}}, sources=[{"driver": "absent"}]):
            pass


async def test_a_platform_that_lacks_what_a_rollout_needs_ends_the_start(start: Start) -> None:
    with pytest.RaisesGroup(pytest.RaisesExc(ConfigError, match="ModelRegistry"), flatten_subgroups=True):
        async with start(
            {"platform": {"bare": Bare}}, platforms=[{"driver": "bare"}], rollouts=[{"from": "bare", "to": "self"}]
        ):
            pass


async def test_a_second_node_on_the_same_data_is_refused(start: Start) -> None:
    async with start():
        with pytest.RaisesGroup(
            pytest.RaisesExc(StorageError, match=f"in use by process {os.getpid()}"), flatten_subgroups=True
        ):
            async with start():
                pass


async def test_the_control_socket_is_for_its_owner_alone_and_goes_with_the_node(start: Start, data_dir: Path) -> None:
    async with start():
        assert stat.S_IMODE((data_dir / "control.sock").stat().st_mode) == 0o600
        assert (await control(data_dir).call("status"))["node"] == "test"
        with pytest.raises(LoopcoreError, match="no operation 'explode'"):
            await control(data_dir).call("explode")
        with pytest.raises(LoopcoreError, match="not understood"):
            await control(data_dir).call("set_model", colour="red")
    assert not (data_dir / "control.sock").exists()
    with pytest.raises(StorageError, match="does not answer"):
        await control(data_dir).call("status")


async def test_a_very_deep_data_folder_has_a_control_socket_all_the_same(start: Start, tmp_path: Path) -> None:
    deep = tmp_path.joinpath(*["a-long-folder-name"] * 8)
    async with start(node={"name": "deep", "data_dir": str(deep)}, backend=None):
        assert (await control(deep).call("status"))["node"] == "deep"


async def test_without_a_backend_the_node_is_ready_and_predicts_nothing(start: Start, data_dir: Path) -> None:
    async with start(backend=None) as running:
        assert (await running.client.get("/ready")).status_code == 200
        assert (await running.client.post("/predict", content=make_jpeg(1), headers=JPEG)).status_code == 503
        with pytest.raises(NotReadyError):
            await control(data_dir).call("set_model", choice="1")


async def test_the_metrics_and_the_status_come_from_the_same_figures(start: Start) -> None:
    async with start() as running:
        await running.client.post("/predict", content=make_jpeg(1), headers=JPEG)
        text = (await running.client.get("/metrics")).text
    assert "loopcore_frames_total 1" in text
    assert "loopcore_frames_kept_total 1" in text


async def test_the_status_holds_no_secret(start: Start) -> None:
    async with start(server={"port": 0, "token": "canary-token"}) as running:
        answer = await running.client.get("/status", headers={"Authorization": "Bearer canary-token"})
    assert answer.status_code == 200
    assert "canary" not in answer.text


class Careless(Source):
    """Fails in a task group of its own: before it has begun, or after."""

    class Options(Options, frozen=True):
        begins: bool = False

    async def run(self, service: Service, *, task_status: TaskStatus[None]) -> None:
        async with anyio.create_task_group():
            if self.options.begins:
                task_status.started()
            raise ZeroDivisionError("inside")


async def test_a_source_that_fails_before_it_begins_is_named_and_is_a_plugin_s_fault(start: Start) -> None:
    with pytest.RaisesGroup(
        pytest.RaisesExc(PluginError, match="the source 'careless' cannot be started: ZeroDivisionError: inside"),
        flatten_subgroups=True,
    ):
        async with start({"source": {"careless": Careless}}, sources=[{"driver": "careless"}]):
            pass


async def test_the_status_tells_a_source_s_error_and_not_of_the_group_around_it(start: Start) -> None:
    sources = [{"driver": "careless", "begins": True}]
    async with start({"source": {"careless": Careless}}, sources=sources) as running:
        status = (await running.client.get("/status")).json()
    assert status["sources"]["careless"]["last_error"] == "inside"


async def test_a_driver_s_own_config_error_says_which_table(start: Start) -> None:
    with pytest.RaisesGroup(
        pytest.RaisesExc(ConfigError, match=r"^sources\[0\]: there is no such"), flatten_subgroups=True
    ):
        async with start({"source": {"absent": Absent}}, sources=[{"driver": "absent"}]):
            pass


class Locked(Platform):
    @asynccontextmanager
    async def __asynccontextmanager__(self) -> AsyncGenerator[Self]:
        raise KeyError("door")
        yield self

    async def capability(self, kind: type[CapabilityT]) -> CapabilityT | None:
        return None


async def test_a_platform_that_breaks_when_it_is_entered_is_a_plugin_s_fault(start: Start) -> None:
    with pytest.RaisesGroup(pytest.RaisesExc(PluginError, match="platform 'locked'.*KeyError"), flatten_subgroups=True):
        async with start({"platform": {"locked": Locked}}, platforms=[{"driver": "locked"}]):
            pass


async def test_an_operation_that_breaks_does_not_end_the_node(start: Start, data_dir: Path) -> None:
    class Explosive(FixedBackend):
        def __init__(self, options: Any, model: Any) -> None:
            super().__init__(options, model)
            if model.info.version == "2":
                raise SystemError("boom")

    async with start({"backend": {"fixed": Explosive}}) as running:
        with pytest.raises(LoopcoreError, match="boom"):
            await control(data_dir).call("set_model", choice="2")
        (data_dir / "state.json").mkdir()
        with pytest.raises(StorageError):
            await control(data_dir).call("set_outbox", sending=False)
        assert (await running.client.get("/ready")).status_code == 200


async def test_a_bug_in_an_operation_is_told_to_the_command_and_to_the_log_and_ends_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def buggy() -> None:
        raise KeyError("gone")

    async def fine() -> str:
        return "fine"

    with fail_after(10):
        async with anyio.create_task_group() as group:
            await group.start(serve_control, tmp_path, {"buggy": buggy, "fine": fine})
            with pytest.raises(LoopcoreError, match="KeyError\\('gone'\\); its log tells more"):
                await control(tmp_path).call("buggy")
            assert await control(tmp_path).call("fine") == "fine"
            group.cancel_scope.cancel()
    assert any(record.exc_info for record in caplog.records)


async def test_reload_takes_a_file_as_it_is_now(start: Start, data_dir: Path, tmp_path: Path) -> None:
    model = make_model(tmp_path / "mine", "7")
    async with start(backend={"driver": "fixed", "model": str(model.path)}) as running:
        (model.path / "weights").write_text("new")
        write_package(model.path, ModelInfo(name="fixed", version="8", format="null"))
        await control(data_dir).call("reload")
        assert (await running.client.get("/status")).json()["model"]["version"] == "8"
        (model.path / "weights").write_text("broken")
        with pytest.raises(LoopcoreError, match="than promised"):
            await control(data_dir).call("reload")
        assert (await running.client.get("/status")).json()["model"]["version"] == "8"


async def test_a_zip_s_model_keeps_its_files_when_the_zip_is_loaded_again_and_is_no_model_any_more(
    start: Start, data_dir: Path, tmp_path: Path
) -> None:
    archive = Path(shutil.make_archive(str(tmp_path / "zipped"), "zip", make_model(tmp_path / "mine", "7").path))
    async with start(backend={"driver": "fixed", "model": str(archive)}) as running:
        serving = running.node._models.serving.model
        assert serving is not None
        archive.write_bytes(b"torn")
        with pytest.raises(LoopcoreError, match="sound zip"):
            await control(data_dir).call("reload")
        assert (serving.path / "weights").read_text() == "7"


@pytest.mark.parametrize("choice", ["pause", "follow"])
async def test_pausing_a_node_whose_model_is_a_path_keeps_that_model_over_a_restart(
    start: Start, data_dir: Path, tmp_path: Path, choice: str
) -> None:
    backend = {"driver": "fixed", "model": str(make_model(tmp_path / "mine", "7").path)}
    async with start(backend=backend):
        await control(data_dir).call("set_model", choice=choice)
    async with start(backend=backend) as running:
        assert (await running.client.get("/status")).json()["model"]["version"] == "7"
        await control(data_dir).call("set_model", choice="2")
        await control(data_dir).call("set_model", choice=choice)
    async with start(backend=backend) as running:
        assert (await running.client.get("/status")).json()["model"]["version"] == "2"


async def test_a_model_that_served_last_and_cannot_any_more_leaves_the_node_up(start: Start) -> None:
    class Broken(FixedBackend):
        @asynccontextmanager
        async def __asynccontextmanager__(self) -> AsyncGenerator[Self]:
            raise ModelError("the disk has eaten it")
            yield self

    async with start({"backend": {"fixed": Broken}}) as running:
        assert (await running.client.get("/ready")).status_code == 503
        assert (await running.client.get("/health")).status_code == 200


async def test_a_sink_that_has_left_the_toml_is_reported_at_start(
    start: Start, shelf: type[Shelf], data_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with start({"sink": {"memory": shelf}}) as running:
        await control(data_dir).call("set_outbox", sending=False)
        await running.client.post("/predict", content=make_jpeg(1), headers=JPEG)
    async with start(sinks=None) as running:
        place = (await running.client.get("/status")).json()["sinks"]["memory"]
    assert (place["state"], place["configured"], place["waiting"]) == ("not in the TOML", False, 1)
    assert any("has left the TOML" in record.message and "waiting=1" in record.message for record in caplog.records)


async def test_the_status_is_there_when_the_outbox_cannot_write(start: Start, data_dir: Path) -> None:
    async with start(sinks=[]) as running:
        (data_dir / "outbox").rename(data_dir / "gone")
        answer = await running.client.post("/predict", content=make_jpeg(1), headers=JPEG)
        assert answer.status_code == 507
        status = await running.client.get("/status")
        metrics = await running.client.get("/metrics")
        ready = await running.client.get("/ready")
        (data_dir / "gone").rename(data_dir / "outbox")
    assert status.status_code == metrics.status_code == ready.status_code == 200
