"""One sink's road from the outbox: what is sent when, and what becomes of it.

A sample is *accepted* when the sink has a receipt for it, *rejected* when it was refused alone for good and the sink
has accepted another one since, *deferred* (tried last) when it keeps failing while others are accepted. In all other
cases it stays where it is: an outage, a wrong URL or missing credentials empty nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from datetime import datetime
from math import inf
from random import Random
from typing import Any, TypeAlias

import anyio
from anyio import TASK_STATUS_IGNORED, CancelScope, Event, create_task_group, current_time
from anyio.abc import TaskGroup, TaskStatus

from loopcore.abc import Sink
from loopcore.collect.delivery.circuit import Backoff, Circuit, Rest
from loopcore.collect.delivery.hand import Hand
from loopcore.collect.delivery.judging import check_receipts, is_final
from loopcore.collect.delivery.lanes import Lanes
from loopcore.collect.delivery.pace import Pace, local_now
from loopcore.collect.delivery.packing import fit, parts
from loopcore.collect.delivery.settling import Events, Settler
from loopcore.collect.delivery.suspects import Refusal, Suspects, Verdict
from loopcore.collect.outbox import Lease, Outbox
from loopcore.config import SinkTable
from loopcore.errors import AuthError, LoopcoreError, PluginError, RejectedError, RetryableError, StorageError, first
from loopcore.types import Delivered, Receipt, Refused, Sample

_log = logging.getLogger(__name__)

_MAX_REFUSALS = 10
_MAX_UNNOTED = 256
_MAX_RESTING = 100

_Pair: TypeAlias = tuple[Lease, Sample]


class Delivery:
    """Sends what waits in the outbox for one sink.

    The sink is entered here, and entered again when its set-up fails or when it raises what it may not raise. Nothing
    that goes wrong with it leaves `run`. Up to `sink.in_flight` calls of `send` run at a time. Calls are idempotent by
    sample id, so an unknown outcome means: again.

    Args:
        sink: The driver, not entered.
        table: Its table.
        outbox: Entered; it knows a taker of the table's name.
        events: Who hears of what was delivered and rejected.
        lanes: What this delivery shares with the node's others, so that `priority` means something.
        backoff: How to wait after failures.
        random: For the jitter.
        now: The local time, for `between`.
    """

    def __init__(
        self,
        sink: Sink,
        table: SinkTable,
        outbox: Outbox,
        events: Events | None = None,
        *,
        lanes: Lanes | None = None,
        backoff: Backoff | None = None,
        random: Random | None = None,
        now: Callable[[], datetime] = local_now,
    ) -> None:
        self.name = table.name
        self._sink = sink
        self._outbox = outbox
        backoff, random = backoff or Backoff(), random or Random()
        self._circuit = Circuit(backoff, random)
        self._pace = Pace(table.max_rate, table.between, now)
        self._lane = (lanes or Lanes()).lane(table.priority, self._wake)
        self._suspects = Suspects()
        self._settler = Settler(table.name, outbox, events, self._wake)
        self._batch = sink.max_batch
        self._turn = 0
        self._refusals = 0
        self._resumed = 0
        self._hand = Hand(outbox, table.name)
        self._rest = Rest(backoff, random)
        self._calls = 0
        self._paused = False
        self._halted: str | None = None
        self._broken = False
        self._entered = False
        self._looks = 0
        self._idle_since = 0
        self._idle = False
        self._last_error: str | None = None
        self._changed = Event()
        self._went_idle = Event()

    async def run(self, *, task_status: TaskStatus[None] = TASK_STATUS_IGNORED) -> None:
        """Send until cancelled; then give back what is in hand, and note what was accepted, within seconds."""
        try:
            async with create_task_group() as tasks:
                tasks.start_soon(self._settler.run)
                task_status.started()
                while True:
                    self._broken = False
                    await self._wait_until_allowed()
                    await self._visit()
        finally:
            self._suspects = Suspects()
            self._rest.end()
            self._hand.give_back_all()
            await self._settler.finish()

    def pause(self) -> None:
        """Begin no more calls, until `resume`."""
        self._paused = True
        self._lane.give_way()
        self._wake()

    def resume(self) -> None:
        """Go on at once, also where credentials or refusals had stopped the sink."""
        self._paused = False
        self._halted = None
        self._refusals = 0
        self._resumed = self._next_turn()
        self._circuit.reset()
        self._give_back(self._rest.end())
        self._wake()

    async def drained(self) -> None:
        """Return when nothing is left that could be sent, or when the sink is paused."""
        since = self._looks
        self._wake()
        while not (self._idle_since > since or self._paused or self._halted):
            await self._went_idle.wait()

    def status(self) -> dict[str, Any]:
        """Plain data: `state` in words, `last_error`, `failures` in a row, `in_flight` calls, and how many samples are
        held back: `suspects` were refused and wait for evidence, `resting` failed and wait for their time.
        """
        return {
            "state": self._state(),
            "last_error": self._last_error or self._settler.error,
            "failures": self._circuit.failures,
            "in_flight": self._calls,
            "suspects": self._suspects.refused,
            "resting": self._suspects.aside + len(self._rest.ids),
        }

    def _state(self) -> str:
        if self._paused:
            return "paused: by the operator"
        if self._halted:
            return f"paused: {self._halted}"
        if self._circuit.failures or not self._entered:
            return "retrying" if self._circuit.failures else "starting"
        if self._pace.closed_s():
            return "waiting: outside its part of the day"
        if self._lane.behind_s(current_time()) > 0:
            return "waiting: a sink of higher priority sends"
        return "waiting" if self._idle else "sending"

    # When

    async def _wait_until_allowed(self) -> None:
        while (seconds := self._hold_s()) > 0 and not self._broken:
            await self._sleep(seconds)

    def _hold_s(self) -> float:
        """How long nothing may begin, as far as known now."""
        if self._paused or self._halted or self._settler.waiting > _MAX_UNNOTED:
            return inf
        now = current_time()
        waits = (self._circuit.until - now, self._pace.paid_at() - now, self._pace.closed_s(), self._lane.behind_s(now))
        return max(waits)

    async def _sleep(self, seconds: float, *, news: bool = False) -> None:
        """Wait for a change, a deadline, or something to lease."""
        with anyio.move_on_after(seconds):
            async with create_task_group() as tasks:
                if news:
                    tasks.start_soon(self._hear_news)
                await self._changed.wait()
                tasks.cancel_scope.cancel()
        self._changed = Event()

    async def _hear_news(self) -> None:
        await self._outbox.wait(self.name)
        self._wake()

    def _wake(self) -> None:
        self._changed.set()
        if self._paused or self._halted:
            self._end_waits()

    async def _visit(self) -> None:
        """Enter the sink and send, until it is to be entered anew."""
        limit = CancelScope(deadline=current_time() + self._sink.timeout_s)
        try:
            with limit:
                async with self._sink:
                    limit.deadline = inf
                    self._entered = True
                    async with create_task_group() as calls:
                        await self._send_all(calls)
                    limit.deadline = current_time() + self._sink.timeout_s
            if limit.cancelled_caught:
                raise RetryableError(f"could not be set up or closed within {self._sink.timeout_s:g} s")  # noqa: TRY301
        except Exception as exc:  # noqa: BLE001 - the driver guard: whatever a sink raises, the node goes on
            self._fault(first(exc))
        finally:
            self._entered = False

    async def _send_all(self, calls: TaskGroup) -> None:
        while True:
            await self._wait_until_allowed()
            if self._broken:
                return
            if self._rest.until <= current_time():
                self._give_back(self._rest.end())
            free = (1 if self._circuit.is_open else self._sink.in_flight) - self._calls
            if free <= 0:
                await self._sleep(inf)
                continue
            if not await self._begin(calls, free) and not self._recall():
                self._note_idle()
                await self._sleep(self._rest.until - current_time(), news=True)
                self._idle = False

    async def _begin(self, calls: TaskGroup, free: int) -> bool:
        """Lease for the calls that may begin, and begin them."""
        self._looks += 1
        count = 1 if self._circuit.is_open else self._batch
        try:
            leases = await self._outbox.lease(self.name, max_count=count * free, max_bytes=self._sink.max_bytes * free)
        except StorageError as exc:
            self._fault(exc)
            return True
        if leases and not self._circuit.failures:
            self._lane.claim(current_time())
        self._hand.take(leases)
        packed = parts(leases, max_count=count, max_bytes=self._sink.max_bytes, alone=self._suspects.is_suspect)
        for part in packed[:free]:
            self._calls += 1
            calls.start_soon(self._carry, part)
        for part in packed[free:]:
            self._give_back(part)
        return bool(leases)

    def _note_idle(self) -> None:
        if not (self._calls or self._settler.waiting or self._changed.is_set()):  # a change came during the look
            self._idle = True
            self._idle_since = self._looks
            self._lane.give_way()
            self._end_waits()

    def _end_waits(self) -> None:
        self._went_idle.set()
        self._went_idle = Event()

    # One call

    async def _carry(self, leases: list[Lease]) -> None:
        try:
            pairs = await self._read(leases)
            if pairs:
                await self._post(pairs)
        except StorageError as exc:
            self._fault(exc)
        finally:
            self._calls -= 1
            self._give_back(leases)
            self._wake()

    async def _read(self, leases: list[Lease]) -> list[_Pair]:
        samples = await self._outbox.read(leases)
        for lease, sample in zip(leases, samples, strict=True):
            if sample is None:
                self._hand.drop(lease)
                self._suspects.forget(lease)
        pairs = [(lease, sample) for lease, sample in zip(leases, samples, strict=True) if sample is not None]
        fitting, unfit = await fit(pairs, self._sink.media)
        for lease, sample, why in unfit:
            self._hand.drop(lease)
            self._settler.reject(Refusal(lease, sample.info, why, self._turn))
        return fitting

    async def _post(self, pairs: list[_Pair]) -> bool:
        """Send these, in halves if they are refused together. Whether to go on with the other half."""
        begun = self._next_turn()
        self._pace.spend(current_time(), sum(len(sample.image) for _, sample in pairs))
        try:
            with anyio.fail_after(self._sink.timeout_s):
                receipts = await self._send([sample for _, sample in pairs])
            check_receipts(receipts, len(pairs))
        except RejectedError as exc:
            if not is_final(exc):
                return await self._failed(pairs, exc, begun)
            if len(pairs) > 1:
                middle = len(pairs) // 2
                return await self._post(pairs[:middle]) and await self._post(pairs[middle:])
            self._refused(pairs[0], str(exc), begun)
            return not (self._paused or self._broken)
        except AuthError as exc:
            if begun > self._resumed:  # somebody may have mended them since
                self._halt(str(exc))
            return False
        except TimeoutError:
            return await self._failed(pairs, RetryableError(f"no answer within {self._sink.timeout_s:g} s"), begun)
        except Exception as exc:  # noqa: BLE001 - the driver guard: an unforeseen error pauses this sink alone
            return await self._failed(pairs, exc, begun)
        self._received(pairs, receipts, begun)
        return not (self._paused or self._broken)

    async def _send(self, samples: Sequence[Sample]) -> Sequence[Receipt]:
        try:
            return await self._sink.send(samples)
        except ExceptionGroup as group:  # of a task group of the sink's own
            raise first(group) from group

    def _received(self, pairs: list[_Pair], receipts: Sequence[Receipt], begun: int) -> None:
        accepted: list[str] = []
        for (lease, sample), receipt in zip(pairs, receipts, strict=True):
            match receipt:
                case Delivered():
                    self._hand.drop(lease)
                    self._settler.accept(lease, sample.info, receipt)
                    accepted.append(lease.id)
                    if lease.deferrals:
                        self._give_back(self._rest.succeeded())
                case Refused():
                    self._refused((lease, sample), receipt.why, begun)
        if not accepted:
            return
        self._lane.claim(current_time())
        self._refusals = 0
        if self._circuit.failures:
            _log.info("The sink accepts samples again sink=%s", self.name)
        self._circuit.succeeded()
        self._last_error = None
        self._batch = min(self._sink.max_batch, self._batch * 2)
        final, again = self._suspects.accept(accepted, begun)
        for refusal in final:
            self._hand.drop(refusal.lease)
            self._settler.reject(refusal)
        self._give_back(again)

    def _refused(self, pair: _Pair, why: str, begun: int) -> None:
        """Refused alone. Without evidence it is held; after ten in a row it is the sink that is in doubt."""
        if self._halted or begun < self._resumed:  # what it has said before somebody looked does not count
            return
        self._last_error = why
        self._refusals += 1
        lease, sample = pair
        self._suspects.refuse(Refusal(lease, sample.info, why, self._next_turn()))
        if self._refusals >= _MAX_REFUSALS:
            self._halt(f"{_MAX_REFUSALS} refusals in a row, the last: {why}")

    async def _failed(self, pairs: list[_Pair], exc: Exception, begun: int) -> bool:
        """It may go better another time; of a single sample it may be the fault."""
        blameless = False
        if len(pairs) > 1:
            self._batch = max(1, min(self._batch, len(pairs)) // 2)
        elif (lease := pairs[0][0]).deferrals:
            blameless = len(self._rest.ids) < _MAX_RESTING
            self._rest.lay_down(lease, current_time())
        else:
            verdict, blameless = self._suspects.fail(lease, self._next_turn())
            if verdict is Verdict.DEFER:
                _log.warning("A sample fails while others pass; it is tried last sink=%s id=%s", self.name, lease.id)
                await self._outbox.defer(self.name, lease)
                self._hand.drop(lease)
            self._give_back(self._suspects.recall_aside(if_many=True))
        self._fault(exc, begun=begun, blameless=blameless)
        return False

    def _fault(self, exc: Exception, *, begun: int | None = None, blameless: bool = False) -> None:
        """Something failed at the sink, or at the disk: remember, say so once, and wait."""
        self._lane.give_way()
        turn = self._next_turn()
        if isinstance(exc, AuthError):
            self._halt(str(exc))
            return
        foreseen = isinstance(exc, LoopcoreError)
        error = exc if foreseen else PluginError(f"the sink raised {type(exc).__name__}: {exc}", plugin=self.name)
        self._broken = self._broken or isinstance(error, PluginError)
        self._last_error = str(error)
        if self._circuit.failures == 0:
            trace = None if foreseen else exc
            _log.warning("The sink fails, trying again: %s sink=%s", error, self.name, exc_info=trace)
        if not blameless or self._broken:
            self._circuit.failed(current_time(), begun=turn if begun is None else begun, turn=turn)
        if isinstance(exc, RetryableError) and exc.retry_after_s:
            self._circuit.asked(current_time(), exc.retry_after_s)
        self._wake()

    def _halt(self, why: str) -> None:
        """Nothing is sent until a person has looked; then the sink is entered anew and what was refused comes again."""
        self._lane.give_way()
        self._last_error = why
        if self._halted is None:
            _log.error("The sink is paused until someone resumes it: %s sink=%s", why, self.name)
        self._halted = self._halted or why
        self._broken = True
        self._give_back(self._suspects.recall_refused())
        self._wake()

    # What is in hand

    def _recall(self) -> bool:
        """Nothing else waits: those that let others go first have their turn again."""
        self._give_back(aside := [] if self._calls else self._suspects.recall_aside())
        return bool(aside)

    def _give_back(self, leases: Sequence[Lease]) -> None:
        """Release those that are not held on purpose."""
        self._hand.give_back(leases, except_for=self._suspects.held() | self._rest.ids)

    def _next_turn(self) -> int:
        self._turn += 1
        return self._turn
