"""Samples become a model: the one worker of a node, and what it needs."""

from __future__ import annotations

from loopcore.train.desk import Desk
from loopcore.train.jobs import JobWorker, Terms
from loopcore.train.work import Eyes, Kit, Train

__all__ = ["Desk", "Eyes", "JobWorker", "Kit", "Terms", "Train"]
