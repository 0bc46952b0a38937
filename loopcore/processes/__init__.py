"""Supervised child processes, and drivers' methods in processes of their own."""

from __future__ import annotations

from loopcore.processes.calls import call_driver
from loopcore.processes.children import Child, child, ending
from loopcore.processes.limits import Limits

__all__ = ["Child", "Limits", "call_driver", "child", "ending"]
