"""What a sink promises."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import ClassVar

import anyio
import pytest
from msgspec import structs

from loopcore.abc import Driver, Sink
from loopcore.errors import RejectedError
from loopcore.testing.pictures import make_sample
from loopcore.testing.suites.driver import LIMIT_S, DriverSuite
from loopcore.types import Box, Delivered, Prediction, Receipt, Refused, Sample

_ODD_CAMERAS = (None, "", "..", "../../outside", "/etc/passwd", "Tür 3\n", "a" * 300, "nul\0byte", "~", "con.jpg/")


class SinkSuite(DriverSuite):
    """A sink gets samples whole, answers for each, and stores none of them twice.

    ```python
    class TestCsvSink(SinkSuite):
        driver = CsvSink

        @pytest.fixture
        def table(self, tmp_path):
            return {"path": str(tmp_path / "index.csv")}

        @pytest.fixture
        def held(self, tmp_path):
            return lambda: [row["id"] for row in csv.DictReader((tmp_path / "index.csv").open())]
    ```
    """

    driver: ClassVar[type[Driver]]

    @pytest.fixture
    def held(self) -> Callable[[], Sequence[str]]:
        """Asks the sink's peer for the ids of the samples that it has; an id twice if it has the sample twice.

        To be overridden: only the plugin knows where its samples end up.
        """
        raise NotImplementedError(f"{type(self).__name__} has no fixture `held`, which lists the ids at the peer")

    @pytest.fixture
    def samples(self, make: Callable[[], Sink]) -> list[Sample]:
        """Five different samples; the images are of the first type that the sink takes."""
        media = next(iter(make().media), "image/jpeg")
        return [make_sample(seed, media=media) for seed in range(5)]

    async def test_limits_make_sense(self, make: Callable[[], Sink]) -> None:
        async with make() as sink:
            assert sink.max_batch >= 1
            assert sink.max_bytes >= 1
            assert sink.in_flight >= 1
            assert sink.timeout_s > 0
            assert set(sink.media) <= {"image/jpeg", "image/png"}

    async def test_each_sample_gets_a_receipt(self, make: Callable[[], Sink], samples: list[Sample]) -> None:
        with anyio.fail_after(LIMIT_S):
            async with make() as sink:
                for size in range(1, min(sink.max_batch, len(samples)) + 1):
                    receipts = await sink.send(samples[:size])
                    assert len(receipts) == size
                    assert all(isinstance(receipt, Delivered) for receipt in receipts)

    async def test_delivered_sample_is_with_the_peer_when_send_returns(
        self, make: Callable[[], Sink], samples: list[Sample], held: Callable[[], Sequence[str]]
    ) -> None:
        with anyio.fail_after(LIMIT_S):
            async with make() as sink:
                for batch in batches(sink, samples):
                    await sink.send(batch)
                    assert {sample.info.id for sample in batch} <= set(held())
        assert sorted(held()) == sorted(sample.info.id for sample in samples)

    async def test_sample_that_comes_again_is_delivered_and_stored_once(
        self, make: Callable[[], Sink], samples: list[Sample], held: Callable[[], Sequence[str]]
    ) -> None:
        with anyio.fail_after(LIMIT_S):
            async with make() as sink:
                for _ in range(2):
                    await deliver(sink, samples)
        assert_once(held(), samples)

    async def test_sample_that_comes_again_after_a_restart_is_delivered_and_stored_once(
        self, make: Callable[[], Sink], samples: list[Sample], held: Callable[[], Sequence[str]]
    ) -> None:
        with anyio.fail_after(LIMIT_S):
            for _ in range(2):
                async with make() as sink:
                    await deliver(sink, samples)
        assert_once(held(), samples)

    async def test_sample_that_comes_again_with_other_annotations_is_stored_once(
        self, make: Callable[[], Sink], samples: list[Sample], held: Callable[[], Sequence[str]]
    ) -> None:
        truth = (Box(label="seal", x=1, y=2, width=3, height=4),)
        changed = [
            Sample(info=structs.replace(sample.info, annotations=truth, tags=("made", "again")), image=sample.image)
            for sample in samples
        ]
        with anyio.fail_after(LIMIT_S):
            async with make() as sink:
                await deliver(sink, samples)
                await deliver(sink, changed)
        assert_once(held(), samples)

    async def test_calls_may_overlap_as_far_as_the_sink_allows(
        self, make: Callable[[], Sink], samples: list[Sample], held: Callable[[], Sequence[str]]
    ) -> None:
        with anyio.fail_after(LIMIT_S):
            async with make() as sink:
                overlap = samples[: sink.in_flight]
                async with anyio.create_task_group() as tasks:
                    for sample in overlap:
                        tasks.start_soon(deliver, sink, [sample])
        assert_once(held(), overlap)

    async def test_cancelled_call_can_be_repeated(
        self, make: Callable[[], Sink], samples: list[Sample], held: Callable[[], Sequence[str]]
    ) -> None:
        with anyio.fail_after(LIMIT_S):
            async with make() as sink:
                with anyio.CancelScope() as scope:
                    scope.cancel()
                    await sink.send(samples[:1])
                await deliver(sink, samples)
        assert_once(held(), samples)

    @pytest.mark.parametrize("camera", _ODD_CAMERAS)
    async def test_odd_names_are_only_names(
        self, make: Callable[[], Sink], samples: list[Sample], held: Callable[[], Sequence[str]], camera: str | None
    ) -> None:
        odd = make_sample(
            9,
            media=samples[0].info.media,
            camera=camera,
            source=camera,
            tags=(camera or "", "ü,;\"'\r\n"),
            state=camera,
        )
        await self._deliver_odd(make, odd, held)

    @pytest.mark.parametrize(
        "changes",
        [
            {"captured": None, "source": None, "tags": (), "reasons": (), "prediction": None},
            {"prediction": Prediction(), "annotations": ()},
            {"urgent": True, "state": "archive"},
        ],
        ids=["bare", "nothing found", "urgent"],
    )
    async def test_little_may_be_known_of_a_sample(
        self,
        make: Callable[[], Sink],
        samples: list[Sample],
        held: Callable[[], Sequence[str]],
        changes: dict[str, object],
    ) -> None:
        await self._deliver_odd(make, make_sample(9, media=samples[0].info.media, **changes), held)  # type: ignore[arg-type]

    async def test_every_media_type_that_the_sink_names_is_taken(
        self, make: Callable[[], Sink], held: Callable[[], Sequence[str]]
    ) -> None:
        with anyio.fail_after(LIMIT_S):
            async with make() as sink:
                media = sink.media or ("image/jpeg", "image/png")
                samples = [make_sample(seed, media=kind) for seed, kind in enumerate(media)]
                await deliver(sink, samples)
        assert_once(held(), samples)

    async def _deliver_odd(self, make: Callable[[], Sink], sample: Sample, held: Callable[[], Sequence[str]]) -> None:
        """The peer may refuse such a sample; what the sink may not do is fail, or say one thing and do another."""
        with anyio.fail_after(LIMIT_S):
            async with make() as sink:
                try:
                    (receipt,) = await sink.send([sample])
                except RejectedError as exc:
                    receipt = Refused(why=str(exc))
        copies = list(held()).count(sample.info.id)
        assert copies == (1 if isinstance(receipt, Delivered) else 0)


def batches(sink: Sink, samples: Sequence[Sample]) -> list[Sequence[Sample]]:
    """The samples in calls that the sink allows."""
    size = min(sink.max_batch, 3)
    return [samples[start : start + size] for start in range(0, len(samples), size)]


async def deliver(sink: Sink, samples: Sequence[Sample]) -> list[Receipt]:
    """Send all; each must be delivered."""
    receipts = [receipt for batch in batches(sink, samples) for receipt in await sink.send(batch)]
    assert len(receipts) == len(samples)
    assert all(isinstance(receipt, Delivered) for receipt in receipts), receipts
    return receipts


def assert_once(held: Sequence[str], samples: Sequence[Sample]) -> None:
    """Each of the samples is at the peer, and none of them twice."""
    assert Counter(held) == Counter(sample.info.id for sample in samples)
