"""From the outbox to the sinks: one `Delivery` for each. Read `delivery.py` first."""

from loopcore.collect.delivery.circuit import Backoff
from loopcore.collect.delivery.delivery import Delivery
from loopcore.collect.delivery.lanes import Lanes
from loopcore.collect.delivery.settling import Events

__all__ = ["Backoff", "Delivery", "Events", "Lanes"]
