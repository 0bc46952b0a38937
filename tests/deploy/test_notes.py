"""What was refused stays refused over restarts, until the model or the conditions change."""

from __future__ import annotations

from pathlib import Path

import anyio
import pytest
from anyio import CancelScope
from msgspec.structs import replace

from loopcore.deploy import notes as module
from loopcore.deploy.notes import Notes
from loopcore.errors import ModelError
from loopcore.types import ModelInfo

pytestmark = pytest.mark.anyio

MODEL = ModelInfo(name="gate", version="1", format="onnx", extra={"acme": {"id": "x"}})
WHY = ModelError("the boxes are not finite", rule="warm-up")


def reopened(path: Path) -> Notes:
    notes = Notes(path)
    notes.load()
    return notes


async def test_a_refusal_survives_a_restart_with_its_reason(tmp_path: Path) -> None:
    await reopened(tmp_path / "notes.json").refuse(MODEL, "here", WHY)
    refusal = reopened(tmp_path / "notes.json").refusal(MODEL, "here")
    assert refusal is not None
    assert (refusal.why, refusal.rule, refusal.model["id"]) == ("the boxes are not finite", "warm-up", "x")


async def test_another_model_and_other_conditions_are_not_refused(tmp_path: Path) -> None:
    notes = reopened(tmp_path / "notes.json")
    await notes.refuse(MODEL, "here", WHY)
    assert notes.refusal(MODEL, "there") is None
    assert notes.refusal(replace(MODEL, extra={"acme": {"id": "y"}}), "here") is None


async def test_what_is_forgotten_stays_forgotten(tmp_path: Path) -> None:
    notes = reopened(tmp_path / "notes.json")
    await notes.refuse(MODEL, "here", WHY)
    assert await notes.forget() == 1
    assert notes.refusal(MODEL, "here") is None
    assert reopened(tmp_path / "notes.json").refusal(MODEL, "here") is None


async def test_what_a_platform_calls_a_model_survives_a_restart(tmp_path: Path) -> None:
    there = ModelInfo(name="other", version="7", format="onnx")
    await reopened(tmp_path / "notes.json").publish(MODEL, "there", there)
    notes = reopened(tmp_path / "notes.json")
    assert notes.published(MODEL, "there") == there
    assert notes.published(MODEL, "elsewhere") is None
    await notes.publish(MODEL, "there", None)
    assert reopened(tmp_path / "notes.json").published(MODEL, "there") is None


@pytest.mark.parametrize("content", [b"", b"\xff", b"{", b"[" * 100_000, b'{"version": 2}'])
async def test_damaged_notes_are_begun_anew(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "notes.json").write_bytes(content)
    notes = reopened(tmp_path / "notes.json")
    await notes.refuse(MODEL, "here", WHY)
    assert reopened(tmp_path / "notes.json").refusal(MODEL, "here") is not None


async def test_a_disk_that_refuses_costs_no_more_than_the_memory_of_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    notes = Notes(tmp_path / "no such folder" / "notes.json")
    await notes.refuse(MODEL, "here", WHY)
    assert notes.refusal(MODEL, "here") is not None
    assert "kept in memory alone" in caplog.text


async def test_the_oldest_notes_make_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST", 3)
    notes = Notes(tmp_path / "notes.json")
    for condition in "abcd":
        await notes.refuse(MODEL, condition, WHY)
    assert [notes.refusal(MODEL, condition) is None for condition in "abcd"] == [True, False, False, False]


async def tried(path: Path, *, dies: bool) -> None:
    """One life of a node that tries the model; where it dies, only the disk knows of it."""
    async with reopened(path).trial(MODEL, "here"):
        content = path.read_bytes()
    if dies:
        path.write_bytes(content)


async def test_a_model_that_takes_the_process_down_twice_is_not_tried_a_third_time(tmp_path: Path) -> None:
    path = tmp_path / "notes.json"
    for _ in range(2):
        await tried(path, dies=True)
    with pytest.raises(ModelError, match="has died 2 times in a row while it tried gate 1") as caught:
        await tried(path, dies=False)
    assert caught.value.rule == "survival"
    await reopened(path).forget()
    await tried(path, dies=False)


async def test_a_model_that_was_survived_once_starts_anew(tmp_path: Path) -> None:
    path = tmp_path / "notes.json"
    for dies in (True, False, True, False):
        await tried(path, dies=dies)


async def test_a_node_that_is_stopped_during_a_trial_has_not_died(tmp_path: Path) -> None:
    path = tmp_path / "notes.json"
    for _ in range(3):
        with CancelScope() as scope:
            async with reopened(path).trial(MODEL, "here"):
                scope.cancel()
                await anyio.sleep_forever()


async def test_a_long_reason_is_kept_short(tmp_path: Path) -> None:
    refusal = await reopened(tmp_path / "notes.json").refuse(MODEL, "here", ModelError("x" * 10_000_000, rule="load"))
    assert len(refusal.why) == 2000
