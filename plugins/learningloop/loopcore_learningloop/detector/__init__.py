"""What a detector offers to its own clients (`learning-loop.md` 4): REST routes and Socket.IO events."""

from loopcore_learningloop.detector.controls import Controls
from loopcore_learningloop.detector.detector import Detector
from loopcore_learningloop.detector.events import Events
from loopcore_learningloop.detector.rest import Rest
from loopcore_learningloop.detector.sockets import Sockets

__all__ = ["Controls", "Detector", "Events", "Rest", "Sockets"]
