"""Frames through infer into collect: what an answer promises is kept here."""

from loopcore.pipeline.service import Controls, Pipeline

__all__ = ["Controls", "Pipeline"]
