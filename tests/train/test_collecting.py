"""Promises of COLLECTING and FETCHING: the snapshot holds what the platform has, and what is missing is counted."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import anyio
import pytest
from msgspec.structs import replace
from train.world import CAT, World

from loopcore.abc import StoredImage
from loopcore.datasets import read_snapshot
from loopcore.errors import TrainingError
from loopcore.package import write_package
from loopcore.testing import make_jpeg
from loopcore.types import Box, ModelInfo

from .conftest import Bench, offered, until, until_over

pytestmark = pytest.mark.anyio


async def run(bench: Bench, **changes: object) -> str | None:
    """A whole job; why it has failed, if it has."""
    async with bench.worker() as desk:
        await offered(desk, bench.world.job(**changes))
        state = await until_over(desk)
        return state.error if state else None


def stop_after_collecting(bench: Bench) -> None:
    bench.world.faults["step"] = [TrainingError("enough")]


async def images_seen(bench: Bench, **changes: object) -> dict[str, int]:
    stop_after_collecting(bench)
    async with bench.worker() as desk:
        await offered(desk, bench.world.job(**changes))
        state = await until_over(desk)
        assert state is not None
        assert state.error == "enough"
        return state.images


async def test_snapshot_holds_the_labelled_images(bench: Bench) -> None:
    assert await images_seen(bench) == {"train": 3, "val": 0, "test": 1, "missing": 0}
    snapshot = read_snapshot(bench.job_folder() / "snapshot")
    assert snapshot.labels == ("cat", "dog")
    assert [entry.id for entry in snapshot.entries] == [f"image-{number}" for number in range(4)]
    assert snapshot.entries[0].annotations == (CAT,)
    assert snapshot.file(snapshot.entries[0]).read_bytes() == make_jpeg(0)
    assert (snapshot.entries[0].width, snapshot.entries[0].height) == (64, 48)


async def test_labels_that_the_job_is_not_about_are_left_out(bench: Bench) -> None:
    both = (CAT, Box(label="dog", x=0, y=0, width=5, height=5))
    bench.world.images_of["image-0"] = (make_jpeg(0), "train", "complete", both)
    await images_seen(bench, labels=("dog",))
    snapshot = read_snapshot(bench.job_folder() / "snapshot")
    assert snapshot.labels == ("dog",)
    assert [entry.annotations for entry in snapshot.entries] == [both[1:], (), (), ()]


async def test_job_without_labels_takes_those_that_were_annotated(bench: Bench) -> None:
    await images_seen(bench, labels=())
    assert read_snapshot(bench.job_folder() / "snapshot").labels == ("cat",)


async def test_platform_that_does_not_answer_is_asked_again(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("loopcore.train.collecting.ANSWER_S", 0.01)
    bench.world.faults["images of complete"] = [anyio.sleep_forever]
    async with bench.worker() as desk:
        await offered(desk, bench.world.job())
        await until(desk, lambda: (state := desk.state()) is not None and state.error is not None)
        state = desk.state()
        assert state is not None
        assert state.error == "the platform 'loop' has not answered in time"
        assert await until_over(desk) is None


async def test_missing_and_broken_images_are_counted(bench: Bench) -> None:
    rows = bench.world.images_of
    rows["image-0"] = (None, *rows["image-0"][1:])
    rows["image-1"] = (make_jpeg(1)[:-40], *rows["image-1"][1:])
    assert await images_seen(bench) == {"train": 1, "val": 0, "test": 1, "missing": 2}
    rows["image-1"] = (make_jpeg(1), *rows["image-1"][1:])
    assert await images_seen(bench) == {"train": 2, "val": 0, "test": 1, "missing": 1}  # the broken one came again


async def test_training_without_images_is_refused(bench: Bench) -> None:
    rows = bench.world.images_of
    for name, row in rows.items():
        rows[name] = (None, *row[1:])
    assert await run(bench) == "there are no images to train on: of 4, 4 could not be had"
    rows.clear()
    assert await run(bench) == "the platform has no labelled images for this training"


async def test_chunk_that_the_platform_does_not_bring_is_not_skipped(bench: Bench) -> None:
    brought = bench.world.store.fetch

    async def forgetful(images: Sequence[str], into: Path, got: Callable[[StoredImage], None]) -> None:
        bench.world.store.fetch = brought  # type: ignore[method-assign]
        await brought(images[:2], into, got)

    bench.world.store.fetch = forgetful  # type: ignore[method-assign]
    assert await images_seen(bench) == {"train": 3, "val": 0, "test": 1, "missing": 0}
    assert bench.world.calls.count("images of complete") == 2


@pytest.mark.parametrize("name", ["../outside.jpg", "/etc/hostname", ""])
async def test_file_outside_the_folder_is_refused(bench: Bench, name: str) -> None:
    brought = bench.world.store.fetch

    async def lying(images: Sequence[str], into: Path, got: Callable[[StoredImage], None]) -> None:
        bench.world.store.fetch = brought  # type: ignore[method-assign]
        await brought(images, into, lambda image: got(replace(image, file=name)))

    bench.world.store.fetch = lying  # type: ignore[method-assign]
    assert await images_seen(bench) == {"train": 3, "val": 0, "test": 1, "missing": 0}
    assert bench.world.calls.count("images of complete") == 2


@pytest.mark.parametrize("wish", [True, "true"])
async def test_validation_set_is_set_aside_where_the_platform_has_none(bench: Bench, wish: object) -> None:
    counts = await images_seen(bench, parameters={"compute_validation_set": wish})
    assert counts == {"train": 2, "val": 1, "test": 1, "missing": 0}


async def test_validation_set_of_the_platform_is_left_alone(bench: Bench) -> None:
    bench.world.images_of["image-9"] = (make_jpeg(9), "val", "complete", ())
    counts = await images_seen(bench, parameters={"compute_validation_set": True})
    assert counts == {"train": 3, "val": 1, "test": 1, "missing": 0}


async def test_validation_set_is_not_set_aside_unasked(bench: Bench) -> None:
    assert (await images_seen(bench, parameters={"compute_validation_set": False}))["val"] == 0


async def test_one_image_is_too_few_for_a_validation_set(bench: Bench) -> None:
    for number in (1, 2):
        del bench.world.images_of[f"image-{number}"]
    error = await run(bench, parameters={"compute_validation_set": True})
    assert error == "a validation set needs at least 2 training pictures, there are 1"


async def test_images_are_kept_for_the_project_s_next_job_and_not_for_another_s(bench: Bench) -> None:
    await images_seen(bench)
    assert len(bench.world.downloads) == 4
    await images_seen(bench)
    assert len(bench.world.downloads) == 4
    await images_seen(bench, project="../../aquarium")
    assert len(bench.world.downloads) == 8
    assert {path.name for path in bench.folder.iterdir()} == {"images", "job.json", "jobs"}


async def test_images_of_a_project_that_is_not_trained_any_more_go(bench: Bench) -> None:
    await images_seen(bench, project="old")
    (old,) = (bench.folder / "images").iterdir()
    os.utime(old, (0, 0))
    await images_seen(bench, project="new")
    assert not old.exists()


@pytest.mark.parametrize("keep", [False, True])
async def test_earlier_jobs_are_removed_unless_they_are_to_be_kept(bench: Bench, keep: bool) -> None:
    bench.kit = {"keep_old": keep}
    await run(bench, id="job-1")
    await run(bench, id="job-2")
    assert bench.job_folder("job-1").exists() is keep
    assert bench.job_folder("job-2").exists()


async def test_damaged_snapshot_is_made_again(bench: Bench) -> None:
    async def damage() -> None:
        image = min((bench.job_folder() / "snapshot" / "images").iterdir())
        image.unlink()
        image.write_bytes(b"")
        raise OSError

    bench.world.faults["step"] = [damage]
    assert await run(bench) is None
    assert bench.world.calls.count("images of complete") == 2


# FETCHING


def offer_model(world: World, folder: Path, version: str, format: str = "null", **extra: object) -> ModelInfo:
    folder = folder / f"{version}-{format}"
    folder.mkdir()
    (folder / "model.bin").write_text(version)
    info = write_package(folder, ModelInfo(name="old", version=version, format=format)).info
    world.models_of.append((replace(info, extra=extra), folder))
    return info


@pytest.mark.parametrize("by", ["version", "id", "platform's id"])
async def test_training_starts_from_the_platform_s_model(bench: Bench, tmp_path: Path, by: str) -> None:
    offer_model(bench.world, tmp_path, "1.0", platform={"id": "uuid-0"}, other="word")
    info = offer_model(bench.world, tmp_path, "2.0", platform={"id": "uuid-2"})
    assert await run(bench, base={"version": "2.0", "id": info.id, "platform's id": "uuid-2"}[by]) is None
    assert bench.world.base == "2.0"


async def test_training_starts_from_the_format_that_the_trainer_likes_best(bench: Bench, tmp_path: Path) -> None:
    for name in ("foreign", "other", "null"):
        offer_model(bench.world, tmp_path, "1.0", name)
    assert await run(bench, base="1.0") is None
    assert read_format(bench) == "null"


def read_format(bench: Bench) -> str:
    from loopcore.package import read_info

    return read_info(bench.job_folder() / "base").format


async def test_training_starts_from_one_of_the_trainer_s_own_models(bench: Bench) -> None:
    assert await run(bench, base="tiny", parameters={"epochs": 2}) is None
    assert bench.world.parameters == {"epochs": 2, "pretrained": "tiny"}
    assert bench.world.base is None
    assert "list models" not in bench.world.calls


async def test_training_starts_from_scratch(bench: Bench) -> None:
    assert await run(bench) is None
    assert (bench.world.base, bench.world.parameters) == (None, {})


async def test_model_that_the_platform_does_not_have_ends_the_job(bench: Bench, tmp_path: Path) -> None:
    assert await run(bench, base="nothing") == "the platform has no model 'nothing' to start from"
    offer_model(bench.world, tmp_path, "1.0", "foreign")
    error = await run(bench, base="1.0")
    assert error == "the platform has the model '1.0' as foreign, the trainer starts from null, other"


async def test_damaged_download_is_downloaded_again(bench: Bench, tmp_path: Path) -> None:
    offer_model(bench.world, tmp_path, "1.0")
    file = bench.world.models_of[0][1] / "model.bin"
    file.write_text("1.1")

    async def mend() -> None:
        if bench.world.calls.count("fetch model") > 1:
            file.write_text("1.0")

    bench.world.always = lambda _: mend()
    assert await run(bench, base="1.0") is None
    assert bench.world.calls.count("fetch model") == 2


async def test_download_that_is_no_package_ends_the_job(bench: Bench, tmp_path: Path) -> None:
    offer_model(bench.world, tmp_path, "1.0")
    (bench.world.models_of[0][1] / "model.json").unlink()
    error = await run(bench, base="1.0")
    assert error is not None
    assert "the model '1.0' to start from cannot be used" in error


async def test_model_that_has_been_damaged_since_is_downloaded_again(bench: Bench, tmp_path: Path) -> None:
    offer_model(bench.world, tmp_path, "1.0")

    async def damage() -> None:
        (bench.job_folder() / "base" / "model.bin").write_text("")
        raise OSError

    bench.world.faults["step"] = [damage]
    assert await run(bench, base="1.0") is None
    assert bench.world.calls.count("fetch model") == 2
