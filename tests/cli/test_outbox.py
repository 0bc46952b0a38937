"""`loopcore outbox`: what a person types, reads and gets as an exit code."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import anyio
import pytest

from loopcore.cli import main
from loopcore.cli.outbox.showing import Ticker, age, size
from loopcore.collect.outbox import Outbox, Taker
from loopcore.config import OutboxTable
from loopcore.options import Size
from loopcore.testing import make_jpeg
from loopcore.types import Box, Prediction, SampleInfo, image_id, sample_id

NOON = datetime(2026, 5, 4, 12, tzinfo=UTC)
TOML = """
[node]
data_dir = "data"

[outbox]
min_free = 0

[[sinks]]
driver = "folder"
path = "sent"
"""
EVIL = "evil\x1b[31m\u202e"

Run = Callable[..., tuple[int, str, str]]


async def _fill(folder: Path) -> list[str]:
    """Three samples for the sinks `folder` and `gone`; the latter has rejected the first."""
    names = []
    takers = [Taker(name="folder"), Taker(name="gone")]
    async with Outbox(folder, OutboxTable(min_free=Size(0)), takers) as outbox:
        for number in range(3):
            image = make_jpeg(number)
            digest = image_id(image)
            info = SampleInfo(
                id=sample_id(digest, EVIL, None),
                image_id=digest,
                media="image/jpeg",
                image_bytes=len(image),
                width=64,
                height=48,
                kept=NOON,
                camera=EVIL,
                reasons=("uncertain",),
                prediction=Prediction(detections=(Box(label=EVIL, confidence=0.5, x=1, y=2, width=3, height=4),)),
            )
            names.append((await outbox.accept(info, image)).id)
        (lease,) = await outbox.lease("gone", max_count=1, max_bytes=1 << 30)
        await outbox.rejected("gone", lease, f"422: {EVIL}")
    return names


@pytest.fixture
def names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setenv("LOOPCORE_DEBUG", "")
    monkeypatch.chdir(tmp_path)
    Path("loop.toml").write_text(TOML)
    return anyio.run(_fill, tmp_path / "data" / "outbox")


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def call(*args: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            main(["outbox", *args])
        out, err = capsys.readouterr()
        assert "\x1b" not in out + err
        assert "\u202e" not in out + err
        assert isinstance(ended.value.code, int)
        return ended.value.code, out, err

    return call


def rows(out: str) -> list[list[str]]:
    return [line.split() for line in out.splitlines()]


def test_status_tells_what_waits_for_whom(run: Run, names: list[str]) -> None:
    code, out, _ = run("status", "loop.toml")
    assert code == 0
    table = rows(out)
    assert table[1][:5] == ["folder", "no", "node", "runs", "3"]
    assert table[2][:6] == ["gone", "not", "in", "the", "TOML", "2"]
    assert "1 (1 here)" in out
    assert "loopcore outbox forget" in out


def test_data_folder_serves_as_well_as_the_toml(run: Run, names: list[str]) -> None:
    _, out, _ = run("status", "data", "--json")
    assert json.loads(out)["count"] == 3


def test_list_prints_ids_that_other_commands_take(run: Run, names: list[str]) -> None:
    _, out, _ = run("list", "data", "--limit", "2")
    listed = [row[0] for row in rows(out)[1:]]
    assert [name.startswith(short) for name, short in zip(names[:2], listed, strict=True)] == [True, True]
    code, out, _ = run("show", "data", listed[0])
    assert code == 0
    assert names[0] in out
    assert "rejected   by gone at" in out


def test_json_lines_hold_everything(run: Run, names: list[str]) -> None:
    _, out, _ = run("list", "data", "--json", "--limit", "0")
    assert [json.loads(line)["id"] for line in out.splitlines()] == names
    _, out, _ = run("list", "data", "--json", "--rejected", "--sink", "gone")
    assert [json.loads(line)["why"] for line in out.splitlines()] == [f"422: {EVIL}"]


def test_pages_are_put_together(run: Run, names: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["loopcore.cli.outbox.commands"], "_PAGE", 2)
    _, out, _ = run("list", "data", "--json", "--limit", "0")
    assert [json.loads(line)["id"] for line in out.splitlines()] == names


def test_image_is_written_and_never_over_another_file(run: Run, names: list[str]) -> None:
    assert run("show", "data", names[1], "--image", "picture.jpg")[0] == 0
    assert Path("picture.jpg").read_bytes() == make_jpeg(1)
    assert run("show", "data", names[0], "--image", "picture.jpg")[0] == 2
    assert Path("picture.jpg").read_bytes() == make_jpeg(1)


def test_rejected_samples_go_back_into_the_queue(run: Run, names: list[str]) -> None:
    assert run("retry", "data", "gone")[0] == 2
    code, out, _ = run("retry", "data", "gone", "--all")
    assert (code, out) == (0, "1 sample went back into the queue of gone.\n")
    assert run("list", "data", "--rejected")[1] == "Nothing is rejected.\n"


def test_forget_says_what_leaves_and_asks(run: Run, names: list[str]) -> None:
    code, out, err = run("forget", "data", "gone")
    assert (code, "--yes" in err) == (2, True)
    assert "2 samples wait for gone; 0 of them for nobody else" in out
    code, out, _ = run("forget", "data", "gone", "--yes")
    assert (code, "2 places were given up" in out) == (0, True)
    assert json.loads(run("status", "data", "--json")[1])["sinks"].keys() == {"folder"}
    assert names[0][:16] in run("list", "data", "--rejected")[1]


def test_samples_travel_on_a_stick(run: Run, names: list[str]) -> None:
    code, out, _ = run("export", "data", "stick.loopcore", "--move", "--since", "2026-05-04")
    assert (code, "3 samples left the outbox" in out) == (0, True)
    assert run("import", "data", "stick.loopcore")[0] == 2
    code, out, _ = run("import", "loop.toml", "stick.loopcore")
    assert (code, out) == (0, "3 samples in stick.loopcore.\n")
    code, out, _ = run("drain", "loop.toml", "--timeout", "15 s")
    assert (code, out) == (0, "Everything has been sent.\n")
    assert len(list(Path("sent").rglob("*.jpg"))) == 3


def test_damaged_bundle_ends_with_1_and_names_the_place(run: Run, names: list[str]) -> None:
    run("export", "data", "stick.loopcore")
    data = bytearray(Path("stick.loopcore").read_bytes())
    data[1600] ^= 1
    Path("stick.loopcore").write_bytes(data)
    code, out, _ = run("import", "loop.toml", "stick.loopcore")
    assert code == 1
    assert "at byte 1024" in out
    Path("stick.loopcore").write_bytes(data[:-3000])
    assert run("import", "loop.toml", "stick.loopcore")[0] == 1


def test_fsck_ends_with_1_if_something_was_wrong(run: Run, names: list[str]) -> None:
    code, out, _ = run("fsck", "data")
    assert (code, "All is sound." in out) == (0, True)
    (segment,) = Path("data").glob("outbox/segments/*")
    data = bytearray(segment.read_bytes())
    data[-10] ^= 1
    segment.write_bytes(data)
    assert run("fsck", "data", "--dry-run")[0] == 1
    assert run("fsck", "data")[0] == 1
    assert run("fsck", "data")[0] == 0


@pytest.mark.parametrize(
    "args",
    [
        ("status", "absent.toml"),
        ("status",),
        ("export", "data", "x", "--since", "yesterday"),
        ("drain", "loop.toml", "--timeout", "soon"),
        ("list", "data", "--rejected", "--drops"),
        ("retry", "data", "nobody", "--all"),
        ("show", "data", EVIL),
    ],
)
def test_wrong_usage_ends_with_2(run: Run, names: list[str], args: tuple[str, ...]) -> None:
    assert run(*args)[0] == 2


def test_node_that_does_not_answer_is_told(run: Run, names: list[str]) -> None:
    from loopcore.files import locked

    with locked(Path("data/lock")):
        code, _, err = run("status", "data")
    assert (code, "in use by process" in err) == (1, True)


def test_sizes_and_ages_are_for_people() -> None:
    assert [size(count) for count in (0, 999, 60_000, 7_250_000, 3e12)] == [
        "0 bytes",
        "999 bytes",
        "60 kB",
        "7.25 MB",
        "3 TB",
    ]
    assert [age(seconds) for seconds in (None, 1.4, 90, 130, 8000, 4e5)] == ["-", "1 s", "90 s", "2 min", "2 h", "5 d"]


def test_progress_is_shown_in_a_terminal_alone(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    progress: list[dict[str, Any]] = [{"done": 3, "total": 9}, {"waiting": {EVIL: [2, "retrying"]}}]
    for tty in (False, True):
        monkeypatch.setattr(sys.stderr, "isatty", lambda tty=tty: tty)
        ticker = Ticker("sending")
        for one in progress:
            anyio.run(ticker.tell, one)
        ticker.end()
        err = capsys.readouterr().err
        assert ("sending: 3 of 9" in err) == tty
        assert EVIL not in err
