"""A download ends, whatever the platform does, and what it leaves is of use or is gone."""

from __future__ import annotations

from pathlib import Path

import anyio
import pytest
from anyio import fail_after

from loopcore.deploy import fetching as module
from loopcore.deploy.fetching import fetch
from loopcore.deploy.modelstore import ModelStore
from loopcore.errors import LoopcoreError, ModelError, PluginError, RetryableError, StorageError
from loopcore.testing.platform import MemoryModels
from loopcore.types import ModelInfo

pytestmark = pytest.mark.anyio

OFFER = ModelInfo(name="gate", version="../../etc", format="onnx")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LOOK_S", 0.01)


class Hanging(MemoryModels):
    """Sends a part and then nothing more, but does not end."""

    async def fetch(self, info: ModelInfo, format: str, into: Path) -> None:
        (into / "weights.part").write_bytes(b"x" * 1000)
        await anyio.sleep_forever()


class Endless(MemoryModels):
    async def fetch(self, info: ModelInfo, format: str, into: Path) -> None:
        with (into / "weights.part").open("wb") as file:
            while True:
                file.write(b"x" * 100_000)
                file.flush()
                await anyio.lowlevel.checkpoint()


class Failing(MemoryModels):
    async def fetch(self, info: ModelInfo, format: str, into: Path) -> None:
        (into / "weights.part").write_bytes(b"x" * 1000)
        raise OSError(28, "No space left on device")


async def left_after(models: MemoryModels, folder: Path, error: type[LoopcoreError], why: str) -> list[str]:
    with fail_after(10), pytest.raises(error, match=why):
        await fetch("acme", models, OFFER, ModelStore(folder / "models"))
    assert [path.name for path in folder.iterdir()] == ["models"]
    return [path.name for path in (folder / "models").rglob("*") if path.is_file()]


async def test_a_download_that_stands_still_is_given_up_and_its_part_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "STILL_S", 0.05)
    assert await left_after(Hanging(), tmp_path, RetryableError, "has sent nothing of a model") == ["weights.part"]


async def test_a_download_that_does_not_end_is_stopped_and_cleared_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MOST_BYTES", 1_000_000)
    assert await left_after(Endless(), tmp_path, ModelError, "sends more than 1000000 bytes") == []


async def test_a_download_leaves_room_for_the_samples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LEAST_FREE", 1 << 60)
    assert await left_after(Hanging(), tmp_path, StorageError, "does not fit on the disk") == []


async def test_a_part_does_not_stay_on_a_full_disk(tmp_path: Path) -> None:
    assert await left_after(Failing(), tmp_path, PluginError, "No space left") == []
