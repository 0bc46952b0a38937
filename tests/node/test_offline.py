"""Commands on an outbox that no node owns, and the same through a node."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import anyio
import msgspec
import pytest
from anyio import fail_after

from loopcore import config
from loopcore.collect.bundle import Mark, Reader
from loopcore.collect.outbox import Outbox, Taker
from loopcore.config import Config
from loopcore.errors import AuthError, ConfigError, OutboxFullError, StorageError
from loopcore.files import locked
from loopcore.node import Use, carrying, reach
from loopcore.node.clerk import taker
from loopcore.node.control_socket import Progress
from loopcore.testing import MemorySink, make_jpeg
from loopcore.types import Receipt, Sample, SampleInfo, image_id, sample_id

from .conftest import Start

pytestmark = pytest.mark.anyio

NOON = datetime(2026, 5, 4, 12, tzinfo=UTC)
ALL = {"max_count": 1000, "max_bytes": 1 << 40}
JPEG = {"Content-Type": "image/jpeg"}


def made(number: int, **known: Any) -> tuple[SampleInfo, bytes]:
    image = make_jpeg(number, 32, 24)
    digest = image_id(image)
    facts: dict[str, Any] = {"width": 32, "height": 24, "kept": NOON, "camera": "gate"} | known
    name = sample_id(digest, "gate", None)
    info = SampleInfo(id=name, image_id=digest, media="image/jpeg", image_bytes=len(image), **facts)
    return info, image


def toml(folder: Path, **tables: Any) -> Config:
    sinks = [{"driver": "folder", "name": name, "path": str(folder / f"sent-{name}")} for name in ("a", "b")]
    base: dict[str, Any] = {"node": {"data_dir": str(folder / "data")}, "sinks": sinks, "outbox": {"min_free": 0}}
    return config.parse(base | tables)


async def fill(folder: Path, count: int, **known: Any) -> list[str]:
    """An outbox as a node of `toml` leaves it behind."""
    loaded = toml(folder)
    async with Outbox(folder / "data" / "outbox", loaded.outbox, [taker(table) for table in loaded.sinks]) as outbox:
        return [(await outbox.accept(*made(number, **known))).id for number in range(count)]


async def call(folder: Path, operation: str, loaded: Config | None = None, use: Use = Use.LOOK, **given: Any) -> Any:
    with fail_after(20):
        async with reach(folder / "data", loaded, use) as control:
            return await control.call(operation, **given)


async def exported(folder: Path, **given: Any) -> Path:
    path = folder / "stick.loopcore"
    await call(folder, "outbox_export", file=str(path), **given)
    return path


async def waiting(folder: Path) -> dict[str, int]:
    status = await call(folder, "outbox_status")
    return {name: sink["waiting"] for name, sink in status["sinks"].items()}


# Looking


async def test_looking_without_the_toml_drops_nothing_and_begins_no_sink(tmp_path: Path) -> None:
    """Not even where the TOML has bounds that are long exceeded."""
    names = await fill(tmp_path, 5)
    strict = toml(tmp_path, outbox={"min_free": 0, "max_age": "1 ms", "max_count": 1, "when_full": "drop_oldest"})
    for loaded in (None, strict):
        for operation in ("outbox_status", "outbox_list", "outbox_rejected", "outbox_drops", "outbox_fsck"):
            await call(tmp_path, operation, loaded)
    assert [row["id"] for row in await call(tmp_path, "outbox_list")] == names
    assert await waiting(tmp_path) == {"a": 5, "b": 5}


async def test_status_says_which_sink_has_left_the_toml(tmp_path: Path) -> None:
    await fill(tmp_path, 1)
    sinks = (
        await call(tmp_path, "outbox_status", toml(tmp_path, sinks=[{"driver": "folder", "name": "a", "path": "x"}]))
    )["sinks"]
    assert {name: sink["state"] for name, sink in sinks.items()} == {"a": "no node runs", "b": "not in the TOML"}


async def test_where_there_is_no_outbox_none_is_made(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="no outbox"):
        await call(tmp_path, "outbox_status")
    assert list(tmp_path.iterdir()) == []


async def test_folder_that_another_process_has_is_left_alone(tmp_path: Path) -> None:
    await fill(tmp_path, 1)
    with locked(tmp_path / "data" / "lock"), pytest.raises(StorageError, match="in use by process"):
        await call(tmp_path, "outbox_status")


async def test_lists_come_in_pages(tmp_path: Path) -> None:
    names = await fill(tmp_path, 5)
    first = await call(tmp_path, "outbox_list", limit=2)
    second = await call(tmp_path, "outbox_list", after=first[-1]["seq"], limit=1000, sink="a")
    assert [row["id"] for row in [*first, *second]] == names
    with pytest.raises(ConfigError, match="there are: 'a', 'b'"):
        await call(tmp_path, "outbox_list", sink="nobody")


async def test_file_removed_by_hand_is_noticed_by_the_next_look(tmp_path: Path) -> None:
    await fill(tmp_path, 3)
    for segment in (tmp_path / "data").glob("outbox/segments/*"):
        segment.unlink()
    status = await call(tmp_path, "outbox_status")
    assert (status["count"], status["operator_deleted"]) == (0, 3)


async def test_sample_is_found_by_its_first_digits(tmp_path: Path) -> None:
    name, *_ = await fill(tmp_path, 3)
    found = await call(tmp_path, "outbox_show", id=name[:10])
    assert (found["info"]["id"], found["sinks"], found["rejected"]) == (name, ("a", "b"), [])
    for wrong, error in (("0" * 64, StorageError), ("xyz!", ConfigError), ("", ConfigError)):
        with pytest.raises(error):
            await call(tmp_path, "outbox_show", id=wrong)


async def test_rejected_sample_is_shown_with_the_answer_and_goes_back(tmp_path: Path) -> None:
    name, *_ = await fill(tmp_path, 2)
    loaded = toml(tmp_path)
    async with Outbox(tmp_path / "data" / "outbox", loaded.outbox, [Taker(name="a"), Taker(name="b")]) as outbox:
        await outbox.delivered("b", await outbox.lease("b", **ALL))
        await outbox.rejected("a", (await outbox.lease("a", **ALL))[0], "422: not a penguin")
    found = await call(tmp_path, "outbox_show", id=name)
    assert (found["waiting"], found["rejected"][0]["why"]) == (False, "422: not a penguin")
    piece = await call(tmp_path, "outbox_image", id=name)
    assert piece["size"] == found["info"]["image_bytes"]
    with pytest.raises(ConfigError, match="no rejected samples"):
        await call(tmp_path, "outbox_retry", sink="a", ids=["ffff"])
    with pytest.raises(ConfigError, match="--all"):
        await call(tmp_path, "outbox_retry", sink="a", ids=[])
    assert await call(tmp_path, "outbox_retry", sink="a", ids=[name[:8]]) == {"moved": 1, "resumed": False}
    assert await waiting(tmp_path) == {"a": 2, "b": 0}


async def test_fsck_tells_what_is_damaged_and_mends_it(tmp_path: Path) -> None:
    await fill(tmp_path, 3)
    (segment,) = (tmp_path / "data").glob("outbox/segments/*")
    data = bytearray(segment.read_bytes())
    data[-10] ^= 1
    segment.write_bytes(data)
    for mend, damaged in ((False, 1), (True, 1), (True, 0)):
        found = await call(tmp_path, "outbox_fsck", mend=mend)
        assert (found["samples"]["damaged"], found["index"]) == (damaged, [])
    assert (await call(tmp_path, "outbox_status"))["quarantined"] == 1


async def test_fsck_makes_a_damaged_index_anew(tmp_path: Path) -> None:
    names = await fill(tmp_path, 50)
    path = tmp_path / "data" / "outbox" / "index.db"
    data = bytearray(path.read_bytes())
    for page in range(2, len(data) // 4096):  # all but the first, so that it opens
        data[page * 4096 + 200 : page * 4096 + 4000 : 50] = b"\xff" * len(
            range(page * 4096 + 200, page * 4096 + 4000, 50)
        )
    path.write_bytes(data)
    await call(tmp_path, "outbox_fsck")
    again = await call(tmp_path, "outbox_fsck")
    assert (again["samples"]["read"], again["index"]) == (len(names), [])
    assert await waiting(tmp_path) == {"a": 50, "b": 50}


# Sending


async def test_drain_without_a_node_sends_everything(tmp_path: Path) -> None:
    await fill(tmp_path, 5)
    found = await call(tmp_path, "outbox_drain", toml(tmp_path), Use.SEND)
    assert {name: (sink["waiting"], sink["delivered"]) for name, sink in found["sinks"].items()} == {
        "a": (0, 5),
        "b": (0, 5),
    }
    assert len(list(tmp_path.glob("sent-a/**/*.jpg"))) == 5


async def test_drain_says_after_its_time_what_is_left_and_why(tmp_path: Path) -> None:
    await fill(tmp_path, 2)
    (tmp_path / "sent-a").write_text("in the way")
    found = await call(tmp_path, "outbox_drain", toml(tmp_path), Use.SEND, timeout_s=0.5)
    assert {name: sink["waiting"] for name, sink in found["sinks"].items()} == {"a": 2, "b": 0}
    assert "sent-a" in found["sinks"]["a"]["last_error"]


@pytest.mark.parametrize("use", [Use.TAKE, Use.SEND])
async def test_taking_and_sending_need_the_toml(tmp_path: Path, use: Use) -> None:
    await fill(tmp_path, 1)
    with pytest.raises(ConfigError, match="TOML"):
        await call(tmp_path, "outbox_drain", None, use)


# Carrying


async def test_samples_travel_by_bundle_and_go_to_the_sinks_that_want_them(tmp_path: Path) -> None:
    names = await fill(tmp_path / "here", 5, reasons=("uncertain",))
    bundle = await exported(tmp_path / "here")
    there = tmp_path / "there"
    sink = {"driver": "folder", "path": "x", "when": {"reasons": ["uncertain"]}}
    loaded = toml(there, sinks=[sink, sink | {"name": "other", "when": {"reasons": ["rare"]}}])
    found = await call(there, "outbox_import", loaded, Use.TAKE, file=str(bundle))
    assert (found["samples"], found["known"], found["whole"]) == (5, 0, True)
    assert [row["id"] for row in await call(there, "outbox_list")] == names
    assert await waiting(there) == {"folder": 5, "other": 0}
    assert await waiting(tmp_path / "here") == {"a": 5, "b": 5}


async def test_bundle_that_is_imported_again_changes_nothing(tmp_path: Path) -> None:
    await fill(tmp_path, 4)
    bundle = await exported(tmp_path)
    before = await call(tmp_path, "outbox_list")
    found = await call(tmp_path, "outbox_import", toml(tmp_path), Use.TAKE, file=str(bundle))
    after = await call(tmp_path, "outbox_list")
    assert (found["samples"], found["known"]) == (4, 4)
    assert [row["seq"] for row in after] == [row["seq"] for row in before]


async def test_sample_that_no_sink_wants_stays_in_the_bundle(tmp_path: Path) -> None:
    await fill(tmp_path / "here", 3)
    bundle = await exported(tmp_path / "here")
    loaded = toml(tmp_path, sinks=[{"driver": "folder", "path": "x", "when": {"reasons": ["rare"]}}])
    found = await call(tmp_path, "outbox_import", loaded, Use.TAKE, file=str(bundle))
    assert (found["unwanted"], (await call(tmp_path, "outbox_status"))["count"]) == (3, 0)


async def test_export_chooses_by_sink_time_and_reason(tmp_path: Path) -> None:
    await fill(tmp_path, 4, reasons=("uncertain",))
    path = tmp_path / "b"
    for number, (given, count) in enumerate(
        [
            ({"sink": "a"}, 4),
            ({"since": "2026-05-04T14:00:00+02:00"}, 4),
            ({"since": "2026-05-04T12:00:01Z"}, 0),
            ({"until": "2026-05-04T12:00:00Z"}, 0),
            ({"reasons": ["rare", "uncertain"]}, 4),
            ({"reasons": ["rare"]}, 0),
        ]
    ):
        found = await call(tmp_path, "outbox_export", file=f"{path}{number}", **given)
        assert found["samples"] == count, given
    for wrong in ({"sink": "c"}, {"since": "2026-05-04T14:00:00"}, {"file": "relative"}):
        with pytest.raises(ConfigError):
            await call(tmp_path, "outbox_export", **({"file": f"{path}x"} | wrong))


async def test_interrupted_export_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(carrying, "_PART_BYTES", 1)  # one sample at a time
    await fill(tmp_path, 6)
    path = tmp_path / "b"

    async def stop(progress: Progress) -> None:
        scope.cancel()

    with anyio.CancelScope() as scope:
        async with reach(tmp_path / "data", tell=stop) as control:
            await control.call("outbox_export", file=str(path))
    assert not path.exists()
    found = await call(tmp_path, "outbox_export", file=str(path))
    assert 0 < found["resumed"] < found["samples"] == 6
    with Reader(path) as reader:
        assert len(reader.pieces(1 << 30)) == 6
        reader.pieces(1)
        assert reader.whole


async def test_part_of_another_outbox_is_not_gone_on_with(tmp_path: Path) -> None:
    """Two devices with the same paths and names, and one stick."""
    for device in ("one", "two"):
        await fill(tmp_path / device, 2)
    path = await exported(tmp_path / "one")
    path.rename(tmp_path / "b.part")
    with pytest.raises(StorageError, match="part of another export"):
        await call(tmp_path / "two", "outbox_export", file=str(tmp_path / "b"))


async def test_moved_samples_leave_the_outbox_only_from_a_whole_bundle(tmp_path: Path) -> None:
    await fill(tmp_path, 4)
    path = tmp_path / "b"
    await call(tmp_path, "outbox_export", file=str(path))
    data = path.read_bytes()
    path.write_bytes(data[:3000] + bytes([data[3000] ^ 1]) + data[3001:])
    with pytest.raises(StorageError, match="nothing was taken out"):
        await call(tmp_path, "outbox_export", file=str(path), move=True)
    assert await waiting(tmp_path) == {"a": 4, "b": 4}
    path.write_bytes(data)
    assert (await call(tmp_path, "outbox_export", file=str(path), move=True))["moved"] == 4  # as after a crash between
    assert await waiting(tmp_path) == {"a": 0, "b": 0}


async def test_moving_what_waits_for_one_sink_leaves_it_to_the_other(tmp_path: Path) -> None:
    await fill(tmp_path, 3)
    await exported(tmp_path, sink="a", move=True)
    assert await waiting(tmp_path) == {"a": 0, "b": 3}
    status = await call(tmp_path, "outbox_status")
    assert (status["count"], status["moved_out"]) == (3, 3)


async def test_damaged_part_of_a_bundle_costs_that_sample_alone(tmp_path: Path) -> None:
    names = await fill(tmp_path / "here", 4)
    bundle = await exported(tmp_path / "here")
    with Reader(bundle) as reader:
        reader.pieces(1)
        at = reader.mark.offset + 600
    data = bytearray(bundle.read_bytes())
    data[at] ^= 1
    bundle.write_bytes(data)
    found = await call(tmp_path, "outbox_import", toml(tmp_path), Use.TAKE, file=str(bundle))
    assert (found["samples"], found["damaged"], found["whole"]) == (3, 1, False)
    assert [row["id"] for row in await call(tmp_path, "outbox_list")] == [names[0], *names[2:]]


async def test_picture_that_is_none_is_refused_by_name(tmp_path: Path) -> None:
    data = b"no picture"
    digest = image_id(data)
    name = sample_id(digest, "gate", None)
    async with Outbox(tmp_path / "here" / "data" / "outbox", toml(tmp_path).outbox) as outbox:
        info, _ = made(1)
        await outbox.accept(msgspec.structs.replace(info, id=name, image_id=digest, image_bytes=len(data)), data)
    bundle = await exported(tmp_path / "here")
    found = await call(tmp_path, "outbox_import", toml(tmp_path), Use.TAKE, file=str(bundle))
    assert (found["refused"], name in found["faults"][0]) == (1, True)
    assert (await call(tmp_path, "outbox_status"))["count"] == 0


async def test_import_into_a_full_outbox_stops_and_goes_on_once_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(carrying, "_PART_BYTES", 1)
    names = await fill(tmp_path / "here", 5)
    bundle = await exported(tmp_path / "here")
    full = toml(tmp_path, outbox={"min_free": 0, "max_count": 2})
    with pytest.raises(OutboxFullError, match="2 samples are in"):
        await call(tmp_path, "outbox_import", full, Use.TAKE, file=str(bundle))
    begun: list[Mark] = []
    monkeypatch.setattr(Reader, "go_on", lambda self, mark: (begun.append(mark), setattr(self, "mark", mark)))
    found = await call(tmp_path, "outbox_import", toml(tmp_path), Use.TAKE, file=str(bundle))
    assert (found["resumed"], found["samples"], found["whole"], begun[0].samples) == (2, 5, True, 2)
    assert [row["id"] for row in await call(tmp_path, "outbox_list")] == names
    assert list((tmp_path / "data" / "outbox" / "bundles").glob("*.json")) == []


# Through a node


class Guarded(MemorySink):
    """Lets nobody in until the guard is told to."""

    open = False

    async def send(self, samples: Sequence[Sample]) -> Sequence[Receipt]:
        if not type(self).open:
            raise AuthError("403: who are you?")
        return await super().send(samples)


async def test_paused_sink_tries_at_once_when_a_person_says_retry(start: Start, data_dir: Path) -> None:
    guarded = type("Once", (Guarded,), {})
    async with start({"sink": {"memory": guarded}}) as running, reach(data_dir) as control:
        await running.client.post("/predict", content=make_jpeg(1), headers=JPEG)
        found = (await control.call("outbox_drain"))["sinks"]["memory"]
        assert (found["waiting"], "403" in found["state"]) == (1, True)
        guarded.open = True
        assert await control.call("outbox_retry", sink="memory") == {"moved": 0, "resumed": True}
        assert (await control.call("outbox_drain"))["sinks"]["memory"]["delivered"] == 1


async def test_running_node_answers_the_same_commands(start: Start, data_dir: Path, tmp_path: Path) -> None:
    told: list[Progress] = []

    async def hear(progress: Progress) -> None:
        told.append(progress)

    async with start() as running, reach(data_dir, tell=hear) as control:
        await control.call("set_outbox", sending=False)
        names = [
            (await running.client.post("/predict", content=make_jpeg(number), headers=JPEG)).json()["sample_id"]
            for number in range(3)
        ]
        status = await control.call("outbox_status")
        assert status["sinks"]["memory"]["state"] == "paused: by the operator"
        assert [row["id"] for row in await control.call("outbox_list", sink="memory")] == names
        assert (await control.call("outbox_show", id=names[0][:12]))["info"]["id"] == names[0]
        assert (await control.call("outbox_fsck"))["samples"]["read"] == 3
        bundle = tmp_path / "b"
        assert (await control.call("outbox_export", file=str(bundle), move=True))["moved"] == 3
        assert told
        left = await control.call("outbox_drain")
        assert left["sinks"]["memory"]["waiting"] == 0
        found = await control.call("outbox_import", file=str(bundle))
        assert (found["samples"], found["whole"]) == (3, True)
        assert (await control.call("outbox_drain"))["sinks"]["memory"]["waiting"] == 3
        await control.call("set_outbox", sending=True)
        assert (await control.call("outbox_drain"))["sinks"]["memory"]["delivered"] == 3
        with pytest.raises(StorageError):
            await control.call("outbox_import", file=str(tmp_path / "absent"))
        assert (await control.call("outbox_forget", name="memory"))["configured"]
