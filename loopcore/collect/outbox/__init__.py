"""The durable queue between selection and sinks: one cursor for each sink, bounds, rejects. Read `outbox.py` first."""

from loopcore.collect.outbox.outbox import Outbox
from loopcore.collect.outbox.terms import Bounds, Lease, Listed, Taker

__all__ = ["Bounds", "Lease", "Listed", "Outbox", "Taker"]
