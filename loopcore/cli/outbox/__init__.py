"""`loopcore outbox`: look at the queue of samples, mend it, carry samples by hand."""

from loopcore.cli.outbox.commands import outbox

__all__ = ["outbox"]
