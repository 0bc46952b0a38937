"""What a sink promises whose peer speaks HTTP: the peer may be slow, wrong, lying or gone, and nothing is lost."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence
from pathlib import Path
from typing import ClassVar, Protocol

import anyio
import pytest

from loopcore.abc import Driver, Sink
from loopcore.errors import AuthError, RejectedError, RetryableError
from loopcore.testing.delivering import Road, delivering
from loopcore.testing.faults import FAULTS, OF_ALL, OF_ONE, PORTAL, STALL, Fate, Fault, Outcome
from loopcore.testing.pictures import make_sample
from loopcore.testing.servers import LoopbackServer, Reply, Request, Serve, Stall, Step
from loopcore.testing.suites.driver import LIMIT_S
from loopcore.testing.suites.sink import SinkSuite, assert_once, deliver
from loopcore.types import Delivered, Sample

_REPEATS = 12
"""A fault lasts for so many requests: a sink may try again by itself, but not outlast it."""

_STALL_S = 0.3
"""How long a delivery waits for a peer that stalls."""


_REPEATABLE = [fault for fault in FAULTS if not fault.retry_after_s]
"""Those that may come again and again within a test."""


class HttpPeer(Protocol):
    """The sink's remote service, as far as the sink knows it."""

    def __call__(self, request: Request) -> Reply:
        """Answer as the service does, at its best."""
        ...

    def held(self) -> Sequence[str]:
        """The ids of the samples that it has; one twice if it has it twice."""
        ...


