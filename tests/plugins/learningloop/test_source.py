"""The source `learningloop` takes over what a node of the reference has left in its outbox."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import anyio
import pytest
from loopcore_learningloop.source import LeftBehind, LeftOptions

from loopcore.errors import StorageError
from loopcore.testing import RecordingService, SourceSuite, make_jpeg
from loopcore.types import Box, Classification, Point, Segmentation

pytestmark = pytest.mark.anyio

BOX = {"category_name": "penguin", "x": 1, "y": 2, "width": 3, "height": 4, "model_name": "1.2", "confidence": 0.4}
NOTES: dict[str, Any] = {
    "box_detections": [BOX | {"category_id": "b-1"}],
    "point_detections": [{"category_name": "beak", "x": 5.5, "y": 6, "model_name": "1.2", "confidence": 0.5}],
    "segmentation_detections": [
        {"category_name": "floe", "shape": "1,2,30,2,30,20", "model_name": "1.2", "confidence": 0.6}
    ],
    "classification_detections": [{"category_name": "day", "model_name": "1.2", "confidence": 0.7}],
    "box_annotations": [],
    "point_annotations": [],
    "classification_annotation": None,
    "tags": ["gate", "uncertain"],
    "created": "2026-11-20_10:11:12.345678",
    "source": "camera 3",
    "state": None,
}


def leave(outbox: Path, seed: int, *, queue: str = "normal", notes: Any = NOTES) -> Path:
    """An entry as 0.27.0 writes it."""
    name = f"2026-11-20_10:11:12.{seed:06}"
    folder = outbox / queue / name
    folder.mkdir(parents=True)
    (folder / f"image_{name}.jpg").write_bytes(make_jpeg(seed))
    (folder / f"image_{name}.json").write_text(json.dumps(notes))
    return folder


def leave_old(outbox: Path, seed: int) -> Path:
    """An entry as 0.11.1 writes it."""
    folder = outbox / f"2024-11-20_10:11:12.{seed:06}"
    folder.mkdir(parents=True)
    (folder / "image.jpg").write_bytes(make_jpeg(seed))
    (folder / "image.json").write_text(json.dumps(NOTES | {"source": "unknown"}))
    return folder


class Keeper(RecordingService):
    """A service that remembers all that it was told."""

    def __init__(self, errors: tuple[Exception, ...] = ()) -> None:
        super().__init__(errors)
        self.told: list[dict[str, Any]] = []

    async def keep(self, image: Any, **told: Any) -> str:
        kept = await super().keep(image, **told)
        self.told.append(told)
        return kept


async def take_over(outbox: Path, *errors: Exception) -> Keeper:
    service = Keeper(errors)
    with anyio.fail_after(10):
        await LeftBehind(LeftOptions(path=outbox)).run(service, task_status=anyio.TASK_STATUS_IGNORED)
    return service


class TestLeftBehind(SourceSuite):
    driver = LeftBehind
    frames = 4

    @pytest.fixture
    def table(self, tmp_path: Path) -> Mapping[str, str]:
        for seed in (1, 2):
            leave(tmp_path, seed)
        leave(tmp_path, 3, queue="priority")
        leave_old(tmp_path, 4)
        return {"path": str(tmp_path)}


async def test_all_that_was_noted_is_kept(tmp_path: Path) -> None:
    leave(tmp_path, 1)
    (told,) = (await take_over(tmp_path)).told
    prediction = told["prediction"]
    assert [type(one) for one in prediction.detections] == [Box, Point, Segmentation, Classification]
    assert [one.label for one in prediction.detections] == ["penguin", "beak", "floe", "day"]
    assert prediction.model_version == "1.2"
    assert told["captured"] == datetime(2026, 11, 20, 10, 11, 12, 345678).astimezone(UTC)
    assert (told["tags"], told["source"], told["annotations"], told["urgent"]) == (
        ["gate", "uncertain"], "camera 3", None, False,
    )  # fmt: skip


async def test_urgent_images_come_first_and_those_of_old_releases_too(tmp_path: Path) -> None:
    leave_old(tmp_path, 1)
    leave(tmp_path, 2)
    leave(tmp_path, 3, queue="priority")
    service = await take_over(tmp_path)
    assert [told["urgent"] for told in service.told] == [True, False, False]
    assert service.told[2]["source"] == "unknown"


async def test_a_folder_goes_once_its_image_is_kept_and_what_is_no_picture_stays(tmp_path: Path) -> None:
    good, bad = leave(tmp_path, 1), leave(tmp_path, 2)
    (bad / f"image_{bad.name}.jpg").write_bytes(b"no picture")
    service = await take_over(tmp_path)
    assert len(service.taken) == 1
    assert not good.exists()
    assert len(list(bad.iterdir())) == 2


async def test_an_image_whose_notes_are_damaged_is_kept_without_them(tmp_path: Path) -> None:
    leave(tmp_path, 1, notes={"box_detections": "none"})
    (told,) = (await take_over(tmp_path)).told
    assert told["prediction"].detections == ()


async def test_an_image_that_cannot_be_stored_yet_comes_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("loopcore_learningloop.source._FIRST_S", 0.01)
    folder = leave(tmp_path, 1)
    service = await take_over(tmp_path, StorageError("the disk is full"), StorageError("still"))
    assert [frame.taken for frame in service.handed] == [False, False, True]
    assert not folder.exists()


async def test_a_link_is_not_followed(tmp_path: Path) -> None:
    elsewhere = leave(tmp_path / "elsewhere", 1)
    (tmp_path / "outbox" / "normal").mkdir(parents=True)
    (tmp_path / "outbox" / "normal" / elsewhere.name).symlink_to(elsewhere)
    assert (await take_over(tmp_path / "outbox")).handed == []
    assert len(list(elsewhere.iterdir())) == 2


async def test_where_nothing_was_left_it_ends(tmp_path: Path) -> None:
    assert (await take_over(tmp_path / "outbox")).handed == []
