"""Promises of `processes.call_driver`: a driver's method in a process of its own."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import anyio
import pytest

from loopcore.abc import Converter, Score
from loopcore.errors import ConversionError, LoopcoreError, PluginError
from loopcore.options import Options, decode, encode
from loopcore.processes import Limits, call_driver

pytestmark = pytest.mark.anyio

LIMIT_S = 20.0
_spec = importlib.util.spec_from_file_location("odd_drivers", Path(__file__).with_name("odd_drivers.py"))
assert _spec is not None
assert _spec.loader is not None
odd_drivers = importlib.util.module_from_spec(_spec)
sys.modules["odd_drivers"] = odd_drivers
_spec.loader.exec_module(odd_drivers)


async def call(method: str, cwd: Path, options: Options | None = None, arguments: Any = None, **given: Any) -> Any:
    with anyio.fail_after(LIMIT_S):
        return await call_driver(
            odd_drivers.Odd,
            options or odd_drivers.OddOptions(),
            method,
            arguments or {},
            what="the converter 'odd-to-even'",
            cwd=cwd,
            **given,
        )


class Reports(list[tuple[Any, ...]]):
    def __call__(self, progress: float, message: str = "", *, score: Score | None = None, **metrics: float) -> None:
        self.append((progress, message, score, metrics))


async def test_paths_and_plain_arguments_arrive_and_a_path_comes_back(tmp_path: Path) -> None:
    found = await call("join", tmp_path, arguments={"folder": tmp_path, "name": "é"})
    assert found == tmp_path / "é"
    assert isinstance(found, Path)


async def test_relative_path_is_meant_from_where_the_caller_is(tmp_path: Path) -> None:
    assert await call("join", tmp_path, arguments={"folder": Path("data"), "name": "a"}) == Path("data/a").absolute()


async def test_options_arrive_with_their_secrets(tmp_path: Path) -> None:
    options = decode({"key": "canary", "every": "2 min", "folder": "a"}, odd_drivers.OddOptions, folder=tmp_path)
    assert decode(encode(options), odd_drivers.OddOptions) == options
    assert await call("tell_options", tmp_path, options) == ["canary", 120.0, str(tmp_path / "a")]


async def test_secrets_are_in_no_list_of_processes_and_not_left_to_read(tmp_path: Path) -> None:
    options = odd_drivers.OddOptions(key=decode({"key": "canary"}, odd_drivers.OddOptions).key)
    line, environment, cwd, stdin = await call("tell_surroundings", tmp_path, options, env={"MORE": "1"})
    assert "canary" not in line
    assert "canary" not in str(environment)
    assert environment["MORE"] == "1"
    assert cwd == str(tmp_path)
    assert stdin == ""


async def test_reports_come_back_checked_and_joined(tmp_path: Path) -> None:
    reports = Reports()
    assert await call("report_all", tmp_path, report=reports) is None
    assert reports[0] == (0.0, "begun", None, {"loss": 1.0})
    assert reports[1] == (0.5, "half", Score(confusion={"cat": (1, 2, 3)}, epoch=4), {"other": 2.0, "f1": 0.5})
    assert reports[-1] == (1.0, "", None, {"loss": 0.5})


async def test_reports_from_several_threads_come_whole_and_not_too_often(tmp_path: Path) -> None:
    reports = Reports()
    await call("report_much", tmp_path, report=reports)
    assert 1 <= len(reports) < 1_000
    assert all(one == (0.5, "", None, {}) for one in reports)


async def test_stop_is_passed_on(tmp_path: Path) -> None:
    stop = anyio.Event()

    def report(*_: object, **__: object) -> None:
        stop.set()

    assert await call("wait", tmp_path, report=report, stop=stop) == "stopped"


async def test_error_of_loopcore_keeps_its_class_and_sentence(tmp_path: Path) -> None:
    with pytest.raises(ConversionError, match=r"\Athe head is not understood\Z"):
        await call("refuse", tmp_path)


async def test_error_that_needs_more_than_a_sentence_keeps_the_sentence(tmp_path: Path) -> None:
    with pytest.raises(LoopcoreError, match="no sink 'b' is installed"):
        await call("refuse_oddly", tmp_path)


@pytest.mark.parametrize(
    ("method", "sentence"),
    [
        ("fail", "the converter 'odd-to-even' failed: ValueError: seven is odd"),
        ("leave", "the converter 'odd-to-even' failed: SystemExit: enough"),
        ("crash", "the process of the converter 'odd-to-even' was killed by SIGSEGV; its last words: about to crash"),
        ("vanish", "the process of the converter 'odd-to-even' ended with exit code 3"),
        ("answer_oddly", "the converter 'odd-to-even' failed: TypeError: Encoding objects of type object"),
        ("chatter", "the process of the converter 'odd-to-even' does not speak as it should"),
        ("no_such_method", "AttributeError"),
    ],
)
async def test_other_failures_are_the_plugin_s_fault(tmp_path: Path, method: str, sentence: str) -> None:
    with pytest.raises(PluginError) as caught:
        await call(method, tmp_path)
    assert sentence in str(caught.value)


async def test_traceback_is_in_the_log(tmp_path: Path) -> None:
    with pytest.raises(PluginError):
        await call("fail", tmp_path, log=tmp_path / "log")
    assert "in fail\n" in (tmp_path / "log").read_text()


async def test_what_the_driver_writes_is_logged_and_disturbs_nothing(tmp_path: Path) -> None:
    assert await call("write", tmp_path, log=tmp_path / "log") is None
    assert (tmp_path / "log").read_text() == "to stdout\nto stderr\n"


@pytest.mark.skipif(sys.platform != "linux", reason="macOS has no such limit")
async def test_process_has_the_limits(tmp_path: Path) -> None:
    with pytest.raises(PluginError):
        await call("write", tmp_path, limits=Limits(memory=8_000_000))


async def test_thread_that_is_left_behind_holds_nothing_up(tmp_path: Path) -> None:
    assert await call("leave_a_thread", tmp_path, grace_s=0.1) == "done"


async def test_cancelled_call_ends_the_process(tmp_path: Path) -> None:
    with anyio.fail_after(LIMIT_S), anyio.CancelScope() as scope:

        def report(*_: object, **__: object) -> None:
            scope.cancel()

        await call("wait", tmp_path, report=report)
    assert scope.cancelled_caught


async def test_folder_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(PluginError, match="no process can be started for the converter"):
        await call("write", tmp_path / "absent")


async def test_class_that_cannot_be_found_again_is_told(tmp_path: Path) -> None:
    def make() -> type[Converter]:
        class Inner(odd_drivers.Odd):  # type: ignore[misc, name-defined]
            pass

        return Inner

    with pytest.raises(PluginError, match="Inner is made by a function"):
        await call_driver(make(), odd_drivers.OddOptions(), "write", {}, what="the converter 'x'", cwd=tmp_path)
