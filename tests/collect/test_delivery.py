"""What delivery promises, with the real outbox and sinks that do as they are told."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, time
from io import BytesIO
from pathlib import Path
from random import Random
from typing import Any, Self

import anyio
import anyio.lowlevel
import pytest
from anyio import create_task_group, fail_after
from PIL import Image as PillowImage

from loopcore.abc import Sink
from loopcore.collect.delivery import Backoff, Delivery, Lanes
from loopcore.collect.outbox import Outbox, Taker
from loopcore.config import OutboxTable, SinkTable
from loopcore.drivers.http_sink import HttpSink, HttpSinkOptions
from loopcore.errors import AuthError, RejectedError, RetryableError
from loopcore.options import Duration, Options, Rate, Window
from loopcore.testing.servers import LoopbackServer, LoseAnswer, Reply, Request, Reset, Serve, Stall
from loopcore.types import Delivered, Receipt, Refused, Sample, SampleInfo, image_id, sample_id

pytestmark = pytest.mark.anyio

QUICK = Backoff(first_s=0.002, ceiling_s=0.01, open_after=3)
Behave = Callable[[Sequence[Sample]], Sequence[Receipt]]


def accept_all(samples: Sequence[Sample]) -> Sequence[Receipt]:
    return [Delivered(remote_id=f"r{sample.image.decode()}") for sample in samples]


class ScriptedSink(Sink):
    """Does what `behave` says, remembers what it accepted, and lets the test wait for it."""

    def __init__(
        self, behave: Behave = accept_all, *, max_batch: int = 1, in_flight: int = 1, timeout_s: float = 5
    ) -> None:
        super().__init__(Options())
        self.behave = behave
        self.max_batch = max_batch
        self.in_flight = in_flight
        self.timeout_s = timeout_s
        self.accepted: list[str] = []
        self.calls: list[list[str]] = []
        self.running = 0
        self.most_running = 0
        self.entries = 0
        self.refuse_entry: list[Exception] = []
        self._changed = anyio.Event()

    @asynccontextmanager
    async def __asynccontextmanager__(self) -> AsyncGenerator[Self]:
        self.entries += 1
        if self.refuse_entry:
            raise self.refuse_entry.pop(0)
        yield self

    async def send(self, samples: Sequence[Sample]) -> Sequence[Receipt]:
        self.calls.append([sample.image.decode() for sample in samples])
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        try:
            await anyio.lowlevel.checkpoint()
            await self.before(samples)
            receipts = self.behave(samples)
        finally:
            self.running -= 1
            self._changed.set()
            self._changed = anyio.Event()
        self.accepted += [
            sample.image.decode()
            for sample, receipt in zip(samples, receipts, strict=False)
            if isinstance(receipt, Delivered)
        ]
        return receipts

    async def before(self, samples: Sequence[Sample]) -> None:
        """To be replaced where a call is to take its time."""

    async def until(self, fact: Callable[[], bool]) -> None:
        while not fact():
            await self._changed.wait()


class Told:
    def __init__(self) -> None:
        self.delivered: list[tuple[str, str, str | None]] = []
        self.rejected: list[tuple[str, str, str]] = []
        self._changed = anyio.Event()

    async def sample_delivered(self, sample: SampleInfo, sink: str, remote_id: str | None) -> None:
        self.delivered.append((sample.id, sink, remote_id))
        self._note()

    async def sample_rejected(self, sample: SampleInfo, sink: str, why: str) -> None:
        self.rejected.append((sample.id, sink, why))
        self._note()

    def _note(self) -> None:
        self._changed.set()
        self._changed = anyio.Event()

    async def until(self, fact: Callable[[], bool]) -> None:
        while not fact():
            await self._changed.wait()


def table(name: str = "it", **more: Any) -> SinkTable:
    return SinkTable(driver=name, name=name, key="sinks[0]", options={}, **more)


@asynccontextmanager
async def outbox_in(folder: Path, *sinks: str) -> AsyncGenerator[Outbox]:
    takers = [Taker(name=name, start="oldest") for name in sinks or ("it",)]
    async with Outbox(folder / "outbox", OutboxTable(min_free=0), takers) as outbox:
        yield outbox


async def keep(outbox: Outbox, *names: str, **more: Any) -> list[str]:
    ids = []
    for name in names:
        image = name.encode()
        info = SampleInfo(
            id=sample_id(image_id(image), None, None), image_id=image_id(image), media="image/jpeg",
            image_bytes=len(image), width=1, height=1, kept=datetime.now(UTC), **more,
        )  # fmt: skip
        ids.append((await outbox.accept(info, image)).id)
    return ids


@asynccontextmanager
async def delivering(*deliveries: Delivery) -> AsyncGenerator[None]:
    with fail_after(20):
        async with create_task_group() as tasks:
            for delivery in deliveries:
                await tasks.start(delivery.run)
            yield
            tasks.cancel_scope.cancel()


def deliver(sink: Sink, outbox: Outbox, events: Told | None = None, name: str = "it", **more: Any) -> Delivery:
    now = more.pop("now", None)
    extra = {"now": now} if now else {}
    if "lanes" in more:
        extra["lanes"] = more.pop("lanes")
    return Delivery(sink, table(name, **more), outbox, events, backoff=QUICK, random=Random(7), **extra)


async def waiting(outbox: Outbox, sink: str = "it") -> int:
    count: int = (await outbox.status())["sinks"][sink]["waiting"]
    return count


def names(count: int) -> list[str]:
    return [f"p{number:03}" for number in range(count)]


async def test_everything_arrives_once_in_order_and_leaves_the_outbox(tmp_path: Path) -> None:
    sink, told = ScriptedSink(), Told()
    async with outbox_in(tmp_path) as outbox:
        ids = await keep(outbox, *names(20))
        delivery = deliver(sink, outbox, told)
        async with delivering(delivery):
            await delivery.drained()
            await told.until(lambda: len(told.delivered) == 20)
        assert sink.accepted == names(20)
        assert told.delivered == [(kept, "it", f"r{name}") for kept, name in zip(ids, names(20), strict=True)]
        assert await waiting(outbox) == 0


async def test_sample_that_comes_while_delivery_waits_is_sent_at_once(tmp_path: Path) -> None:
    sink = ScriptedSink()
    async with outbox_in(tmp_path) as outbox:
        delivery = deliver(sink, outbox)
        async with delivering(delivery):
            await delivery.drained()
            assert delivery.status()["state"] == "waiting"
            await keep(outbox, "late")
            await sink.until(lambda: sink.accepted == ["late"])


async def test_no_more_calls_run_than_the_sink_allows_and_no_fewer(tmp_path: Path) -> None:
    sink = ScriptedSink(in_flight=4)
    full = anyio.Event()

    async def wait_for_four(samples: Sequence[Sample]) -> None:
        if sink.running == 4:
            full.set()
        await full.wait()

    sink.before = wait_for_four  # type: ignore[method-assign]
    async with outbox_in(tmp_path) as outbox:
        await keep(outbox, *names(12))
        delivery = deliver(sink, outbox)
        async with delivering(delivery):
            await delivery.drained()
    assert sink.most_running == 4
    assert sorted(sink.accepted) == names(12)


async def test_batches_keep_to_the_count_and_bytes_of_the_sink(tmp_path: Path) -> None:
    sink = ScriptedSink(max_batch=3)
    sink.max_bytes = 10
    async with outbox_in(tmp_path) as outbox:
        await keep(outbox, "a", "b", "c", "d", "123456", "7890123", "larger than ten bytes", "e")
        delivery = deliver(sink, outbox)
        async with delivering(delivery):
            await delivery.drained()
    assert all(len(call) <= 3 and (len(call) == 1 or len("".join(call)) <= 10) for call in sink.calls)
    assert sink.calls[0] == ["a", "b", "c"]
    assert ["larger than ten bytes"] in sink.calls
    assert len(sink.accepted) == 8


async def test_bad_sample_of_a_refused_batch_is_found_and_rejected_and_the_rest_arrives(tmp_path: Path) -> None:
    def behave(samples: Sequence[Sample]) -> Sequence[Receipt]:
        if any(sample.image == b"p017" for sample in samples):
            raise RejectedError("answered 413", status=413)
        return accept_all(samples)

    sink, told = ScriptedSink(behave, max_batch=50), Told()
    async with outbox_in(tmp_path) as outbox:
        ids = await keep(outbox, *names(50))
        delivery = deliver(sink, outbox, told)
        async with delivering(delivery):
            await told.until(lambda: bool(told.rejected))
            await delivery.drained()
        assert told.rejected == [(ids[17], "it", "answered 413")]
        assert sorted(sink.accepted) == [name for name in names(50) if name != "p017"]
        assert len(sink.calls) < 16
        assert [row["id"] for row in await outbox.list_rejected("it")] == [ids[17]]


async def test_refusal_without_another_accepted_since_rejects_nothing(tmp_path: Path) -> None:
    def behave(samples: Sequence[Sample]) -> Sequence[Receipt]:
        return [Refused(why="no") if sample.image == b"bad" else Delivered() for sample in samples]

    sink, told = ScriptedSink(behave), Told()
    async with outbox_in(tmp_path) as outbox:
        await keep(outbox, "good before")
        delivery = deliver(sink, outbox, told)
        async with delivering(delivery):
            await delivery.drained()
            await keep(outbox, "bad")
            await delivery.drained()
            assert delivery.status()["suspects"] == 1
            assert (await waiting(outbox), told.rejected) == (1, [])
            await keep(outbox, "good after")
            await told.until(lambda: bool(told.rejected))
        assert await waiting(outbox) == 0


async def test_refusal_is_not_lost_when_delivery_ends_before_the_evidence(tmp_path: Path) -> None:
    sink = ScriptedSink(lambda samples: [Refused(why="no")])
    async with outbox_in(tmp_path) as outbox:
        await keep(outbox, "bad")
        delivery = deliver(sink, outbox)
        async with delivering(delivery):
            await delivery.drained()
        again = ScriptedSink()
        delivery = deliver(again, outbox)
        async with delivering(delivery):
            await delivery.drained()
    assert again.accepted == ["bad"]


async def test_ten_refusals_in_a_row_pause_the_sink_and_reject_nothing(tmp_path: Path) -> None:
    sink, told = ScriptedSink(lambda samples: [Refused(why="closed on Sundays")], in_flight=3), Told()
    async with outbox_in(tmp_path) as outbox:
        await keep(outbox, *names(30))
        delivery = deliver(sink, outbox, told)
        async with delivering(delivery):
            await delivery.drained()
            await sink.until(lambda: sink.running == 0)
            assert "10 refusals in a row" in delivery.status()["state"]
            assert "closed on Sundays" in delivery.status()["state"]
            assert (await waiting(outbox), told.rejected) == (30, [])
            assert len(sink.calls) <= 12
            sink.behave = accept_all
            delivery.resume()
            await delivery.drained()
        assert sorted(sink.accepted) == names(30)
        assert told.rejected == []


async def test_refusal_that_was_under_way_when_someone_resumed_the_sink_rejects_nothing(tmp_path: Path) -> None:
    sink, told = ScriptedSink(in_flight=2), Told()
    answer, under_way = anyio.Event(), anyio.Event()

    async def hold(samples: Sequence[Sample]) -> None:
        if samples[0].image == b"slow" and not answer.is_set():
            under_way.set()
            await answer.wait()
            raise RejectedError("answered 422", status=422)

    sink.before = hold  # type: ignore[method-assign]
    async with outbox_in(tmp_path) as outbox:
        await keep(outbox, "slow")
        delivery = deliver(sink, outbox, told)
        async with delivering(delivery):
            await under_way.wait()
            delivery.pause()
            delivery.resume()
            answer.set()
            await keep(outbox, *names(3))
            await sink.until(lambda: len(sink.accepted) == 4)
            await delivery.drained()
        assert (await waiting(outbox), told.rejected) == (0, [])


@pytest.mark.parametrize("status", [401, 403, 404, 405, 408, 421, 425, 429, 500, 301])
async def test_refusal_with_a_status_that_is_not_final_rejects_nothing(tmp_path: Path, status: int) -> None:
    tries = iter(range(100))

    def behave(samples: Sequence[Sample]) -> Sequence[Receipt]:
        if samples[0].image == b"p001" and next(tries) < 2:
            raise RejectedError(f"answered {status}", status=status)
        return accept_all(samples)

    sink, told = ScriptedSink(behave), Told()
    async with outbox_in(tmp_path) as outbox:
        await keep(outbox, *names(4))
        delivery = deliver(sink, outbox, told)
        async with delivering(delivery):
            await delivery.drained()
        assert sorted(sink.accepted) == names(4)
        assert told.rejected == []


@pytest.mark.parametrize("in_flight", [1, 4])
@pytest.mark.parametrize("max_batch", [1, 8])
@pytest.mark.parametrize("fault", [RetryableError("answered 500", status=500), KeyError("a bug in the driver")])
async def test_poison_holds_up_nobody_and_is_tried_last(
    tmp_path: Path, in_flight: int, max_batch: int, fault: Exception
) -> None:
    def behave(samples: Sequence[Sample]) -> Sequence[Receipt]:
        if any(sample.image in {b"p000", b"p005"} for sample in samples):
            raise fault
        return accept_all(samples)

    sink, told = ScriptedSink(behave, max_batch=max_batch, in_flight=in_flight), Told()
    async with outbox_in(tmp_path) as outbox:
        await keep(outbox, *names(50))
        delivery = deliver(sink, outbox, told)
        async with delivering(delivery):
            await sink.until(lambda: len(sink.accepted) == 48)
            await keep(outbox, "n1", "n2", "n3")
            await sink.until(lambda: len(sink.accepted) == 51)
        assert await waiting(outbox) == 2
        assert told.rejected == []


async def test_deferred_poison_does_not_slow_what_comes_later(tmp_path: Path) -> None:
    def behave(samples: Sequence[Sample]) -> Sequence[Receipt]:
        if samples[0].image == b"poison":
            raise RetryableError("answered 500", status=500)
        return accept_all(samples)

    sink = ScriptedSink(behave)
    async with outbox_in(tmp_path) as outbox:
        await keep(outbox, "poison", *names(10))
        delivery = deliver(sink, outbox)
        async with delivering(delivery):
            await sink.until(lambda: len(sink.accepted) == 10)
            while not (await outbox.status())["sinks"]["it"]["deferred"]:
                await keep(outbox, f"more {len(sink.calls)}")
                await delivery.drained()
            assert delivery.status()["failures"] == 0
            before = len(sink.calls)
            await sink.until(lambda: len(sink.calls) >= before + 3)
            assert delivery.status()["failures"] == 0
            await keep(outbox, "new")
            await sink.until(lambda: "new" in sink.accepted)
            sink.behave = accept_all
            await sink.until(lambda: "poison" in sink.accepted)


async def test_outage_empties_nothing_and_keeps_the_order(tmp_path: Path) -> None:
    down = True

    def behave(samples: Sequence[Sample]) -> Sequence[Receipt]:
        if down:
            raise RetryableError("answered 503", status=503)
        return accept_all(samples)

    sink, told = ScriptedSink(behave, max_batch=4), Told()
    async with outbox_in(tmp_path) as outbox:
        await keep(outbox, *names(100))
        delivery = deliver(sink, outbox, told)
        async with delivering(delivery):
            await sink.until(lambda: len(sink.calls) >= 90)
            assert delivery.status()["state"] == "retrying"
            assert delivery.status()["last_error"] == "answered 503"
            assert all(len(call) == 1 for call in sink.calls[5:])
            assert (await waiting(outbox), told.rejected) == (100, [])
            assert (await outbox.status())["sinks"]["it"]["deferred"] == 0
            down = False
            await delivery.drained()
            assert delivery.status()["last_error"] is None
        assert sorted(sink.accepted) == names(100)
        assert sink.accepted[-20:] == names(100)[-20:]


async def test_dead_sink_never_holds_up_a_living_one(tmp_path: Path) -> None:
    def dead(samples: Sequence[Sample]) -> Sequence[Receipt]:
        raise RetryableError("nobody there")

    never, stalled, living = ScriptedSink(), ScriptedSink(timeout_s=60), ScriptedSink(dead)
    never.refuse_entry = [RetryableError("no route")] * 1000

    async def stall(samples: Sequence[Sample]) -> None:
        await anyio.sleep_forever()

    stalled.before = stall  # type: ignore[method-assign]
    living.behave, dying = accept_all, ScriptedSink(dead)
    async with outbox_in(tmp_path, "never", "stalled", "dying", "living") as outbox:
        sinks = {"never": never, "stalled": stalled, "dying": dying, "living": living}
        deliveries = {name: deliver(sink, outbox, name=name) for name, sink in sinks.items()}
        async with delivering(*deliveries.values()):
            await keep(outbox, *names(30))
            await deliveries["living"].drained()
            assert living.accepted == names(30)
            await dying.until(lambda: len(dying.calls) > 3)
        assert [await waiting(outbox, name) for name in sinks] == [30, 30, 30, 0]


async def test_credentials_that_are_refused_stop_the_sink_until_someone_resumes_it(tmp_path: Path) -> None:
    def locked(samples: Sequence[Sample]) -> Sequence[Receipt]:
        raise AuthError("answered 401", status=401)

    sink = ScriptedSink(locked)
    async with outbox_in(tmp_path) as outbox:
        await keep(outbox, *names(3))
        delivery = deliver(sink, outbox)
        async with delivering(delivery):
            await delivery.drained()
            assert delivery.status()["state"] == "paused: answered 401"
            assert (len(sink.calls), await waiting(outbox)) == (1, 3)
            sink.behave = accept_all
            delivery.resume()
            await delivery.drained()
    assert sink.accepted == names(3)


async def test_old_word_on_credentials_does_not_stop_a_sink_that_someone_has_resumed_since(tmp_path: Path) -> None:
    sink = ScriptedSink(in_flight=2)
    answer, under_way = anyio.Event(), anyio.Event()

    async def hold(samples: Sequence[Sample]) -> None:
        if samples[0].image == b"slow" and not answer.is_set():
            under_way.set()
            await answer.wait()
            raise AuthError("answered 401", status=401)

    sink.before = hold  # type: ignore[method-assign]
    async with outbox_in(tmp_path) as outbox:
        await keep(outbox, "slow")
        delivery = deliver(sink, outbox)
        async with delivering(delivery):
            await under_way.wait()
            delivery.resume()
            answer.set()
            await sink.until(lambda: sink.accepted == ["slow"])


async def test_operator_can_pause_and_resume(tmp_path: Path) -> None:
    sink = ScriptedSink()
    async with outbox_in(tmp_path) as outbox:
        delivery = deliver(sink, outbox)
        delivery.pause()
        async with delivering(delivery):
            await keep(outbox, "a")
            await delivery.drained()
            assert (delivery.status()["state"], sink.calls) == ("paused: by the operator", [])
            delivery.resume()
            await delivery.drained()
    assert sink.accepted == ["a"]


async def test_sink_whose_set_up_fails_is_entered_again(tmp_path: Path) -> None:
    sink = ScriptedSink()
    sink.refuse_entry = [RetryableError("not yet"), OSError("a bug"), RetryableError("not yet")]
    async with outbox_in(tmp_path) as outbox:
        await keep(outbox, "a")
        delivery = deliver(sink, outbox)
        async with delivering(delivery):
            await delivery.drained()
    assert (sink.entries, sink.accepted) == (4, ["a"])


async def test_sink_whose_set_up_hangs_is_given_up_and_entered_again(tmp_path: Path) -> None:
    class Hanging(ScriptedSink):
        @asynccontextmanager
        async def __asynccontextmanager__(self) -> AsyncGenerator[Self]:
            self.entries += 1
            if self.entries == 1:
                await anyio.sleep_forever()
            async with create_task_group():
                yield self

    sink = Hanging(timeout_s=0.05)
    async with outbox_in(tmp_path) as outbox:
        await keep(outbox, "a")
        delivery = deliver(sink, outbox)
        async with delivering(delivery):
            await delivery.drained()
    assert sink.accepted == ["a"]


@pytest.mark.parametrize(
    "wrong",
    [lambda samples: [], lambda samples: [None], lambda samples: 1 / 0],
    ids=["too few receipts", "no receipt", "an error of its own"],
)
async def test_driver_that_breaks_its_contract_is_reported_and_the_node_goes_on(tmp_path: Path, wrong: Any) -> None:
    tries = iter(range(100))
    sink = ScriptedSink(lambda samples: wrong(samples) if next(tries) < 2 else accept_all(samples))
    async with outbox_in(tmp_path) as outbox:
        await keep(outbox, *names(3))
        delivery = deliver(sink, outbox)
        async with delivering(delivery):
            await sink.until(lambda: len(sink.calls) == 2)
            assert "the sink" in delivery.status()["last_error"]
            await delivery.drained()
        assert sink.entries == 3
        assert sorted(set(sink.accepted)) == names(3)
        assert await waiting(outbox) == 0


async def test_call_that_takes_too_long_counts_as_failed_and_comes_again(tmp_path: Path) -> None:
    sink = ScriptedSink(timeout_s=0.05)

    async def stall_once(samples: Sequence[Sample]) -> None:
        if len(sink.calls) == 1:
            await anyio.sleep_forever()

    sink.before = stall_once  # type: ignore[method-assign]
    async with outbox_in(tmp_path) as outbox:
        await keep(outbox, *names(3))
        delivery = deliver(sink, outbox)
        async with delivering(delivery):
            await delivery.drained()
    assert sink.accepted == names(3)


async def test_retry_after_is_honoured(tmp_path: Path) -> None:
    tries: list[float] = []

    def behave(samples: Sequence[Sample]) -> Sequence[Receipt]:
        tries.append(anyio.current_time())
        if len(tries) == 1:
            raise RetryableError("answered 429", status=429, retry_after_s=0.2)
        return accept_all(samples)

    async with outbox_in(tmp_path) as outbox:
        await keep(outbox, "a")
        delivery = deliver(ScriptedSink(behave), outbox)
        async with delivering(delivery):
            await delivery.drained()
    assert tries[1] - tries[0] >= 0.2


async def test_rate_is_kept_to(tmp_path: Path) -> None:
    sink = ScriptedSink(in_flight=2)
    async with outbox_in(tmp_path) as outbox:
        await keep(outbox, *names(6))
        delivery = deliver(sink, outbox, max_rate=Rate(80))
        begun = anyio.current_time()
        async with delivering(delivery):
            await delivery.drained()
        assert anyio.current_time() - begun >= 4 * 4 / 80  # two calls of four bytes may begin before anything is paid


async def test_nothing_is_sent_outside_the_window(tmp_path: Path) -> None:
    moment = datetime(2026, 1, 1, 5, 59, 59, 950_000)  # noqa: DTZ001 - local
    sink = ScriptedSink()
    async with outbox_in(tmp_path) as outbox:
        await keep(outbox, "a")
        delivery = deliver(sink, outbox, between=Window(time(6), time(7)), now=lambda: moment)
        async with delivering(delivery):
            await keep(outbox, "b")
            assert (delivery.status()["state"], sink.calls) == ("starting", [])
            moment = datetime(2026, 1, 1, 6)  # noqa: DTZ001 - local
            await delivery.drained()
    assert sink.accepted == ["a", "b"]


async def test_picture_is_transcoded_for_a_sink_that_takes_another_type(tmp_path: Path) -> None:
    class PngSink(ScriptedSink):
        media = ("image/png",)

    def behave(samples: Sequence[Sample]) -> Sequence[Receipt]:
        came.extend(samples)
        return [Delivered()]

    came: list[Sample] = []
    sink, told = PngSink(behave), Told()
    sink.accepted = []
    data = BytesIO()
    PillowImage.new("RGB", (8, 6), "red").save(data, "JPEG")
    image = data.getvalue()
    info = SampleInfo(
        id=sample_id(image_id(image), None, None), image_id=image_id(image), media="image/jpeg",
        image_bytes=len(image), width=8, height=6, kept=datetime.now(UTC),
    )  # fmt: skip

    async def send(samples: Sequence[Sample]) -> Sequence[Receipt]:
        return behave(samples)

    sink.send = send  # type: ignore[method-assign]
    async with outbox_in(tmp_path) as outbox:
        await outbox.accept(info, image)
        await keep(outbox, "not a picture")
        delivery = deliver(sink, outbox, told)
        async with delivering(delivery):
            await delivery.drained()
            await told.until(lambda: bool(told.rejected))
    assert [sample.image[:4] for sample in came] == [b"\x89PNG"]
    assert (came[0].info.media, came[0].info.image_id) == ("image/png", info.image_id)
    assert "cannot be turned into image/png" in told.rejected[0][2]


async def test_nothing_acknowledged_is_sent_again_after_delivery_was_cancelled(tmp_path: Path) -> None:
    sink = ScriptedSink(in_flight=4)
    async with outbox_in(tmp_path) as outbox:
        await keep(outbox, *names(60))
        for stop_after in (1, 7, 20, 33, 60):
            async with delivering(deliver(sink, outbox)):
                await sink.until(lambda stop_after=stop_after: len(sink.accepted) >= stop_after)
        assert await waiting(outbox) == 0
    assert sorted(sink.accepted) == names(60)


class Receiver:
    """A receiver that knows what it has by its id, and answers 409 to what comes again."""

    def __init__(self) -> None:
        self.has: list[str] = []
        self.before: Callable[[], Awaitable[None]] | None = None

    def __call__(self, request: Request) -> Reply:
        key = request.headers["idempotency-key"]
        if key in self.has:
            return Reply(status=409)
        self.has.append(key)
        return Reply(status=201)


FAULTS = [
    *(Reply(status=status) for status in (301, 404, 405, 408, 421, 425, 500, 502, 503)),
    Reply(status=429, headers={"Retry-After": "0"}),
    Reset(),
    LoseAnswer(),
    LoseAnswer(sent=20),
    Stall(),
]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: f"{type(fault).__name__}-{getattr(fault, 'status', '')}")
async def test_lying_server_gets_everything_once_when_it_recovers(tmp_path: Path, fault: Any) -> None:
    receiver, told = Receiver(), Told()
    async with outbox_in(tmp_path) as outbox, LoopbackServer(receiver) as server:
        sink = HttpSink(HttpSinkOptions(url=server.url, timeout=Duration(0.2 if isinstance(fault, Stall) else 5)))
        delivery = deliver(sink, outbox, told)
        ids = await keep(outbox, *names(8))
        server.script(Serve(), fault, fault, Serve(), fault)
        async with delivering(delivery):
            await delivery.drained()
        assert sorted(receiver.has) == sorted(ids)
        assert (await waiting(outbox), told.rejected) == (0, [])


async def test_answer_lost_after_success_is_sent_again_and_counts_once(tmp_path: Path) -> None:
    receiver = Receiver()
    async with outbox_in(tmp_path) as outbox, LoopbackServer(receiver) as server:
        delivery = deliver(HttpSink(HttpSinkOptions(url=server.url)), outbox)
        (only,) = await keep(outbox, "a")
        server.script(LoseAnswer())
        async with delivering(delivery):
            await delivery.drained()
        assert receiver.has == [only]
        assert len(server.requests) == 2


@pytest.mark.parametrize(
    "answer", [Reply(status=400), Reply(status=413), Reply(status=422), Reply(body=b'{"success": false}')]
)
async def test_sample_that_a_server_refuses_is_rejected_and_the_rest_arrives(tmp_path: Path, answer: Reply) -> None:
    receiver, told = Receiver(), Told()

    def picky(request: Request) -> Reply:
        return answer if b"p003" in request.body else receiver(request)

    async with outbox_in(tmp_path) as outbox, LoopbackServer(picky) as server:
        delivery = deliver(HttpSink(HttpSinkOptions(url=server.url, in_flight=2)), outbox, told)
        ids = await keep(outbox, *names(20))
        async with delivering(delivery):
            await told.until(lambda: bool(told.rejected))
            await delivery.drained()
        assert [sample for sample, _, _ in told.rejected] == [ids[3]]
        assert len(receiver.has) == 19


async def test_wrong_url_empties_nothing(tmp_path: Path) -> None:
    async with outbox_in(tmp_path) as outbox, LoopbackServer(lambda request: Reply(status=404)) as server:
        delivery = deliver(HttpSink(HttpSinkOptions(url=f"{server.url}/typo")), outbox)
        await keep(outbox, *names(5))
        async with delivering(delivery):
            await server.arrived(80)
            assert delivery.status()["state"] == "retrying"
        assert await waiting(outbox) == 5


async def test_server_that_comes_back_is_served_again(tmp_path: Path) -> None:
    class Counting(HttpSink):
        tries = 0
        enough: anyio.Event

        async def send(self, samples: Sequence[Sample]) -> Sequence[Receipt]:
            self.tries += 1
            if self.tries == 20:
                self.enough.set()
            return await super().send(samples)

    receiver = Receiver()
    async with outbox_in(tmp_path) as outbox, LoopbackServer(receiver) as server:
        sink = Counting(HttpSinkOptions(url=server.url))
        sink.enough = anyio.Event()
        delivery = deliver(sink, outbox)
        async with delivering(delivery):
            async with server.down():
                ids = await keep(outbox, *names(5))
                await sink.enough.wait()
                assert delivery.status()["state"] == "retrying"
            await delivery.drained()
        assert sorted(receiver.has) == sorted(ids)


async def test_a_sink_of_higher_priority_is_served_first(tmp_path: Path) -> None:
    order: list[str] = []

    class Noting(ScriptedSink):
        def __init__(self, name: str) -> None:
            super().__init__()
            self.name = name
            self.max_batch = 1

        async def before(self, samples: Sequence[Sample]) -> None:
            order.append(self.name)

    async with outbox_in(tmp_path, "low", "high") as outbox:
        await keep(outbox, *names(10))
        lanes = Lanes()
        low = deliver(Noting("low"), outbox, name="low", lanes=lanes)
        high = deliver(Noting("high"), outbox, name="high", priority=1, lanes=lanes)
        async with delivering(high, low):
            await high.drained()
            await low.drained()
    assert len(order) == 20
    assert order[:11].count("low") <= 1  # one call may have begun before the other sink had anything in hand


async def test_a_hung_sink_of_higher_priority_holds_nobody_up(tmp_path: Path) -> None:
    class Hung(ScriptedSink):
        async def before(self, samples: Sequence[Sample]) -> None:
            await anyio.sleep_forever()

    async with outbox_in(tmp_path, "low", "high") as outbox:
        await keep(outbox, *names(3))
        lanes = Lanes()
        sink = ScriptedSink()
        low = deliver(sink, outbox, name="low", lanes=lanes)
        high = deliver(Hung(), outbox, name="high", priority=1, lanes=lanes)
        async with delivering(high, low):
            await low.drained()
            assert sorted(sink.accepted) == names(3)


async def test_an_error_out_of_a_sink_s_own_task_group_means_what_it_says(tmp_path: Path) -> None:
    troubles: list[Exception] = [RetryableError("busy", retry_after_s=0.001), RejectedError("too large")]

    def behave(samples: Sequence[Sample]) -> Sequence[Receipt]:
        if troubles:
            raise ExceptionGroup("of its tasks", [ExceptionGroup("inner", [troubles.pop(0)])])
        return accept_all(samples)

    sink = ScriptedSink(behave)
    async with outbox_in(tmp_path) as outbox:
        await keep(outbox, "a", "b")
        async with delivering(deliver(sink, outbox)):
            await sink.until(lambda: len(sink.accepted) == 1)
        assert sink.entries == 1
        assert sink.calls[:3] == [["a"], ["a"], ["b"]]
