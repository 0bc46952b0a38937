"""What can go wrong between a sink and its peer, and what the sink must make of it."""

from __future__ import annotations

from enum import StrEnum

from msgspec import Struct

from loopcore.testing.servers import LoseAnswer, Reply, Reset, Step


class Outcome(StrEnum):
    """What a call of `Sink.send` came to."""

    DELIVERED = "delivered"
    REFUSED = "refused"
    """A `Refused` receipt or `RejectedError`: the sample is at fault."""
    RETRY = "retry"
    """`RetryableError`: the sample stays, and comes again."""
    AUTH = "auth"
    """`AuthError`: the sink stops."""


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
    _status(408, Outcome.RETRY),
    _status(409, Outcome.DELIVERED),  # an idempotent receiver has had it before
    _status(413, Outcome.REFUSED),
    _status(422, Outcome.REFUSED),
    _status(429, Outcome.RETRY, retry_after_s=7),
    _status(500, Outcome.RETRY),
    _status(503, Outcome.RETRY),
    _status(503, Outcome.RETRY, retry_after_s=7),
    Fault(name="reset in the body", step=Reset(received=1), outcomes=frozenset({Outcome.RETRY})),
    Fault(name="answer lost", step=LoseAnswer(), outcomes=frozenset({Outcome.RETRY})),
    Fault(name="answer cut", step=LoseAnswer(sent=12), outcomes=frozenset({Outcome.RETRY})),
)
"""The faults that concern every peer that speaks HTTP. A stall and a closed port need more than one step."""

PORTAL = Reply(headers={"content-type": "text/html"}, body=b"<!doctype html><title>Welcome</title><p>Please log in.")
"""200 from a network that wants a login first: nothing has arrived."""
