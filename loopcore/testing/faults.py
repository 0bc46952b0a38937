"""What can go wrong between a sink and its peer, and what the sink must make of it."""

from __future__ import annotations

from enum import StrEnum

from msgspec import Struct

from loopcore.testing.servers import LoseAnswer, Reply, Reset, Stall, Step


class Outcome(StrEnum):
    """What a call of `Sink.send` came to."""

    DELIVERED = "delivered"
    REFUSED = "refused"
    """A `Refused` receipt or `RejectedError`: the sample is at fault."""
    RETRY = "retry"
    """`RetryableError`: the sample stays, and comes again."""
    AUTH = "auth"
    """`AuthError`: the sink stops."""


class Fate(StrEnum):
    """What delivery makes of that, in the end."""

    ARRIVES = "arrives"
    """Each sample is with the peer, once."""
    REJECTED = "rejected"
    """It lies in `rejected/` with the peer's answer."""
    WAITS = "waits"
    """It stays in the outbox and is tried again and again, after all others."""
    PAUSED = "paused"
    """All stay in the outbox, and nothing is sent until a person has looked."""


OF_ONE = {
    Outcome.DELIVERED: Fate.ARRIVES,
    Outcome.REFUSED: Fate.REJECTED,
    Outcome.RETRY: Fate.WAITS,
    Outcome.AUTH: Fate.PAUSED,
}
"""What becomes of one sample to which this always happens, while its neighbours get through."""

OF_ALL = {
    Outcome.DELIVERED: Fate.ARRIVES,
    Outcome.REFUSED: Fate.PAUSED,  # after ten in a row it is the sink that is in doubt, not the samples
    Outcome.RETRY: Fate.WAITS,
    Outcome.AUTH: Fate.PAUSED,
}
"""What becomes of all when it happens to all: none of them is ever rejected."""


class Fault(Struct, frozen=True, kw_only=True):
    """One way to go wrong.

    Attributes:
        name: For people.
        step: What the server does with each request.
        outcomes: What the sink may make of it.
        retry_after_s: What a `RetryableError` must carry.
    """

    name: str
    step: Step
    outcomes: frozenset[Outcome]
    retry_after_s: float | None = None


def _status(status: int, *outcomes: Outcome, retry_after_s: int | None = None) -> Fault:
    headers = {} if retry_after_s is None else {"retry-after": str(retry_after_s)}
    return Fault(
        name=f"{status}{' with Retry-After' if headers else ''}",
        step=Reply(status=status, headers=headers),
        outcomes=frozenset(outcomes),
        retry_after_s=retry_after_s,
    )


FAULTS: tuple[Fault, ...] = (
    _status(400, Outcome.REFUSED),
    _status(401, Outcome.AUTH),
    _status(403, Outcome.AUTH, Outcome.RETRY),
    _status(404, Outcome.RETRY),  # a wrong URL must not empty the outbox
    _status(405, Outcome.RETRY),
    _status(408, Outcome.RETRY),
    _status(409, Outcome.DELIVERED),  # an idempotent receiver has had it before
    _status(413, Outcome.REFUSED),
    _status(421, Outcome.RETRY),
    _status(422, Outcome.REFUSED),
    _status(425, Outcome.RETRY),
    _status(429, Outcome.RETRY, retry_after_s=7),
    _status(500, Outcome.RETRY),
    _status(503, Outcome.RETRY),
    _status(503, Outcome.RETRY, retry_after_s=7),
    Fault(name="reset in the body", step=Reset(received=1), outcomes=frozenset({Outcome.RETRY})),
    Fault(name="answer lost", step=LoseAnswer(), outcomes=frozenset({Outcome.RETRY})),
    Fault(name="answer cut", step=LoseAnswer(sent=12), outcomes=frozenset({Outcome.RETRY})),
)
"""The faults that concern every peer that speaks HTTP. A closed port needs more than a step."""

STALL = Fault(name="stall", step=Stall(), outcomes=frozenset({Outcome.RETRY}))
"""No answer, ever: the sink's own limit ends it, or the one that `Sink.timeout_s` gives it."""

PORTAL = Reply(headers={"content-type": "text/html"}, body=b"<!doctype html><title>Welcome</title><p>Please log in.")
"""200 from a network that wants a login first: nothing has arrived."""
