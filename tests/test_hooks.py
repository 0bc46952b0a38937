"""Every hook is called with its arguments, each implementation by itself, and no plugin stops the node."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import FunctionType, SimpleNamespace
from typing import Any

import anyio
import anyio.lowlevel
import numpy as np
import pytest
from anyio import create_task_group, fail_after

from loopcore import hookspecs
from loopcore.errors import PluginError
from loopcore.hooks import Hooks
from loopcore.hookspecs import Mount, hookimpl
from loopcore.testing import make_sample
from loopcore.types import FrameInfo, Model, ModelInfo, Prediction, SampleInfo

pytestmark = pytest.mark.anyio

INFO = FrameInfo(width=4, height=3, time=datetime(2025, 1, 1, tzinfo=UTC))
MODEL = Model(info=ModelInfo(name="m", version="1", format="onnx"), path=Path("m"))
SAMPLE = make_sample(1).info


def plugin(*functions: Any) -> Any:
    return SimpleNamespace(**{function.__name__: hookimpl(function) for function in functions})


class Seen(list[Any]):
    """What an implementation was called with; `wait` returns once there are so many."""

    def __init__(self) -> None:
        super().__init__()
        self.changed = anyio.Event()

    def note(self, *what: Any) -> None:
        self.append(what if len(what) > 1 else what[0])
        self.changed.set()
        self.changed = anyio.Event()

    async def wait(self, count: int) -> None:
        with anyio.fail_after(5):
            while len(self) < count:
                await self.changed.wait()


def test_every_hook_has_a_test() -> None:
    hooks = [name.removeprefix("loopcore_") for name in vars(hookspecs) if name.startswith("loopcore_")]
    assert len(hooks) == 11
    for hook in hooks:
        assert any(name.startswith(f"test_hook_{hook}") for name in globals()), hook


def test_hook_drivers_is_answered_by_a_file(tmp_path: Path) -> None:
    from loopcore.registry import Registry

    (tmp_path / "mine.py").write_text(
        "from loopcore import hookimpl\nfrom loopcore.testing import MemorySink\n"
        "class Mine(MemorySink):\n    name = 'mine'\n"
        "@hookimpl\ndef loopcore_drivers():\n    return [Mine]\n"
    )
    registry = Registry(installed=False)
    Hooks(registry.add_files([tmp_path / "mine.py"]))
    assert registry.names("sink") == ("mine",)


def test_hook_decode_frame_takes_the_first_answer_that_is_a_picture(caplog: pytest.LogCaptureFixture) -> None:
    picture = np.zeros((3, 4, 3), np.uint8)

    def implementation(answer: Any) -> Any:
        def loopcore_decode_frame(data: bytes, media: str) -> Any:
            if isinstance(answer, BaseException):
                raise answer
            return answer if (data, media) == (b"raw", "image/x") else None

        return plugin(loopcore_decode_frame)

    answers = [picture, np.zeros((3, 4)), SystemExit(0), ValueError("bad")]  # called from the last to the first
    hooks = Hooks({f"p{number}": implementation(answer) for number, answer in enumerate(answers)})
    assert hooks.decode_frame(b"raw", "image/x") is picture
    assert hooks.decode_frame(b"raw", "image/y") is None
    assert "plugin=p1" in caplog.text
    assert "plugin=p3 hook=loopcore_decode_frame" in caplog.text


def test_hook_mounts_are_gathered_longest_path_first() -> None:
    def loopcore_mounts(service: Any, drivers: Any) -> Sequence[Mount]:
        return [Mount(path="/a", app=service), Mount(path="/a/longer", app=drivers)]

    service: Any = object()
    drivers: Any = [object()]
    mounts = Hooks({"a": plugin(loopcore_mounts)}).mounts(service, drivers)
    assert [mount.path for mount in mounts] == ["/a/longer", "/a"]
    assert mounts[1].app is service
    assert mounts[0].app is drivers


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ([Mount(path="/predict", app=1)], "'/predict', which belongs to the core"),
        ([Mount(path="/status/x", app=1)], "which belongs to the core"),
        ([Mount(path="/a", app=1), Mount(path="/a", app=1)], "which belongs to the plugin 'a'"),
        ([Mount(path="a", app=1)], "expected a path such as '/detect'"),
        ([Mount(path="/a/", app=1)], "expected a path such as '/detect'"),
        (["/a"], "answers str, expected Mount"),
    ],
)
def test_hook_mounts_refuses_a_clash(answer: Any, words: str) -> None:
    def loopcore_mounts() -> Any:
        return answer

    service: Any = object()
    with pytest.raises(PluginError, match=words):
        Hooks({"a": plugin(loopcore_mounts)}).mounts(service)


async def test_hook_node_started() -> None:
    seen = Seen()

    async def loopcore_node_started(name: str, service: Any) -> None:
        seen.note(name, service)

    service: Any = object()
    await Hooks({"a": plugin(loopcore_node_started)}).node_started("gate", service)
    assert seen == [("gate", service)]


async def test_hook_prediction_made_waits_in_a_queue_and_the_oldest_give_way() -> None:
    seen = Seen()

    async def loopcore_prediction_made(prediction: Prediction) -> None:
        seen.note(prediction.model)

    hooks = Hooks({"a": plugin(loopcore_prediction_made)}, queue=2)
    for name in ("1", "2", "3"):
        hooks.prediction_made(INFO, Prediction(model=name))
    assert hooks.left_out == 1
    assert hooks.status() == {"waiting": 2, "left_out": 1, "failures": {}}
    async with anyio.create_task_group() as tasks:
        await tasks.start(hooks.run)
        await seen.wait(2)
        hooks.prediction_made(INFO, Prediction(model="4"))
        await seen.wait(3)
        tasks.cancel_scope.cancel()
    assert seen == ["2", "3", "4"]


async def test_hook_sample_kept_is_not_pushed_out_by_predictions() -> None:
    seen = Seen()

    async def loopcore_sample_kept(sample: Any) -> None:
        seen.note(sample)

    async def loopcore_prediction_made() -> None:
        pass

    hooks = Hooks({"a": plugin(loopcore_sample_kept, loopcore_prediction_made)}, queue=1)
    hooks.sample_kept(SAMPLE)
    for _ in range(3):
        hooks.prediction_made(INFO, Prediction())
    async with anyio.create_task_group() as tasks:
        await tasks.start(hooks.run)
        await seen.wait(1)
        tasks.cancel_scope.cancel()
    assert seen == [SAMPLE]


def test_event_that_nobody_implements_is_not_queued() -> None:
    hooks = Hooks({})
    hooks.prediction_made(INFO, Prediction())
    hooks.sample_kept(SAMPLE)
    assert hooks.status()["waiting"] == 0


async def test_hook_sample_delivered() -> None:
    seen = Seen()

    async def loopcore_sample_delivered(sample: Any, sink: str, remote_id: str | None) -> None:
        seen.note(sample, sink, remote_id)

    await Hooks({"a": plugin(loopcore_sample_delivered)}).sample_delivered(SAMPLE, "s", "r")
    assert seen == [(SAMPLE, "s", "r")]


async def test_hook_sample_rejected() -> None:
    seen = Seen()

    async def loopcore_sample_rejected(sample: Any, sink: str, why: str) -> None:
        seen.note(sample, sink, why)

    await Hooks({"a": plugin(loopcore_sample_rejected)}).sample_rejected(SAMPLE, "s", "too large")
    assert seen == [(SAMPLE, "s", "too large")]


async def test_hook_model_activated() -> None:
    seen = Seen()

    async def loopcore_model_activated(previous: Model | None, model: Model) -> None:
        seen.note(model, previous)

    await Hooks({"a": plugin(loopcore_model_activated)}).model_activated(MODEL, None)
    assert seen == [(MODEL, None)]


async def test_hook_model_refused() -> None:
    seen = Seen()

    async def loopcore_model_refused(model: ModelInfo, why: str) -> None:
        seen.note(model, why)

    await Hooks({"a": plugin(loopcore_model_refused)}).model_refused(MODEL.info, "worse")
    assert seen == [(MODEL.info, "worse")]


async def test_hook_job_progressed() -> None:
    seen = Seen()

    async def loopcore_job_progressed(job: str, state: str, progress: float, metrics: dict[str, float]) -> None:
        seen.note(job, state, progress, metrics)

    await Hooks({"a": plugin(loopcore_job_progressed)}).job_progressed("j", "train", 0.5, {"loss": 1.0})
    assert seen == [("j", "train", 0.5, {"loss": 1.0})]


async def test_a_raising_or_hanging_plugin_neither_hides_others_nor_stops_the_caller(
    caplog: pytest.LogCaptureFixture,
) -> None:
    seen = Seen()

    def bad() -> Any:
        async def loopcore_model_refused() -> None:
            raise SystemExit(3)

        return plugin(loopcore_model_refused)

    def slow() -> Any:
        async def loopcore_model_refused() -> None:
            await anyio.sleep_forever()

        return plugin(loopcore_model_refused)

    def good() -> Any:
        async def loopcore_model_refused(why: str) -> None:
            seen.note(why)

        return plugin(loopcore_model_refused)

    hooks = Hooks({"bad": bad(), "slow": slow(), "good": good()}, limit_s=0.01)
    await hooks.model_refused(MODEL.info, "first")
    await hooks.model_refused(MODEL.info, "second")
    assert seen == ["first", "second"]
    assert hooks.status()["failures"] == {"bad:loopcore_model_refused": 2, "slow:loopcore_model_refused": 2}
    errors = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert sorted(errors) == [
        "A hook raised an error: plugin=bad hook=loopcore_model_refused",
        "A hook took too long: plugin=slow hook=loopcore_model_refused",
    ], "a failure is logged once, not each time"


async def test_cancellation_passes_through_a_hook() -> None:
    async def loopcore_model_refused() -> None:
        await anyio.sleep_forever()

    hooks = Hooks({"a": plugin(loopcore_model_refused)})
    with anyio.move_on_after(0.01) as scope:
        await hooks.model_refused(MODEL.info, "x")
    assert scope.cancelled_caught
    assert hooks.status()["failures"] == {}


async def async_contribution(service: Any) -> Any: ...
def plain_event(sample: Any) -> None: ...
async def wrong_argument(sampel: Any) -> None: ...
async def all_arguments(**arguments: Any) -> None: ...
async def positional(sample: Any, /) -> None: ...
async def yielding(sample: Any) -> Any:
    yield


def yielding_contribution(service: Any) -> Any:
    yield


async def fitting(sample: Any) -> None: ...


@pytest.mark.parametrize(
    ("name", "function", "options", "words"),
    [
        ("loopcore_mounts", async_contribution, {}, "must be 'def'"),
        ("loopcore_sample_kept", plain_event, {}, "must be 'async def'"),
        ("loopcore_sample_kept", wrong_argument, {}, "'sampel'; did you mean 'sample'"),
        ("loopcore_sample_kept", all_arguments, {}, "must take its arguments by name"),
        ("loopcore_sample_kept", positional, {}, "must take its arguments by name"),
        ("loopcore_sample_kept", yielding, {}, "must be 'async def'"),
        ("loopcore_mounts", yielding_contribution, {}, "must return its answer"),
        ("loopcore_sample_kep", fitting, {}, "is no hook; did you mean 'loopcore_sample_kept'"),
        ("loopcore_mounts", yielding_contribution, {"wrapper": True}, "wrappers are not supported"),
        ("loopcore_mounts", yielding_contribution, {"hookwrapper": True}, "wrappers are not supported"),
        ("anything", fitting, {"specname": "loopcore_sample_kep"}, "is no hook; did you mean 'loopcore_sample_kept'"),
    ],
)
def test_implementation_that_does_not_match_its_spec_is_refused(
    name: str, function: Any, options: dict[str, Any], words: str
) -> None:
    def copy() -> Any:
        made = FunctionType(function.__code__, function.__globals__, name)
        made.__annotations__ = function.__annotations__
        return hookimpl(**options)(made)

    with pytest.raises(PluginError, match=words) as caught:
        Hooks({"acme": SimpleNamespace(**{name: copy()})})
    assert caught.value.plugin == "acme"


def test_unmarked_implementation_is_refused() -> None:
    with pytest.raises(PluginError, match="loopcore_sample_kept of the plugin 'acme' is not marked with @hookimpl"):
        Hooks({"acme": SimpleNamespace(loopcore_sample_kept=fitting)})


def test_one_plugin_under_two_names_is_refused() -> None:
    module = plugin()
    with pytest.raises(PluginError, match="registered twice"):
        Hooks({"a": module, "b": module})


async def test_what_waits_is_handed_over_before_the_hooks_count_as_drained() -> None:
    seen: list[SampleInfo] = []

    class Plugin:
        @hookimpl
        async def loopcore_sample_kept(self, sample: SampleInfo) -> None:
            await anyio.lowlevel.checkpoint()
            seen.append(sample)

    hooks = Hooks({"slow": Plugin()})
    with fail_after(5):
        async with create_task_group() as tasks:
            await tasks.start(hooks.run)
            await hooks.drained()
            for seed in range(20):
                hooks.sample_kept(make_sample(seed).info)
            await hooks.drained()
            assert len(seen) == 20
            tasks.cancel_scope.cancel()
