"""What a sink promises whose peer speaks HTTP: the peer may be slow, wrong, lying or gone, and nothing is lost."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence
from typing import ClassVar, Protocol

import anyio
import pytest

from loopcore.abc import Driver, Sink
from loopcore.errors import AuthError, RejectedError, RetryableError
from loopcore.testing.faults import FAULTS, PORTAL, Fault, Outcome
from loopcore.testing.servers import LoopbackServer, Reply, Request, Serve, Stall, Step
from loopcore.testing.suites.driver import LIMIT_S
from loopcore.testing.suites.sink import SinkSuite, assert_once, deliver
from loopcore.types import Delivered, Sample

_REPEATS = 12
"""A fault lasts for so many requests: a sink may try again by itself, but not outlast it."""


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
                for position in range(await _requests_of_a_delivery(sink, samples[0], server)):
                    sample = samples[1 + position % (len(samples) - 1)]
                    server.script(*[Serve()] * position, *[fault.step] * _REPEATS)
                    outcome, error = await _outcome(sink, sample)
                    assert outcome in self.outcomes(fault)
                    if fault.retry_after_s is not None and isinstance(error, RetryableError):
                        assert error.retry_after_s == fault.retry_after_s
                    server.script()
                    await deliver(sink, [sample])
                    assert list(held()).count(sample.info.id) == 1

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


async def _requests_of_a_delivery(sink: Sink, sample: Sample, server: LoopbackServer) -> int:
    before = server.seen
    await deliver(sink, [sample])
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