class HttpSinkSuite(SinkSuite):
    """`SinkSuite`, and every fault on every request that a delivery takes.

    ```python
    class TestAcmeSink(HttpSinkSuite):
        driver = AcmeSink

        @pytest.fixture
        def peer(self):
            return AcmeStandIn()

        @pytest.fixture
        def table(self, server):
            return {"url": server.url}
    ```

    Attributes:
        lies: Answers with status 200 that say, or show, that nothing was stored. Add the peer's own.
    """

    driver: ClassVar[type[Driver]]
    lies: ClassVar[Sequence[Reply]] = (PORTAL,)

    @pytest.fixture
    def peer(self) -> HttpPeer:
        """To be overridden: the stand-in of the remote service, a new one for each test."""
        raise NotImplementedError(f"{type(self).__name__} has no fixture `peer`, the stand-in of its remote service")

    @pytest.fixture
    async def server(self, peer: HttpPeer, anyio_backend: str) -> AsyncGenerator[LoopbackServer]:
        """The peer on loopback; `table` names its `url`."""
        async with LoopbackServer(peer) as server:
            yield server

    @pytest.fixture
    def held(self, peer: HttpPeer) -> Callable[[], Sequence[str]]:
        return peer.held

    @pytest.fixture
    def crowd(self, make: Callable[[], Sink]) -> list[Sample]:
        """Twelve different samples; the images are of the first type that the sink takes."""
        media = next(iter(make().media), "image/jpeg")
        return [make_sample(seed, media=media) for seed in range(12)]

    def outcomes(self, fault: Fault) -> frozenset[Outcome]:
        """What the sink may make of a fault. Override it where this peer's statuses mean something else."""
        return fault.outcomes

    @pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
    @pytest.mark.filterwarnings("ignore:Async generator 'httpx:ResourceWarning")  # a body that httpx left half read
    async def test_fault_is_understood_and_survived(
        self,
        make: Callable[[], Sink],
        samples: list[Sample],
        held: Callable[[], Sequence[str]],
        server: LoopbackServer,
        fault: Fault,
    ) -> None:
        with anyio.fail_after(LIMIT_S):
            async with make() as sink:
                for position in range(await _requests_of_a_delivery(sink, samples, server)):
                    sample = samples[1 + position % (len(samples) - 1)]
                    server.script(*[Serve()] * position, *[fault.step] * _REPEATS)
                    outcome, error = await _outcome(sink, sample)
                    assert outcome in self.outcomes(fault)
                    if fault.retry_after_s is not None and isinstance(error, RetryableError):
                        assert error.retry_after_s == fault.retry_after_s
                    server.script()
                    await deliver(sink, [sample])
                    assert list(held()).count(sample.info.id) == 1

    def concerns(self, request: Request, sample: Sample) -> bool:
        """Whether a request is about this sample. Override it where the picture does not travel as it is."""
        return sample.image in request.body

    async def _made_of(self, fault: Fault, sink: Sink, sample: Sample) -> Outcome:
        """What the sink makes of the fault."""
        made = Outcome.RETRY
        async with sink:
            with anyio.move_on_after(_STALL_S if fault is STALL else LIMIT_S):
                made, _ = await _outcome(sink, sample)
        return made

    def _meets(self, request: Request, sample: Sample, met: list[Request]) -> bool:
        if self.concerns(request, sample):
            met.append(request)
            return True
        return False

    @pytest.mark.parametrize("fault", [*_REPEATABLE, STALL], ids=lambda fault: fault.name)
    @pytest.mark.filterwarnings("ignore:Async generator 'httpx:ResourceWarning")
    async def test_fault_that_one_sample_meets_keeps_no_other_from_arriving(
        self,
        make: Callable[[], Sink],
        crowd: list[Sample],
        held: Callable[[], Sequence[str]],
        server: LoopbackServer,
        tmp_path: Path,
        fault: Fault,
    ) -> None:
        bad, others = crowd[2], [*crowd[:2], *crowd[3:]]
        met: list[Request] = []
        server.treat(lambda request: fault.step if self._meets(request, bad, met) else Serve())
        with anyio.fail_after(LIMIT_S):
            made = await self._made_of(fault, make(), bad)
            if not met:
                pytest.skip("no request of this sink shows which sample it is about; see `concerns`")
            assert made in self.outcomes(fault)
            fate = OF_ONE[made]
            async with delivering(_hasty(make(), fault), tmp_path / "outbox") as road:
                await road.keep(*crowd[:7])
                if fate is Fate.PAUSED:
                    await road.delivery.drained()
                    assert road.state == "paused"
                for sample in crowd[7:]:  # each that arrives is evidence against the bad one
                    await road.keep(sample)
                    if fate is not Fate.PAUSED:
                        await road.arrives([sample])
                if fate is Fate.ARRIVES:
                    await road.arrives(crowd)
                elif fate is not Fate.PAUSED:
                    await road.arrives(others)
                if fate is Fate.REJECTED:
                    await road.until(lambda: bool(road.rejected))
                assert set(road.rejected) == ({bad.info.id} if fate is Fate.REJECTED else set())
                assert (bad.info.id in await road.waiting()) == (fate in {Fate.WAITS, Fate.PAUSED})
                await _mend(server, road, others if fate is Fate.REJECTED else crowd)
        assert_once(held(), others if fate in {Fate.ARRIVES, Fate.REJECTED} else crowd)

    @pytest.mark.parametrize("fault", [*FAULTS, STALL], ids=lambda fault: fault.name)
    @pytest.mark.filterwarnings("ignore:Async generator 'httpx:ResourceWarning")
    async def test_fault_that_all_samples_meet_empties_nothing(
        self,
        make: Callable[[], Sink],
        crowd: list[Sample],
        held: Callable[[], Sequence[str]],
        server: LoopbackServer,
        tmp_path: Path,
        fault: Fault,
    ) -> None:
        server.treat(lambda _: fault.step)
        with anyio.fail_after(LIMIT_S):
            made = await self._made_of(fault, make(), crowd[0])
            assert made in self.outcomes(fault)
            fate = OF_ALL[made]
            async with delivering(_hasty(make(), fault), tmp_path / "outbox") as road:
                before = server.seen
                await road.keep(*crowd)
                if fate is Fate.WAITS:
                    await server.arrived(before + (1 if fault.retry_after_s or fault is STALL else 2 * len(crowd)))
                else:
                    await road.delivery.drained()
                    assert (road.state == "paused") == (fate is Fate.PAUSED)
                assert road.rejected == {}
                assert await road.waiting() == ([] if fate is Fate.ARRIVES else [one.info.id for one in crowd])
                await _mend(server, road, crowd)
                assert road.rejected == {}
        assert_once(held(), [] if fate is Fate.ARRIVES else crowd)

    async def test_failure_behind_a_200_is_not_taken_for_a_delivery(
        self,
        make: Callable[[], Sink],
        samples: list[Sample],
        held: Callable[[], Sequence[str]],
        server: LoopbackServer,
    ) -> None:
        with anyio.fail_after(LIMIT_S):
            async with make() as sink:
                for lie in self.lies:
                    server.script(*[lie] * _REPEATS)
                    outcome, _ = await _outcome(sink, samples[0])
                    assert outcome is not Outcome.DELIVERED, lie
                server.script()
                await deliver(sink, samples)
        assert_once(held(), samples)

    async def test_call_that_stalls_can_be_cancelled_and_repeated(
        self,
        make: Callable[[], Sink],
        samples: list[Sample],
        held: Callable[[], Sequence[str]],
        server: LoopbackServer,
    ) -> None:
        with anyio.fail_after(LIMIT_S):
            async with make() as sink:
                stalls: list[Step] = [Stall()] * _REPEATS
                server.script(*stalls)
                before = server.seen
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(sink.send, samples[:1])
                    await server.arrived(before + 1)
                    tasks.cancel_scope.cancel()
                server.script()
                await deliver(sink, samples)
        assert_once(held(), samples)

    async def test_peer_that_is_down_costs_nothing_but_time(
        self,
        make: Callable[[], Sink],
        samples: list[Sample],
        held: Callable[[], Sequence[str]],
        server: LoopbackServer,
    ) -> None:
        with anyio.fail_after(LIMIT_S):
            async with make() as sink:
                await deliver(sink, samples[:1])
                async with server.down():
                    outcome, _ = await _outcome(sink, samples[1])
                assert outcome is Outcome.RETRY
                await deliver(sink, samples)
        assert_once(held(), samples)


def _hasty(sink: Sink, fault: Fault) -> Sink:
    if fault is STALL:
        sink.timeout_s = _STALL_S
    return sink


async def _mend(server: LoopbackServer, road: Road, samples: Sequence[Sample]) -> None:
    """The peer is at its best again, and a person resumes what was paused: all that waits leaves."""
    server.treat(None)
    road.delivery.resume()
    await road.arrives(samples)
    assert await road.waiting() == []


async def _requests_of_a_delivery(sink: Sink, samples: list[Sample], server: LoopbackServer) -> int:
    """Without what is asked once, such as a login: the first delivery bears that."""
    await deliver(sink, samples[-1:])
    before = server.seen
    await deliver(sink, samples[:1])
    return server.seen - before


async def _outcome(sink: Sink, sample: Sample) -> tuple[Outcome, Exception | None]:
    """What a call came to; an error that is not in the tree fails the test."""
    try:
        (receipt,) = await sink.send([sample])
    except RetryableError as exc:
        return Outcome.RETRY, exc
    except RejectedError as exc:
        return Outcome.REFUSED, exc
    except AuthError as exc:
        return Outcome.AUTH, exc
    return (Outcome.DELIVERED if isinstance(receipt, Delivered) else Outcome.REFUSED), None
